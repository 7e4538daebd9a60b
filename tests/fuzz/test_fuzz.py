"""The short form of ``make fuzz``, and that it would notice what it looks for."""

from __future__ import annotations

import contextlib
import functools
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fuzz import run
from fuzz_servers import LocalServer, all_rpcs
from fuzzer import Errors, Fuzzer
from valid_messages import K

from embedstore.server import embedding

MESSAGES, WIRE_MESSAGES = 250, 20


@pytest.mark.timeout(240)
def test_no_message_breaks_a_server_or_is_half_done(tmp_path: Path) -> None:
    seed = secrets.randbits(32)
    tallies = list(
        run(
            messages=MESSAGES,
            wire_messages=WIRE_MESSAGES,
            seed=seed,
            rpcs=(),
            note=lambda label, messages: None,
            directory=tmp_path,
        )
    )
    problems = [problem for tally in tallies for problem in tally.problems]
    assert not problems, f"seed {seed}\n" + "\n".join(problems)
    assert len(tallies) == 2 * len(all_rpcs())
    for tally in tallies:
        assert tally.messages >= (MESSAGES if tally.where == "local" else WIRE_MESSAGES)


@contextlib.contextmanager
def broken(method: str, wrong: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding.EmbeddingService, method, wrong(getattr(embedding.EmbeddingService, method)))
        yield


def fuzz_deletes() -> list[str]:
    [rpc] = [each for each in all_rpcs() if each.name == "Delete"]
    with Errors() as errors:
        fuzzer = Fuzzer(rpc, LocalServer("leader"), 1, "local", lambda label, messages: None, errors)
        return fuzzer.run(300).problems


def test_a_bug_in_a_handler_is_noticed() -> None:
    def wrong(right: Any) -> Any:
        def delete(self: Any, request: Any) -> Any:
            return {}[request.table] if len(request.ids) == 16 else right(self, request)

        return delete

    with broken("delete", wrong):
        assert any("KeyError" in problem for problem in fuzz_deletes())


def test_an_effect_of_a_refused_message_is_noticed() -> None:
    def wrong(right: Any) -> Any:
        def delete(self: Any, request: Any) -> Any:
            if request.table not in self._serving.store().table_map():
                self._serving.writable().push({"probe": ([K[0]], [[1.0]])})
            return right(self, request)

        return delete

    with broken("delete", wrong):
        assert any("was refused, and changed something" in problem for problem in fuzz_deletes())


def test_the_same_seed_sends_the_same_messages() -> None:
    [rpc] = [each for each in all_rpcs() if each.name == "Assign"]
    sent: list[list[bytes]] = []
    for _ in range(2):
        seen: list[bytes] = []
        sent.append(seen)
        with Errors() as errors:
            note = functools.partial(lambda to, label, messages: to.extend(messages), seen)
            Fuzzer(rpc, LocalServer("leader"), 7, "local", note, errors).run(200)
    assert sent[0] == sent[1] != []
