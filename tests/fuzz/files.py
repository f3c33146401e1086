"""Parsers of files that people and other programs write: settings, labels, data sets, manifests, rollouts, ledgers."""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Final

from fuzz.parser import Parser, must
from plaudit.adapters.registry.directory import DirectoryCatalog
from plaudit.adapters.registry.ledger import Ledger
from plaudit.cli.commands.importing import read_actions
from plaudit.cli.failures import CommandFailed
from plaudit.compose import settings as composed
from plaudit.core.errors import ConfigError, RegistryUnavailable
from plaudit.core.rollout import Change, Rollout, pin, promote, rollout_from_dict, start_canary
from plaudit_models.bundle import CorruptBundle, FileDigest, Manifest, manifest_from_json
from plaudit_models.data.config import DEFAULT_DATA
from plaudit_models.data.errors import InvalidData
from plaudit_models.data.rows import read_rows
from plaudit_models.spec import InvalidSpec, spec_from_dict
from support.builders import tiny_spec

_CHANGE: Final = Change("me", 1_700_000_000.0, "because")


@cache
def _folder() -> Path:
    """A folder in memory, where there is one."""
    memory = Path("/dev/shm")
    made = tempfile.TemporaryDirectory(prefix="plaudit-fuzz-", dir=memory if memory.is_dir() else None)
    _MADE.append(made)
    return Path(made.name)


_MADE: Final[list[tempfile.TemporaryDirectory[str]]] = []


def _file(name: str, data: bytes) -> Path:
    path = _folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


# --- settings --------------------------------------------------------------------------------------------------------


def _settings() -> list[bytes]:
    return [
        b'[serving]\nport = 8001\nhost = "::1"\nadmin_token = "0123456789abcdef"\nmax_calls = 16\n',
        b'[model]\nname = "tiny"\nactions = ["a", "b"]\n[model.modalities.q]\nkind = "text"\nmax_tokens = 8\n',
        b"[canary]\nshare = 0.1\n[canary.models.tiny]\nshare = 0.5\n[learner]\nwindow_s = 1e3\n",
        b'data_dir = "x"\n[log]\nkind = "kafka"\n[kafka]\nbootstrap_servers = "h:1"\n',
        b"a = 2026-11-29T10:00:00Z\nb = [[1], {c = 0x7f}]\n'd\" = inf\n",
    ]


def settings(data: bytes) -> bool:
    try:
        composed.load_settings(_file("plaudit.toml", data))
    except ConfigError as error:
        must(len(str(error)) < 100 * (len(data) + 10), "an error that is much longer than its file")
        return False
    return True


def _environments() -> list[bytes]:
    return [
        b"PLAUDIT_SERVING__PORT=8001\nPLAUDIT_MODEL={}",
        b'PLAUDIT_CANARY__MODELS={"tiny": {"share": 0.5}}\nplaudit_store__url=sqlite:///x\nPLAUDIT_LOG=[]',
    ]


def environment(data: bytes) -> bool:
    lines = data.decode(errors="surrogateescape").split("\n")
    try:
        composed.settings_from(composed._environment(dict(line.partition("=")[::2] for line in lines)))
    except ConfigError:
        return False
    return True


# --- labels and data sets --------------------------------------------------------------------------------------------


def _labels() -> list[bytes]:
    return [b"cat\ndog\n", "\ufeffKatze\r\nHund".encode(), "eins\nzwei\n".encode("utf-16"), b"a\n\na\n"]


def labels(data: bytes) -> bool:
    try:
        actions = read_actions(_file("labels.txt", data))
    except CommandFailed as error:
        must(len(str(error)) < 2_000, "an error as long as its file")
        return False
    must(len(set(actions)) == len(actions), "an action is there twice")
    must(all(each == each.strip() and each for each in actions), f"{actions} has one with space around it")
    return True


def _tables() -> list[bytes]:
    spec = tiny_spec()
    header = ",".join(["split", "action", "group", *spec.modalities])
    row = ",".join(["train", spec.actions[0], "g", *(["x"] * len(spec.modalities))])
    return [f"{header}\n{row}\n".encode(), f'\ufeff{header}\r\n"{row}"\r\n'.encode(), header.encode()]


def table(data: bytes) -> bool:
    try:
        rows = read_rows(_file("data/manifest.csv", data).parent, tiny_spec(), DEFAULT_DATA)
    except InvalidData:
        return False
    must(rows.problem_count >= len(rows.problems), "fewer problems than are told")
    return not rows.problem_count


# --- the registry ----------------------------------------------------------------------------------------------------

_FILES: Final = {"trunk.onnx": FileDigest("0" * 64, 5), "head.onnx": FileDigest("1" * 64, 6)}
_FOUND_DIGEST: Final = re.compile(r"digest .* does not match its contents \(([0-9a-f]{64})\)$", re.DOTALL)


