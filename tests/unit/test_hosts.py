"""Which callers are one host."""

from __future__ import annotations

import pytest

from embedstore.server.doors import host_of, of_one_host


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:10.0.0.1:50000", "ipv4:10.0.0.1"),
        ("ipv6:%5B::1%5D:50000", "ipv6:::"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:50000", "ipv6:2001:db8:1:2::"),
        ("ipv6:%5B2001:db8:1:2:ffff::%5D:443", "ipv6:2001:db8:1:2::"),
        ("ipv6:[2001:db8:1:3::1]:443", "ipv6:2001:db8:1:3::"),
        ("ipv6:%5B::ffff:10.0.0.1%5D:50000", "ipv4:10.0.0.1"),
        ("ipv6:%5Bfe80::7%25eth0%5D:50000", "ipv6:fe80::"),
        ("unix:/tmp/socket", "unix"),
        ("unknown", "unknown"),
        ("ipv6:nonsense:1", "ipv6:nonsense"),
    ],
)
def test_hosts_are_addresses_without_ports_and_networks_of_ipv6(peer: str, host: str) -> None:
    assert host_of(peer) == host


def test_one_host_has_three_quarters_and_always_one_place() -> None:
    assert [of_one_host(places) for places in (1, 2, 3, 4, 16, 1024)] == [1, 2, 3, 3, 12, 768]
