"""How a standby becomes a shard, in the place of one leader or, with others, of all of them.

The order is what keeps every update:

1. Each leader that is followed is told of the new record. It writes the record down, applies its last write, and from
   then on refuses all others, also after a restart: nobody can be told "applied" by it any more.
2. What the leaders still have is awaited.
3. The tables begin a new history with the leaders' as its parent, are written to disk whole, and only then does the
   record take effect here.
4. The other shards are told. Whoever cannot be reached learns it from its own questions.

Whatever fails before 3 leaves a standby that follows on, and the same call may be repeated. Without ``force`` nothing
can be lost. With it, updates without origins that a leader applied and did not send are gone, and a leader that could
not be told goes on serving those who do not know better until it asks one of the others.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import grpc

from embedstore import discovery
from embedstore.checkpoint import remove_store
from embedstore.credentials import PLAIN, Credentials
from embedstore.discovery import is_complete
from embedstore.errors import (
    CheckpointFailedError,
    CorruptCheckpointError,
    EmbedstoreError,
    InvalidArgumentError,
    StaleEpochError,
    UnavailableError,
)
from embedstore.peers import WORD_INTERVAL_S, Peer, Questions, check_address
from embedstore.server.serving import Serving
from embedstore.server.standby import Standby
from embedstore.status import Topology, topology_from_proto, topology_to_proto
from embedstore.store import LocalStore, is_store
from embedstore.v1 import admin_pb2

TELL_TIMEOUT_S = 3.0
TELL_ALL_TIMEOUT_S = 5.0
"""Below the two times ``TELL_TIMEOUT_S`` for which :func:`activate` waits beyond what it was told."""

TOLD_AT_ONCE = 128
ASK_INTERVAL_S = 0.1
TIMEOUT_S_MAX = 86_400.0
log = logging.getLogger("embedstore.server")


class Takeover:
    """One process's way from standby to shard. ``serve`` is called once, with the store, which is opened with
    ``options``. Any thread may call it."""

    def __init__(
        self,
        standby: Standby,
        serving: Serving,
        data: Path | None,
        serve: Callable[[LocalStore], None],
        options: Mapping[str, Any],
    ) -> None:
        self._options = options
        self._standby = standby
        self._serving = serving
        self._data = data
        self._serve = serve
        self._lock = threading.Lock()
        self._begun: Topology | None = None

    def leaders(self) -> Topology | None:
        """The record of those whose place this process waits for; None: not known yet."""
        leaders = self._standby.leaders
        if not leaders.complete:
            return None
        addresses = tuple(leaders.addresses[shard] for shard in range(leaders.num_shards))
        return Topology(leaders.epoch, addresses, leaders.num_shards)

    def activate(self, topology: Topology | None, *, force: bool, timeout_s: float) -> Topology:
        """Take over; returns the record that holds now. None: the place of the leader that is followed.

        :class:`UnavailableError` without ``force`` when a leader cannot be reached or does not send everything in time;
        :class:`StaleEpochError` when somebody else took over first; :class:`InvalidArgumentError` for a record in which
        this process has no place.
        """
        with self._lock:
            if not self._serving.standby:
                return self._serving.reinstate(topology or self._serving.topology, force=force)
            check_timeout(timeout_s)
            begun = self._begun
            if begun is not None and begun.epoch <= self._standby.leaders.epoch:
                begun = None  # others took over since
            if topology is None and begun is None:
                self._standby.wait_synced(timeout_s)
            record = topology or begun or self._successor()
            self._check(record)
            # Whoever has never been complete cannot take over, whatever force there is.
            self._standby.wait_synced(timeout_s)
            # Nor may anyone replace shards that have been replaced already: others have what came after.
            self._standby.wait_until(lambda: self._standby.leaders.epoch >= record.epoch - 1, timeout_s)
            self._begun = record
            self._standby.hold_still(True)
            try:
                self._check(record)
                self._check_present(record)
                self._level(record, force, timeout_s)
            except BaseException:
                self._standby.hold_still(False)
                raise
            self._become(record)
        if topology is None:
            others = {address for address in record.addresses if address != self._standby.address}
            tell(record, others, self._serving.credentials)
        return record

    def _successor(self) -> Topology:
        """The present record with this process in its leader's place."""
        standby, leaders = self._standby, self._standby.leaders
        if leaders.complete and leaders.num_shards != standby.num_shards:
            waits = f"{standby.address} stands by for shard {standby.shard} of {standby.num_shards}"
            raise InvalidArgumentError(
                "standby", f"{waits}, but there are {leaders.num_shards} now: all take over together, by reshard"
            )
        if not leaders.complete:
            known = f"{len(leaders.addresses)} of {leaders.num_shards}" if leaders.num_shards else "none"
            raise UnavailableError(standby.address, f"does not know all {standby.num_shards} leaders: {known}")
        named = _advertised(leaders.addresses, self._serving.credentials)
        named[standby.shard] = standby.address
        return Topology(leaders.epoch + 1, tuple(named[shard] for shard in range(standby.num_shards)), len(named))

    def _check(self, record: Topology) -> None:
        standby = self._standby
        if record.num_shards != standby.num_shards or not is_complete(record):
            raise InvalidArgumentError("topology", f"must have {standby.num_shards} shards with an address each")
        if record.addresses[standby.shard] != standby.address:
            raise InvalidArgumentError(
                "topology", f"names {record.addresses[standby.shard]} as shard {standby.shard}, not {standby.address}"
            )
        if record.epoch <= standby.leaders.epoch:
            raise StaleEpochError(record.epoch, standby.leaders.epoch)
        if self._data is not None and is_store(self._data):
            raise InvalidArgumentError("data", f"{self._data} holds a store already")
        for name, table in standby.table_map().items():
            if table.spec.num_chunks < standby.num_shards:
                raise InvalidArgumentError(
                    "num_shards", f"{standby.num_shards} is above the {table.spec.num_chunks} chunks of table {name!r}"
                )

    def _check_present(self, record: Topology) -> None:
        standby = self._standby
        if standby.leaders.epoch != record.epoch - 1:
            raise UnavailableError(standby.address, f"follows epoch {standby.leaders.epoch}, not {record.epoch - 1}")

    def _level(self, record: Topology, force: bool, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        fenced: list[int] = []
        followed = self._standby.followed()
        if not followed:
            raise UnavailableError(self._standby.address, "follows nobody at present")
        self._check_leaders(record, list(followed.values()), force)
        # All members, in the order of the shards: of two takeovers at once one is refused by the first that both tell,
        # before it has told anybody else.
        for shard, address in sorted((dict(self._standby.leaders.addresses) | followed).items()):
            try:
                reassign(address, record, self._serving.credentials)
            except StaleEpochError:
                raise
            except EmbedstoreError as error:
                if shard in followed and not (force and isinstance(error, UnavailableError)):
                    raise
                log.warning("taking over although %s cannot be told: %s", address, error)
            else:
                fenced += [shard] if shard in followed else []
        try:
            self._standby.wait_level(fenced, record.epoch, max(0.0, deadline_s - time.monotonic()))
        except UnavailableError as error:
            if not force:
                raise
            log.warning("taking over without everything: %s", error)

    def _check_leaders(self, record: Topology, addresses: Sequence[str], force: bool) -> None:
        """Raise what one of them would answer, before any is told: one that is told serves nobody any more."""
        answers = discovery.ask_at(addresses, TELL_TIMEOUT_S, self._serving.credentials)
        for address in addresses:
            try:
                answer = answers.of(address)
                known = topology_from_proto(answer.topology)
                if not answer.ready:
                    raise UnavailableError(address, "is not ready yet")
                if answer.fenced and known.epoch < record.epoch:
                    raise UnavailableError(
                        address, f"has been replaced in epoch {known.epoch}: others have what came after"
                    )
            except UnavailableError:
                if not force:
                    raise
                continue
            if known.epoch >= record.epoch and known != record:
                raise StaleEpochError(record.epoch, known.epoch, known)

    def _become(self, record: Topology) -> None:
        standby = self._standby
        standby.stop_following()
        try:
            store = self._taken_over(record)
        except BaseException:
            standby.follow_on()
            raise
        self._serving.become_shard(record, standby.shard)
        self._serve(store)
        standby.close()
        log.info("serving shard %d of %d in epoch %d", standby.shard, standby.num_shards, record.epoch)

    def _taken_over(self, record: Topology) -> LocalStore:
        standby = self._standby
        try:
            store = LocalStore(self._data, shard=standby.shard, num_shards=standby.num_shards, **self._options)
        except (OSError, CorruptCheckpointError, CheckpointFailedError):
            if self._data is not None:
                remove_store(self._data)
            raise
        try:
            store.take_over(
                list(standby.table_map().values()), standby.opened_streams(), standby.own_dense_sets(record)
            )
            store.membership.adopt(topology_to_proto(record), topology_to_proto(self.leaders() or record))
        except BaseException:
            # Nothing of it has been served, and it would be in the way of the next attempt.
            store.abandon()
            raise
        return store


def check_timeout(timeout_s: float) -> None:
    """Raise unless one can wait so long."""
    if not 0 < timeout_s <= TIMEOUT_S_MAX:
        raise InvalidArgumentError("timeout_s", f"must be above 0 and at most {TIMEOUT_S_MAX:g}, not {timeout_s!r}")


def reassign(address: str, record: Topology, credentials: Credentials = PLAIN) -> admin_pb2.ReassignResponse:
    """Tell the process at ``address`` of a record. Raises what it answers; :class:`UnavailableError` if it does not."""
    with closing(Peer(address, credentials)) as peer:
        try:
            answer = peer.unary("Reassign")(_reassignment(record), timeout=TELL_TIMEOUT_S)
        except grpc.RpcError as error:
            raise peer.explain(error) from None
    return admin_pb2.ReassignResponse.FromString(answer)


def tell(record: Topology, addresses: set[str], credentials: Credentials) -> None:
    """Tell everyone, as far as they can be reached within ``TELL_ALL_TIMEOUT_S``: ``TOLD_AT_ONCE`` side by side."""
    questions, request, waiting = Questions(TELL_ALL_TIMEOUT_S), _reassignment(record), sorted(addresses, reverse=True)

    def tell_more(stack: ExitStack) -> None:
        while waiting and questions.waiting < TOLD_AT_ONCE and questions.left_s > 0:
            address = waiting.pop()
            try:
                peer = stack.enter_context(closing(Peer(address, credentials)))
            except InvalidArgumentError as error:
                missed(address, error)
            else:
                questions.ask(peer, "Reassign", request, TELL_TIMEOUT_S)

    def missed(address: str, error: Exception) -> None:
        log.warning("%s has not heard of epoch %d yet: %s", address, record.epoch, error)

    with ExitStack() as stack:
        tell_more(stack)
        for peer, _, outcome in questions.answers():
            peer.close()
            if isinstance(outcome, Exception):
                missed(peer.address, peer.explain(outcome))
            tell_more(stack)
    if waiting:
        log.warning("%d more have not heard of epoch %d yet: there was no time for them", len(waiting), record.epoch)


def _reassignment(record: Topology) -> bytes:
    return admin_pb2.ReassignRequest(topology=topology_to_proto(record)).SerializeToString()


def _advertised(addresses: Mapping[int, str], credentials: Credentials) -> dict[int, str]:
    """The addresses that the shards give as their own; one that does not answer keeps the one that is known."""
    named = dict(addresses)
    answers = discovery.ask_at(addresses.values(), TELL_TIMEOUT_S, credentials)
    for shard, address in addresses.items():
        try:
            named[shard] = answers.of(address).address or address
            check_address(f"advertise of {address}", named[shard])
        except UnavailableError as error:
            log.warning("%s", error)
    return named


def resharded(
    servers: Sequence[str],
    targets: Sequence[str],
    timeout_s: float,
    credentials: Credentials = PLAIN,
    *,
    force: bool = False,
) -> Topology:
    """The record by which ``targets`` replace the present shards, of which ``servers`` are some: the next one, or the
    one that was begun already. Waits until every target has all that its leaders have.

    :class:`InvalidArgumentError` unless target i stands by for shard i, and follows shards of the same store.
    :class:`UnavailableError` names one that does not answer or is not complete in time.
    """
    check_timeout(timeout_s)
    asked = discovery.ask_at(servers, timeout_s, credentials)
    answers = [asked.of(address) for address in servers]
    present = max((topology_from_proto(answer.topology) for answer in answers), key=lambda record: record.epoch)
    before = [topology_from_proto(answer.previous) for answer in answers if answer.HasField("previous")]
    deadline_s = time.monotonic() + timeout_s
    found = [_synced(target, deadline_s, credentials) for target in targets]
    addresses = tuple(answer.address or target for answer, target in zip(found, targets, strict=True))
    for shard, (target, answer) in enumerate(zip(targets, found, strict=True)):
        if (answer.shard, answer.num_shards) != (shard, len(targets)):
            raise InvalidArgumentError("to", f"{target} does not stand by for shard {shard} of {len(targets)}")
        if answer.fenced and not force:
            raise InvalidArgumentError("force", f"is needed: {target} has been replaced, and lacks what came after")
        if present.addresses != addresses and _stranger(target, answer, [present, *before]):
            raise InvalidArgumentError("to", f"{target} is of another store: {', '.join(answer.topology.addresses)}")
    return present if present.addresses == addresses else Topology(present.epoch + 1, addresses, len(addresses))


def _synced(target: str, deadline_s: float, credentials: Credentials) -> admin_pb2.TopologyResponse:
    word_s = time.monotonic() + WORD_INTERVAL_S
    while True:
        answer = discovery.ask_at([target], max(deadline_s - time.monotonic(), TELL_TIMEOUT_S), credentials).of(target)
        if answer.synced or not answer.standby:
            return answer
        problem = UnavailableError(target, "has not received everything that its leaders have; its log says why")
        now_s = time.monotonic()
        if now_s >= deadline_s:
            raise problem
        if now_s >= word_s:
            word_s = now_s + WORD_INTERVAL_S
            log.warning("%s; waiting on for %.0f s", problem, deadline_s - now_s)
        time.sleep(ASK_INTERVAL_S)


def _stranger(target: str, answer: admin_pb2.TopologyResponse, records: Sequence[Topology]) -> bool:
    """Whether neither the target nor anyone that it goes by is one of these shards, as far as one knows."""
    known = {address for record in records for address in record.addresses}
    return bool(known) and known.isdisjoint({target, answer.address, *answer.topology.addresses})


def activate(
    standbys: Sequence[str], record: Topology | None, *, force: bool, timeout_s: float, credentials: Credentials = PLAIN
) -> list[Topology]:
    """Have all of these take over, side by side; the first error is raised when all have answered."""
    check_timeout(timeout_s)
    request = admin_pb2.ActivateRequest(
        topology=None if record is None else topology_to_proto(record), force=force, timeout_s=timeout_s
    )
    with ExitStack() as stack:
        questions = Questions(timeout_s + 2 * TELL_TIMEOUT_S)
        for address in standbys:
            peer = stack.enter_context(closing(Peer(address, credentials)))
            questions.ask(peer, "Activate", request.SerializeToString())
        outcomes = {peer.address: (peer, outcome) for peer, _, outcome in questions.answers()}
    records = []
    for peer, outcome in map(outcomes.__getitem__, standbys):
        if isinstance(outcome, Exception):
            raise peer.explain(outcome)
        records.append(topology_from_proto(admin_pb2.ActivateResponse.FromString(outcome).topology))
    return records
