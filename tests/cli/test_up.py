"""`plaudit up` and its services as processes, started twice, started again, and on names and addresses of all kinds."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from plaudit.client import Client, tensor
from support.deployment import PLAUDIT, Service, deployed

Start = Callable[..., Service]


@pytest.fixture
def start() -> Iterator[Start]:
    """``start(*command)``: a process that is killed after the test."""
    running: list[Service] = []

    def start_one(*command: str) -> Service:
        running.append(Service([*PLAUDIT, *command]))
        return running[-1]

    yield start_one
    for service in running:
        service.kill()


def _plaudit(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PLAUDIT, *arguments], capture_output=True, text=True, check=False, timeout=120)


def _metric(address: str, name: str) -> float:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return next(sample.value for family in families for sample in family.samples if sample.name == name)


def _learn_from_a_thumb(target: str) -> None:
    """Until a version that learned it is live."""
    with Client(target) as client:
        before = client.versions().rollout.live
        client.thumbs_up(client.predict({"sensor": tensor([1.0, 2.0, 3.0, 4.0])}, user_id="ada"))
        next(rollout for rollout in client.watch_versions(timeout_s=120.0) if rollout.live != before)


def _free_ports(n: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def test_started_a_second_time_it_names_the_port_and_takes_nothing_from_the_first(tmp_path: Path, start: Start) -> None:
    config = deployed(tmp_path)
    ports = _free_ports(3)
    text = config.read_text().replace(
        "port = 0\nmetrics_port = 0\n", f"port = {ports[0]}\nmetrics_port = {ports[1]}\n", 1
    )
    config.write_text(text.replace("[learner]\nmetrics_port = 0\n", f"[learner]\nmetrics_port = {ports[2]}\n"))
    first = start("up", "--config", str(config), "--json")
    ready = first.ready("serve", "learn")
    second = _plaudit("up", "--config", str(config), "--json")
    assert second.returncode == 2
    assert f"plaudit: serving.port: {ports[0]} cannot be opened on 127.0.0.1" in second.stderr
    assert second.stdout == ""

    # One that takes no port of the first, and finds the same data: it waits, and takes over once the first has died.
    waiting = start("learn", "--config", str(config), "--metrics-port", "0", "--json")
    metrics = waiting.event(event="ready")["metrics"]
    _learn_from_a_thumb(ready["serve"]["address"])
    assert _metric(metrics, "plaudit_learner_leader") == 0
    assert _metric(ready["learn"]["metrics"], "plaudit_learner_leader") == 1
    first.stop(signal.SIGTERM)
    while _metric(metrics, "plaudit_learner_leader") == 0:
        pass
    assert _metric(metrics, "plaudit_learner_leads_total") == 1
    assert waiting.stop(signal.SIGTERM) == 0


@pytest.mark.slow
def test_several_processes_start_again_at_once_on_the_port_that_clients_used(tmp_path: Path, start: Start) -> None:
    """A connection that the server closed stays for a minute (TIME_WAIT); https://github.com/sgl-project/sglang/pull/253,
    https://github.com/neondatabase/neon/issues/801.
    """
    config = deployed(tmp_path)
    (port,) = _free_ports(1)
    command = ["serve", "--config", str(config), "--json", "--processes", "2", "--port", str(port)]
    service = start(*command)
    for _ in range(2):
        service.event(event="ready")
    with socket.create_connection(("127.0.0.1", port)) as browser:
        browser.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        while browser.recv(1000):  # until the server closes it, and it is the server's to wait
            pass
    assert service.stop(signal.SIGTERM) == 0
    again = start(*command)
    again.event(event="ready")
    # Meanwhile the port is refused to others, who would get half of the calls.
    refused = _plaudit("serve", "--config", str(config), "--port", str(port), "--processes", "2")
    assert (refused.returncode, f"serving.port: {port} cannot be opened" in refused.stderr) == (2, True)
    assert again.stop(signal.SIGTERM) == 0


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def test_names_of_folders_and_ipv6_addresses_of_all_kinds(tmp_path: Path, start: Start) -> None:
    """The same folder is opened by all, also by the shell's commands; every address that is printed can be used.

    https://github.com/GreptimeTeam/greptimedb/pull/8221, https://github.com/grpc/grpc-node/issues/1736
    """
    folder = tmp_path / "100%20off" / "{address} ?a=b#c 文"
    folder.mkdir(parents=True)
    config = deployed(folder)
    host = "::1" if _has_ipv6() else "127.0.0.1"
    text = config.read_text().replace(
        "[serving]\n", f'[serving]\nhost = "[{host}]"\n' if ":" in host else "[serving]\n"
    )
    text = text.replace("[learner]\n", f'[learner]\nhost = "{host}"\n')
    config.write_text(text + f'[console]\nhost = "{host}"\nport = 0\n')
    service = start("up", "--config", str(config), "--json")
    ready = service.ready("serve", "learn", "console")
    assert host in ready["serve"]["address"]
    _learn_from_a_thumb(ready["serve"]["address"])
    assert _metric(ready["learn"]["metrics"], "plaudit_learner_leader") == 1
    assert _metric(ready["serve"]["metrics"], "plaudit_serving_predictions_total") >= 1
    with urllib.request.urlopen(f"{ready['console']['page']}api/models/tiny/loop", timeout=30) as answer:
        assert json.load(answer)["learner"]["leads"]
    listed = _plaudit("versions", "--config", str(config), "--json", "--target", ready["serve"]["address"])
    assert json.loads(listed.stdout)["rollout"]["live"] > 1
    assert service.stop(signal.SIGTERM) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["100%20off"]
    assert (folder / "data/experiences.sqlite").exists()


def test_a_damaged_store_ends_the_learner_for_good_and_the_service_goes_on(tmp_path: Path, start: Start) -> None:
    """One sentence with the file and the way out, one start."""
    config = deployed(tmp_path)
    (tmp_path / "data/experiences.sqlite").write_bytes(b"half a file" * 100)
    service = start("up", "--config", str(config), "--json")
    told: dict[str, Any] = {}
    while not told.keys() >= {"ready", "given_up"}:
        event = service.event()
        told[event["event"]] = event
    assert (told["given_up"]["service"], told["given_up"]["code"]) == ("learn", 78)
    with Client(told["ready"]["address"]) as client:
        assert client.predict({"sensor": tensor([1.0, 2.0, 3.0, 4.0])}).version == 1
    (line,) = [line for line in service.logged().splitlines() if line.startswith("plaudit: ")]
    assert "experiences.sqlite: file is not a database; move it away, and the learner makes another one" in line
    assert "Traceback" not in service.logged()
    status = json.loads((tmp_path / "data/learner/learner-status.json").read_text())
    assert "file is not a database" in status["problem"]["text"]
    assert service.stop(signal.SIGTERM) == 78


def test_a_learner_waits_for_a_store_that_cannot_be_opened_yet(tmp_path: Path, start: Start) -> None:
    """A volume that is mounted late, for instance; its metrics answer meanwhile, and say that it waits."""
    config = deployed(tmp_path)
    (tmp_path / "data/experiences.sqlite").mkdir()
    (port,) = _free_ports(1)
    learner = start("learn", "--config", str(config), "--json", "--metrics-port", str(port))
    waits = learner.event(event="waiting")
    assert "experiences.sqlite: unable to open database file; see that its folder is there" in waits["problem"]
    assert _metric(f"127.0.0.1:{port}", "plaudit_learner_blocked") == 1
    (tmp_path / "data/experiences.sqlite").rmdir()
    assert learner.event(event="ready")["metrics"] == f"127.0.0.1:{port}"
    assert learner.stop(signal.SIGTERM) == 0


@pytest.mark.slow
def test_a_learner_that_is_stopped_while_it_waits_ends_at_once(tmp_path: Path, start: Start) -> None:
    config = deployed(tmp_path)
    (tmp_path / "data/experiences.sqlite").mkdir()
    learner = start("learn", "--config", str(config), "--json")
    learner.event(event="waiting")
    assert learner.stop(signal.SIGTERM) == 0
    assert "Timeout" not in learner.logged()


@pytest.mark.slow
def test_children_of_up_end_with_it_when_it_is_killed(tmp_path: Path, start: Start) -> None:
    service = start("up", "--config", str(deployed(tmp_path)), "--json")
    service.ready("serve", "learn")
    pid = service.process.pid
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    descriptors = [os.pidfd_open(child) for child in children]
    assert len(descriptors) == 2
    service.process.kill()
    service.process.wait()
    for descriptor in descriptors:
        assert select.select([descriptor], [], [], 60)[0]
        os.close(descriptor)


if sys.platform != "linux":
    pytest.skip("processes are watched as Linux has it", allow_module_level=True)
