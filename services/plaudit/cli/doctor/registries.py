"""Checks of the doctor on the registry: every entry of it, and what the rollout of each model names."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from plaudit.cli.doctor.findings import Finding, State
from plaudit.compose.paths import data_dir
from plaudit.compose.registry import known_models, model_registry
from plaudit.core.errors import PlauditError, UnknownVersion
from plaudit.core.ports.registry import ModelRegistry
from plaudit.core.rollout import Rollout
from plaudit.core.settings import Settings
from plaudit_models.bundle import CorruptBundle, Manifest, verify

_REGISTRY: Final = "registry"
_SHOWN: Final = 3


def examine_registries(settings: Settings) -> Iterator[Finding]:
    """Findings on the registry of every model."""
    models = known_models(settings)
    for model in models:
        subject = _REGISTRY if len(models) == 1 else f"{_REGISTRY} of {model}"
        try:
            yield from _registry(settings, model, subject)
        except (PlauditError, CorruptBundle, ValueError, LookupError, TypeError, AttributeError) as error:
            place = data_dir(settings) / "registry" / model
            fix = f"put {place} back from a backup; the last line of ledger.jsonl is the rollout as it was"
            yield Finding(subject, State.ERROR, f"{place}: {_said(error)}", fix)


def _registry(settings: Settings, model: str, subject: str) -> Iterator[Finding]:
    registry = model_registry(settings, model)
    versions, rollout = registry.versions(), registry.rollout()
    named = _roles(rollout)
    damaged = dict(_damaged(registry, {*versions, *named}))
    needed = {version: role for version, role in named.items() if version in damaged or version not in versions}
    for version, role in needed.items():
        problem = damaged.get(version, "its folder is not there")
        fix = "`plaudit rollback`, or promote another version" if role == "live" else "put it back from a backup"
        yield Finding(subject, State.ERROR, f"version {version}, which is {role}, cannot be used: {problem}", fix)
    others = [version for version in damaged if version not in named]
    if others:
        listed = "; ".join(f"version {version}: {damaged[version]}" for version in others[:_SHOWN])
        more = f"; and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        fix = f"move the folders away; the rollout needs none of them: {data_dir(settings)}/registry/{model}/versions"
        yield Finding(subject, State.NOTE, f"cannot be used: {listed}{more}", fix)
    if (bad := _bad_lines(data_dir(settings) / "registry" / model / "ledger.jsonl")) > 1:
        fix = "none is needed to go on; put the file back from a backup to have the history"
        yield Finding(subject, State.NOTE, f"{bad} lines of ledger.jsonl cannot be read", fix)
    if rollout.live is None:
        first = "`plaudit pretrain --data FOLDER` makes the first"
        fix = f"`plaudit promote {versions[-1]}`" if versions else first
        yield Finding(subject, State.NOTE, f"{len(versions)} versions, none is live", fix)
    elif rollout.live not in needed:
        manifest = registry.manifest(rollout.live)
        found = f"{len(versions)} versions; version {rollout.live} is live, every byte as sealed"
        yield Finding(subject, State.OK, f"{found} ({manifest.digest[:12]})")
        yield from _described(settings, manifest, subject)


def _damaged(registry: ModelRegistry, versions: Collection[int]) -> Iterator[tuple[int, str]]:
    """Versions whose folder is there and not as it was sealed, each with what is wrong."""
    for version in sorted(versions):
        try:
            registry.manifest(version)
            verify(registry.folder(version))
        except UnknownVersion:
            continue
        except (PlauditError, CorruptBundle, OSError) as error:
            yield version, str(error)


def _roles(rollout: Rollout) -> dict[int, str]:
    """Role of each version that the rollout names; live wins where one has several."""
    roles = {}
    for role in ("candidate", "previous", "gated", "live"):
        version = getattr(rollout, role)
        if version is not None:
            roles[version] = role
    return roles


def _described(settings: Settings, live: Manifest, subject: str) -> Iterator[Finding]:
    """Note where plaudit.toml describes another model than the one that serves."""
    if not settings.model or settings.spec().name != live.spec.name or settings.spec() == live.spec:
        return
    described = settings.spec()
    what = "actions" if described.actions != live.spec.actions else "modalities or sizes"
    fix = "`plaudit pretrain` makes a version as described; until then the live version says what is served"
    yield Finding(subject, State.NOTE, f"[model] describes other {what} than version {live.version} has", fix)


def _bad_lines(path: Path) -> int:
    bad = 0
    if path.is_file():
        with path.open("rb") as lines:
            for line in lines:
                try:
                    json.loads(line)
                except ValueError:
                    bad += 1
    return bad


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, PlauditError | CorruptBundle) else f"{type(error).__name__}: {error}"