def _manifests() -> list[bytes]:
    made = [
        Manifest(tiny_spec(), "pretrained", 1.7e9, _FILES, version=1, parent=2, reason="why", data={"events": 7}),
        Manifest(tiny_spec(scores_text=True), "head", 1.7e9, _FILES, version=4, metrics={"x": 0.5}, gate={"e": [1]}),
    ]
    return [each.to_json().encode() for each in made]


def manifest(data: bytes) -> bool:
    """A manifest whose digest is put right, so that a change is seen by more than the digest."""
    given = data.decode(errors="replace")
    try:
        found = manifest_from_json(given)
    except CorruptBundle as error:
        digest = _FOUND_DIGEST.search(str(error))
        if digest is None:
            return False
        raw = json.loads(given)
        raw["digest"] = digest[1]
        found = manifest_from_json(json.dumps(raw))
    written = manifest_from_json(found.to_json())
    must(written == found or written.to_json() == found.to_json(), "a manifest is written as another one")
    must(isinstance(found.trainable, bool), "a manifest that cannot be looked at")
    return True


def _specs() -> list[bytes]:
    free = b'{"x": {"kind": "tensor", "shape": [-1, 3], "required": true, "takes_nan": true}}'
    return [
        json.dumps(tiny_spec().to_dict()).encode(),
        b'{"name": "a", "actions": ["x", "y"], "modalities": ' + free + b', "outputs": {"o": {"dtype": "float32", '
        b'"shape": [-1]}}}',
    ]


def spec(data: bytes) -> bool:
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError):
        return False
    if not isinstance(raw, dict):
        return False
    try:
        found = spec_from_dict(raw)
    except InvalidSpec:
        return False
    must(spec_from_dict(json.loads(json.dumps(found.to_dict()))) == found, "a spec is written as another one")
    return True


def _rollouts() -> list[Rollout]:
    first = promote(Rollout("tiny"), 1, _CHANGE)
    second = promote(first, 2, _CHANGE)
    return [first, second, start_canary(second, 1, 0.5, _CHANGE), pin(second, 1, _CHANGE)]


def rollout(data: bytes) -> bool:
    try:
        found = rollout_from_dict(json.loads(data))
    except (ValueError, RecursionError):
        return False
    again = rollout_from_dict(json.loads(json.dumps(asdict(found))))
    must(again == found or found.candidate_share != found.candidate_share, "a rollout is written as another one")
    return True


def ledger(data: bytes) -> bool:
    path = _file("tiny/ledger.jsonl", data)
    generations = [each.generation for each in Ledger(path.parent).after(0, up_to=2**62)]
    must(generations == sorted(set(generations)), f"generations {generations[:20]} do not ascend")
    must(all(each > 0 for each in generations), f"generations {generations[:20]} begin before the first")
    Ledger(path.parent).first_live(1, up_to=2**62)
    return bool(generations)


def registry(data: bytes) -> bool:
    """A version's manifest behind an even byte, the rollout behind an odd one; the model beside it is there still."""
    root = _folder() / "registry"
    wrong = "versions/000001/manifest.json" if data[:1] and data[0] % 2 else "rollout.json"
    right = "rollout.json" if wrong != "rollout.json" else "versions/000001/manifest.json"
    _file(f"registry/tiny/{wrong}", data[1:])
    _file(f"registry/tiny/{right}", (_manifests() if right != "rollout.json" else _rollout_files())[0])
    _file("registry/other/versions/000001/manifest.json", b"{}")
    catalog = DirectoryCatalog(root)
    must("other" in catalog.models(), "a model is gone because of its neighbour")
    must(len(list(catalog.ignored())) < 20, "more is ignored than there is")
    tiny = catalog.registry("tiny")
    versions = tiny.versions()
    try:
        tiny.rollout()
    except RegistryUnavailable as error:
        must(str(root) not in error.for_clients, "clients are told a path")
        return False
    return bool(versions)


def _rollout_files() -> list[bytes]:
    return [json.dumps(asdict(each)).encode() + b"\n" for each in _rollouts()]


def _registry_files() -> list[bytes]:
    return [*(b"\1" + each for each in _manifests()), *(b"\2" + each for each in _rollout_files())]


PARSERS: Final = (
    Parser("settings", _settings, settings, 1_024),
    Parser("environment", _environments, environment, 512),
    Parser("labels", _labels, labels, 512),
    Parser("table", _tables, table, 1_024),
    Parser("manifest", _manifests, manifest),
    Parser("spec", _specs, spec, 2_048),
    Parser("rollout", _rollout_files, rollout, 1_024),
    Parser("ledger", lambda: [*_rollout_files(), b"".join(_rollout_files())], ledger),
    Parser("registry", _registry_files, registry),
)
