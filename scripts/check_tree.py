"""Fails when a tracked file holds what must never be in the tree.

That is: an address of a package registry or any other unknown host, a path of somebody's machine, unfinished work, the
marks of a merge. Run by ``make lint`` from the repository root.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

# Hosts that a document or a schema may name. Nothing is ever downloaded from them by our own files.
KNOWN_HOSTS = frozenset(
    {"arxiv.org", "doi.org", "keepachangelog.com", "localhost", "maven.apache.org", "semver.org", "www.w3.org"}
)
# Files that tell an installer what to fetch name packages and versions, never where they come from.
INSTALLER_FILES = ("constraints.txt", "pyproject.toml", "Makefile", "CMakeLists.txt", "scripts/", ".ci/", "deploy/")
GENERATED = re.compile(r"_pb2(_grpc)?\.pyi?$")

_URL = re.compile(r"\b(?:https?|git\+\w+|ftp)://(?:[^@/\s\"'<>]*@)?([A-Za-z0-9.-]*\.[A-Za-z]{2,}|localhost)")
_HOST = re.compile(r"(?<![\w.@/-])(?:[a-z0-9-]+\.)+(?:org|com|net|io|cn)(?![\w.-]|\()")
_INDEX = re.compile(r"--(?:extra-)?index-url|--find-links|--trusted-host|index_url|<repositor(?:y|ies)>")
_MACHINE = re.compile(r"(?<![\w.])/(?:work|home|Users|root|mnt|opt)/\w")
_UNFINISHED = re.compile(r"\b(?:TODO|FIXME|XXX|HACK|WIP)\b|raise NotImplementedError|pytest\.mark\.(?:skip|xfail)")
_MERGE = re.compile(r"^(?:<{7} |>{7} |={7}$)")


def problems(path: str, text: str) -> list[str]:
    """What is wrong with one file, as ``path:line: what``."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        hosts = [url[1] for url in _URL.finditer(line) if url[1].lower() not in KNOWN_HOSTS]
        found += [f"{path}:{number}: address of an unknown host: {host}" for host in hosts]
        for what, pattern in (
            ("path of one machine", _MACHINE),
            ("unfinished work", _UNFINISHED),
            ("mark of a merge", _MERGE),
        ):
            if match := pattern.search(line):
                found.append(f"{path}:{number}: {what}: {match[0].strip()}")
        if path.startswith(INSTALLER_FILES):
            hosts = [host[0] for host in _HOST.finditer(line) if host[0] not in KNOWN_HOSTS]
            hosts += [option[0] for option in _INDEX.finditer(line)]
            found += [f"{path}:{number}: where a package comes from: {host}" for host in hosts]
    return found


def main() -> int:
    """Check every tracked text file; the exit status."""
    listing = subprocess.run(["git", "ls-files", "-z"], check=True, capture_output=True, text=True).stdout
    found = []
    for path in filter(None, listing.split("\0")):
        if path == "scripts/check_tree.py" or GENERATED.search(path) or not Path(path).is_file():
            continue
        data = Path(path).read_bytes()
        if b"\0" not in data:
            found += problems(path, data.decode())
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
