"""``embedtrain stream`` with a learner whose every gradient is known, so that rows tell what was applied to them.

Sources, loop, replays, cuts and commits are the product's own. Only the gradients are not: of each event the row of its
item gets -1 (with SGD and lr 1 the row is the number of its events), and the row of its user a number that follows from
the event's request (:func:`gradients`). The dense set is one number, the events that the dense weights have taken in.

Run as a program: ``counting_trainer.py FILE_WITH_CLOCK_OFFSET stream ...``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from offset_clock import follow_offset

ITEMS = "items"
USERS = "users"
DENSE = "events"
DIM = 2


def gradients(request_ids: np.ndarray) -> np.ndarray:
    """What the events of these requests push to the rows of their users: small fractions of both signs, [n, 1]."""
    steps = (request_ids * np.uint64(7919) % np.uint64(13)).astype(np.float32) - np.float32(6)
    return (steps / np.float32(4))[:, None]


def main() -> None:
    from embedstore import TablePush
    from trainer import cli, online
    from trainer.learner import Learner, Learnt, Prediction

    class CountingLearner(Learner):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self._events = 0
            self._learnt = 0

        def learn(self, prediction: Prediction, queries: np.ndarray) -> Learnt:
            batch = prediction.plan.batch
            self._learnt = len(batch)
            item_grads = np.full((len(batch), DIM), -1.0, np.float32)
            pushes = {
                ITEMS: TablePush(batch.item_ids, item_grads, event_times_ms=batch.event_time_ms),
                USERS: TablePush(batch.user_ids, gradients(batch.request_ids)),
            }
            return Learnt(0.0, pushes)

        def step(self) -> None:
            self._events += self._learnt

        def dense(self) -> dict[str, np.ndarray]:
            return {DENSE: np.array([self._events], np.int64)}

        def load_dense(self, tensors: Mapping[str, np.ndarray]) -> None:
            self._events = int(tensors[DENSE][0])

    vars(online)["Learner"] = CountingLearner
    cli.main()


if __name__ == "__main__":
    follow_offset(sys.argv.pop(1))
    main()
