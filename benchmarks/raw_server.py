"""The raw handler: the least that a gRPC server in Python can do for the same messages, as a process of its own.

Requests and replies have the sizes of ours, go through bytes serializers and kept malloc; the handler gathers known
rows into the reply, or runs the optimizer on known rows. A request is: number of rows (uint32), padding, row numbers
(uint64 each), for a push followed by gradients (dim float32 each). It prints its port when it serves.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import grpc
import numpy as np

from benchmarks.data import LR
from benchmarks.reference import KnownRows, keep_memory, new_bytes

SERVICE = "raw.Handler"
MESSAGE_BYTES_MAX = 256 << 20
OPTIONS = [
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.so_reuseport", 0),
]


class Handlers:
    """The two calls; ``pull_overhead`` and ``push_reply`` are what our replies have besides rows, in bytes."""

    def __init__(self, num_rows: int, dim: int, pull_overhead: int, push_reply: int) -> None:
        self._known = KnownRows(num_rows, dim, 2 * dim)
        self._known.fill(np.zeros((4096, dim), np.float32))
        self._dim = dim
        self._pull_overhead = pull_overhead
        self._push_reply = bytes(push_reply)
        self._pushing = Lock()

    def pull(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        num_rows = int.from_bytes(request[:4], "little")
        numbers = np.frombuffer(request, np.uint64, num_rows, len(request) - 8 * num_rows)
        reply, address = new_bytes(self._pull_overhead + 4 * self._dim * num_rows)
        self._known.gather_to(numbers, address + self._pull_overhead)
        return reply

    def push(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        num_rows = int.from_bytes(request[:4], "little")
        grads_at = len(request) - 4 * self._dim * num_rows
        numbers = np.frombuffer(request, np.uint64, num_rows, grads_at - 8 * num_rows)
        grads = np.frombuffer(request, np.float32, num_rows * self._dim, grads_at)
        with self._pushing:
            self._known.adagrad_from(numbers, grads.ctypes.data, LR)
        return self._push_reply


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("rows", "dim", "pull-overhead", "push-reply", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    chosen = parser.parse_args()
    keep_memory()
    handlers = Handlers(chosen.rows, chosen.dim, chosen.pull_overhead, chosen.push_reply)
    server = grpc.server(ThreadPoolExecutor(chosen.threads), options=OPTIONS)
    methods = {
        "Pull": grpc.unary_unary_rpc_method_handler(handlers.pull),
        "Push": grpc.unary_unary_rpc_method_handler(handlers.push),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    # Whoever started this process holds its standard input; when it closes, the work is over.
    sys.stdin.read()
    server.stop(None).wait()


if __name__ == "__main__":
    main()
