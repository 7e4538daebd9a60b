"""A follower has one name wherever it is shown, for as long as it likes, and can be found by it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np
import pytest
from processes import free_port, run
from scraping import scraped
from waiting import until

import embedstore as es
from embedstore.cli.sample import Sample, take
from embedstore.cli.token import token
from embedstore.interface import FollowerState
from embedstore.server.followers import FORGET_MS, NAMES_MAX, OTHERS, Followers, own_name
from embedstore.server.shard import Shard
from embedstore.v1 import admin_pb2, admin_pb2_grpc, sync_pb2, sync_pb2_grpc

TABLE = es.TableSpec("items", dim=2, optimizer=es.SGD(1.0), num_chunks=4)
TIMEOUT_S = 20.0
HOST = socket.gethostname()


def labelled(shard: Shard, name: str) -> dict[str, float]:
    """The values of a metric by the follower's name."""
    return {key[1]: value for key, value in scraped(shard).items() if key[0] == name}


def push(shard: Shard, num_rows: int) -> None:
    with es.connect(shard.address) as store:
        store.push({"items": (np.arange(num_rows, dtype=np.uint64), np.ones((num_rows, 2)))})


def states(shard: Shard) -> dict[str, FollowerState]:
    return {each.peer: each for each in shard._serving.stats().follower_states}


def test_a_follower_that_comes_back_is_the_same_one(start: Callable[..., Shard]) -> None:
    leader = start(tables=[TABLE], metrics_listen="127.0.0.1:0")
    push(leader, 500)
    name = f"127.0.0.1:{free_port()}"
    first = start(follow=[leader.address], listen=name)
    assert first.wait_ready(TIMEOUT_S)
    until(lambda: labelled(leader, "follower_lag_seconds").get(name, np.inf) < TIMEOUT_S)
    first.stop()
    until(lambda: labelled(leader, "follower_calls") == {name: 0})
    sent_bytes = labelled(leader, "follower_sent_bytes_total")[name]
    assert sent_bytes > 1000
    assert labelled(leader, "follower_lag_seconds") == labelled(leader, "follower_in_flight_bytes") == {}
    [link] = take(leader.address, "", TIMEOUT_S).links()
    assert (link["follower"], link["calls"], link["lag_s"]) == (name, 0, None)
    lag = run(["shard", "lag", "--servers", leader.address])
    assert (lag.returncode, lag.stdout.split()[-3]) == (0, "gone")
    assert start(follow=[leader.address], listen=name).wait_ready(TIMEOUT_S)
    assert labelled(leader, "follower_calls") == {name: 1}
    assert labelled(leader, "follower_sent_bytes_total")[name] >= 2 * sent_bytes - 1000


def test_a_view_is_called_what_it_is_told_or_its_machine(start: Callable[..., Shard]) -> None:
    leader = start(tables=[TABLE])
    with (
        closing(es.follow(leader.address)) as view,
        closing(es.follow(leader.address, name="ranking/7")) as seven,
        closing(es.follow(leader.address, name="ranking/7")) as too,
    ):
        for each in (view, seven, too):
            each.wait_synced(TIMEOUT_S)
        assert {name: state.calls for name, state in states(leader).items()} == {HOST: 1, "ranking/7": 2}
        for wrong in ("a b", 'a"b', "a\nb", "\u00e4", "a" * 256):
            with pytest.raises(es.InvalidArgumentError, match="name"):
                es.follow(leader.address, name=wrong)
    assert (own_name("0.0.0.0:7700"), own_name("[::]:7700")) == (f"{HOST}:7700", f"{HOST}:7700")
    assert own_name("node-3.example:7700") == "node-3.example:7700"


@pytest.mark.parametrize("name", ["a b", "a\nb", "a" * 256, "\u00e4"])
def test_a_name_that_could_be_no_label_is_refused(start: Callable[..., Shard], name: str) -> None:
    leader = start(tables=[TABLE])
    with grpc.insecure_channel(leader.address) as channel:
        follow = sync_pb2_grpc.SyncServiceStub(channel).Follow
        wants = sync_pb2.FollowRequest(wants=sync_pb2.FollowWants(name=name))
        with pytest.raises(grpc.RpcError, match=r"FollowWants\.name") as refused:
            list(follow(iter([wants])))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        requests: SimpleQueue[sync_pb2.FollowRequest | None] = SimpleQueue()
        requests.put(sync_pb2.FollowRequest(wants=sync_pb2.FollowWants()))
        next(follow(iter(requests.get, None)))
        assert list(states(leader)) == ["127.0.0.1"]
        requests.put(None)


