"""What a follower makes of messages that it cannot use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from follow_servers import content, ones

from embedstore import dense
from embedstore._native import crc32c
from embedstore.errors import InvalidArgumentError
from embedstore.server.feed import Feed, Pace
from embedstore.server.intake import Intake
from embedstore.server.replica import Replica
from embedstore.spec import SGD, TableSpec
from embedstore.store import LocalStore
from embedstore.v1 import spec_pb2, sync_pb2

ITEMS = TableSpec("items", dim=2, optimizer=SGD(1.0), num_chunks=2)


class Messages:
    """Numbers messages as a leader would, and gives them to an intake."""

    def __init__(self, replica: Replica) -> None:
        self.intake = Intake(replica, 0, only_tables=(), embeddings_only=True, sync_interval_ms=10)
        self.intake.begin()
        self.sequence = 0

    def take(self, message: sync_pb2.FollowResponse) -> list[sync_pb2.FollowRewind]:
        self.sequence += 1
        message.sequence = self.sequence
        return self.intake.take(message)

    def announce(self, spec: spec_pb2.TableSpec) -> None:
        self.take(sync_pb2.FollowResponse(table=sync_pb2.TableAnnouncement(spec=spec)))

    def send_chunk(self, table: str, chunk: int, delta: bytes) -> list[sync_pb2.FollowRewind]:
        part = sync_pb2.DeltaPart(table=table, chunk=chunk, length=len(delta), data=delta)
        return self.take(sync_pb2.FollowResponse(deltas=sync_pb2.DeltaParts(parts=[part])))

    def heartbeat(self, complete_until_ms: int = 5, **table: Any) -> None:
        tables = [sync_pb2.TableHeartbeat(table="items", **table)] if table else []
        heartbeat = sync_pb2.Heartbeat(complete_until_ms=complete_until_ms, tables=tables)
        self.take(sync_pb2.FollowResponse(heartbeat=heartbeat))


def test_a_table_that_cannot_be_held_stops_no_other_and_no_claim_is_made() -> None:
    replica = Replica()
    messages = Messages(replica)
    strange = TableSpec("strange", dim=2, num_chunks=2).to_proto()
    strange.optimizer.ClearField("adagrad")
    messages.announce(strange)
    messages.announce(ITEMS.to_proto())
    assert messages.send_chunk("strange", 0, b"anything") == []
    with LocalStore(None, [ITEMS]) as store:
        store.push({"items": ones(range(50), 2)})
        for chunk in range(2):
            messages.send_chunk("items", chunk, store.table("items").delta(chunk))
        assert content(replica, "items") == content(store, "items")
    messages.heartbeat()
    assert messages.intake.complete_until_ms == 0
    messages.take(sync_pb2.FollowResponse(dropped=sync_pb2.TableDropped(table="strange")))
    messages.heartbeat()
    assert messages.intake.complete_until_ms == 5


def test_a_damaged_chunk_is_asked_for_again_alone_and_the_rows_are_not_called_fresh() -> None:
    replica = Replica()
    messages = Messages(replica)
    messages.announce(ITEMS.to_proto())
    with LocalStore(None, [ITEMS]) as store:
        store.push({"items": ones(range(50), 2)})
        deltas = [store.table("items").delta(chunk) for chunk in range(2)]
        assert messages.send_chunk("items", 0, deltas[0]) == []
        [rewind] = messages.send_chunk("items", 1, deltas[1][:-1] + bytes([deltas[1][-1] ^ 1]))
        assert np.frombuffer(rewind.cursors.chunks, "<u4").tolist() == [1]
        assert rewind.cursors.table == "items"
        assert not rewind.whole_table
        messages.heartbeat()
        assert messages.intake.complete_until_ms == 0
        assert messages.send_chunk("items", 1, deltas[1]) == []
        messages.heartbeat()
        assert messages.intake.complete_until_ms == 5
        assert content(replica, "items") == content(store, "items")
    assert (messages.intake.deltas, messages.intake.chunks_asked_again) == (2, 1)


def test_a_table_begun_afresh_is_not_called_complete_for_what_was_sent_before() -> None:
    messages = Messages(Replica())
    messages.announce(ITEMS.to_proto())
    messages.heartbeat(5)
    messages.intake.begin_afresh("items")
    messages.heartbeat(6)
    assert messages.intake.complete_until_ms == 5
    messages.announce(ITEMS.to_proto())
    messages.heartbeat(7)
    assert messages.intake.complete_until_ms == 7


def test_a_whole_table_that_is_asked_for_again_is_announced_again() -> None:
    with LocalStore(None, [ITEMS]) as store:
        feed = Feed(
            store, sync_pb2.FollowWants(), Pace(1, 1), clock_ms=lambda: 5, monotonic_ms=iter(range(99)).__next__
        )
        kinds = [message.WhichOneof("kind") for message in feed.round()]
        assert kinds == ["table", "deltas", "heartbeat"]
        assert "table" not in [message.WhichOneof("kind") for message in feed.round()]
        feed.rewind(sync_pb2.FollowRewind(cursors={"table": "items"}, whole_table=True))
        assert next(feed.round()).WhichOneof("kind") == "table"


def test_a_missing_message_ends_the_call_and_a_repeated_one_changes_nothing() -> None:
    messages = Messages(Replica())
    messages.announce(ITEMS.to_proto())
    messages.sequence -= 1
    messages.heartbeat()
    assert messages.intake.complete_until_ms == 0
    messages.sequence += 1
    with pytest.raises(InvalidArgumentError, match=r"FollowResponse\.sequence"):
        messages.heartbeat()


@pytest.mark.parametrize(
    ("columns", "field"),
    [
        ({"chunks": b"\2\0\0\0"}, "TableHeartbeat"),
        ({"watermark_indexes": b"\1\0\0\0"}, "TableHeartbeat"),
        ({"versions": b"\0"}, "TableHeartbeat.versions"),
        ({"chunks": b"\0"}, "TableHeartbeat.chunks"),
        ({"clocks_ms": b""}, "TableHeartbeat.clocks_ms"),
    ],
)
def test_a_heartbeat_that_makes_no_sense_is_refused_by_name(columns: dict[str, Any], field: str) -> None:
    messages = Messages(Replica())
    messages.announce(ITEMS.to_proto())
    sound: dict[str, Any] = {"chunks": bytes(4), "incarnations": bytes(8), "versions": bytes(8), "clocks_ms": bytes(8)}
    sound |= {"watermark_indexes": bytes(4)}
    messages.heartbeat(**sound, watermark_sets=[sync_pb2.WatermarkSet()])
    with pytest.raises(InvalidArgumentError, match=field):
        messages.heartbeat(**(sound | columns), watermark_sets=[sync_pb2.WatermarkSet()])


@pytest.mark.parametrize("fault", ["checksum", "part", "name", "bytes"])
def test_a_damaged_dense_set_never_takes_the_place_of_a_sound_one(fault: str) -> None:
    replica = Replica()
    messages = Messages(replica)

    def send(value: bytes, name: str = "model", checksum: int | None = None, offset: int = 0) -> None:
        crc = crc32c(value) if checksum is None else checksum
        part = sync_pb2.DensePart(name=name, offset=offset, length=len(value) + offset, crc32c=crc, data=value)
        messages.take(sync_pb2.FollowResponse(dense=part))

    sets = [dense.freeze({"w": np.full(4, version)}, {}, version) for version in (1, 2)]
    send(dense.to_proto("model", sets[0]).SerializeToString())
    second = dense.to_proto("model", sets[1]).SerializeToString()
    with pytest.raises(InvalidArgumentError, match="DensePart"):
        if fault == "checksum":
            send(second, checksum=1)
        elif fault == "part":
            send(second, offset=4)
        elif fault == "name":
            send(second, name="other")
        else:
            send(b"\xff\xff\xff")
    assert replica.dense_versions() == {"model": 1}
