"""What a takeover is told: everything that cannot be is refused by name before it changes anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from processes import free_port, run

from embedstore.errors import InvalidArgumentError
from embedstore.membership import Membership
from embedstore.server.options import ShardOptions
from embedstore.server.shard import Shard
from embedstore.server.takeover import activate, reassign, resharded
from embedstore.status import Topology


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    address = f"127.0.0.1:{free_port()}"
    shard = Shard(ShardOptions(address, data=tmp_path / "shard", peers=(address,)))
    shard.start()
    yield shard
    shard.stop()


@pytest.mark.parametrize(
    "record",
    [
        Topology(0, ("a:1",), 1),
        Topology(2**63, ("a:1",), 1),
        Topology(2**64 - 1, ("a:1",), 1),
        Topology(2, (), 0),
        Topology(2, ("a:1",), 2),
        Topology(2, ("a:1", "b:1"), 1),
        Topology(2, ("a:1", "a:1"), 2),
        Topology(2, ("a:1", ""), 2),
        Topology(2, ("a",), 1),
        Topology(2, ("a:0",), 1),
        Topology(2, ("a:99999",), 1),
        Topology(2, (" a:1",), 1),
    ],
)
def test_a_shard_goes_by_no_record_that_its_clients_would_not_go_by(shard: Shard, record: Topology) -> None:
    with pytest.raises(InvalidArgumentError, match="TopologyRecord"):
        reassign(shard.address, record)
    assert resharded([shard.address], [shard.address], 5) == Topology(1, (shard.address,), 1)


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan"), float("inf"), 1e300])
def test_a_timeout_that_cannot_be_waited_for_is_refused(shard: Shard, timeout_s: float) -> None:
    with pytest.raises(InvalidArgumentError, match="timeout_s"):
        activate([shard.address], None, force=False, timeout_s=timeout_s)
    with pytest.raises(InvalidArgumentError, match="timeout_s"):
        resharded([shard.address], [shard.address], timeout_s)


@pytest.mark.parametrize(
    ("listen", "advertise"),
    [
        ("127.0.0.1:0", "a:1,b:1"),
        ("127.0.0.1:0", " a:1"),
        ("127.0.0.1:0", "a"),
        ("127.0.0.1:0", "0.0.0.0:7600"),
        ("127.0.0.1:0", "[::]:7600"),
        ("0.0.0.0:0", ""),
        ("[::]:7600", ""),
    ],
)
def test_a_standby_has_one_address_at_which_it_is_reached(listen: str, advertise: str) -> None:
    with pytest.raises(InvalidArgumentError, match="advertise"):
        ShardOptions(listen, follow=("a:1",), standby=True, advertise=advertise, plaintext_beyond_loopback=True)
    ShardOptions(listen, follow=("a:1",), standby=True, advertise="a.example:7600", plaintext_beyond_loopback=True)


@pytest.mark.parametrize("standby", ["here", "a:1,b:2", "a:0", "0.0.0.0:7600"])
def test_promote_takes_one_address(standby: str) -> None:
    done = run(["shard", "promote", standby])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("embedstore: standby: must be")


def test_a_standby_that_is_known_costs_no_write() -> None:
    written: list[Mapping[bytes, Any]] = []
    membership = Membership(written.append)
    for _ in range(100):
        for address in ("a:1", "b:1"):
            membership.meet(address)
    assert len(written) == 2
    assert membership.acquaintances == ("a:1", "b:1")
