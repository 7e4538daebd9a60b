"""Numbers of a client's own streams: one at a time, never twice, and no false alarm."""

from __future__ import annotations

import threading

import pytest

from embedstore.client_streams import ClientStream, ClientStreams


def test_numbers_go_up_by_one_and_are_never_reused() -> None:
    stream = ClientStream()
    origins = [stream.origin() for _ in range(5)]
    assert [(o.begin, o.end) for o in origins] == [(i, i + 1) for i in range(5)]
    assert len({o.stream for o in origins}) == 1
    assert stream.name.startswith("client/")


def test_only_updates_that_nobody_was_told_of_count_as_lost() -> None:
    stream = ClientStream()
    for _ in range(3):
        stream.origin()
        assert stream.applied(0) == 0
    stream.origin()  # failed, and its caller was told
    stream.origin()
    assert stream.applied(lost_updates=1) == 0
    stream.origin()  # the shard came back without the five numbers before
    assert stream.applied(lost_updates=5) == 5
    stream.origin()  # failed
    stream.origin()  # failed
    stream.origin()
    assert stream.applied(lost_updates=6) == 4


def test_concurrent_updates_have_streams_of_their_own_and_later_ones_reuse_them() -> None:
    streams = ClientStreams(2)
    with streams.take([0, 1]) as first, streams.take([0]) as second:
        names = {first[0].name, first[1].name, second[0].name}
        assert len(names) == 3
    with streams.take([0]) as again, streams.take([0]) as other:
        assert {again[0].name, other[0].name} == {first[0].name, second[0].name}


def test_every_stream_has_its_turn_so_that_no_lost_tail_stays_untold() -> None:
    streams = ClientStreams(1)
    with streams.take([0]) as first, streams.take([0]) as second, streams.take([0]) as third:
        names = {taken[0].name for taken in (first, second, third)}
    turns = []
    for _ in range(6):
        with streams.take([0]) as taken:
            turns.append(taken[0].name)
    assert set(turns[:3]) == set(turns[3:]) == names


def test_a_failed_update_gives_its_stream_back() -> None:
    streams = ClientStreams(1)
    with pytest.raises(KeyError), streams.take([0]) as taken:
        raise KeyError
    with streams.take([0]) as again:
        assert again[0] is taken[0]


def test_no_two_threads_ever_hold_one_stream() -> None:
    streams = ClientStreams(1)
    held: set[str] = set()
    lock = threading.Lock()
    clashes: list[str] = []

    def work() -> None:
        for _ in range(200):
            with streams.take([0]) as taken:
                name = taken[0].name
                with lock:
                    if name in held:
                        clashes.append(name)
                    held.add(name)
                taken[0].origin()
                with lock:
                    held.discard(name)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not clashes
