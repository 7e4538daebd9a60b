"""What stands before every handler: errors become statuses, bytes become messages, nothing else escapes.

A handler is wrapped once, when it is registered, not looked up at every call as a gRPC interceptor would be: at
thousands of small pulls a second that lookup costs more than the pull. Handlers raise embedstore's errors; anything
else is a bug, goes to the log with its traceback, and reaches the client as a bare INTERNAL. Usable from any thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from queue import SimpleQueue
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError, Message

from embedstore.errors import EmbedstoreError, InvalidArgumentError, LimitError, StaleEpochError, WrongShardError
from embedstore.protowire import BYTES, fields
from embedstore.server.metrics import Requests
from embedstore.status import Topology, to_status
from embedstore.wire import check_message

log = logging.getLogger("embedstore.server")
UNCOUNTED_BYTES_MAX = 1 << 16
PARTS_MAX = 1 << 20


class Guard:
    """Wraps handlers; ``topology`` gives the record that is attached to errors about who owns what. At most ``workers``
    handlers run at once; a call whose request has not arrived yet is none of them. ``requests`` counts them."""

    def __init__(self, topology: Callable[[], Topology], workers: int, requests: Requests | None = None) -> None:
        self._topology = topology
        self._places: SimpleQueue[None] = SimpleQueue()  # a semaphore, but without Python code of its own
        for _ in range(workers):
            self._places.put(None)
        self._requests = requests or Requests()
        self._open: set[grpc.ServicerContext] = set()

    @property
    def busy(self) -> bool:
        """Whether there is a call whose request has arrived and whose answer has not been sent to its end."""
        return bool(self._open)

    def _begin(self, context: grpc.ServicerContext) -> None:
        self._open.add(context)
        if not context.add_callback(partial(self._open.discard, context)):  # it is over already
            self._open.discard(context)

    def raw(self, handle: Callable[[bytes], bytes], method: str = "") -> grpc.RpcMethodHandler[Any, Any]:
        """A unary method that reads and writes its own bytes."""
        method = method or _camel_case(handle.__name__)
        seconds, places = self._requests.histogram(method), self._places

        def call(data: bytes, context: grpc.ServicerContext) -> bytes:
            began_s = time.perf_counter()
            self._begin(context)
            try:
                places.get()
                try:
                    return handle(data)
                finally:
                    places.put(None)
            except Exception as error:
                self.refuse(error, context, method)
            finally:
                seconds.observe(time.perf_counter() - began_s)

        return grpc.unary_unary_rpc_method_handler(call)

    def unary(self, kind: type[Message], handle: Callable[[Any], Message]) -> grpc.RpcMethodHandler[Any, Any]:
        """A unary method over generated messages."""
        method = _camel_case(handle.__name__)

        def answer(data: bytes) -> bytes:
            message = handle(parse(kind, data)).SerializeToString()
            check_message(f"{method}Response", len(message))
            return message

        return self.raw(answer, method)

    def stream(
        self, kind: type[Message], handle: Callable[[Any], Iterator[Message]]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """A method with one request and many answers."""
        method = _camel_case(handle.__name__)
        seconds, places = self._requests.histogram(method), self._places

        def call(data: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            began_s = time.perf_counter()
            self._begin(context)
            try:
                messages = handle(parse(kind, data))
                while True:
                    places.get()
                    try:
                        message = next(messages, None)
                    finally:
                        places.put(None)
                    if message is None:
                        return
                    yield message.SerializeToString()
            except Exception as error:
                self.refuse(error, context, method)
            finally:
                seconds.observe(time.perf_counter() - began_s)

        return grpc.unary_stream_rpc_method_handler(call)

    def refuse(self, error: Exception, context: grpc.ServicerContext, method: str) -> NoReturn:
        """End the call with the status of ``error``."""
        self._requests.refuse(method, error)
        if isinstance(error, WrongShardError | StaleEpochError) and error.topology is None:
            error.topology = self._topology()
        if not isinstance(error, EmbedstoreError | InvalidArgumentError):
            log.error("a request failed over a bug", exc_info=error)
        context.abort_with_status(to_status(error))
        raise AssertionError("abort_with_status raises")


def _camel_case(name: str) -> str:
    return "".join(map(str.capitalize, name.split("_")))


def parse(kind: type[Message], data: bytes) -> Any:
    """A generated message from bytes; :class:`InvalidArgumentError` naming the message, or :class:`LimitError`."""
    if len(data) > UNCOUNTED_BYTES_MAX:
        name = kind.DESCRIPTOR.name
        if _count(data, 0, len(data), kind.DESCRIPTOR, PARTS_MAX) > PARTS_MAX:
            raise LimitError(f"{name} fields", PARTS_MAX + 1, PARTS_MAX)
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidArgumentError(kind.DESCRIPTOR.name, "malformed message") from error


def _count(data: bytes, start: int, end: int, descriptor: Any, limit: int) -> int:
    """How many fields and numbers there are in a message and those within it, or some number above ``limit``.

    What the parser makes of two bytes can take a hundred, so they are counted before.
    """
    count = 0
    for field in fields(data, start, end, descriptor.name, limit=end - start):
        count += 1
        known = descriptor.fields_by_number.get(field.number)
        if known is not None and field.kind == BYTES:
            if known.message_type is not None:
                count += _count(data, field.value, field.end, known.message_type, limit - count)
            elif known.is_repeated and known.type not in (known.TYPE_STRING, known.TYPE_BYTES):
                count += field.end - field.value
        if count > limit:
            break
    return count
