"""Hosts and ports as text, there and back."""

from __future__ import annotations

import socket

import pytest

from plaudit.cli.processes import ports
from plaudit.compose.settings import load_settings
from plaudit.core.errors import ConfigError
from plaudit.core.host.addresses import bare, family, join, reachable


@pytest.mark.parametrize(
    ("host", "listened_on", "reached_at"),
    [
        ("127.0.0.1", "127.0.0.1:1", "127.0.0.1:1"),
        ("0.0.0.0", "0.0.0.0:1", "127.0.0.1:1"),
        ("::1", "[::1]:1", "[::1]:1"),
        ("[::1]", "[::1]:1", "[::1]:1"),
        ("::", "[::]:1", "[::1]:1"),
        ("[::]", "[::]:1", "[::1]:1"),
        ("db.example.org", "db.example.org:1", "db.example.org:1"),
    ],
)
def test_ipv6_literals_stand_in_brackets_once(host: str, listened_on: str, reached_at: str) -> None:
    assert join(host, 1) == listened_on
    assert reachable(host, 1) == reached_at
    assert family(bare(host)) is (socket.AF_INET6 if "[" in listened_on else socket.AF_INET)


def test_settings_take_both_ways_of_writing() -> None:
    hosts = {"serving": {"host": "[::1]"}, "learner": {"host": "::1"}, "console": {"host": "[::]"}}
    settings = load_settings(None, hosts)
    assert (settings.serving.host, settings.learner.host, settings.console.host) == ("::1", "::1", "::")


def test_a_port_that_is_listened_on_is_named_with_its_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"serving.port: {port} cannot be opened on 127.0.0.1 \(Address already"):
            ports.require_free("serving.port", "127.0.0.1", port)
    ports.require_free("serving.port", "127.0.0.1", port)


def test_a_reserved_port_is_free_for_those_that_share_it_and_for_nobody_else() -> None:
    with ports.reserved("serving.port", "127.0.0.1", 0) as port:
        with socket.socket() as sharing:
            sharing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sharing.bind(("127.0.0.1", port))
        assert ports.problem("127.0.0.1", port) == "Address already in use"


def test_a_connection_that_a_former_server_closed_is_no_obstacle() -> None:
    """It waits for a minute (TIME_WAIT), and servers are started again at once meanwhile: `serve --processes 2`.

    https://github.com/sgl-project/sglang/pull/253, https://github.com/neondatabase/neon/issues/801
    """
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as former:
        port = former.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            former.accept()[0].close()
            assert client.recv(1) == b""
    with pytest.raises(OSError, match="in use"), socket.socket() as strict:
        strict.bind(("127.0.0.1", port))
    assert ports.problem("127.0.0.1", port) == ""
    with ports.reserved("serving.port", "127.0.0.1", port) as reserved:
        assert reserved == port
