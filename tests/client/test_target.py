"""Targets of the clients: what gRPC would take for something else is refused with the way to write it."""

from __future__ import annotations

import pytest

from plaudit.client import Client, ClientError


@pytest.mark.parametrize("target", ["::1:8001", "::1", "fe80::1:8001"])
def test_an_ipv6_address_without_brackets_is_refused(target: str) -> None:
    """https://github.com/ElementsProject/lightning/issues/5317, https://github.com/grpc/grpc-node/issues/1736"""
    with pytest.raises(ClientError, match=r"target: '.*': an IPv6 address stands in brackets, as in \[::1\]:8001"):
        Client(target)


@pytest.mark.parametrize("target", ["[::1]:8001", "localhost:8001", "dns:///a:1", "ipv6:[::1]:1", "unix:/a:b:c"])
def test_other_targets_are_taken(target: str) -> None:
    Client(target).close()
