"""A TCP proxy that delays replies, loses them, and breaks connections: what a network does between two processes.

One thread carries all proxies. A lost reply is a request that was served and whose answer never arrives: bytes from the
server are thrown away for a while, and then the connections are reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from types import TracebackType
from typing import Any

_CHUNK_BYTES = 1 << 16


class LossyProxy:
    """Passes connections from ``address`` to a target that may come and go. Called from any thread but its own."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._reply_delay_s = 0.0
        self._losing = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="proxy")
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def __enter__(self) -> LossyProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def delay_replies(self, delay_s: float) -> None:
        """From now on every piece of a reply waits so long; 0: none does."""
        self._reply_delay_s = delay_s

    def lose_replies(self) -> None:
        """From now on nothing that the target says arrives, until :meth:`reset`."""
        self._losing = True

    def reset(self) -> None:
        """Break every connection, and pass what comes over new ones."""
        self._call(self._reset())

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _close(self) -> None:
        self._server.close()
        await self._reset()

    async def _reset(self) -> None:
        self._losing = False
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            target_reader, target_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, target_writer}
        try:
            await asyncio.gather(
                self._carry(reader, target_writer, replies=False), self._carry(target_reader, writer, replies=True)
            )
        finally:
            self._writers -= {writer, target_writer}

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool) -> None:
        """One direction, until either end is gone; then the other direction has nobody to talk to."""
        with contextlib.suppress(ConnectionError, TimeoutError):
            while data := await reader.read(_CHUNK_BYTES):
                if replies and self._reply_delay_s:
                    await asyncio.sleep(self._reply_delay_s)
                if replies and self._losing:
                    continue
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
