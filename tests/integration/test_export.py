"""A store leaves through one plain directory and comes back with any number of shards; who looks on disturbs nobody."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoints import COUNTED, STREAM, blobs, damage, file_size_limit, ones, segments, state
from hypothesis import given, settings
from hypothesis import strategies as st
from moved_stores import make, open_shard, push_all, whole
from processes import Process, run

import embedstore as es
from embedstore.errors import CorruptCheckpointError
from embedstore.export import export_store, import_store
from embedstore.records import watermarks_by_chunk
from embedstore.snapshot import verify
from embedstore.store import LocalStore
from embedstore.table import delta_info


@settings(max_examples=8, deadline=None)
@given(before=st.integers(1, 5), after=st.integers(1, 8))
def test_a_store_comes_back_with_any_number_of_shards(
    tmp_path_factory: pytest.TempPathFactory, before: int, after: int
) -> None:
    path = tmp_path_factory.mktemp("export")
    old = make(path, before)
    exported = export_store(old[::-1], path / "export")
    new = [path / f"new-{shard}" for shard in range(after)]
    moved = [import_store(path / "export", each, shard, after) for shard, each in enumerate(new)]
    assert sum(each.rows for each in moved) == exported.rows > 0
    assert whole(new) == whole(old)
    stores = [open_shard(each, shard, after) for shard, each in enumerate(new)]
    push_all(stores, np.arange(150, dtype=np.uint64), 9, 10)
    for store in stores:
        store.close()


def test_imported_chunks_begin_new_histories_with_the_exported_ones_as_parents(tmp_path: Path) -> None:
    (old,) = make(tmp_path, 1)
    export_store([old], tmp_path / "export")
    with open_shard(old) as store:
        # The exported history is the parent of the one that this start began.
        table = store.table("items")
        parents = {chunk: delta_info(table.delta(chunk)).parent_incarnation for chunk in table.chunks}
    import_store(tmp_path / "export", tmp_path / "new", 0, 1)
    with open_shard(tmp_path / "new") as store:
        table = store.table("items")
        assert parents == {chunk: delta_info(table.delta(chunk)).parent_incarnation for chunk in table.chunks}
        assert all(delta_info(table.delta(chunk)).incarnation != parents[chunk] for chunk in table.chunks)
        assert store.open_streams()[STREAM] == (5, 2)


def test_an_imported_chunk_that_cannot_be_read_falls_back_to_where_any_shard_had_its_table_begin(
    tmp_path: Path,
) -> None:
    old = [tmp_path / "0", tmp_path / "1"]
    for shard, (path, began) in enumerate(zip(old, (30, 20), strict=True)):
        with open_shard(path, shard, 2) as store:
            store.open_stream(STREAM, 0)
            store.push({}, origins=[es.Origin(STREAM, 0, began)])
            store.create_table(es.TableSpec("late", dim=1, num_chunks=4))
            store.push({}, origins=[es.Origin(STREAM, began, 40)])
    export_store(old, tmp_path / "export")
    import_store(tmp_path / "export", tmp_path / "new", 0, 1)
    for chunk in (0, 3):
        damage(tmp_path / "new", blobs(tmp_path / "new", "late")[chunk][0])
    with open_shard(tmp_path / "new") as store:
        stands_at = {chunk: known[STREAM] for chunk, known in watermarks_by_chunk(store.table("late")).items()}
        assert stands_at == {0: 20, 1: 40, 2: 40, 3: 20}


def test_an_older_checkpoint_can_be_gone_back_to(tmp_path: Path) -> None:
    path = tmp_path / "store"
    states = {}
    with open_shard(path, keep_checkpoints=3) as store:
        store.open_stream(STREAM, 0)
        for step in range(5):
            push_all([store], np.arange(100, dtype=np.uint64), step, step + 1)
            store.checkpoint()
            states[store.last_checkpoint_number()] = state(store)["rows"]
        store.drop_table("items")
    assert run(["checkpoint", "verify", str(path)]).returncode == 0
    kept = [json.loads(line) for line in run(["checkpoint", "list", str(path), "--json"]).stdout.splitlines()]
    numbers = sorted({row["checkpoint"] for row in kept})
    assert len(numbers) == 3
    going_back = [number for number in numbers if number in states]
    assert going_back
    for number in going_back:
        export_store([path], tmp_path / f"export-{number}", [number])
        import_store(tmp_path / f"export-{number}", tmp_path / f"new-{number}", 0, 1)
        with open_shard(tmp_path / f"new-{number}") as store:
            assert state(store)["rows"] == states[number]
    with pytest.raises(es.InvalidArgumentError, match="1 is not kept") as caught:
        export_store([path], tmp_path / "no", [1])
    assert caught.value.field == "checkpoint"


def test_shards_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    one, two = make(tmp_path, 2)
    (alone,) = make(tmp_path, 1)
    with LocalStore(two, [es.TableSpec("more", dim=2)], shard=1, num_shards=2):
        pass
    for directories, said in (
        ([], "name those of all shards"),
        ([one], "shard 1 of 2 is not among them"),
        ([one, one], "and so does"),
        ([one, alone], "holds shard 0 of 1"),
        ([one, two], "has no table 'more'"),
    ):
        with pytest.raises(es.InvalidArgumentError, match=said) as caught:
            export_store(directories, tmp_path / "export")
        assert caught.value.field == "directories"
    with pytest.raises(CorruptCheckpointError, match="holds no store"):
        export_store([tmp_path], tmp_path / "export")
    assert not [each for each in tmp_path.iterdir() if "export" in each.name]


def test_nothing_damaged_is_exported_or_imported_and_nothing_half_done_stays(tmp_path: Path) -> None:
    (path,) = make(tmp_path, 1)
    export_store([path], tmp_path / "export")
    bad = blobs(path)[3][0]
    damage(path, bad)
    with pytest.raises(CorruptCheckpointError, match="table 'items', chunk 3") as caught:
        export_store([path], tmp_path / "second")
    assert caught.value.path == str(segments(path)[bad.segment - 1]) or caught.value.path.endswith(".seg")
    for file in sorted((tmp_path / "export").rglob("*")):
        if not file.is_file():
            continue
        content = file.read_bytes()
        places = range(0, len(content), max(len(content) // 40, 1))
        for changed in (*(flipped(content, at) for at in places), content[: len(content) // 2], b""):
            file.write_bytes(changed)
            with pytest.raises(CorruptCheckpointError) as caught:
                import_store(tmp_path / "export", tmp_path / "new", 0, 1)
            assert str(tmp_path / "export") in caught.value.path
        file.unlink()
        with pytest.raises(CorruptCheckpointError):
            import_store(tmp_path / "export", tmp_path / "new", 0, 1)
        file.write_bytes(content)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["1-0", "export"]
    import_store(tmp_path / "export", tmp_path / "new", 0, 1)


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0x20]) + content[at + 1 :]


@pytest.mark.parametrize("limit", [100, 1000, 10_000])
def test_a_full_disk_ends_an_export_or_import_and_nothing_half_done_stays(tmp_path: Path, limit: int) -> None:
    (path,) = make(tmp_path, 1)
    export_store([path], tmp_path / "export")
    calls: list[Callable[[], object]] = [
        lambda: export_store([path], tmp_path / "second"),
        lambda: import_store(tmp_path / "export", tmp_path / "new", 0, 1),
    ]
    for call in calls:
        with file_size_limit(limit), pytest.raises(es.CheckpointFailedError) as caught:
            call()
        assert str(tmp_path) in caught.value.path
    assert sorted(each.name for each in tmp_path.iterdir()) == ["1-0", "export"]
    for call in calls:
        call()


def test_a_place_that_is_taken_is_refused_and_left_alone(tmp_path: Path) -> None:
    (path,) = make(tmp_path, 1)
    export_store([path], tmp_path / "export")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "something").write_text("here")
    calls: list[Callable[[], object]] = [
        lambda: export_store([path], taken),
        lambda: import_store(tmp_path / "export", taken, 0, 1),
        lambda: export_store([path], tmp_path / "export"),
    ]
    for call in calls:
        with pytest.raises(es.InvalidArgumentError, match="not empty"):
            call()
    with pytest.raises(es.InvalidArgumentError, match="9 shards are too many"):
        import_store(tmp_path / "export", tmp_path / "new", 0, 9)
    assert (taken / "something").read_text() == "here"
    (taken / "something").unlink()
    import_store(tmp_path / "export", taken, 0, 1)


def test_directories_on_the_way_to_a_target_are_made(tmp_path: Path) -> None:
    (path,) = make(tmp_path, 1)
    export_store([path], tmp_path / "backups" / "today" / "export")
    import_store(tmp_path / "backups" / "today" / "export", tmp_path / "new" / "0", 0, 1)
    with open_shard(path) as old, open_shard(tmp_path / "new" / "0") as new:
        assert state(new)["rows"] == state(old)["rows"]


def test_names_that_cannot_be_are_refused_as_any_other(tmp_path: Path) -> None:
    (path,) = make(tmp_path, 1)
    export_store([path], tmp_path / "export")
    bad = tmp_path / ("x" * 300)
    calls: list[tuple[type[es.EmbedstoreError], Callable[[], object]]] = [
        (CorruptCheckpointError, lambda: export_store([bad], tmp_path / "new")),
        (CorruptCheckpointError, lambda: verify(bad)),
        (CorruptCheckpointError, lambda: import_store(bad, tmp_path / "new", 0, 1)),
        (es.CheckpointFailedError, lambda: export_store([path], bad)),
        (es.CheckpointFailedError, lambda: import_store(tmp_path / "export", bad, 0, 1)),
    ]
    for error, call in calls:
        with pytest.raises(error, match="too long"):
            call()


def test_verify_names_every_bad_blob(tmp_path: Path) -> None:
    (path,) = make(tmp_path, 1)
    good = verify(path)
    assert not good.bad
    assert good.blobs == sum(len(refs) for name in ("items", "counting") for refs in blobs(path, name).values())
    hurt = [(2, blobs(path)[2][0]), (2, blobs(path)[2][1]), (5, blobs(path)[5][-1])]
    for _, ref in hurt:
        damage(path, ref)
    done = run(["checkpoint", "verify", str(path), "--json"])
    assert done.returncode == 1
    *bad, summary = (json.loads(line) for line in done.stdout.splitlines())
    assert {(each["table"], each["chunk"], each["offset"]) for each in bad} == {
        ("items", chunk, ref.offset) for chunk, ref in hurt
    }
    assert all(Path(each["file"]).parent == path / "segments" for each in bad)
    first, *_ = run(["checkpoint", "verify", str(path)]).stdout.splitlines()
    assert first.count(".seg") == 1
    assert summary["bad"] == 3


def contents(path: Path) -> dict[str, tuple[bytes, int]]:
    # Of the owner's LOG only the name: it may write there at any time.
    files = [file for file in path.rglob("*") if file.is_file() and file.name != "LOG"]
    return {str(file): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def test_a_running_shard_can_be_looked_at_and_exported_and_is_not_disturbed(tmp_path: Path) -> None:
    (path,) = make(tmp_path, 1)
    with Process("--listen", "127.0.0.1:0", "--data", str(path), "--checkpoint-interval-s", "3600") as process:
        with es.connect(process.address) as store:
            store.push({"items": (np.arange(10, dtype=np.uint64), ones(10))})
            created = run(["checkpoint", "create", "--servers", process.address, "--json"])
            assert json.loads(created.stdout)["chunks"] > 0
        before = contents(path)
        for command in (["list", str(path)], ["verify", str(path)], ["export", str(path), "--to", str(tmp_path / "x")]):
            done = run(["checkpoint", *command])
            assert done.returncode == 0, done.stderr
        assert contents(path) == before
        assert process.terminate() == 0
    import_store(tmp_path / "x", tmp_path / "new", 0, 1)
    assert whole([tmp_path / "new"]) == whole([path])


def test_an_export_beside_checkpoints_holds_one_moment(tmp_path: Path) -> None:
    """Every checkpoint here replaces every segment, so that what the manifest named a moment ago is gone."""
    path, done = tmp_path / "store", threading.Event()
    failures: list[BaseException] = []
    with LocalStore(path, [COUNTED]) as store:
        store.open_stream(STREAM, 0)
        ids = np.arange(200, dtype=np.uint64)

        def keep_writing() -> None:
            position = 0
            try:
                while not done.is_set():
                    store.push({"items": (ids, ones(200))}, origins=[es.Origin(STREAM, position, position + 1)])
                    position += 1
                    store.checkpoint()
            except BaseException as problem:
                failures.append(problem)

        writer = threading.Thread(target=keep_writing)
        writer.start()
        try:
            for number in range(10):
                export_store([path], tmp_path / f"export-{number}")
        finally:
            done.set()
            writer.join()
    assert not failures
    for number in range(10):
        import_store(tmp_path / f"export-{number}", tmp_path / f"new-{number}", 0, 1)
        with LocalStore(tmp_path / f"new-{number}") as imported:
            table = imported.table("items")
            for known, chunks in table.watermarks():
                for chunk in chunks:
                    _, rows = table.scan_chunk(chunk)
                    assert (-rows.embeddings == known[STREAM]).all()
