"""The online trainer: poll, score, pull, learn, push; cut and commit now and then; recover by replaying.

The store, the dense weights and the trainer's own state each know up to where they have taken in a stream, and each
takes from a batch only what it lacks. So the order inside a step is: whatever can be refused (the push) comes first,
then everything of this process moves on together. ARCHITECTURE.md has the words watermark and cut.

One thread runs a trainer; :meth:`Trainer.stop` may be called from anywhere, signal handlers included.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from embedstore import hash_ids
from embedstore.errors import (
    DenseSetNotFoundError,
    GapError,
    StaleDenseSetError,
    StreamPositionError,
    UnavailableError,
    UnknownStreamError,
)
from embedstore.freshness import Histogram
from trainer.catalog import Catalog
from trainer.events import nothing_of
from trainer.history import HistoryStore
from trainer.learner import Learner
from trainer.metrics import Metrics, Rate
from trainer.patience import Clock, Progress, Stopped, persist
from trainer.positions import Replay, ahead, check_forgotten, check_log, committable, replays
from trainer.state import TrainerState

if TYPE_CHECKING:
    from embedstore.interface import DenseSet, Store, StreamState
    from trainer.config import Settings
    from trainer.events import EventBatch
    from trainer.history import Window
    from trainer.sources import Source

log = logging.getLogger("embedtrain")
T = TypeVar("T")
LEVEL_ATTEMPTS_MAX = 100


class Trainer:
    """See the module. ``durable_store``: the store is of this process and is made durable with every cut; otherwise
    its shards look after that themselves. ``state_dir`` None: a run that leaves nothing behind but the store.
    ``accept_loss``: go on where the log has lost what somebody lacks, or was replaced, instead of raising."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        source: Source,
        *,
        state_dir: Path | None,
        durable_store: bool,
        device: str = "cpu",
        score_from_ms: int = 0,
        accept_loss: bool = False,
        clock: Clock | None = None,
        on_report: Callable[[dict[str, Any]], None] = lambda report: None,
    ) -> None:
        self.settings = settings
        self.store = store
        self.source = source
        self.clock = clock or Clock()
        self._durable_store = durable_store
        self._accept_loss = accept_loss
        self._on_report = on_report
        self._state_dir = state_dir
        self._stop = threading.Event()
        torch.manual_seed(settings.train.seed)
        torch.set_num_threads(settings.run.threads)
        target = torch.device(device)
        self.catalog = Catalog(
            settings.model.dim, settings.model.half_lives_s, items_max=settings.run.items_max, device=target
        )
        self.rng = np.random.Generator(np.random.PCG64(settings.train.seed))
        self.learner = Learner(settings, self.catalog, target, self.rng)
        self.metrics = Metrics(score_from_ms=score_from_ms)
        self.history = HistoryStore(
            None if state_dir is None else state_dir / "histories",
            length=settings.model.length,
            users_max=settings.run.users_max,
        )
        self.state = TrainerState(settings, self.learner, self.catalog, self.metrics, self.history, self.rng)
        self._positive = hash_ids(list(settings.train.positive_actions))
        self.positions: dict[str, int] = {}
        self.dense_positions: dict[str, int] = {}
        self.replayed_events = 0
        self.event_to_trained = Histogram()
        # Up to where some chunk of the store, and every chunk, had the streams when they were last compared.
        self._pushed_to: dict[str, int] = {}
        self._level_to: dict[str, int] = {}
        self._older_history: HistoryStore | None = None
        self._recovered = False
        self._rate = Rate(self.clock.monotonic_s())
        self._latest_event_ms = 0

    def stop(self) -> None:
        """Finish the batch at hand, write a cut and return from :meth:`run`."""
        self._stop.set()

    # -- the loop ----------------------------------------------------------------------------------------------------

    def run(self, max_events: int | None = None) -> dict[str, Any]:
        """Train until the source is exhausted, ``max_events`` more events are learnt or somebody says stop.

        Returns the summary. StaleGenerationError: a newer trainer has taken over.
        """
        run = self.settings.run
        try:
            self._recover()
            self._rate = Rate(self.clock.monotonic_s())
            cut_s = report_s = self.clock.monotonic_s()
            while not self._stop.is_set() and (max_events is None or self._rate.events < max_events):
                wanted = self.settings.train.batch_events
                if max_events is not None:
                    wanted = min(wanted, max_events - self._rate.events)
                batch = self.source.poll(wanted, run.poll_timeout_s)
                if batch is None:
                    break
                if batch.origins:
                    self._take(batch)
                now_s = self.clock.monotonic_s()
                if now_s - cut_s >= run.cut_interval_s:
                    self.cut()
                    cut_s = self.clock.monotonic_s()
                if now_s - report_s >= run.report_interval_s:
                    report_s = now_s
                    self._on_report(self.report())
        except Stopped:
            log.warning("stopped while the store was away; the last batch was not learnt")
        self._finish()
        return self.report()

    def _take(self, batch: EventBatch) -> None:
        for origin in batch.origins:
            if origin.stream not in self.positions:
                self._open(origin.stream, origin.begin)
        try:
            self._step(batch)
            self._rate.add(len(batch), self.clock.monotonic_s())
        except GapError as gap:
            log.warning("%s; reading again", gap)
            self._level()

    def _step(self, batch: EventBatch) -> None:
        """Learn one batch whose origins cross nobody's position."""
        own = all(origin.begin >= self.positions[origin.stream] for origin in batch.origins)
        dense = all(origin.begin >= self.dense_positions[origin.stream] for origin in batch.origins)
        stored = all(origin.end <= self._pushed_to.get(origin.stream, 0) for origin in batch.origins)
        lacking = any(origin.end > self._level_to.get(origin.stream, 0) for origin in batch.origins)
        window = self.history.extend(batch, self.positions)
        if self._older_history is not None:
            window = self._older_history.extend(batch)
        if dense or lacking:
            self._learn(batch, window, score=own and not stored, dense=dense)
        elif len(batch):
            self.catalog.make_room(len(batch))
        if own:
            self.catalog.note(self.catalog.locate(batch.item_ids), batch.event_time_ms)
            self.metrics.totals.events += len(batch)
            self.metrics.totals.set_aside += batch.set_aside
            self.metrics.totals.unscored += len(self._tests(batch, window)) if stored else 0
            self._latest_event_ms = max(self._latest_event_ms, int(batch.event_time_ms.max(initial=0)))
        for origin in batch.origins:
            for positions in (self.positions, self.dense_positions):
                positions[origin.stream] = max(positions[origin.stream], origin.end)

    def _learn(self, batch: EventBatch, window: Window, *, score: bool, dense: bool) -> None:
        if not len(batch):
            self._persist(lambda: self.store.push({}, origins=batch.origins))
            return
        plan = self.learner.plan(batch, window)
        rows = self._persist(lambda: self.learner.pull(self.store, plan))
        prediction = self.learner.predict(plan, rows)
        tests = self._tests(batch, window) if score else np.zeros(0, np.int64)
        ranks = self.learner.rank(prediction, tests)
        learnt = self.learner.learn(prediction, np.flatnonzero(self._learnable(batch, window)))
        event_time_ms = int(batch.event_time_ms.max())
        self._persist(lambda: self.store.push(learnt.pushes, origins=batch.origins, event_time_ms=event_time_ms))
        self.event_to_trained.observe((self.clock.wall_ms() - int(batch.event_time_ms.min())) / 1000)
        self.catalog.mark_stale(prediction.used_U)
        if learnt.loss is not None:
            if dense and learnt.pushes:
                self.learner.step()
            if score:
                self.metrics.learnt(learnt.loss)
        if len(tests):
            self.metrics.tested(ranks, batch.event_time_ms[tests])

    def _learnable(self, batch: EventBatch, window: Window) -> np.ndarray:
        usable: np.ndarray = window.lengths > 0
        if len(self._positive):
            usable = usable & np.isin(batch.actions, self._positive)
        return usable

    def _tests(self, batch: EventBatch, window: Window) -> np.ndarray:
        opens_session = (batch.session_ids != 0) & ~window.session_seen
        return np.flatnonzero(self._learnable(batch, window) & ~opens_session)

    def _persist(self, call: Callable[[], T]) -> T:
        return persist(call, self._stop, self.settings.run.retry_max_s)

    # -- recovery ----------------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Take over the streams and bring the store, the dense weights and this process to one position."""
        firsts = self.source.streams()
        cut = self.state.load(self._state_dir)
        published = self._published()
        if not self._accept_loss:
            known = {name: state.applied for name, state in self._persist(self.store.watermarks).items()}
            self.source.check_known(known)
            check_forgotten(firsts, known, {**(cut or {}), **(published.position if published is not None else {})})
        for stream, first in firsts.items():
            self._open(stream, first)
        if cut is None and published is not None:
            self.learner.load_dense(published.tensors)
        dense = dict(published.position if cut is None and published is not None else cut or {})
        if cut is not None and published is not None and ahead(published.position, cut):
            log.warning("the published dense weights are ahead of the cut; going on with them")
            self.learner.load_dense(published.tensors)
            dense = dict(published.position)
        for stream, first in firsts.items():
            self.dense_positions[stream] = dense.get(stream, first)
            back = max(first, self.dense_positions[stream] - self.settings.run.rebuild_events)
            self.positions[stream] = cut[stream] if cut is not None and stream in cut else back
        if cut is None:
            self._know_stored_items()
        self.history.commit(committable(self.positions, self._persist(self.store.watermarks)))
        self._recovered = True
        self._level()

    def _open(self, stream: str, first: int) -> None:
        self._persist(lambda: self.store.open_stream(stream, first))
        self.positions[stream] = self.dense_positions[stream] = first

    def _published(self) -> DenseSet | None:
        try:
            return self._persist(lambda: self.store.get_dense(self.settings.run.dense_set))
        except DenseSetNotFoundError:
            return None

    def _know_stored_items(self) -> None:
        """A trainer that has lost its state knows at least which items have rows."""
        for ids, _ in self.store.scan(self.settings.tables.items):
            self.catalog.make_room(len(ids))
            self.catalog.mark_met(self.catalog.locate(np.sort(ids)))

    def _level(self) -> None:
        """Replay until all holders stand at the same positions, and go on from there."""
        for _ in range(LEVEL_ATTEMPTS_MAX):
            self.catalog.mark_stale()
            states = self._states()
            self._pushed_to = {stream: max(state.watermarks, default=state.applied) for stream, state in states.items()}
            self._level_to = {stream: state.applied for stream, state in states.items()}
            firsts = {s: first for s, first in self.source.streams().items() if s in self.positions}
            plan = replays(states, self.positions, self.dense_positions, firsts)
            check_log(plan, firsts, self.source.log_ends(), accept_loss=self._accept_loss)
            self.source.seek({stream: max(first, self.positions[stream]) for stream, first in firsts.items()})
            try:
                for replay in plan:
                    self._replay(replay, firsts[replay.stream])
                return
            except GapError as gap:
                log.warning("%s; reading again", gap)
        raise RuntimeError(f"the store refused {LEVEL_ATTEMPTS_MAX} replays in a row")

    def _states(self) -> Mapping[str, StreamState]:
        """Where the store's streams stand; UnknownStreamError when it has forgotten one (shards without a disk)."""
        states = self._persist(self.store.watermarks)
        for stream in self.positions.keys() - states.keys():
            raise UnknownStreamError(stream)
        return states

    def _replay(self, replay: Replay, first: int) -> None:
        log.info("reading %s again: %d to %d", replay.stream, replay.begin, replay.end)
        for origin in replay.lost(first):
            self._step(nothing_of(origin))
        begin = max(first, replay.begin)
        self._older_history = self._read_back(replay.stream, begin)
        self.source.seek({replay.stream: begin})
        try:
            for batch in self._read(replay.stream, begin, replay):
                self._step(batch)
                self.replayed_events += len(batch)
        finally:
            self._older_history = None

    def _read_back(self, stream: str, end: int) -> HistoryStore | None:
        """Histories as they were where a replay begins, where the trainer's own do not reach back so far."""
        if end >= min(self.history.committed(stream), self.positions[stream]):
            return None
        begin = max(self.source.streams()[stream], end - self.settings.run.rebuild_events)
        log.info("reading histories of %s back from %d", stream, begin)
        older = HistoryStore(None, length=self.settings.model.length, users_max=self.settings.run.users_max)
        self.source.seek({stream: begin})
        for batch in self._read(stream, begin, Replay(stream, (begin, end))):
            older.extend(batch)
        return older

    def _read(self, stream: str, position: int, replay: Replay) -> Iterator[EventBatch]:
        """The stream from ``position`` to the replay's end, cut at its marks."""
        progress = Progress(stream, replay.end)
        while position < replay.end:
            if self._stop.is_set():
                raise Stopped
            batch = self.source.poll(
                self.settings.train.batch_events,
                self.settings.run.poll_timeout_s,
                only=stream,
                stop_at={stream: replay.stop_after(position)},
            )
            if batch is None:
                raise StreamPositionError(stream, replay.end, f"the log ends at {position}")
            if batch.origins:
                position = batch.origins[-1].end
                progress.at(position)
                yield batch

    # -- cut and commit ----------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Make the store durable where that is ours to do, write the cut, publish the dense weights, commit."""
        if self._durable_store:
            self.store.checkpoint()
        self._save()
        try:
            self.store.put_dense(self.settings.run.dense_set, self.learner.dense(), self.dense_positions)
            states = self.store.watermarks()
        except StaleDenseSetError as problem:
            log.warning("dense weights not published: %s", problem)
            states = self.store.watermarks()
        except UnavailableError as problem:
            log.warning("dense weights not published, nothing committed: %s", problem)
            return
        done = committable(self.positions, states)
        self.source.commit(done)
        self.history.commit(done)

    def _save(self) -> None:
        if self._state_dir is not None:
            self.state.save(self._state_dir, self.positions)

    def _finish(self) -> None:
        """The last cut. A stream is left only when every shard has made it durable; who was told to stop while a shard
        is away, or lacks something, leaves that to the next start."""
        if not self._recovered:
            return
        try:
            self._settle()
            self.cut()
        except Stopped:
            log.warning("left while the store was away or behind; the next start goes on from there")
            self._save()
        self._on_report(self.report())

    def _settle(self) -> None:
        """Make durable all that was learnt, once more after a shard came back from an older checkpoint."""
        for _ in range(LEVEL_ATTEMPTS_MAX):
            # Asked first, because a checkpoint waits much longer for a shard that is away.
            self._persist(self.store.watermarks)
            self._persist(self.store.checkpoint)
            states = self._states()
            if all(states[stream].durable >= position for stream, position in self.positions.items()):
                return
            self._level()
        raise RuntimeError(f"the store lost what it had made durable {LEVEL_ATTEMPTS_MAX} times in a row")

    def close(self) -> None:
        """Release the histories; the store and the source are the caller's."""
        self.history.close()

    def report(self) -> dict[str, Any]:
        """Everything measured so far, as JSON values."""
        now_s = self.clock.monotonic_s()
        return {
            "time_ms": self.clock.wall_ms(),
            **self.metrics.scored(),
            **self.metrics.window(),
            "run_events": self._rate.events,
            **self.metrics.run(),
            "replayed_events": self.replayed_events,
            "events_per_s": self._rate.overall(now_s),
            "window_events_per_s": self._rate.recent(now_s),
            "run_s": now_s - self._rate.start_s,
            "lag_records": sum(self.source.lag_records().values()),
            "lag_s": (self.clock.wall_ms() - self._latest_event_ms) / 1000.0 if self._latest_event_ms else None,
            "items": len(self.catalog),
            "users_in_memory": len(self.history),
            "positions": dict(self.positions),
        }
