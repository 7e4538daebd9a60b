"""Group commit: whoever must not answer before what it did is durable waits here, and one checkpoint serves all."""

from __future__ import annotations

import threading
from collections.abc import Callable


class GroupCommit:
    """``commit()`` makes everything durable that was done before it began. Any thread may call anything."""

    def __init__(self, commit: Callable[[], object]) -> None:
        self._commit = commit
        self._changed = threading.Condition()
        self._running = False
        self._begun = 0
        self._done = 0

    def wait(self) -> None:
        """Return when a commit that began after this call has ended well. Raises what ``commit`` raises, to who ran it;
        the others try again."""
        with self._changed:
            wanted = self._begun + 1
            while self._running and self._done < wanted:
                self._changed.wait()
            if self._done >= wanted:
                return
            self._running = True
            self._begun += 1
            number = self._begun
        try:
            self._commit()
        except BaseException:
            self._end(self._done)
            raise
        self._end(number)

    def _end(self, done: int) -> None:
        with self._changed:
            self._running, self._done = False, done
            self._changed.notify_all()
