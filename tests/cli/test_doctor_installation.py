"""Ways to break an installation: the doctor names the thing and the way out, and is content once that was followed.

One small real installation is made once and copied for each case.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from plaudit.adapters.log.sqlite import SqliteLog
from plaudit.adapters.store.sql import SqlStore
from plaudit.cli.doctor import checks
from plaudit.cli.doctor.checks import examine
from plaudit.cli.doctor.findings import Finding, State
from plaudit.compose.registry import model_registry
from plaudit.compose.serving import inference_server
from plaudit.compose.settings import load_settings
from plaudit.compose.store import experience_store
from plaudit.core.errors import ConfigError
from plaudit.core.ports.store import IngestBatch
from plaudit.core.rollout import Change, promote
from plaudit.core.settings import Settings
from plaudit.learner.status import StatusFile
from support import builders
from support.shell import run_plaudit

FREE: Mapping[str, Mapping[str, Any]] = {"serving": {"port": 0, "metrics_port": 0}, "learner": {"metrics_port": 0}}


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory in which serving and learning have happened: two versions, a decision, its thumb, a key."""
    folder = tmp_path_factory.mktemp("installation")
    settings = _settings(folder / "data")
    registry = model_registry(settings)
    for seed in (1, 2):
        builders.tiny_bundle(folder / f"made-{seed}", seed=seed)
        version = registry.publish(folder / f"made-{seed}").version
        registry.set_rollout(promote(registry.rollout(), version, Change("ada", 1.0, "")))
    (folder / "data/signing.key").touch(mode=0o600)
    (folder / "data/signing.key").write_bytes(bytes(range(32)))
    with closing(SqliteLog(folder / "data/log.sqlite")) as log:
        log.append([builders.a_decision("p1"), builders.some_feedback("p1")])
    with closing(experience_store(settings, "tiny")) as store:
        store.save_batch(IngestBatch(positions={"0": "2"}))
    run = folder / "data/learner/runs/1"
    run.mkdir(parents=True)
    (run / "job.json").write_text("{}")
    return folder / "data"


@dataclass
class Broken:
    """A copy of the installation that a case breaks.

    Attributes:
        flags: settings beside those of the installation.
        held: what is to stay open during the examination.
    """

    data: Path
    monkeypatch: pytest.MonkeyPatch
    held: ExitStack
    flags: dict[str, Any] = field(default_factory=dict)

    @property
    def registry(self) -> Path:
        return self.data / "registry/tiny"

    def findings(self) -> list[Finding]:
        return list(examine(_settings(self.data, **self.flags)))

    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings() if finding.state is State.ERROR]


def _settings(data: Path, **flags: Any) -> Settings:
    model = builders.tiny_spec().to_dict()
    return load_settings(None, {"data_dir": data, "model": model, **FREE, **flags})


@pytest.fixture
def broken(installation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broken]:
    shutil.copytree(installation, tmp_path / "data", symlinks=True)
    with ExitStack() as held:
        yield Broken(tmp_path / "data", monkeypatch, held)


def test_the_installation_is_sound(broken: Broken) -> None:
    assert broken.errors() == []


Break = Callable[[Broken], Callable[[], None] | None]
"""Breaks an installation; returns how to follow the way out, where that is cheap."""


# --- signing key -----------------------------------------------------------------------------------------------------


def key_is_short(broken: Broken) -> Callable[[], None]:
    whole = (broken.data / "signing.key").read_bytes()
    (broken.data / "signing.key").write_bytes(whole[:7])
    return lambda: _write(broken.data / "signing.key", whole)


def key_is_empty(broken: Broken) -> Callable[[], None]:
    (broken.data / "signing.key").write_bytes(b"")
    return (broken.data / "signing.key").unlink


def key_is_for_all(broken: Broken) -> Callable[[], None]:
    (broken.data / "signing.key").chmod(0o644)
    return lambda: (broken.data / "signing.key").chmod(0o600)


def key_is_a_folder(broken: Broken) -> Callable[[], None]:
    """Docker makes a folder where a file is mounted that is not there."""
    (broken.data / "signing.key").unlink()
    (broken.data / "signing.key").mkdir()
    return (broken.data / "signing.key").rmdir


