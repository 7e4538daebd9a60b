"""The native core's own tests, built without Python. ``make sanitize`` runs them under sanitizers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(300)
def test_the_core_passes_its_own_tests() -> None:
    done = subprocess.run([ROOT / "scripts" / "native-tests"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    assert "tests passed" in done.stdout
