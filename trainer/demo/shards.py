"""The demo's shards, and what happens when one is killed.

A shard that dies of SIGKILL, whoever sent it, is started again on its old port after a moment; unless somebody else has
started it there by then. Any other death ends the demo. :class:`Shards` belongs to one thread.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

from trainer.demo.processes import DemoError, Fleet, free_ports, is_listening
from trainer.demo.result import Kill

READY = r"^embedstore: serving "
RESTART_DELAY_S = 2.0
KILLS_MAX = 20


def embedstore_command(*arguments: str) -> list[str]:
    """The command line of ``embedstore`` in this very environment."""
    return [str(Path(sys.executable).with_name("embedstore")), *arguments]


class Shards:
    """Shards on loopback, each a process with its own data directory."""

    def __init__(self, fleet: Fleet, num_shards: int, data_dir: Path, note: Callable[[str], None]) -> None:
        self._fleet = fleet
        self._data_dir = data_dir
        self._note = note
        self._ports = free_ports(num_shards)
        self._restart_due_s: dict[int, float] = {}
        self._open_kills: dict[int, Kill] = {}
        self._foreign: set[int] = set()
        self.kills: list[Kill] = []

    @property
    def addresses(self) -> list[str]:
        """host:port of every shard, in order."""
        return [f"127.0.0.1:{port}" for port in self._ports]

    def start(self) -> None:
        """Start all and wait until each is ready."""
        count = len(self._ports)
        for index, address in enumerate(self.addresses):
            self._fleet.start(
                _name(index),
                embedstore_command(
                    "serve",
                    *("--listen", address),
                    *("--shard", f"{index}/{count}"),
                    *("--data", str(self._data_dir / _name(index))),
                    *("--peers", ",".join(self.addresses)),
                ),
            )
        for index in range(count):
            self._fleet.wait_ready(_name(index), READY)

    def kill(self, index: int) -> None:
        """SIGKILL one; :meth:`tend` notices and starts it again."""
        self._fleet.kill(_name(index))

    def tend(self, now_s: float) -> None:
        """Look after every shard; :class:`DemoError` when one ended in any other way than by SIGKILL."""
        for index in range(len(self._ports)):
            if index in self._foreign:
                continue
            if index in self._restart_due_s:
                self._restart_when_due(index, now_s)
            elif self._fleet.returncode(_name(index)) is not None:
                self._on_death(index, now_s)
            elif index in self._open_kills and self._open_kills[index].restarted_s is None:
                self._open_kills[index].restarted_s = now_s if is_listening(self._ports[index]) else None

    def settle(self, now_s: float, behind: int, allowed: int) -> None:
        """Tell how many positions the last shard is ``behind``: kills whose shard is back are over at ``allowed``."""
        for index, kill in list(self._open_kills.items()):
            if kill.restarted_s is not None and behind <= allowed:
                kill.level_s = now_s
                self._note(f"shard {index} is level again {now_s - kill.killed_s:.1f} s after it was killed")
                del self._open_kills[index]

    def unsettled(self) -> bool:
        """Whether a killed shard is not level again yet."""
        return bool(self._open_kills)

    def stop(self) -> None:
        """Let every shard write its checkpoint and end."""
        self._fleet.stop(_name(index) for index in range(len(self._ports)) if index not in self._foreign)

    def _on_death(self, index: int, now_s: float) -> None:
        if self._fleet.returncode(_name(index)) != -signal.SIGKILL or len(self.kills) >= KILLS_MAX:
            raise DemoError(self._fleet.death(_name(index)))
        kill = Kill(index, now_s)
        self.kills.append(kill)
        self._open_kills[index] = kill
        self._restart_due_s[index] = now_s + RESTART_DELAY_S
        self._note(f"shard {index} was killed at {now_s:.1f} s; it starts again in {RESTART_DELAY_S:.0f} s")

    def _restart_when_due(self, index: int, now_s: float) -> None:
        if now_s < self._restart_due_s[index]:
            return
        del self._restart_due_s[index]
        if is_listening(self._ports[index]):
            self._foreign.add(index)
            self._open_kills[index].restarted_s = now_s
            self._note(f"shard {index} has been started by somebody else, who has to stop it too")
            return
        self._fleet.restart(_name(index))


def _name(index: int) -> str:
    return f"shard-{index}"
