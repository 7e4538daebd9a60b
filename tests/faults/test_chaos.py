"""The short form of ``make chaos``: everything is killed and hurt at random, and every event still counts once."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path

import pytest
from chaos import run

KILLS = 20
TAKEOVERS = ("promote", "promote_by_force")


@pytest.mark.timeout(240)
def test_random_kills_of_everything_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}", file=sys.stderr)
    result = run(tmp_path, kills=KILLS, seed=seed, pause_s=0.5, report=lambda line: None, first=TAKEOVERS)
    assert (result.lost, result.double, result.other) == (0, 0, []), f"seed {seed}\n{result.table()}"
    assert sum(result.kills.values()) >= KILLS
    assert all(result.faults[name] for name in TAKEOVERS)
    assert result.events > 500
