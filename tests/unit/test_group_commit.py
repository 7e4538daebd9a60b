"""One commit serves all who wait, and never one that began before they did what it is to make durable."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from embedstore.group_commit import GroupCommit

TIMEOUT_S = 20.0


def test_who_comes_during_a_commit_waits_for_the_next_and_shares_it() -> None:
    began, go_on, commits = threading.Event(), threading.Event(), []

    def commit() -> None:
        commits.append(len(done))
        began.set()
        assert go_on.wait(TIMEOUT_S)

    done: list[int] = []
    group = GroupCommit(commit)
    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(group.wait)
        assert began.wait(TIMEOUT_S)
        others = [pool.submit(group.wait) for _ in range(5)]
        assert not any(other.done() for other in others)
        go_on.set()
        for future in (first, *others):
            future.result(TIMEOUT_S)
    # The five that came in time share one; a thread that started late has one of its own.
    assert 2 <= len(commits) <= 6


def test_a_commit_that_fails_is_told_to_who_ran_it_and_the_next_tries_again() -> None:
    outcomes = [OSError("full"), None]

    def commit() -> None:
        outcome = outcomes.pop(0)
        if outcome is not None:
            raise outcome

    group = GroupCommit(commit)
    with pytest.raises(OSError, match="full"):
        group.wait()
    group.wait()
    assert not outcomes
