"""The dense sets of a chain of followers are its first leader's, also when that begins to count from one again."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
from follow_servers import TIMEOUT_S, Leader

from embedstore.server.follow import FollowerStore
from embedstore.server.link import Retry
from embedstore.store import LocalStore

RETRY = Retry(first_s=0.01, longest_s=0.1, silence_s=5.0)


def test_a_leader_that_lost_its_memory_replaces_the_weights_of_the_whole_chain() -> None:
    with ExitStack() as stack:
        empty = stack.enter_context(LocalStore(None))
        leader = Leader(empty)
        first = stack.enter_context(FollowerStore(leader.address, sync_interval_ms=20, retry=RETRY))
        relay = Leader(first, follower=True)
        stack.callback(relay.stop)
        last = stack.enter_context(FollowerStore(relay.address, sync_interval_ms=20, retry=RETRY))
        empty.put_dense("model", {"w": np.full(3, 1.0, np.float32)}, {})
        assert last.wait_until(lambda: weights(last) == [1.0] * 3, TIMEOUT_S)
        leader.stop()
        again = stack.enter_context(LocalStore(None))
        again.put_dense("model", {"w": np.full(3, 2.0, np.float32)}, {})
        stack.callback(Leader(again, port=leader.port).stop)
        assert first.wait_until(lambda: weights(first) == [2.0] * 3, TIMEOUT_S)
        assert last.wait_until(lambda: weights(last) == [2.0] * 3, 5.0)
        assert last.get_dense("model").version == 1


def weights(follower: FollowerStore) -> list[float] | None:
    found = follower.dense_sets().get("model")
    return None if found is None else found.tensors["w"].tolist()
