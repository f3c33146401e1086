"""The services as processes: ready, answering, draining, and refusing to start with one sentence."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from plaudit.client import Client, tensor
from plaudit.compose.log import event_log
from plaudit.compose.registry import model_registry
from plaudit.compose.settings import load_settings
from plaudit.core.events import Topic
from support import builders
from support.deployment import PLAUDIT, Service, deployed

ONLY_SERVE = """
import sys
for name in ("torch", "onnx", "onnxscript", "sqlalchemy", "sklearn", "matplotlib", "espeakng_loader"):
    sys.modules[name] = None  # as if not installed
from plaudit.cli import main
main()
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return deployed(tmp_path)


Start = Callable[..., Service]
"""``start(*command)``: a process that is killed after the test."""


@pytest.fixture
def start() -> Iterator[Start]:
    running: list[Service] = []

    def start_one(*command: str) -> Service:
        running.append(Service(list(command)))
        return running[-1]

    yield start_one
    for service in running:
        service.kill()


def _plaudit(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PLAUDIT, *arguments], capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_answers_without_torch_and_drains_on_a_signal(config: Path, start: Start, number: signal.Signals) -> None:
    service = start(sys.executable, "-c", ONLY_SERVE, "serve", "--config", str(config), "--json")
    target = service.event(event="ready")["address"]

    with Client(target) as client:
        prediction = client.predict({"question": "which animal?", "image": builders.png()}, user_id="ada")
        assert prediction.action in builders.tiny_spec().actions
        assert not client.thumbs_up(prediction).duplicate

    assert service.stop(number) == 0
    log = event_log(load_settings(config))
    reader = log.reader("test", [Topic.DECISIONS, Topic.FEEDBACK], start=dict)
    assert len(reader.poll(10, 0.0)) == 2
    reader.close()
    log.close()


def test_the_shell_calls_a_real_server(config: Path, start: Start, tmp_path: Path) -> None:
    service = start(*PLAUDIT, "serve", "--config", str(config), "--json")
    target = ["--target", service.event(event="ready")["address"]]
    (tmp_path / "a.png").write_bytes(builders.png())
    (tmp_path / "a.wav").write_bytes(builders.wav())

    contents = ["--image", str(tmp_path / "a.png"), "--audio", str(tmp_path / "a.wav"), "--text", "which?"]
    answered = _plaudit("predict", *contents, "--user", "ada", "--explain", "--json", *target)
    assert answered.returncode == 0, answered.stderr
    prediction = json.loads(answered.stdout)
    assert set(prediction["contributions"]) == {"image", "audio", "question"}

    thumb = ["feedback", prediction["prediction_id"], "--up", "--user", "ada", "--feedback-id", "f1", "--json", *target]
    assert [json.loads(_plaudit(*thumb).stdout)["duplicate"] for _ in range(2)] == [False, True]
    assert json.loads(_plaudit("receipt", "f1", "--json", *target).stdout)["state"] == "recorded"
    assert json.loads(_plaudit("pin", "1", "--json", *target).stdout)["pinned"]
    assert not json.loads(_plaudit("unpin", "--json", *target).stdout)["pinned"]
    assert "version 1 is live" in _plaudit("versions", *target).stdout

    for refused, said in {
        ("promote", "9"): "version: 9 does not exist",
        ("feedback", "forged", "--up"): "prediction_id: 'forged'",
        ("receipt", "f2"): "feedback_id: 'f2'",
        ("predict", "--content", "smell=x"): "smell",
    }.items():
        done = _plaudit(*refused, *target)
        assert done.returncode == 1
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_up_learns_from_a_thumb_restarts_a_killed_learner_and_drains(config: Path, start: Start) -> None:
    service = start(*PLAUDIT, "up", "--config", str(config), "--json")
    ready = [service.event(event="ready"), service.event(event="ready")]
    (target,) = [event["address"] for event in ready if event["service"] == "serve"]

    with Client(target) as client:
        client.thumbs_up(client.predict({"sensor": tensor([1.0, 2.0, 3.0, 4.0])}, user_id="ada"))
        refreshed = next(rollout for rollout in client.watch_versions(timeout_s=120.0) if rollout.live != 1)
        assert refreshed.actor == "learner"

        os.kill(_child(service.process.pid, "learn"), signal.SIGKILL)
        assert service.event(event="exited", service="learn")["code"] == -signal.SIGKILL
        service.event(event="restarting", service="learn")
        service.event(event="ready", service="learn")
        assert client.versions().rollout.live == refreshed.live

    assert service.stop(signal.SIGINT) == 0


