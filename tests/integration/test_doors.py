"""Who comes in, who has to go, and who does not."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from embedstore.server.doors import Door, Entrance
from embedstore.server.metrics import Requests

TIMEOUT_S = 20.0
PLACES = 8
METHOD = "/house/Stay"


class House:
    """A server with one method, which answers when it is told to, behind a door; two hosts can reach it."""

    def __init__(self, directory: Path) -> None:
        self.requests = Requests()
        self.door = Door(PLACES, self.requests, arrival_s=0.0)
        self.leave = threading.Event()
        self._inside = threading.Semaphore(0)
        self._server = grpc.server(ThreadPoolExecutor(32))
        methods = {
            "Stay": grpc.unary_unary_rpc_method_handler(self._stay),
            "Tell": grpc.unary_stream_rpc_method_handler(lambda request, context: (bytes(1 << 20) for _ in range(64))),
        }
        Entrance(self._server, self.door).add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("house", methods)]
        )
        port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.add_insecure_port(f"unix:{directory}/house")
        self._server.start()
        self.address = f"127.0.0.1:{port}"
        self.tcp = grpc.insecure_channel(self.address)
        self.local = grpc.insecure_channel(f"unix:{directory}/house")

    def _stay(self, request: bytes, context: Any) -> bytes:
        self._inside.release()
        self.leave.wait(TIMEOUT_S)
        return request

    def stay(self, channel: grpc.Channel) -> Any:
        """A call whose request has come; it comes again where there is no place at the moment."""
        method = channel.unary_unary(METHOD, None, None)
        deadline_s = time.monotonic() + TIMEOUT_S
        call = method.future(b"x", timeout=TIMEOUT_S)
        while not self._inside.acquire(timeout=0.01):
            assert time.monotonic() < deadline_s
            if call.done():
                assert call.code() is grpc.StatusCode.UNAVAILABLE
                call = method.future(b"x", timeout=TIMEOUT_S)
        return call

    def silent(self, channel: grpc.Channel) -> Any:
        """A call whose request does not come."""
        before = self.door.calls
        call = channel.stream_unary(METHOD, None, None).future(self._nothing(), timeout=TIMEOUT_S)
        self.wait_calls(before + 1)
        return call

    def _nothing(self) -> Iterator[bytes]:
        self.leave.wait(TIMEOUT_S)
        yield from ()

    def wait_calls(self, count: int) -> None:
        deadline_s = time.monotonic() + TIMEOUT_S
        while self.door.calls != count:
            assert time.monotonic() < deadline_s
            time.sleep(0.005)

    def close(self) -> None:
        self.leave.set()
        self.tcp.close()
        self.local.close()
        self._server.stop(0).wait()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    opened = House(tmp_path)
    yield opened
    opened.close()


def refusal(channel: grpc.Channel) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(METHOD, None, None)(b"x", timeout=TIMEOUT_S)
    return caught.value


def test_one_host_leaves_a_quarter_to_others(house: House) -> None:
    calls = [house.stay(house.tcp) for _ in range(6)]
    error = refusal(house.tcp)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "the limit of 6 of one host is reached" in error.details()
    calls += [house.stay(house.local) for _ in range(2)]
    assert "the limit of 8 is reached" in refusal(house.local).details()
    assert house.requests.refused["Stay", "BusyError"] == 2
    house.leave.set()
    assert [call.result() for call in calls] == [b"x"] * 8
    house.wait_calls(0)


def test_those_go_that_wait_for_their_callers_the_oldest_first_and_of_the_host_with_most(house: House) -> None:
    held = house.stay(house.tcp)
    local = [house.silent(house.local) for _ in range(2)]
    silent = [house.silent(house.tcp) for _ in range(5)]
    for first in (0, 1):  # no place is left at all; then none for this host
        call = house.tcp.unary_unary(METHOD, None, None).future(b"x", timeout=TIMEOUT_S)
        assert silent[first].code() is grpc.StatusCode.CANCELLED
        assert not any(each.done() for each in (held, call, *local, *silent[first + 1 :]))
    house.leave.set()
    assert held.result() == call.result() == b"x"
    house.wait_calls(0)


def test_those_go_who_do_not_take_their_answers(house: House) -> None:
    tales: list[Any] = []
    for i in range(6):
        tales.append(house.tcp.unary_stream("/house/Tell", None, None)(b"x", timeout=TIMEOUT_S))
        next(tales[-1])
        house.wait_calls(i + 1)
    held = house.stay(house.tcp)
    heard = [heard_of(tale) for tale in tales]
    assert heard.count(grpc.StatusCode.CANCELLED) == 1
    assert heard.count(63) == 5
    house.leave.set()
    assert held.result() == b"x"


def heard_of(tale: Any) -> Any:
    """How many messages came, or how it ended before its end."""
    try:
        return sum(1 for _ in tale)
    except grpc.RpcError:
        return tale.code()


def test_only_a_request_that_does_not_come_is_overdue(house: House) -> None:
    held, silent = house.stay(house.tcp), house.silent(house.tcp)
    house.door.end_overdue()
    assert silent.code() is grpc.StatusCode.CANCELLED
    assert not held.done()
    assert house.requests.refused["Stay", "BusyError"] == 1
    house.leave.set()
    assert held.result() == b"x"
    house.wait_calls(0)


def test_callers_who_go_are_not_counted_as_refused(house: House) -> None:
    for _ in range(20):
        with grpc.insecure_channel(house.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            calls = [house.silent(channel) for _ in range(6)]
        house.wait_calls(0)
        assert all(call.done() for call in calls)
    assert not house.requests.refused


def test_a_call_without_a_request_is_refused_by_name(house: House) -> None:
    house.leave.set()
    with pytest.raises(grpc.RpcError) as caught:
        house.tcp.stream_unary(METHOD, None, None)(iter(()), timeout=TIMEOUT_S)
    error: Any = caught.value
    assert (error.code(), error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "request: is missing")
    house.wait_calls(0)
