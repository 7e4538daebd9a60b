"""The native core's own tests: built without Python, run under sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tool(name: str) -> str:
    """A build tool, from the environment this Python belongs to or the system."""
    path = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    assert path is not None, f"{name} is not installed"
    return path


@pytest.mark.timeout(900)
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_the_core_passes_its_own_tests_under_sanitizers(sanitizers: str) -> None:
    build = ROOT / "build" / "native-tests" / sanitizers.replace(",", "-")
    build.mkdir(parents=True, exist_ok=True)
    cmake, ninja = tool("cmake"), tool("ninja")
    options = ["-DEMBEDSTORE_TESTS=ON", f"-DEMBEDSTORE_SANITIZE={sanitizers}", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    chosen = ["threads"] if sanitizers == "thread" else []
    for command in (
        [cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *options],
        [cmake, "--build", str(build)],
        [str(build / "native_tests"), *chosen],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    assert "tests passed" in done.stdout