def test_names_are_bounded_and_forgotten() -> None:
    now_ms = 0
    followers = Followers(lambda: now_ms)
    gone = FollowerState("", False, 2.0, 9, 100, 3)
    for i in range(3 * NAMES_MAX):
        followers.went(followers.came(f"f{i}", standby=False), gone)
    known = {state.peer: state for state in followers.states([])}
    assert len(known) == NAMES_MAX + 1
    assert known[OTHERS].sent_bytes == 100 * 2 * NAMES_MAX
    now_ms = 5_000
    assert {state.lag_s for state in followers.states([])} == {7.0}
    here = followers.came("f0", standby=False)
    now_ms = FORGET_MS + 1
    [state] = followers.states([(here, gone)])
    assert (state.peer, state.calls, state.sent_bytes, state.lag_s) == ("f0", 1, 200, 2.0)
    assert followers.came("new", standby=True) == ("new", True)


def test_followers_and_standbys_are_found_by_their_names(start: Callable[..., Shard], tmp_path: Path) -> None:
    leader = start(tables=[TABLE], data=tmp_path / "leader")
    follower = start(follow=[leader.address])
    assert follower.wait_ready(TIMEOUT_S)
    last = start(follow=[follower.address])
    standby = start(follow=[leader.address], standby=True, data=tmp_path / "standby")
    assert last.wait_ready(TIMEOUT_S)

    def roles() -> dict[str, str]:
        return {member.address: member.role for member in take(leader.address, "", TIMEOUT_S).members}

    until(lambda: len(roles()) == 4)
    assert roles() == {
        leader.address: "shard 0/1",
        follower.address: "follower",
        standby.address: "standby 0/1",
        last.address: "follower",
    }
    by_another_name = f"localhost:{follower.address.rpartition(':')[2]}"
    assert by_another_name in {m.address for m in take(leader.address, by_another_name, TIMEOUT_S).members}
    assert len(take(leader.address, by_another_name, TIMEOUT_S).members) == 4


class Curious(admin_pb2_grpc.AdminServiceServicer):
    """Says that it is every shard, and keeps what it is told."""

    def __init__(self) -> None:
        self.tokens: list[str] = []

    def Topology(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.tokens += [value for key, value in context.invocation_metadata() if key == "authorization"]
        record = admin_pb2.TopologyRecord(epoch=99, addresses=["127.0.0.1:9"], num_shards=1)
        return admin_pb2.TopologyResponse(topology=record, num_shards=1, ready=True)

    def Stats(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.tokens += [value for key, value in context.invocation_metadata() if key == "authorization"]
        return admin_pb2.StatsResponse()


@pytest.fixture
def curious() -> Iterator[tuple[Curious, str]]:
    servicer, server = Curious(), grpc.server(ThreadPoolExecutor(2))
    admin_pb2_grpc.add_AdminServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(0).wait()


def test_who_only_names_himself_gets_no_token_and_speaks_for_nobody(
    start: Callable[..., Shard], curious: tuple[Curious, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, servicer = tmp_path / "tokens.toml", curious[0]
    for role in ("admin", "read"):
        token(role, role, tokens, tmp_path / role)
    admin, reader = (es.Credentials(token_file=tmp_path / role) for role in ("admin", "read"))
    leader = start(tables=[TABLE], tokens=tokens, credentials=admin)
    honest = start(follow=[leader.address], tokens=tokens, credentials=reader)
    assert honest.wait_ready(TIMEOUT_S)
    monkeypatch.setenv("EMBEDSTORE_TOKEN_FILE", str(tmp_path / "admin"))
    with closing(es.follow(leader.address, credentials=reader, name=curious[1])) as view:
        view.wait_synced(TIMEOUT_S)

        def seen(followers: str) -> Sample:
            sample = take(leader.address, followers, TIMEOUT_S)
            assert {member.address for member in sample.members} == {leader.address, honest.address, curious[1]}
            return sample

        for followers in ("", honest.address):
            members = {member.address: member for member in seen(followers).members}
            assert servicer.tokens == []
            assert (members[leader.address].role, members[leader.address].problem) == ("shard 0/1", "")
            assert (members[honest.address].stats is None) == (followers == "")
            assert ("--followers" in members[honest.address].problem) == (followers == "")
