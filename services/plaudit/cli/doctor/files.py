"""Checks of the doctor on the data directory: its file system, the key, run folders, and the learner's status."""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from plaudit.cli.doctor.findings import Finding, State
from plaudit.compose.learner import data_config
from plaudit.compose.paths import data_dir, learner_dir
from plaudit.compose.registry import known_models
from plaudit.core.errors import ConfigError
from plaudit.core.host.os_errors import explain
from plaudit.core.job_run import JOB, read_json
from plaudit.core.prediction_id import KEY_BYTES
from plaudit.core.settings import Settings
from plaudit.learner.status import STATUS, read_status

_KEY: Final = "signing key"
_LEAST_FREE_BYTES: Final = 200 * 2**20
_LITTLE_FREE_BYTES: Final = 2 * 2**30
_LEAST_FREE_FILES: Final = 1_000
_MAX_SQLITE_PATH_BYTES: Final = 500
"""Length of the longest path that SQLite opens, with some room for the names of files."""
_OTHER_FILES: Final = 64
_SHOWN: Final = 3
_SILENT_S: Final = 60.0


def examine_data_dir(settings: Settings) -> Iterator[Finding]:
    """Findings on the folder; an ERROR on ``data_dir`` itself means that there is nothing to look into."""
    try:
        path = data_dir(settings)
    except ConfigError as error:
        fix = "make it writable, or choose another with --data-dir"
        yield Finding("data_dir", State.ERROR, str(error).removeprefix("data_dir: "), fix)
        return
    length = len(os.fsencode(path.resolve() / "experiences.sqlite-wal"))
    if length > _MAX_SQLITE_PATH_BYTES:
        problem = f"its path has {length} bytes with the names of files, and SQLite opens {_MAX_SQLITE_PATH_BYTES}"
        yield Finding("data_dir", State.ERROR, problem, "choose a shorter one with --data-dir")
        return
    yield Finding("data_dir", State.OK, f"{path} can be written to")
    yield from _file_system(path)
    yield _disk(path)
    yield from _rights(path)


