"""Serving processes within the test's own, started with whatever options and stopped at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from embedstore.server.options import ShardOptions
from embedstore.server.shard import Shard


@pytest.fixture
def start() -> Iterator[Callable[..., Shard]]:
    """Starts one on a free port; it follows fast unless told otherwise."""
    with ExitStack() as stack:

        def shard(**options: Any) -> Shard:
            server = Shard(ShardOptions(**{"listen": "127.0.0.1:0", "sync_interval_ms": 10, **options}))
            server.start()
            stack.callback(server.stop)
            return server

        yield shard