def key_is_not_mounted(broken: Broken) -> Callable[[], None]:
    (broken.data / "signing.key").unlink()
    (broken.data / "signing.key").symlink_to(broken.data / "secrets" / "key")
    return (broken.data / "signing.key").unlink


# --- data directory --------------------------------------------------------------------------------------------------


def data_dir_is_a_file(broken: Broken) -> None:
    shutil.rmtree(broken.data)
    broken.data.write_text("")


def data_dir_is_a_loop(broken: Broken) -> None:
    shutil.rmtree(broken.data)
    broken.data.symlink_to(broken.data)


def data_dir_is_too_long(broken: Broken) -> None:
    """SQLite opens paths of up to 512 bytes."""
    broken.data = broken.data.joinpath(*["x" * 200] * 3)


def disk_is_full(broken: Broken) -> Callable[[], None]:
    usage = shutil.disk_usage(broken.data)
    broken.monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=50 * 2**20))
    return lambda: broken.monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=50 * 2**30))


def inodes_are_used_up(broken: Broken) -> None:
    real = os.statvfs(broken.data)
    fields = list(real)
    fields[5:8] = 1_000_000, 10, 10
    broken.monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(fields))


def no_locks(broken: Broken) -> None:
    def flock(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    broken.monkeypatch.setattr("plaudit.cli.doctor.files.fcntl.flock", flock)


def files_of_root(broken: Broken) -> None:
    real = os.access
    broken.monkeypatch.setattr(os, "access", lambda path, mode: "log.sqlite" not in str(path) and real(path, mode))


# --- registry --------------------------------------------------------------------------------------------------------


def live_version_has_half_a_file(broken: Broken) -> Callable[[], None]:
    head = broken.registry / "versions/000002/head.onnx"
    whole = head.read_bytes()
    head.chmod(0o644)
    head.write_bytes(whole[: len(whole) // 2])
    return lambda: _write(head, whole)


def live_version_is_gone(broken: Broken) -> None:
    shutil.rmtree(broken.registry / "versions/000002")


def previous_version_has_no_manifest(broken: Broken) -> Callable[[], None]:
    manifest = broken.registry / "versions/000001/manifest.json"
    whole = manifest.read_bytes()
    manifest.unlink()
    return lambda: _write(manifest, whole)


def manifest_is_cut(broken: Broken) -> None:
    manifest = broken.registry / "versions/000002/manifest.json"
    manifest.chmod(0o644)
    manifest.write_text(manifest.read_text()[:100])


def rollout_is_cut(broken: Broken) -> Callable[[], None]:
    path = broken.registry / "rollout.json"
    path.write_text(path.read_text()[:20])
    return lambda: _write(path, (broken.registry / "ledger.jsonl").read_bytes().splitlines()[-1])


def rollout_is_no_rollout(broken: Broken) -> None:
    (broken.registry / "rollout.json").write_text("[1, 2]")


# --- databases -------------------------------------------------------------------------------------------------------


def log_is_no_database(broken: Broken) -> Callable[[], None]:
    _write(broken.data / "log.sqlite", b"not a database at all" * 100)
    return lambda: _remove(broken.data, "*.sqlite*")


def log_is_cut(broken: Broken) -> None:
    """The disk was full while it was copied."""
    path = broken.data / "log.sqlite"
    os.truncate(path, path.stat().st_size // 2)


def log_has_a_damaged_page(broken: Broken) -> None:
    path = broken.data / "log.sqlite"
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)


def log_is_held(broken: Broken) -> Callable[[], None]:
    """As by a backup, or a shell that somebody left open."""
    broken.monkeypatch.setattr("plaudit.cli.doctor.databases._BUSY_S", 0.0)
    other = broken.held.enter_context(closing(sqlite3.connect(broken.data / "log.sqlite", isolation_level=None)))
    other.execute("BEGIN EXCLUSIVE")
    return other.close


def log_is_from_the_future(broken: Broken) -> None:
    with closing(sqlite3.connect(broken.data / "log.sqlite")) as connection, connection:
        connection.execute("UPDATE events SET time_s = ?", (time.time() + 100 * 86_400,))


def clock_is_of_1970(broken: Broken) -> None:
    """A board without a battery."""
    broken.monkeypatch.setattr("plaudit.cli.doctor.databases.time.time", lambda: 1_000.0)


def store_is_no_database(broken: Broken) -> Callable[[], None]:
    _write(broken.data / "experiences.sqlite", b"x" * 5000)
    return lambda: _remove(broken.data, "experiences.sqlite*")


def store_is_a_folder(broken: Broken) -> None:
    for path in broken.data.glob("experiences.sqlite*"):
        path.unlink()
    (broken.data / "experiences.sqlite").mkdir()


def store_is_of_another_release(broken: Broken) -> Callable[[], None]:
    with closing(sqlite3.connect(broken.data / "experiences.sqlite")) as connection, connection:
        connection.execute("UPDATE intake_stats SET schema = 99")
    return lambda: _remove(broken.data, "experiences.sqlite*")


def log_is_shorter_than_what_was_read(broken: Broken) -> Callable[[], None]:
    """The log was moved away and the store was kept: nothing is learned, silently."""
    for path in broken.data.glob("log.sqlite*"):
        path.unlink()
    with closing(SqliteLog(broken.data / "log.sqlite")) as log:
        log.append([builders.a_decision("p9")])
    return lambda: _remove(broken.data, "experiences.sqlite*")


def store_was_made_from_kafka(broken: Broken) -> None:
    store = SqlStore(f"sqlite:///{broken.data}/experiences.sqlite")
    store.save_batch(IngestBatch(since={"0": "2"}, positions={"0": "5,7"}))
    store.close()


def store_url_is_none(broken: Broken) -> None:
    broken.flags["store"] = {"url": "mysql://me:secret@there/db"}


def spool_waits_for_kafka(broken: Broken) -> None:
    """Set back to SQLite during an outage: acknowledged events would never be handed on."""
    (broken.data / "spool").mkdir()
    with closing(SqliteLog(broken.data / "spool/0.sqlite")) as log:
        log.append([builders.some_feedback("p1", feedback_id="spooled")])


def spool_is_damaged(broken: Broken) -> None:
    (broken.data / "spool").mkdir()
    _write(broken.data / "spool/0.sqlite", b"SQLite format 3\0" + b"\1" * 5000)


# --- learner ---------------------------------------------------------------------------------------------------------


def learner_waits(broken: Broken) -> Callable[[], None]:
    status = StatusFile(broken.data / "learner/learner-status.json")
    status.write_problem("/data: No space left on device; make room on the disk", time.time(), 10.0)
    return lambda: status.write(lambda: {"time_s": time.time(), "leads": True})


def learner_has_ended(broken: Broken) -> None:
    StatusFile(broken.data / "learner/learner-status.json").write_problem("it is damaged; move it away", 1.0, None)


# --- settings --------------------------------------------------------------------------------------------------------


def port_is_taken(broken: Broken) -> Callable[[], None]:
    other = broken.held.enter_context(socket.create_server(("127.0.0.1", 0)))
    broken.flags["serving"] = {"port": other.getsockname()[1], "metrics_port": 0}
    return other.close


def ports_are_alike(broken: Broken) -> None:
    broken.flags["learner"] = {"metrics_port": 8002}
    broken.flags["serving"] = {"port": 0, "metrics_port": 8002}


def host_is_of_another_machine(broken: Broken) -> None:
    broken.flags["serving"] = {"host": "192.0.2.1", "port": 0, "metrics_port": 0}


def host_is_no_host(broken: Broken) -> None:
    broken.flags["serving"] = {"host": "no.such.host.invalid", "port": 0, "metrics_port": 0}


def rehearsal_is_gone(broken: Broken) -> Callable[[], None]:
    broken.flags["finetune"] = {"rehearsal": str(broken.data / "labelled")}
    return lambda: broken.flags.pop("finetune")


def rehearsal_lacks_a_column(broken: Broken) -> None:
    (broken.data / "labelled").mkdir()
    (broken.data / "labelled/manifest.csv").write_text("\ufeffsplit,actoin\ntrain,cat\n")
    broken.flags["finetune"] = {"rehearsal": str(broken.data / "labelled")}


def too_few_open_files(broken: Broken) -> None:
    broken.monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 100))


def kafka_record_is_too_small(broken: Broken) -> None:
    broken.flags["log"] = {"kind": "kafka"}
    broken.flags["kafka"] = {"max_record_bytes": 1_000_000}


def a_thousand_actions_in_little_memory(broken: Broken) -> None:
    """Here five actions, and a machine to match."""
    broken.monkeypatch.setattr("plaudit.cli.doctor.capacity.os.sysconf", lambda _: 100)


def no_model(broken: Broken) -> None:
    broken.flags["model"] = {}
    shutil.rmtree(broken.data / "registry")


CASES: list[tuple[Break, str, str, str]] = [
    (key_is_short, "signing key", "has 7 bytes, and a key has at least 32", "put it back from a backup"),
    (key_is_empty, "signing key", "has 0 bytes", "put it back"),
    (key_is_for_all, "signing key", "can be read by others (mode 644)", "chmod 600 '"),
    (key_is_a_folder, "signing key", "signing.key: Is a directory", "put it back"),
    (key_is_not_mounted, "signing key", "signing.key: No such file", "put it back"),
    (data_dir_is_a_file, "data_dir", "is not a folder that can be written to", "--data-dir"),
    (data_dir_is_a_loop, "data_dir", "is not a folder that can be written to", "--data-dir"),
    (data_dir_is_too_long, "data_dir", "and SQLite opens 500", "choose a shorter one"),
    (disk_is_full, "disk space", "50 MiB left", "make room"),
    (inodes_are_used_up, "disk space", "room for 10 more files", "make room"),
    (no_locks, "locks", "file system without locks", "ext4"),
    (files_of_root, "rights", "log.sqlite in", "chown -R"),
    (live_version_has_half_a_file, "registry", "version 2, which is live, cannot be used: head.onnx", "rollback"),
    (live_version_is_gone, "registry", "version 2, which is live, cannot be used: its folder is not there", "rollback"),
    (previous_version_has_no_manifest, "registry", "version 1, which is previous, cannot be used", "backup"),
    (manifest_is_cut, "registry", "version 2, which is live, cannot be used: manifest.json", "rollback"),
    (rollout_is_cut, "registry", "registry/tiny: ", "the last line of ledger.jsonl"),
    (rollout_is_no_rollout, "registry", "registry/tiny: ", "the last line of ledger.jsonl"),
    (log_is_no_database, "event log", "log.sqlite: file is not a database", "backup"),
    (log_is_cut, "event log", "log.sqlite: ", "backup"),
    (log_has_a_damaged_page, "event log", "log.sqlite: ", "backup"),
    (log_is_held, "event log", "log.sqlite: database is locked", "stop what holds it"),
    (log_is_from_the_future, "clock", "and the log has a record of", "NTP"),
    (clock_is_of_1970, "clock", "before Plaudit was released", "NTP"),
    (store_is_no_database, "experience store", "experiences.sqlite: file is not a database", "move it away"),
    (store_is_a_folder, "experience store", "experiences.sqlite: unable to open", "move it away"),
    (store_is_of_another_release, "experience store", "has schema version 99", "move it away"),
    (log_is_shorter_than_what_was_read, "experience store", "and the log ends at 1", "move"),
    (store_was_made_from_kafka, "experience store", "'5,7' is one of another log", "move"),
    (store_url_is_none, "experience store", "mysql is not supported", "[store]"),
    (spool_waits_for_kafka, "spool", "1 acknowledged events wait for Kafka", 'log.kind = "kafka"'),
    (spool_is_damaged, "spool", "spool/0.sqlite: ", "keep it"),
    (learner_waits, "learner", "it waits, and tries again, since 0 s: /data: No space left", "do what it says"),
    (learner_has_ended, "learner", "it has ended since", "start it again"),
    (port_is_taken, "serving.port", "cannot be used (Address already in use)", "set serving.port to another"),
    (ports_are_alike, "serving.metrics_port", "8002 is also learner.metrics_port", "set serving.metrics_port"),
    (host_is_of_another_machine, "serving.port", "192.0.2.1:0 cannot be used", "set serving.port"),
    (host_is_no_host, "serving.port", "no.such.host.invalid:0 cannot be used", "set serving.port"),
    (rehearsal_is_gone, "finetune.rehearsal", "there is no", "set finetune.rehearsal"),
    (rehearsal_lacks_a_column, "finetune.rehearsal", "no column 'action'", "set finetune.rehearsal"),
    (too_few_open_files, "open files", "serving.max_calls = 128 needs 192", "ulimit -n 192"),
    (kafka_record_is_too_small, "event log", "kafka.max_record_bytes: 1000000 is too little", "[kafka]"),
    (a_thousand_actions_in_little_memory, "memory", "the learner of tiny needs about", "dynamic actions"),
    (no_model, "model", "model", "[model] table"),
]


@pytest.mark.parametrize(("breaks", "subject", "said", "way_out"), CASES, ids=[case[0].__name__ for case in CASES])
def test_what_is_broken_is_named_with_the_way_out_which_helps(
    broken: Broken, breaks: Break, subject: str, said: str, way_out: str
) -> None:
    follow = breaks(broken)
    errors = [error for error in broken.errors() if error.subject == subject]
    assert errors, broken.errors()
    told = " ".join(error.message for error in errors)
    assert said in told
    assert "cannot be examined" not in told
    assert "secret" not in told
    assert any(way_out in error.fix for error in errors), errors
    if follow is not None:
        follow()
        assert [error for error in broken.errors() if error.subject == subject] == []


@pytest.mark.parametrize("check", [*checks._IN_DATA_DIR, *checks._ELSEWHERE])
def test_a_check_that_fails_is_a_finding_and_the_others_go_on(
    broken: Broken, check: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: Settings) -> Iterator[Finding]:
        raise RuntimeError("never seen before")

    for table in ("_IN_DATA_DIR", "_ELSEWHERE"):
        known = getattr(checks, table)
        monkeypatch.setattr(checks, table, {name: fails if name == check else each for name, each in known.items()})
    findings = broken.findings()
    (finding,) = [each for each in findings if each.subject == check and each.state is State.ERROR]
    assert finding.message == "cannot be examined: RuntimeError: never seen before"
    assert findings[-1].subject == ("admin token" if check != "admin token" else check)


def test_notes_are_no_errors(broken: Broken, monkeypatch: pytest.MonkeyPatch) -> None:
    """What works with less, and what nobody needs."""

    def link(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("plaudit.cli.doctor.files.os.link", link)
    (broken.data / "learner/runs/2").mkdir()
    with (broken.registry / "ledger.jsonl").open("a") as ledger:
        ledger.write("half a\nline\nand more\n")
    StatusFile(broken.data / "learner/learner-status.json").write(lambda: {"time_s": 1.0})
    broken.flags["model"] = builders.tiny_spec().to_dict() | {"actions": ["cat", "dog", "cow"]}
    notes = {finding.subject: finding for finding in broken.findings() if finding.state is State.NOTE}
    assert broken.errors() == []
    assert "every version is a whole copy" in notes["hard links"].message
    assert "without a readable job.json: 2 in" in notes["runs of tiny"].message
    assert "not heard of since" in notes["learner"].message
    assert "describes other actions than version 2 has" in notes["registry"].message


def test_a_service_names_a_key_that_is_no_key(broken: Broken) -> None:
    """Not the doctor alone, and not by a traceback."""
    key_is_short(broken)
    log = broken.held.enter_context(closing(SqliteLog(broken.data / "log.sqlite")))
    with pytest.raises(ConfigError, match=r"signing key: .*signing.key has 7 bytes"):
        inference_server(_settings(broken.data), log)


def test_the_command_ends_with_1_and_names_all_that_is_wrong(
    broken: Broken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key_is_short(broken)
    log_is_from_the_future(broken)
    config = tmp_path / "plaudit.toml"
    config.write_text(
        f"data_dir = {json.dumps(str(broken.data))}\n"
        "[serving]\nport = 0\nmetrics_port = 0\n[learner]\nmetrics_port = 0\n"
    )
    done = run_plaudit(monkeypatch, capsys, "doctor", "--config", str(config))
    assert (done.code, done.err) == (1, "plaudit: to be fixed: signing key, clock\n")
    assert "fix: set the clock of this machine" in done.out
    config.write_text(config.read_text() + "[serving\n")
    done = run_plaudit(monkeypatch, capsys, "doctor", "--config", str(config))
    assert (done.code, "Traceback" in done.err) == (2, False)
    assert str(config) in done.err


def _remove(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.unlink()


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