def _file_system(path: Path) -> Iterator[Finding]:
    """Findings on locks, which everything relies on, and on links, which save space."""
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=path) as folder:
        probe = Path(folder) / "probe"
        with probe.open("wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                problem = f"{path} is on a file system without locks ({error.strerror})"
                yield Finding("locks", State.ERROR, problem, "choose a --data-dir on another one, such as ext4 or xfs")
                return
        try:
            os.link(probe, Path(folder) / "link")
        except OSError as error:
            problem = f"{path} is on a file system without hard links ({error.strerror}): every version is a whole copy"
            fix = "choose a --data-dir on another one, such as ext4 or xfs, if versions are large"
            yield Finding("hard links", State.NOTE, problem, fix)


def _disk(path: Path) -> Finding:
    free, files = shutil.disk_usage(path).free, os.statvfs(path)
    fix = "make room, or choose a --data-dir on another disk: what cannot be recorded is refused"
    if free < _LEAST_FREE_BYTES:
        return Finding("disk space", State.ERROR, f"{free / 2**20:.0f} MiB left", fix)
    if files.f_files and files.f_favail < _LEAST_FREE_FILES:
        return Finding("disk space", State.ERROR, f"room for {files.f_favail} more files (inodes)", fix)
    state = State.NOTE if free < _LITTLE_FREE_BYTES else State.OK
    return Finding("disk space", state, f"{free / 2**30:.1f} GiB left", fix if state is State.NOTE else "")


def _rights(path: Path) -> Iterator[Finding]:
    """Finding on what is there and belongs to somebody else, as after a start as root."""
    known = ("log.sqlite", "log.sqlite-wal", "experiences.sqlite", "registry", "learner", "spool")
    refused = [name for name in known if (path / name).exists() and not os.access(path / name, os.R_OK | os.W_OK)]
    if refused:
        problem = f"{', '.join(refused)} in {path} cannot be read and written by this user (uid {os.getuid()})"
        fix = f"chown -R {os.getuid()} {path}, or run as their owner"
        yield Finding("rights", State.ERROR, problem, fix)


def examine_key(settings: Settings) -> Iterator[Finding]:
    """Finding on the key that signs prediction ids, and on who may read it."""
    path = data_dir(settings) / "signing.key"
    fix = "put it back from a backup or from another replica; a new key refuses feedback on answers given before"
    if not os.path.lexists(path):
        yield Finding(_KEY, State.OK, "none yet; the inference service makes it")
        return
    try:
        length, mode = len(path.read_bytes()), stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        yield Finding(_KEY, State.ERROR, explain(error), fix)
        return
    if length < KEY_BYTES:
        yield Finding(_KEY, State.ERROR, f"{path} has {length} bytes, and a key has at least {KEY_BYTES}", fix)
    elif mode & (stat.S_IRWXG | stat.S_IRWXO):
        problem = f"{path} can be read by others (mode {mode:o}), who could sign as this service"
        yield Finding(_KEY, State.ERROR, problem, f"chmod 600 '{path}'")
    else:
        yield Finding(_KEY, State.OK, f"{length} bytes, for its owner alone")


def examine_limits(settings: Settings) -> Iterator[Finding]:
    """Finding on open files: a call takes one."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = settings.serving.max_calls + _OTHER_FILES
    if 0 <= allowed < needed:
        fix = f"ulimit -n {needed} (LimitNOFILE= of systemd), or a lower serving.max_calls"
        problem = f"{allowed} may be open, and serving.max_calls = {settings.serving.max_calls} needs {needed}"
        yield Finding("open files", State.ERROR, problem, fix)


def examine_rehearsal(settings: Settings) -> Iterator[Finding]:
    """Finding on the labelled folder that fine-tuning rehearses, where there is one."""
    folder = settings.finetune.rehearsal
    if folder is None:
        return
    fix = "set finetune.rehearsal to a folder as `plaudit pretrain --data` takes it, or leave it out"
    from plaudit_models.data.errors import InvalidData
    from plaudit_models.data.rows import read_rows

    try:
        rows = read_rows(folder, settings.spec(), data_config(settings))
        rows.check()
    except InvalidData as error:
        yield Finding("finetune.rehearsal", State.ERROR, str(error), fix)
        return
    missing = "" if "train" in rows.split else f"{rows.table.path} has no row of the split 'train'"
    state = State.ERROR if missing else State.OK
    yield Finding("finetune.rehearsal", state, missing or f"{folder} can be read", fix if missing else "")


def examine_learners(settings: Settings) -> Iterator[Finding]:
    """Findings on what each learner last said of itself, and on the run folders of its jobs."""
    models = known_models(settings)
    for model in models:
        subject = "learner" if len(models) == 1 else f"learner of {model}"
        folder = learner_dir(settings, model)
        if (finding := _status(folder, subject)) is not None:
            yield finding
        broken = list(_broken_runs(folder / "runs"))
        if broken:
            listed = ", ".join(broken[:_SHOWN]) + (f" and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else "")
            fix = "move them away: no job goes on from them"
            yield Finding(f"runs of {model}", State.NOTE, f"without a readable {JOB}: {listed} in {folder}/runs", fix)


def _status(folder: Path, subject: str) -> Finding | None:
    if not (folder / STATUS).exists():
        return None
    status = read_status(folder / STATUS)
    if status is None or not isinstance(status.get("time_s", 0.0), int | float):
        fix = "none is needed: the learner writes it anew"
        return Finding(subject, State.NOTE, f"{folder / STATUS} cannot be read", fix)
    if isinstance(problem := status.get("problem"), dict):
        ended = problem.get("again_in_s") is None
        how = "has ended" if ended else "waits, and tries again,"
        fix = "do what it says, then start it again" if ended else "do what it says; it then goes on by itself"
        return Finding(subject, State.ERROR, f"it {how} since {_ago(problem.get('since_s'))}: {problem['text']}", fix)
    silent_s = time.time() - status.get("time_s", 0.0)
    if silent_s > _SILENT_S:
        fix = "start it (`plaudit up` or `plaudit learn`); feedback is recorded meanwhile"
        return Finding(subject, State.NOTE, f"not heard of since {_ago(status.get('time_s'))}", fix)
    return Finding(subject, State.OK, "leads" if status.get("leads") else "runs")


def _ago(time_s: object) -> str:
    if not isinstance(time_s, int | float):
        return "an unknown time"
    return f"{max(0.0, time.time() - time_s):.0f} s"


def _broken_runs(folder: Path) -> Iterator[str]:
    entries: Sequence[Path] = sorted(folder.iterdir()) if folder.is_dir() else []
    for entry in entries:
        if entry.is_dir() and not entry.name.startswith("."):
            try:
                read_json(entry / JOB)
            except (OSError, ValueError):
                yield entry.name