def _child(parent: int, command: str) -> int:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return next(int(pid) for pid in children if command in Path(f"/proc/{pid}/cmdline").read_text().split("\0"))


@pytest.mark.parametrize(
    ("command", "setting"),
    [("serve", "serving.port"), ("serve", "serving.metrics_port"), ("learn", "learner.metrics_port")],
)
def test_a_taken_port_is_named_and_exits_with_2(
    config: Path, monkeypatch: pytest.MonkeyPatch, command: str, setting: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setenv(f"PLAUDIT_{setting.upper().replace('.', '__')}", str(port))
        done = _plaudit(command, "--config", str(config), "--json")
    assert done.returncode == 2
    assert f"plaudit: {setting}: {port} " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["up", "serve", "learn", "finetune"])
def test_a_data_dir_that_cannot_be_written_to_is_named_and_exits_with_2(
    config: Path, tmp_path: Path, command: str
) -> None:
    (tmp_path / "a-file").write_text("")
    done = _plaudit(command, "--config", str(config), "--data-dir", str(tmp_path / "a-file"))
    assert done.returncode == 2
    assert f"data_dir: {tmp_path / 'a-file'} is not a folder that can be written to" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["up", "serve", "learn", "finetune", "pretrain", "doctor", "versions"])
def test_an_unknown_setting_is_named_and_exits_with_2(config: Path, tmp_path: Path, command: str) -> None:
    config.write_text("[serving]\nprot = 1\n")
    data = ["--data", str(tmp_path)] if command == "pretrain" else []
    done = _plaudit(command, "--config", str(config), *data)
    assert (done.returncode, done.stderr) == (2, f"plaudit: {config}: serving.prot: unknown setting\n")


