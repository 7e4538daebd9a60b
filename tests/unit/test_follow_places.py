"""Who finds a place as a follower or a standby."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from embedstore.errors import LimitError
from embedstore.server.follow_places import ASKED_MAX, STANDBYS_MAX, FollowPlaces


def cut() -> None:
    """How a call is cut off, which is not done here."""


def taken(places: FollowPlaces[str], call: str, host: str, *, standby: bool = False) -> bool:
    places.ask(call, cut)
    return places.take(call, host, standby=standby)


def test_one_host_leaves_a_quarter_to_others() -> None:
    places: FollowPlaces[str] = FollowPlaces(4)
    for i in range(3):
        assert taken(places, f"mine {i}", "mine")
    with pytest.raises(LimitError, match="followers of one host: 4 is over the limit of 3"):
        taken(places, "mine 3", "mine")
    assert taken(places, "other", "other")
    with pytest.raises(LimitError, match="followers: 5 is over the limit of 4"):
        taken(places, "third", "third")
    assert places.leave("mine 0")
    assert taken(places, "third", "third")


def test_followers_take_no_standbys_places_nor_standbys_theirs() -> None:
    places: FollowPlaces[str] = FollowPlaces(2)
    for i in range(2):
        assert taken(places, f"follower {i}", "a")
    for i in range(STANDBYS_MAX):
        assert taken(places, f"standby {i}", str(i), standby=True)
    with pytest.raises(LimitError, match="standbys: 9 is over the limit of 8"):
        taken(places, "one more", "b", standby=True)
    assert places.leave("follower 0")
    assert taken(places, "follower 2", "a")


def test_of_those_who_say_nothing_the_oldest_goes() -> None:
    places: FollowPlaces[int] = FollowPlaces(2)
    cuts: list[Callable[[], None]] = [lambda: None for _ in range(ASKED_MAX + 1)]
    assert [places.ask(i, each) for i, each in enumerate(cuts)] == [None] * ASKED_MAX + [cuts[0]]
    assert not places.take(0, "a", standby=False)
    assert places.take(1, "a", standby=False)
    assert not places.leave(2)
    assert list(places.taken) == [1]
