"""A few rounds of the fault suite, and its proxy."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from faults.proxy import Proxy
from faults.rounds import run
from faults.world import free_port
from support.kafka_broker import need_broker


def test_the_proxy_passes_on_both_ways_and_closes() -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as target:

        def echo() -> None:
            connection, _ = target.accept()
            with connection:
                while data := connection.recv(1024):
                    connection.sendall(data.upper())

        threading.Thread(target=echo, daemon=True).start()
        proxy = Proxy(port, f"127.0.0.1:{target.getsockname()[1]}")
        proxy.start()
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"hello")
            assert client.recv(1024) == b"HELLO"
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1024) == b""
        proxy.stop()


@pytest.mark.slow
@pytest.mark.kafka
def test_ten_rounds(tmp_path: Path) -> None:
    need_broker()
    outcome = run(tmp_path, rounds=10, seed=3)
    assert outcome.acknowledged > 0
    assert (outcome.lost, outcome.twice, outcome.missing, outcome.same_sums) == (0, 0, 0, True)
