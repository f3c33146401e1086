"""``plaudit doctor``: examines everything that a deployment opens, the way it does, and says how to fix what is wrong.

Changes nothing, except that it makes the data directory where there is none. A check that fails is a finding itself.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from plaudit.cli.doctor.databases import examine_clock, examine_log, examine_spool, examine_stores
from plaudit.cli.doctor.files import (
    examine_data_dir,
    examine_key,
    examine_learners,
    examine_limits,
    examine_rehearsal,
)
from plaudit.cli.doctor.findings import Finding, State
from plaudit.cli.doctor.ignored import examine_ignored
from plaudit.cli.doctor.listening import examine_admin, examine_guard, examine_ports
from plaudit.cli.doctor.registries import examine_registries
from plaudit.cli.failures import problem_text
from plaudit.compose.registry import known_models
from plaudit.compose.tracing import service_tracing
from plaudit.core.errors import ConfigError, PlauditError
from plaudit.core.settings import Settings

_EXTRAS: Final[Mapping[str, tuple[str, ...]]] = {
    "serve": ("onnxruntime", "PIL", "soundfile", "soxr", "tokenizers", "prometheus_client"),
    "learn": ("torch", "onnx", "onnxscript", "sqlalchemy"),
    "kafka": ("kafka", "crc32c", "lz4"),
    "demo": ("sklearn", "espeakng_loader", "matplotlib"),
}

Check = Callable[[Settings], Iterator[Finding]]


def examine(settings: Settings) -> Iterator[Finding]:
    """Findings one after the other, so that they can be shown as they come."""
    yield from _run("extras", _extras, settings)
    yield from _run("model", _model, settings)
    in_data_dir = []
    for finding in _run("data_dir", examine_data_dir, settings):
        in_data_dir.append(finding)
        yield finding
    if not any(each.subject == "data_dir" and each.state is State.ERROR for each in in_data_dir):
        for subject, check in _IN_DATA_DIR.items():
            yield from _run(subject, check, settings)
    for subject, check in _ELSEWHERE.items():
        yield from _run(subject, check, settings)


def _run(subject: str, check: Check, settings: Settings) -> Iterator[Finding]:
    """Findings of a check, and one more where it fails: then something is in a state that no check expects."""
    try:
        yield from check(settings)
    except (PlauditError, OSError) as error:
        yield Finding(subject, State.ERROR, problem_text(error), "put right what it names, and run the doctor again")
    except Exception as error:
        problem = f"cannot be examined: {type(error).__name__}: {error}"
        yield Finding(subject, State.ERROR, problem, "please report this; what it names may be damaged")


def _extras(_settings: Settings) -> Iterator[Finding]:
    for extra, modules in _EXTRAS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        if missing:
            fix = f"pip install 'plaudit[{extra}]', if this machine is to do that"
            yield Finding(f"extra {extra}", State.NOTE, f"{', '.join(missing)} not installed", fix)
        else:
            yield Finding(f"extra {extra}", State.OK, "installed")


def _model(settings: Settings) -> Iterator[Finding]:
    try:
        spec = settings.spec()
    except ConfigError as error:
        imported = [] if settings.model else known_models(settings)
        if imported:
            yield Finding("model", State.OK, f"none described; imported: {', '.join(imported)}")
        else:
            fix = "describe it in the [model] table of plaudit.toml, or `plaudit import` one"
            yield Finding("model", State.ERROR, str(error), fix)
        return
    modalities = ", ".join(f"{name} ({modality.kind})" for name, modality in spec.modalities.items())
    yield Finding("model", State.OK, f"{spec.name}: {modalities} → {len(spec.actions)} actions")


def _device(settings: Settings) -> Iterator[Finding]:
    wanted = settings.serving.device
    if importlib.util.find_spec("onnxruntime") is None:
        yield Finding("device", State.NOTE, "onnxruntime is not installed, so nothing can be served here")
        return
    import onnxruntime

    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if wanted == "cuda" and not has_cuda:
        fix = "pip install 'plaudit[gpu]' in place of serve, or set serving.device to \"auto\""
        yield Finding("device", State.ERROR, "serving.device is 'cuda', but onnxruntime has no CUDA", fix)
    else:
        yield Finding("device", State.OK, "CUDA" if has_cuda and wanted != "cpu" else "CPU")


def _tracing(settings: Settings) -> Iterator[Finding]:
    try:
        tracing = service_tracing(settings, "plaudit-doctor")
    except ConfigError as error:
        yield Finding("tracing", State.ERROR, str(error), "see [tracing] in docs/reference/settings.md")
        return
    if tracing is not None:
        tracing.close()
        yield Finding("tracing", State.OK, "on")


def _memory(settings: Settings) -> Iterator[Finding]:
    if all(importlib.util.find_spec(module) for module in ("onnx", "onnxscript", "sqlalchemy")):
        from plaudit.cli.doctor.capacity import examine_memory

        yield from examine_memory(settings)


_IN_DATA_DIR: Final[Mapping[str, Check]] = {
    "signing key": examine_key,
    "event log": examine_log,
    "clock": examine_clock,
    "spool": examine_spool,
    "registry": examine_registries,
    "registry entries": examine_ignored,
    "experience store": examine_stores,
    "learner": examine_learners,
    "memory": _memory,
}
_ELSEWHERE: Final[Mapping[str, Check]] = {
    "finetune.rehearsal": examine_rehearsal,
    "open files": examine_limits,
    "device": _device,
    "tracing": _tracing,
    "ports": examine_ports,
    "listening": examine_guard,
    "admin token": examine_admin,
}
