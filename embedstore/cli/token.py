"""``embedstore token``: a new bearer token for somebody."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import shutil
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from embedstore.cli.output import one_line_errors
from embedstore.credentials import read_file
from embedstore.errors import CheckpointFailedError, InvalidArgumentError
from embedstore.server.security import ROLES, read_tokens

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def token(
    name: Annotated[str, typer.Argument(help="Whose token it is; letters, digits, - and _.")],
    role: Annotated[str, typer.Option(help="read, train or admin; each may do what those before it may.")],
    tokens: Annotated[Path, typer.Option(help="The servers' file (serve --tokens); a section is added to it.")],
    out: Annotated[Path, typer.Option(help="File for the token itself, which must not exist yet.")],
) -> None:
    """Make a token: the token goes to one file, for its owner only, its digest to the servers'.

    Running servers take it at once. To withdraw a token, remove its section.
    """
    with one_line_errors():
        if role not in ROLES:
            raise InvalidArgumentError("role", f"must be one of {', '.join(ROLES)}, not {role!r}")
        if not _NAME.fullmatch(name):
            raise InvalidArgumentError("name", f"must be 1 to 64 letters, digits, - or _, not {name!r}")
        try:
            with _alone(tokens.parent):
                _add(name, role, tokens, out)
        except OSError as error:
            raise CheckpointFailedError(str(error.filename), error.strerror or str(error)) from error
    typer.echo(f"{name} may {role}: its token is in {out}")


def _add(name: str, role: str, tokens: Path, out: Path) -> None:
    """Either both files have the new token, or neither."""
    known = read_file("tokens", tokens).decode(errors="replace") if tokens.exists() and tokens.stat().st_size else ""
    if known:
        read_tokens(tokens)
        if name in tomllib.loads(known)["tokens"]:
            raise InvalidArgumentError("name", f"{tokens} has a token of that name already")
    secret = secrets.token_urlsafe(32)
    section = f'[tokens.{name}]\nrole = "{role}"\nsha256 = "{hashlib.sha256(secret.encode()).hexdigest()}"\n'
    try:
        file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise InvalidArgumentError("out", f"{out} exists already") from error
    temporary = tokens.with_name(tokens.name + ".new")
    try:
        with os.fdopen(file, "w") as opened:
            opened.write(secret + "\n")
        temporary.write_text(f"{known.rstrip()}\n\n{section}".lstrip())
        if known:
            shutil.copymode(tokens, temporary)
        read_tokens(temporary)
        os.replace(temporary, tokens)
    except BaseException:
        temporary.unlink(missing_ok=True)
        out.unlink(missing_ok=True)
        raise


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """No other command changes a file there meanwhile."""
    opened = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)
