"""``plaudit doctor``: examines everything that a deployment needs, and says how to fix what is wrong.

Changes nothing, except that it makes the data directory where there is none.
"""

from __future__ import annotations

import contextlib
import importlib.util
import socket
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from plaudit.cli.doctor.findings import Finding, State
from plaudit.cli.options import address
from plaudit.client import Client, ClientError
from plaudit.compose.log import event_log, kafka_cluster
from plaudit.compose.paths import data_dir
from plaudit.compose.registry import model_registry
from plaudit.compose.store import experience_store
from plaudit.core.errors import ConfigError, PlauditError
from plaudit.core.events import Topic
from plaudit.core.settings import Settings
from plaudit_models.bundle import CorruptBundle, verify

_EXTRAS: Final[Mapping[str, tuple[str, ...]]] = {
    "serve": ("onnxruntime", "PIL", "soundfile", "soxr", "tokenizers", "prometheus_client"),
    "learn": ("torch", "onnx", "onnxscript", "sqlalchemy"),
    "kafka": ("kafka", "crc32c", "lz4"),
    "demo": ("sklearn", "espeakng_loader", "matplotlib"),
}
_PROBE_TIMEOUT_S: Final = 2.0


def examine(settings: Settings) -> Iterator[Finding]:
    """Findings one after the other, so that they can be shown as they come."""
    yield from _extras()
    yield _model(settings)
    directory = _data_dir(settings)
    yield directory
    if directory.state is State.OK:
        yield from _log(settings)
        if settings.model:
            yield _registry(settings)
            if settings.store.url is not None:
                yield _store(settings)
    yield _device(settings)
    yield from _ports(settings)
    yield _admin(settings)


def _extras() -> Iterator[Finding]:
    for extra, modules in _EXTRAS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        if missing:
            fix = f"pip install 'plaudit[{extra}]', if this machine is to do that"
            yield Finding(f"extra {extra}", State.NOTE, f"{', '.join(missing)} not installed", fix)
        else:
            yield Finding(f"extra {extra}", State.OK, "installed")


def _model(settings: Settings) -> Finding:
    try:
        spec = settings.spec()
    except ConfigError as error:
        return Finding("model", State.ERROR, str(error), "describe it in the [model] table of plaudit.toml")
    modalities = ", ".join(f"{name} ({modality.kind})" for name, modality in spec.modalities.items())
    return Finding("model", State.OK, f"{spec.name}: {modalities} → {len(spec.actions)} actions")


def _data_dir(settings: Settings) -> Finding:
    try:
        path = data_dir(settings)
    except ConfigError as error:
        fix = "make it writable, or choose another with --data-dir"
        return Finding("data_dir", State.ERROR, str(error).removeprefix("data_dir: "), fix)
    return Finding("data_dir", State.OK, f"{path} can be written to")


def _log(settings: Settings) -> Iterator[Finding]:
    if settings.log.kind == "kafka":
        try:
            connection, plan = kafka_cluster(settings)
        except ConfigError as error:
            yield Finding("event log", State.ERROR, str(error), "see [kafka] in docs/reference/settings.md")
            return
        from plaudit.cli.doctor.kafka import examine_kafka

        yield from examine_kafka(connection, plan, settings.serving.feedback_window_s)
        return
    try:
        log = event_log(settings)
        reader = log.reader("doctor", [Topic.DECISIONS, Topic.FEEDBACK], start=dict)
        recorded = reader.lag()
        reader.close()
        log.close()
    except PlauditError as error:
        fix = "restore the file from a backup, or choose another --data-dir"
        yield Finding("event log", State.ERROR, str(error), fix)
    else:
        yield Finding("event log", State.OK, f"{recorded} decisions and pieces of feedback recorded")


