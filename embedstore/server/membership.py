"""How a shard learns that it has been replaced while it was away: it asks everyone it knows, at its start before it
serves, and then again and again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from embedstore.credentials import Credentials
from embedstore.errors import EmbedstoreError, InvalidArgumentError
from embedstore.server.members import Members
from embedstore.status import Topology, topology_from_proto, topology_to_proto

if TYPE_CHECKING:
    from embedstore.server.serving import Serving
    from embedstore.store import LocalStore

ASK_INTERVAL_S = 5.0
log = logging.getLogger("embedstore.server")


def newest_record(known: Topology, store: LocalStore, followed: Sequence[str], credentials: Credentials) -> Topology:
    """Of what the process was told, what its store remembers and what others say, the record with the highest epoch;
    the store remembers it from now on. Waits about a second for those who do not answer."""
    remembered = store.membership.topology
    newest = known if remembered is None else max(topology_from_proto(remembered), known, key=lambda t: t.epoch)
    others = _others(newest, store, followed)
    if not others:
        return newest
    members = Members(others, credentials)
    try:
        told = members.newest()
    finally:
        members.close()
    if told is None or told.epoch <= newest.epoch:
        return newest
    log.info("epoch %d holds now, not %d", told.epoch, newest.epoch)
    store.membership.adopt(topology_to_proto(told), topology_to_proto(newest))
    return told


def watch_members(serving: Serving, store: LocalStore, followed: Sequence[str], stop: threading.Event) -> None:
    """Adopt what the others come to know, until ``stop``."""
    while not stop.wait(ASK_INTERVAL_S):
        others = [each for each in _others(serving.topology, store, followed) if each != serving.advertised]
        if not others:
            continue
        members = Members(others, serving.credentials)
        try:
            told = members.newest()
            if told is not None and told.epoch > serving.topology.epoch:
                serving.adopt(told)
        except (EmbedstoreError, InvalidArgumentError) as error:  # the next round tries again
            log.warning("a newer topology cannot be adopted: %s", error)
        finally:
            members.close()


def _others(topology: Topology, store: LocalStore, followed: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*topology.addresses, *store.membership.acquaintances, *followed]))