def test_a_missing_extra_is_named_and_exits_with_2(config: Path) -> None:
    learn = [sys.executable, "-c", ONLY_SERVE, "learn", "--config", str(config)]
    done = subprocess.run(learn, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert "onnx is missing; this command needs the extra learn: pip install 'plaudit[learn]'" in done.stderr


def test_several_processes_share_the_port_and_one_that_is_killed_is_started_again(config: Path, start: Start) -> None:
    service = start(*PLAUDIT, "serve", "--config", str(config), "--json", "--processes", "2")
    ready = [service.event(event="ready") for _ in range(2)]
    assert {event["service"] for event in ready} == {"serve-0", "serve-1"}
    (target,) = {event["address"] for event in ready}
    (page,) = {event["metrics"] for event in ready}

    children = _children(service.process.pid)
    assert len(children) == 2
    os.kill(children[0], signal.SIGKILL)
    service.event(event="exited")
    again = service.event(event="ready")
    assert again["address"] == target
    for _ in range(8):  # each time a connection of its own, to one or the other
        with Client(target) as client:
            assert client.predict({"question": "which animal?"}).version == 1
    families = list(text_string_to_metric_families(_get(f"http://{page}/metrics")))
    samples = [sample for family in families for sample in family.samples]
    # One of the two was killed after it was ready, and counts anew; all of these came later.
    predicted = [s.value for s in samples if s.name == "plaudit_serving_predictions_total"]
    assert sum(predicted) == 8
    assert {s.labels["process"] for s in samples} == {"0", "1"}
    assert len({family.name for family in families}) == len(families)
    assert service.stop(signal.SIGTERM) == 0


def test_processes_that_are_killed_while_scraped_and_reporting_leave_the_page_and_the_log_whole(
    config: Path, start: Start
) -> None:
    """Kill -9 of one of two, three times, right after both have reported on an experiment; the page is read all
    along.
    """
    builders.tiny_bundle(config.parent / "second", seed=9)
    model_registry(load_settings(config)).publish(config.parent / "second")
    service = start(*PLAUDIT, "serve", "--config", str(config), "--json", "--processes", "2")
    ready = [service.event(event="ready") for _ in range(2)]
    target, page = ready[0]["address"], f"http://{ready[0]['metrics']}/metrics"
    with Client(target) as client:
        client.start_canary(2, 0.5, reason="a test")
    log = event_log(load_settings(config))
    reports = _Reports(log, target)
    reports.until_two_report()
    before = _files(config.parent / "data")
    scraped: list[set[str]] = []
    done = threading.Event()

    def scrape() -> None:
        while not done.is_set():
            scraped.append(_processes_on(_get(page)))

    scraping = threading.Thread(target=scrape)
    scraping.start()
    try:
        for _ in range(3):
            os.kill(_children(service.process.pid)[0], signal.SIGKILL)
            service.event(event="exited")
            service.event(event="ready")
            reports.until_two_report()
    finally:
        done.set()
        scraping.join()
        log.close()
    assert scraped
    assert all(found in ({"0"}, {"1"}, {"0", "1"}) for found in scraped)
    assert _processes_on(_get(page)) == {"0", "1"}
    for numbers in reports.numbers.values():
        assert numbers == list(range(1, len(numbers) + 1))  # whole, once, in order, up to the kill
    assert len(reports.numbers) >= 5  # the first two and one more for each that was started again
    assert _files(config.parent / "data") == before
    assert service.stop(signal.SIGTERM) == 0


def test_a_console_that_is_killed_leaves_nothing_behind_and_disturbs_no_other_process(
    config: Path, start: Start
) -> None:
    service = start(*PLAUDIT, "serve", "--config", str(config), "--json")
    ready = service.event(event="ready")
    target, page = ready["address"], f"http://{ready['metrics']}/metrics"
    before = _files(config.parent / "data")
    for _ in range(2):
        console = start(*PLAUDIT, "console", "--config", str(config), "--target", target, "--port", "0", "--json")
        _get(console.event(event="ready")["page"] + "api/models/tiny")
        console.process.send_signal(signal.SIGKILL)
        console.process.wait()
        with Client(target) as client:
            assert client.predict({"question": "which animal?"}).version == 1
        assert _sum(_get(page), "plaudit_serving_failed_proofs_total") == 0
    assert _sum(_get(page), "plaudit_serving_predictions_total") == 2
    assert _files(config.parent / "data") == before


class _Reports:
    """Reads what services report of an experiment, and asks them things meanwhile, so that there is something to
    report.

    Attributes:
        numbers: of the reports of each replica, in the order of the log.
    """

    def __init__(self, log: Any, target: str) -> None:
        self._reader = log.reader("test", [Topic.EXPERIMENTS], start=dict)
        self._target = target
        self.numbers: dict[str, list[int]] = {}

    def until_two_report(self) -> None:
        """Until two replicas have said something since the call."""
        heard: set[str] = set()
        while len(heard) < 2:
            with Client(self._target) as client:  # a connection of its own, to one or the other
                for number in range(4):
                    client.predict({"question": "which animal?"}, user_id=f"user {number}")
            for record in self._reader.poll(100, 0.0):
                heard.add(record.event.replica)
                self.numbers.setdefault(record.event.replica, []).append(record.event.number)


def _samples(page: str) -> list[Sample]:
    return [sample for family in text_string_to_metric_families(page) for sample in family.samples]


def _sum(page: str, name: str) -> float:
    return sum(sample.value for sample in _samples(page) if sample.name == name)


def _processes_on(page: str) -> set[str]:
    """Which processes a page shows; each of them with all that one shows."""
    samples = _samples(page)
    processes = {sample.labels["process"] for sample in samples}
    for process in processes:
        shown = {sample.name for sample in samples if sample.labels["process"] == process}
        assert {"plaudit_serving_live_version", "plaudit_serving_memory_bytes"} & shown
    return processes


def _files(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix not in (".sqlite-wal", ".sqlite-shm")
    }


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        page: bytes = answer.read()
    return page.decode()


@pytest.mark.parametrize("setting", ["port", "metrics-port"])
def test_several_processes_need_free_ports(config: Path, setting: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        failed = _plaudit("serve", "--config", str(config), "--processes", "2", f"--{setting}", port)
    assert failed.returncode == 2
    assert f"serving.{setting.replace('-', '_')}: {port} cannot be opened on 127.0.0.1" in failed.stderr


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