def _registry(settings: Settings) -> Finding:
    try:
        registry = model_registry(settings)
        versions, rollout = registry.versions(), registry.rollout()
        if rollout.live is None:
            first = "`plaudit pretrain --data FOLDER` makes the first"
            fix = f"`plaudit promote {versions[-1]}`" if versions else first
            return Finding("registry", State.NOTE, f"{len(versions)} versions, none is live", fix)
        manifest = verify(registry.folder(rollout.live))
    except (PlauditError, CorruptBundle) as error:
        return Finding("registry", State.ERROR, str(error), "`plaudit rollback`, or promote another version")
    found = f"{len(versions)} versions; version {rollout.live} is live, every byte as sealed ({manifest.digest[:12]})"
    return Finding("registry", State.OK, found)


def _store(settings: Settings) -> Finding:
    fix = "see that the server runs, and that user, password and database in store.url are right"
    try:
        with contextlib.closing(experience_store(settings, settings.spec().name)) as store:
            stats = store.intake_stats()
    except ConfigError as error:
        return Finding("experience store", State.ERROR, str(error), "see [store] in docs/reference/settings.md")
    except PlauditError as error:
        return Finding("experience store", State.ERROR, str(error), fix)
    return Finding("experience store", State.OK, f"{stats.last_number} experiences from {stats.feedback} signals")


def _device(settings: Settings) -> Finding:
    wanted = settings.serving.device
    if importlib.util.find_spec("onnxruntime") is None:
        return Finding("device", State.NOTE, "onnxruntime is not installed, so nothing can be served here")
    import onnxruntime

    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if wanted == "cuda" and not has_cuda:
        fix = "pip install 'plaudit[gpu]' in place of serve, or set serving.device to \"auto\""
        return Finding("device", State.ERROR, "serving.device is 'cuda', but onnxruntime has no CUDA", fix)
    return Finding("device", State.OK, "CUDA" if has_cuda and wanted != "cpu" else "CPU")


def _ports(settings: Settings) -> Iterator[Finding]:
    serving = settings.serving
    yield _port("serving.port", serving.host, serving.port, _serves_predictions)
    yield _port("serving.metrics_port", serving.metrics_address, serving.metrics_port, _shows_our_metrics)
    yield _port("learner.metrics_port", settings.learner.host, settings.learner.metrics_port, _shows_our_metrics)
    if settings.console.port is not None:
        yield _port("console.port", settings.console.host, settings.console.port, _shows_our_page)


def _port(setting: str, host: str, port: int, is_ours: Callable[[str], bool]) -> Finding:
    if port == 0:
        return Finding(setting, State.OK, "0: a free one is picked")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if is_ours(address(host, port)):
                return Finding(setting, State.OK, f"{port}: Plaudit is running there")
            fix = f"stop what uses it, or set {setting} to another"
            return Finding(setting, State.ERROR, f"{host}:{port} cannot be used ({error.strerror})", fix)
    return Finding(setting, State.OK, f"{port} is free")


def _serves_predictions(where: str) -> bool:
    with Client(where, timeout_s=_PROBE_TIMEOUT_S) as client:
        try:
            client.versions()
        except ClientError:
            return False
    return True


def _shows_our_metrics(where: str) -> bool:
    return _holds(f"http://{where}/metrics", b"plaudit_")


def _shows_our_page(where: str) -> bool:
    return _holds(f"http://{where}/", b"<title>Plaudit</title>")


def _holds(url: str, text: bytes) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=_PROBE_TIMEOUT_S) as answer:
            return text in answer.read()
    except OSError:
        return False


def _admin(settings: Settings) -> Finding:
    if settings.serving.admin_token is not None:
        return Finding("admin token", State.OK, "set")
    if settings.serving.host in ("127.0.0.1", "::1", "localhost"):
        return Finding("admin token", State.OK, "none, and only this machine reaches the port")
    fix = "set PLAUDIT_SERVING__ADMIN_TOKEN"
    return Finding("admin token", State.NOTE, "none: any client that reaches the port may promote and roll back", fix)
