"""Shards in this process whose topology changes while they are used: moved to another port, restarted, made more."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from processes import free_port

import embedstore as es
from embedstore.server.options import ShardOptions
from embedstore.server.shard import Shard
from embedstore.status import Topology

COUNTED = es.TableSpec("counted", dim=1, optimizer=es.SGD(lr=1.0), num_chunks=8)


def local(shard: Shard) -> Any:
    """The shard's own store."""
    return shard._serving.writable()


class MovingShards:
    """``num_shards`` shards that know each other, each with a directory below ``path``."""

    def __init__(self, path: Path, num_shards: int = 2, tables: Sequence[es.TableSpec] = (COUNTED,)) -> None:
        self.path = path
        self.tables = tables
        self.epoch = 1
        self.addresses = [f"127.0.0.1:{free_port()}" for _ in range(num_shards)]
        self.generation = [0] * num_shards
        self.others: list[Shard] = []
        self.shards = [self._start(shard) for shard in range(num_shards)]

    def __enter__(self) -> MovingShards:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for shard in [*self.shards, *self.others]:
            shard.stop()

    @property
    def record(self) -> Topology:
        """What the shards go by, or shall."""
        return Topology(self.epoch, tuple(self.addresses), len(self.addresses))

    def data(self, shard: int) -> Path:
        """Where the present shard with this number keeps its checkpoints."""
        return self.path / f"{shard}-of-{len(self.addresses)}-{self.generation[shard]}"

    def _start(self, shard: int, address: str = "", data: Path | None = None) -> Shard:
        options = ShardOptions(
            address or self.addresses[shard],
            shard,
            len(self.addresses),
            data or self.data(shard),
            self.tables,
            tuple(self.addresses),
            checkpoint_interval_s=3600.0,
            drain_s=5.0,
        )
        started = Shard(options)
        started._serving.topology = self.record
        started.start()
        return started

    def tell(self, *shards: int) -> None:
        """These shards, or all, go by the present record from now on."""
        for shard in shards or range(len(self.shards)):
            self.shards[shard]._serving.topology = self.record

    def bump(self) -> None:
        """One epoch more, everything else as it was."""
        self.epoch += 1
        self.tell()

    def restart(self, shard: int) -> None:
        """Stop it and start it on its port again."""
        self.shards[shard].stop()
        self.shards[shard] = self._start(shard)

    def move(self, shard: int, *, leave: bool = False, tell: bool = True, data: Path | None = None) -> None:
        """Another process with the same data, or with ``data``, takes its place at another address. ``leave``: the old
        one comes back, and knows that it was replaced; ``tell``: the others know it too."""
        self.shards[shard].stop()
        old_address, old_data = self.addresses[shard], self.data(shard)
        self.epoch += 1
        self.generation[shard] += 1
        shutil.copytree(data or old_data, self.data(shard))
        self.addresses[shard] = f"127.0.0.1:{free_port()}"
        self.shards[shard] = self._start(shard)
        if tell:
            self.tell()
        if leave:
            self.others.append(self._start(shard, old_address, old_data))

    def reshard(self, num_shards: int) -> None:
        """As many new shards with the same rows and watermarks take over from all old ones, which know it. Nobody
        may write meanwhile."""
        old, self.epoch = self.shards, self.epoch + 1
        self.addresses = [f"127.0.0.1:{free_port()}" for _ in range(num_shards)]
        self.generation = [self.epoch] * num_shards
        new = [self._start(shard) for shard in range(num_shards)]
        for target in map(local, new):
            for source in map(local, old):
                for stream in source._streams.opened():
                    if not target._streams.knows(stream.name):
                        target.open_stream(stream.name, stream.begin, stream.generation)
                for name, table in source.table_map().items():
                    mine = target.table(name)
                    for chunk in set(table.chunks) & set(mine.chunks):
                        mine.apply(table.delta(chunk))
        self.shards = new
        for shard in old:
            shard._serving.topology = self.record
        self.others += old
