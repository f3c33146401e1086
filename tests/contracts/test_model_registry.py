"""The contract of ModelRegistry, for every adapter. An adapter joins by joining ``ADAPTERS``."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from plaudit.adapters.registry.directory import DirectoryCatalog, DirectoryRegistry
from plaudit.core.errors import InvalidInput, RegistryUnavailable, RolloutMoved, UnknownVersion
from plaudit.core.limits import MAX_IGNORED_ENTRIES
from plaudit.core.ports.registry import ModelRegistry
from plaudit.core.rollout import Change, Rollout, confirm, promote, refresh
from plaudit_models.bundle import CARD, MANIFEST, TRUNK, CorruptBundle, verify
from support.builders import tiny_bundle, tiny_head_refresh, tiny_spec

ROOT = Path(__file__).parents[2]
CHANGE = Change(actor="test", time_s=1_700_000_000.0, reason="because")


@dataclass
class Adapter:
    """One kind of registry in a place of its own.

    Attributes:
        open: another registry of the same versions, as another process would open it.
        open_source: the same as Python source, an expression for a child process; ``imports`` is what it needs.
    """

    open: Callable[[], ModelRegistry]
    open_source: str
    imports: str


def _directory(folder: Path) -> Adapter:
    return Adapter(
        open=lambda: DirectoryRegistry(folder / "registry", "tiny"),
        open_source=f"DirectoryRegistry(Path({str(folder / 'registry')!r}), 'tiny')",
        imports="from plaudit.adapters.registry.directory import DirectoryRegistry",
    )


ADAPTERS = {"directory": _directory}


@pytest.fixture(params=sorted(ADAPTERS))
def adapter(request: pytest.FixtureRequest, tmp_path: Path) -> Adapter:
    return ADAPTERS[request.param](tmp_path)


@pytest.fixture
def registry(adapter: Adapter) -> ModelRegistry:
    return adapter.open()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sealed version folder with a card."""
    folder = tmp_path / "fresh"
    tiny_bundle(folder)
    (folder / CARD).write_text("# tiny\n")
    return folder


def publish_heads(registry: ModelRegistry, tmp_path: Path, count: int) -> None:
    """Version 1 pre-trained, then ``count`` head refreshes of it."""
    tiny_bundle(tmp_path / "base")
    registry.publish(tmp_path / "base")
    for i in range(count):
        tiny_head_refresh(tmp_path / f"head{i}", registry.folder(1), prefer="dog", data={"batch": i})
        registry.publish(tmp_path / f"head{i}")


def test_a_new_registry_is_empty(registry: ModelRegistry) -> None:
    assert registry.model == "tiny"
    assert list(registry.versions()) == []
    assert registry.rollout() == Rollout("tiny")
    assert list(registry.ledger()) == []


def test_publish_numbers_versions_and_keeps_everything(
    adapter: Adapter, registry: ModelRegistry, folder: Path, tmp_path: Path
) -> None:
    first = registry.publish(folder)
    tiny_bundle(tmp_path / "other", seed=1, parent=1, reason="another trunk")
    second = registry.publish(tmp_path / "other")
    assert (first.version, second.version) == (1, 2)
    for opened in (registry, adapter.open()):
        assert list(opened.versions()) == [1, 2]
        assert opened.manifest(1) == first
        assert opened.manifest(2) == second
        assert (second.parent, second.reason) == (1, "another trunk")
        assert verify(opened.folder(1)) == first
        assert (opened.folder(1) / CARD).read_text() == "# tiny\n"


def test_the_number_does_not_change_the_digest(registry: ModelRegistry, folder: Path) -> None:
    before = verify(folder)
    assert registry.publish(folder).digest == before.digest


def test_a_published_version_does_not_follow_its_source(registry: ModelRegistry, folder: Path) -> None:
    registry.publish(folder)
    (folder / TRUNK).write_bytes(b"something else")
    verify(registry.folder(1))


def test_one_changed_byte_is_refused(registry: ModelRegistry, folder: Path) -> None:
    data = bytearray((folder / TRUNK).read_bytes())
    data[100] ^= 1
    (folder / TRUNK).write_bytes(data)
    with pytest.raises(CorruptBundle, match=r"trunk\.onnx"):
        registry.publish(folder)
    assert list(registry.versions()) == []


def test_one_changed_byte_is_refused_though_another_version_has_the_file(registry: ModelRegistry, folder: Path) -> None:
    registry.publish(folder)
    data = bytearray((folder / TRUNK).read_bytes())
    data[100] ^= 1
    (folder / TRUNK).write_bytes(data)
    with pytest.raises(CorruptBundle, match=r"trunk\.onnx"):
        registry.publish(folder)
    assert list(registry.versions()) == [1]


@pytest.mark.parametrize("already_published", [False, True])
def test_a_missing_file_is_refused(registry: ModelRegistry, folder: Path, already_published: bool) -> None:
    if already_published:
        registry.publish(folder)
    (folder / TRUNK).unlink()
    with pytest.raises(CorruptBundle, match=r"trunk\.onnx"):
        registry.publish(folder)


def test_a_changed_manifest_is_refused(registry: ModelRegistry, folder: Path) -> None:
    raw = json.loads((folder / MANIFEST).read_text())
    raw["floor"] = 0.5
    (folder / MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(CorruptBundle, match="digest"):
        registry.publish(folder)


def test_a_folder_without_manifest_is_refused(registry: ModelRegistry, tmp_path: Path) -> None:
    with pytest.raises(CorruptBundle, match=r"manifest\.json"):
        registry.publish(tmp_path)


def test_another_models_version_is_refused(registry: ModelRegistry, tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "other", spec=tiny_spec("another"))
    with pytest.raises(InvalidInput, match="'another'"):
        registry.publish(tmp_path / "other")


def test_unknown_versions(registry: ModelRegistry, folder: Path) -> None:
    with pytest.raises(UnknownVersion, match="there are none"):
        registry.manifest(1)
    registry.publish(folder)
    with pytest.raises(UnknownVersion, match="7 does not exist; there are 1 to 1"):
        registry.folder(7)
    with pytest.raises(UnknownVersion):
        registry.manifest(7)
    with pytest.raises(UnknownVersion):
        registry.set_rollout(promote(registry.rollout(), 7, CHANGE))
    assert registry.rollout().generation == 0


def test_rollouts_are_kept_in_order(adapter: Adapter, registry: ModelRegistry, tmp_path: Path) -> None:
    publish_heads(registry, tmp_path, count=1)
    first = promote(registry.rollout(), 1, CHANGE)
    second = refresh(first, 2, CHANGE)
    third = confirm(second, CHANGE)
    for rollout in (first, second, third):
        registry.set_rollout(rollout)
    assert registry.rollout() == third
    assert adapter.open().rollout() == third
    assert list(adapter.open().ledger()) == [first, second, third]


def test_a_rollout_and_a_ledger_of_the_release_before_are_read(tmp_path: Path) -> None:
    """They call the generation of the experiment ``trial``."""
    registry = DirectoryRegistry(tmp_path, "tiny")
    (tmp_path / "tiny").mkdir()
    raw = {"model": "tiny", "generation": 7, "live": 3, "candidate": 5, "candidate_share": 0.1, "trial": 6}
    (tmp_path / "tiny" / "rollout.json").write_text(json.dumps(raw))
    (tmp_path / "tiny" / "ledger.jsonl").write_text(json.dumps(raw) + "\n")
    expected = Rollout("tiny", 7, live=3, candidate=5, candidate_share=0.1, experiment=6)
    assert registry.rollout() == expected
    assert list(registry.ledger()) == [expected]


def test_set_rollout_is_compare_and_set(registry: ModelRegistry, folder: Path) -> None:
    registry.publish(folder)
    first = promote(registry.rollout(), 1, CHANGE)
    registry.set_rollout(first)
    with pytest.raises(RolloutMoved, match="at generation 1, not 0"):
        registry.set_rollout(first)
    with pytest.raises(RolloutMoved, match="at generation 1, not 4"):
        registry.set_rollout(replace(first, generation=5))
    assert list(registry.ledger()) == [first]


def test_a_rollout_of_another_model_is_refused(registry: ModelRegistry) -> None:
    with pytest.raises(InvalidInput, match="'another'"):
        registry.set_rollout(replace(Rollout("another"), generation=1))


def test_of_two_writers_one_wins(adapter: Adapter, registry: ModelRegistry, folder: Path) -> None:
    """8 threads, each with its own registry, each add 5 generations, looking again when they lost: 40 in a row."""
    registry.publish(folder)
    losses: list[RolloutMoved] = []
    start = threading.Barrier(8)

    def write(name: str) -> None:
        mine = adapter.open()
        start.wait()
        written = 0
        while written < 5:
            try:
                mine.set_rollout(promote(mine.rollout(), 1, replace(CHANGE, actor=name)))
                written += 1
            except RolloutMoved as moved:
                losses.append(moved)

    threads = [threading.Thread(target=write, args=(f"writer {n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger = list(registry.ledger())
    assert [rollout.generation for rollout in ledger] == list(range(1, 41))
    assert sorted(r.actor for r in ledger) == sorted([f"writer {n}" for n in range(8)] * 5)


def test_processes_publish_side_by_side(adapter: Adapter, registry: ModelRegistry, tmp_path: Path) -> None:
    for seed in range(6):
        tiny_bundle(tmp_path / f"fresh{seed}", seed=seed // 2)
    children = [
        spawn(
            adapter,
            f"""
            for i in (0, 1):
                registry.publish(Path({str(tmp_path)!r}) / f"fresh{{2 * {n} + i}}")
            """,
        )
        for n in range(3)
    ]
    for child in children:
        child.communicate()
    assert [child.returncode for child in children] == [0, 0, 0]
    assert list(registry.versions()) == [1, 2, 3, 4, 5, 6]
    assert sorted(verify(registry.folder(v)).version for v in registry.versions()) == [1, 2, 3, 4, 5, 6]
    digests = [registry.manifest(v).trunk_digest for v in registry.versions()]
    assert sorted(digests.count(d) for d in set(digests)) == [2, 2, 2]


def test_prune_removes_dead_head_refreshes_alone(adapter: Adapter, registry: ModelRegistry, tmp_path: Path) -> None:
    """Versions: 1 pre-trained, 2 to 9 heads. 4 is live, 3 previous, 2 gated; 9 is the newest. Dead are 5, 6, 7, 8."""
    publish_heads(registry, tmp_path, count=8)
    rollout = promote(registry.rollout(), 2, CHANGE)
    registry.set_rollout(rollout)
    for version in (3, 4):
        rollout = refresh(rollout, version, CHANGE)
        registry.set_rollout(rollout)
    assert list(registry.prune(keep=2)) == [5, 6]
    for opened in (registry, adapter.open()):
        assert list(opened.versions()) == [1, 2, 3, 4, 7, 8, 9]
        with pytest.raises(UnknownVersion):
            opened.manifest(5)
    for version in registry.versions():
        verify(registry.folder(version))
    assert list(registry.prune(keep=0)) == [7, 8]
    assert list(registry.prune(keep=0)) == []


def test_numbers_are_not_given_twice(registry: ModelRegistry, tmp_path: Path) -> None:
    publish_heads(registry, tmp_path, count=3)
    registry.prune(keep=0)
    assert registry.publish(tmp_path / "head0").version == 5


def test_prune_removes_unused_fine_tuned_versions_alike(registry: ModelRegistry, tmp_path: Path) -> None:
    """Versions: 1 pre-trained, 2 to 5 fine-tuned, 6 a head. 2 is live. Each kind keeps as many as are to be kept."""
    tiny_bundle(tmp_path / "base")
    registry.publish(tmp_path / "base")
    for seed in range(4):
        tiny_bundle(tmp_path / f"tuned{seed}", seed=seed + 1, kind="finetuned")
        registry.publish(tmp_path / f"tuned{seed}")
    tiny_head_refresh(tmp_path / "head", registry.folder(2), prefer="dog")
    registry.publish(tmp_path / "head")
    registry.set_rollout(promote(registry.rollout(), 2, CHANGE))
    assert list(registry.prune(keep=1)) == [3, 4]
    assert list(registry.versions()) == [1, 2, 5, 6]
    assert list(registry.prune(keep=0)) == [5]
    assert list(registry.versions()) == [1, 2, 6]


@pytest.mark.parametrize(
    "name", ["../../x", "/etc", "", ".", "..", "a/b", "a\0b", "Zoo", "lost+found", "x" * 64, "zoo\n"]
)
def test_names_that_are_no_models_are_refused_before_anything_is_made(tmp_path: Path, name: str) -> None:
    """MLflow had one path traversal a year through names: https://github.com/mlflow/mlflow/security/advisories."""
    root = tmp_path / "data" / "registry"
    with pytest.raises(InvalidInput, match="must match"):
        DirectoryRegistry(root, name)
    with pytest.raises(InvalidInput, match="must match"):
        DirectoryCatalog(root).registry(name)
    assert list(tmp_path.iterdir()) == []


def test_the_ledger_is_read_from_where_it_is_asked_for(registry: ModelRegistry, tmp_path: Path) -> None:
    """Versions 1 to 3; more rollouts than one block of the ledger has."""
    publish_heads(registry, tmp_path, count=2)
    for version in [1] * 64 + [3, 2] + [1, 2, 3]:
        registry.set_rollout(promote(registry.rollout(), version, CHANGE))
    present = registry.rollout().generation
    assert [r.generation for r in registry.ledger()] == list(range(1, present + 1))
    for after in (0, 1, 63, 64, 65, present - 1, present, present + 7):
        assert [r.generation for r in registry.ledger(after)] == list(range(after + 1, present + 1))
    assert [None if (r := registry.first_live(v)) is None else r.generation for v in (1, 2, 3, 4)] == [1, 65, 65, None]


def spawn(adapter: Adapter, body: str) -> subprocess.Popen[str]:
    """A child process with ``registry`` open."""
    script = "\n".join(
        [
            "import os, sys",
            "from pathlib import Path",
            adapter.imports,
            f"registry = {adapter.open_source}",
            textwrap.dedent(body),
        ]
    )
    path = os.pathsep.join(str(ROOT / folder) for folder in ("services", "models"))
    return subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True
    )


# Forks a child for each step that touches the file system, which dies (as by kill -9) just before that step; prints
# what the registry holds after each death. The last child gets through.
CRASHES = """
class Crash:
    left = None

    def __call__(self, event, args):
        if self.left is not None and event.startswith(("open", "os.", "shutil.", "fcntl.")):
            if self.left == 0:
                os._exit(9)
            self.left -= 1

crash = Crash()
sys.addaudithook(crash)
for step in range(10_000):
    child = os.fork()
    if child == 0:
        crash.left = step
        {action}
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
    print({found}, flush=True)
"""


def test_a_crash_while_publishing_leaves_nothing_or_all(adapter: Adapter, folder: Path, tmp_path: Path) -> None:
    adapter.open().publish(folder)
    tiny_head_refresh(tmp_path / "head", adapter.open().folder(1), prefer="dog")
    action = f"registry.publish(Path({str(tmp_path / 'head')!r}))"
    child = spawn(adapter, CRASHES.format(action=action, found="registry.versions()"))
    output, _ = child.communicate()
    assert child.returncode == 0
    assert len(output.splitlines()) > 10
    registry = adapter.open()
    for version in registry.versions():
        verify(registry.folder(version))
    # Numbers follow each other without a gap, whatever died in between, and the last one got through.
    versions = list(registry.versions())
    assert versions == list(range(1, len(versions) + 1))
    assert len(versions) >= 2
    registry.publish(tmp_path / "head")
    leftovers = [p.name for p in registry.folder(1).parent.iterdir() if p.name.startswith(".")]
    assert leftovers == []


def test_a_crash_while_changing_the_rollout_changes_it_or_not(adapter: Adapter, folder: Path) -> None:
    registry = adapter.open()
    registry.publish(folder)
    registry.set_rollout(promote(registry.rollout(), 1, CHANGE))
    action = "registry.set_rollout(promote(registry.rollout(), 1, Change('child', 0.0, str(step))))"
    child = spawn(
        adapter,
        "from plaudit.core.rollout import Change, promote\n"
        + CRASHES.format(action=action, found="registry.rollout().generation, len(list(registry.ledger()))"),
    )
    output, _ = child.communicate()
    assert child.returncode == 0
    found = [line.split() for line in output.splitlines()]
    assert len(found) > 5
    assert all(generation == entries for generation, entries in found)
    ledger = list(registry.ledger())
    assert [rollout.generation for rollout in ledger] == list(range(1, registry.rollout().generation + 1))
    assert ledger[-1] == registry.rollout()


# --- the folder only -------------------------------------------------------------------------------------------------


def test_directory_versions_that_differ_in_the_head_share_the_trunk(tmp_path: Path) -> None:
    registry = DirectoryRegistry(tmp_path / "registry", "tiny")
    publish_heads(registry, tmp_path, count=2)
    trunks = {(registry.folder(v) / TRUNK).stat().st_ino for v in (1, 2, 3)}
    heads = {(registry.folder(v) / "head.onnx").stat().st_ino for v in (1, 2)}
    assert (len(trunks), len(heads)) == (1, 2)


def test_directory_a_hard_linked_trunk_is_taken_in(tmp_path: Path) -> None:
    """A head refresh may link its parent's trunk instead of copying it."""
    registry = DirectoryRegistry(tmp_path / "registry", "tiny")
    publish_heads(registry, tmp_path, count=0)
    tiny_head_refresh(tmp_path / "head", registry.folder(1), prefer="dog")
    (tmp_path / "head" / TRUNK).unlink()
    (tmp_path / "head" / TRUNK).hardlink_to(registry.folder(1) / TRUNK)
    assert verify(registry.folder(registry.publish(tmp_path / "head").version)).parent == 1


def test_directory_a_line_cut_short_in_the_ledger_is_passed_over(tmp_path: Path) -> None:
    registry = DirectoryRegistry(tmp_path / "registry", "tiny")
    publish_heads(registry, tmp_path, count=0)
    first = promote(registry.rollout(), 1, CHANGE)
    registry.set_rollout(first)
    with (tmp_path / "registry" / "tiny" / "ledger.jsonl").open("a") as file:
        file.write('{"model": "tiny", "generati')
    assert list(registry.ledger()) == [first]
    second = promote(first, 1, CHANGE)
    registry.set_rollout(second)
    assert list(registry.ledger()) == [first, second]


def test_directory_what_a_newer_version_says_of_a_rollout_is_passed_over(tmp_path: Path, folder: Path) -> None:
    """Services are updated one after another: those of this version read what a later one writes."""
    registry = DirectoryRegistry(tmp_path / "registry", "tiny")
    registry.set_rollout(promote(registry.rollout(), registry.publish(folder).version, CHANGE))
    known = registry.rollout()
    home = tmp_path / "registry" / "tiny"
    for name in ("rollout.json", "ledger.jsonl"):
        raw = json.loads((home / name).read_text())
        (home / name).write_text(json.dumps(raw | {"weather": {"rain": 0.3}, "tides": [1, 2]}) + "\n")
    reader = DirectoryRegistry(tmp_path / "registry", "tiny")
    assert reader.rollout() == known
    assert list(reader.ledger()) == [known]
    reader.set_rollout(confirm(reader.rollout(), CHANGE))
    assert [each.generation for each in reader.ledger()] == [1, 2]


def test_directory_what_an_older_version_does_not_say_has_its_default(tmp_path: Path, folder: Path) -> None:
    registry = DirectoryRegistry(tmp_path / "registry", "tiny")
    registry.set_rollout(promote(registry.rollout(), registry.publish(folder).version, CHANGE))
    file = tmp_path / "registry" / "tiny" / "rollout.json"
    raw = json.loads(file.read_text())
    del raw["shadow"], raw["experiment"]
    file.write_text(json.dumps(raw))
    assert registry.rollout() == next(iter(registry.ledger()))


def test_directory_a_path_in_a_manifest_cannot_lead_out(tmp_path: Path, folder: Path) -> None:
    registry = DirectoryRegistry(tmp_path / "registry", "tiny")
    manifest = verify(folder)
    outside = replace(manifest, files={**manifest.files, "../outside": manifest.files[TRUNK]})
    (folder / MANIFEST).write_text(outside.to_json())
    (tmp_path / "outside").write_bytes((folder / TRUNK).read_bytes())
    with pytest.raises(CorruptBundle, match=r"'\.\./outside'"):
        registry.publish(folder)


# --- what else stands in the folder ----------------------------------------------------------------------------------


def put(path: Path, data: bytes = b"") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def half_copied(versions: Path) -> None:
    """`cp -r` that is under way: the folder is there, and not yet its manifest."""
    put(versions / "000007" / TRUNK, b"half")


def empty_manifest(versions: Path) -> None:
    put(versions / "000007" / MANIFEST)


def manifest_that_is_a_folder(versions: Path) -> None:
    (versions / "000007" / MANIFEST).mkdir(parents=True)


def manifest_that_is_a_pipe(versions: Path) -> None:
    """Opened to be read, it would wait for a writer for ever."""
    (versions / "000007").mkdir()
    os.mkfifo(versions / "000007" / MANIFEST)


def manifest_of_another_kind(versions: Path) -> None:
    put(versions / "000007" / MANIFEST, b'[{"format": 1}]')


def manifest_too_large(versions: Path) -> None:
    (versions / "000007").mkdir()
    with (versions / "000007" / MANIFEST).open("wb") as file:
        file.truncate(1 << 40)  # sparse


def manifest_nested_deeply(versions: Path) -> None:
    put(versions / "000007" / MANIFEST, b"[" * 1_000_000)


def copied_version(versions: Path) -> None:
    """`cp -r 000001 000007`: a version that says it is another one."""
    shutil.copytree(versions / "000001", versions / "000007")


def link_to_nowhere(versions: Path) -> None:
    (versions / "000007").symlink_to("/nonexistent")


def link_to_itself(versions: Path) -> None:
    (versions / "000007").symlink_to("000007")


STRANGERS: dict[str, Callable[[Path], object]] = {
    "half a copy": half_copied,
    "empty manifest": empty_manifest,
    "manifest that is a folder": manifest_that_is_a_folder,
    "manifest that is a pipe": manifest_that_is_a_pipe,
    "manifest of another kind": manifest_of_another_kind,
    "manifest of a terabyte": manifest_too_large,
    "manifest nested deeply": manifest_nested_deeply,
    "copied version": copied_version,
    "link to nowhere": link_to_nowhere,
    "link to itself": link_to_itself,
    # https://github.com/tensorflow/serving/issues/1250: versions called 0.1 and v0.1
    "version 0.1": lambda versions: put(versions / "0.1" / MANIFEST, b"{}"),
    "version v2": lambda versions: put(versions / "v2" / MANIFEST, b"{}"),
    # https://github.com/tobegit3hub/simple_tensorflow_serving/issues/28: 7 and 00000007
    "version 7": lambda versions: put(versions / "7" / MANIFEST, b"{}"),
    "version 00000007": lambda versions: put(versions / "00000007" / MANIFEST, b"{}"),
    "version 0": lambda versions: put(versions / "000000" / MANIFEST, b"{}"),
    "version ٠٠٠٠٠٧": lambda versions: put(versions / "٠٠٠٠٠٧" / MANIFEST, b"{}"),
    "a number of 30 digits": lambda versions: put(versions / ("9" * 30) / MANIFEST, b"{}"),
    "file with the name of a version": lambda versions: put(versions / "000007", b"x"),
    "lost+found": lambda versions: (versions / "lost+found").mkdir(),
    # https://github.com/invoke-ai/InvokeAI/pull/4865, https://github.com/Farama-Foundation/Minari/issues/97
    ".DS_Store": lambda versions: put(versions / ".DS_Store", b"x"),
    # https://github.com/unslothai/unsloth/issues/8566: exFAT, beside every file one that begins with ._
    "._000001": lambda versions: put(versions / "._000001", b"x"),
    "Thumbs.db": lambda versions: put(versions / "Thumbs.db", b"x"),
    # https://github.com/artefactual/archivematica-storage-service/pull/288: a file that a reader on NFS has open
    ".nfs000000000012": lambda versions: put(versions / ".nfs000000000012", b"x"),
    "..data of Kubernetes": lambda versions: (versions / "..data").symlink_to("..2026_11_30"),
    "a name that is no text": lambda versions: os.mkdir(os.fsencode(versions) + b"/caf\xe9"),
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_directory_what_is_no_version_is_ignored_and_told(tmp_path: Path, stranger: str) -> None:
    """The kind of https://github.com/triton-inference-server/server/issues/3786 and 4980: what a server does not know
    in its repository ends it, and it does not say what that is.

    One stranger beside three versions: they are listed, served from, published after and pruned as without it, and it
    is still there afterwards.
    """
    registry = DirectoryRegistry(tmp_path / "registry", "tiny")
    publish_heads(registry, tmp_path, count=2)
    versions = tmp_path / "registry" / "tiny" / "versions"
    before = set(os.listdir(versions))
    STRANGERS[stranger](versions)
    (name,) = set(os.listdir(versions)) - before

    for opened in (registry, DirectoryRegistry(tmp_path / "registry", "tiny")):
        assert list(opened.versions()) == [1, 2, 3]
    registry.set_rollout(promote(registry.rollout(), 2, CHANGE))
    assert registry.publish(tmp_path / "head0").version == 4
    assert list(registry.prune(keep=0)) == [3]
    assert list(registry.versions()) == [1, 2, 4]
    (told,) = DirectoryCatalog(tmp_path / "registry").ignored()
    assert told.name == f"tiny/versions/{name}"
    assert str(tmp_path) not in told.problem
    assert os.path.lexists(versions / name)


def damaged_model(home: Path) -> None:
    (home / "versions").mkdir(parents=True)
    put(home / "rollout.json", b"{")


def model_with_a_pipe(home: Path) -> None:
    (home / "versions").mkdir(parents=True)
    os.mkfifo(home / "rollout.json")


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("lost+found", lambda path: path.mkdir()),
        ("tiny.bak", lambda path: shutil.copytree(path.parent / "tiny", path)),
        # a copy under a name that a model could have: its rollout says whose it is
        ("tiny-old", lambda path: shutil.copytree(path.parent / "tiny", path)),
        # https://github.com/mlflow/mlflow/pull/6605: `.trash` among the registered models
        (".trash", lambda path: shutil.copytree(path.parent / "tiny", path)),
        # https://github.com/triton-inference-server/server/issues/4980: a whole repository inside the repository
        ("registry", lambda path: shutil.copytree(path.parent, path)),
        ("notes.txt", lambda path: put(path, b"do not delete")),
        ("empty", lambda path: path.mkdir()),
        ("zoo", lambda path: put(path, b"a file with the name of a model")),
        ("zoo", lambda path: put(path / "versions", b"a file where versions are kept")),
        # https://github.com/mlflow/mlflow/issues/3755: a folder that is nearly one of ours
        ("zoo", lambda path: put(path / "rollout.json", b"{}")),
        ("zoo", damaged_model),
        ("zoo", model_with_a_pipe),
        ("..data", lambda path: path.symlink_to("tiny")),
        ("zoo", lambda path: path.symlink_to("nowhere")),
    ],
)
def test_directory_what_is_no_model_is_ignored_and_told(
    tmp_path: Path, name: str, make: Callable[[Path], object]
) -> None:
    publish_heads(DirectoryRegistry(tmp_path / "registry", "tiny"), tmp_path, count=0)
    registry = DirectoryRegistry(tmp_path / "registry", "tiny")
    registry.set_rollout(promote(registry.rollout(), 1, CHANGE))
    make(tmp_path / "registry" / name)
    catalog = DirectoryCatalog(tmp_path / "registry")
    assert list(catalog.models()) == ["tiny"]
    (told,) = catalog.ignored()
    assert told.name == name
    assert str(tmp_path) not in told.problem


def test_directory_models_that_may_not_be_read_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root, everything may be read, so the refusal is injected."""
    publish_heads(DirectoryRegistry(tmp_path / "registry", "tiny"), tmp_path, count=0)
    locked = tmp_path / "registry" / "zoo" / "versions"
    locked.mkdir(parents=True)
    scandir = os.scandir

    def refused(path: Any) -> Any:
        if Path(path) == locked:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    catalog = DirectoryCatalog(tmp_path / "registry")
    assert list(catalog.models()) == ["tiny"]
    assert [(entry.name, entry.problem) for entry in catalog.ignored()] == [
        ("zoo", "cannot be read (Permission denied)")
    ]


def test_directory_thousands_of_strangers_are_named_up_to_a_bound(tmp_path: Path) -> None:
    publish_heads(DirectoryRegistry(tmp_path / "registry", "tiny"), tmp_path, count=0)
    for number in range(MAX_IGNORED_ENTRIES + 50):
        put(tmp_path / "registry" / "tiny" / f"file {number}")
    assert len(DirectoryCatalog(tmp_path / "registry").ignored()) == MAX_IGNORED_ENTRIES


def test_directory_half_a_version_is_one_once_it_is_whole(tmp_path: Path) -> None:
    """https://github.com/tensorflow/tensorflow/issues/20635: on HDFS one file appears later than another."""
    registry = DirectoryRegistry(tmp_path / "registry", "tiny")
    publish_heads(registry, tmp_path, count=1)
    manifest = registry.folder(2) / MANIFEST
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:500])
    assert list(registry.versions()) == [1]
    with pytest.raises(CorruptBundle, match=r"manifest\.json"):
        registry.manifest(2)
    manifest.write_bytes(whole)
    assert list(registry.versions()) == [1, 2]


def test_directory_a_rollout_may_keep_naming_a_version_that_is_gone(tmp_path: Path) -> None:
    """https://github.com/pytorch/serve/issues/383: the state names a model that was deleted, and nothing starts again.

    What was named before may stay named; what is named anew must be there.
    """
    registry = DirectoryRegistry(tmp_path / "registry", "tiny")
    publish_heads(registry, tmp_path, count=2)
    registry.set_rollout(promote(registry.rollout(), 1, CHANGE))
    registry.set_rollout(refresh(registry.rollout(), 2, CHANGE))
    shutil.rmtree(registry.folder(1))
    registry.set_rollout(refresh(registry.rollout(), 3, CHANGE))
    assert (registry.rollout().live, registry.rollout().gated) == (3, 1)
    with pytest.raises(UnknownVersion):
        registry.set_rollout(promote(registry.rollout(), 9, CHANGE))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"model": "tiny", "generation": "7"}', '{"model": "other"}', "\0" * 100, "[" * 100_000]
)
def test_directory_a_damaged_rollout_is_unavailable(tmp_path: Path, text: str) -> None:
    registry = DirectoryRegistry(tmp_path / "registry", "tiny")
    publish_heads(registry, tmp_path, count=0)
    (tmp_path / "registry" / "tiny" / "rollout.json").write_text(text)
    with pytest.raises(RegistryUnavailable, match=r"rollout\.json") as refused:
        registry.rollout()
    assert str(tmp_path) in str(refused.value)
    assert str(tmp_path) not in refused.value.for_clients


def test_directory_a_registry_that_vanishes_is_not_begun_anew(tmp_path: Path) -> None:
    """https://github.com/tensorflow/serving/issues/1723: the mount is gone after days. Publishing into the empty mount
    point would begin a registry that hides the one that comes back.
    """
    registry = DirectoryRegistry(tmp_path / "registry", "tiny")
    publish_heads(registry, tmp_path, count=0)
    assert list(registry.versions()) == [1]
    (tmp_path / "registry").rename(tmp_path / "away")
    (tmp_path / "registry").mkdir()
    for call in (registry.versions, lambda: registry.publish(tmp_path / "base"), lambda: registry.prune(0)):
        with pytest.raises(RegistryUnavailable, match=r"put (it|them) back"):
            call()
    assert list((tmp_path / "registry").iterdir()) == []


# --- file systems that can do less -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number",
    [
        errno.EPERM,  # exFAT, BeeGFS (https://github.com/NixOS/nix/pull/3749), protected_hardlinks
        errno.ENOTSUP,  # SMB (https://github.com/facebook/rocksdb/pull/9657), s3fs-fuse/s3fs-fuse#1633
        errno.ENOSYS,  # FUSE
        errno.EACCES,  # FUSE on Android (https://github.com/oven-sh/bun/pull/36853)
        errno.EMLINK,  # ext4: the 65,000th name of one file
        errno.EXDEV,
    ],
)
def test_directory_without_hard_links_files_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refused(*args: Any, **kwargs: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refused)
    registry = DirectoryRegistry(tmp_path / "registry", "tiny")
    publish_heads(registry, tmp_path, count=2)
    assert [verify(registry.folder(v)).version for v in registry.versions()] == [1, 2, 3]
    assert len({(registry.folder(v) / TRUNK).stat().st_ino for v in (1, 2, 3)}) == 3


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF])
def test_directory_without_a_flush_of_folders_versions_are_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """https://github.com/untitaker/python-atomicwrites/issues/27: VirtualBox and SMB refuse fsync of a folder; modes
    are refused too.
    """
    fsync = os.fsync

    def only_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    def no_modes(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fsync", only_files)
    monkeypatch.setattr(os, "chmod", no_modes)
    registry = DirectoryRegistry(tmp_path / "registry", "tiny")
    publish_heads(registry, tmp_path, count=1)
    registry.set_rollout(promote(registry.rollout(), 2, CHANGE))
    assert (list(registry.versions()), registry.rollout().live) == ([1, 2], 2)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_directory_without_locks_nothing_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """https://github.com/EC-DIGIT-CSIRC/sysdiagnose/issues/92 (SMB), https://github.com/anyvm-org/anyvm/issues/35
    (NFS): a sentence with a way out instead of a traceback; reading goes on.
    """
    registry = DirectoryRegistry(tmp_path / "registry", "tiny")
    publish_heads(registry, tmp_path, count=0)

    def no_locks(*args: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    for change in (
        lambda: registry.publish(tmp_path / "base"),
        lambda: registry.set_rollout(promote(registry.rollout(), 1, CHANGE)),
        lambda: registry.prune(0),
    ):
        with pytest.raises(RegistryUnavailable, match=r"has no locks .*; mount it with locks"):
            change()
    assert list(registry.versions()) == [1]


def test_directory_a_lock_that_is_not_let_go_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """https://github.com/zopefoundation/zc.lockfile/issues/26: on NFS flock hangs."""
    registry = DirectoryRegistry(tmp_path / "registry", "tiny")
    publish_heads(registry, tmp_path, count=0)
    monkeypatch.setattr("plaudit.adapters.registry.files.MAX_REGISTRY_LOCK_WAIT_S", 0.01)
    with (tmp_path / "registry" / "tiny" / "publish.lock").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(RegistryUnavailable, match=r"another process has held publish\.lock"):
            registry.publish(tmp_path / "base")
    assert registry.publish(tmp_path / "base").version == 2


def test_directory_a_registry_that_cannot_be_written_says_so_and_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_heads(DirectoryRegistry(tmp_path / "registry", "tiny"), tmp_path, count=0)
    registry = DirectoryRegistry(tmp_path / "registry", "tiny")
    registry.set_rollout(promote(registry.rollout(), 1, CHANGE))
    real = Path.open

    def read_only(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if path.is_relative_to(tmp_path / "registry") and set(mode) & set("wax+"):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return real(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", read_only)
    registry = DirectoryRegistry(tmp_path / "registry", "tiny")
    assert (list(registry.versions()), registry.rollout().live, len(list(registry.ledger()))) == ([1], 1, 1)
    with pytest.raises(RegistryUnavailable, match="Read-only file system; mount it writable") as refused:
        registry.publish(tmp_path / "base")
    assert str(tmp_path) not in refused.value.for_clients


# Publishes, or changes the rollout, under a limit of the size of files that grows step by step, as on a disk that fills
# up; prints what the registry holds after each step.
FULL = """
import resource, signal
from plaudit.core.errors import RegistryUnavailable
from plaudit.core.rollout import Change, promote
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
size = 0
while True:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        {action}
        break
    except RegistryUnavailable as error:
        assert str(Path.cwd()) not in error.for_clients
    size += {step}
    print({found}, flush=True)
"""


def test_directory_a_disk_that_fills_up_shows_nothing_half_published(folder: Path, tmp_path: Path) -> None:
    """Every write of publishing fails once, at some byte of it: no version is listed until all of it is there."""
    adapter = _directory(tmp_path)
    adapter.open().publish(folder)
    tiny_bundle(tmp_path / "second", seed=1)
    action = f"registry.publish(Path({str(tmp_path / 'second')!r}))"
    child = spawn(adapter, FULL.format(action=action, step=500, found="list(registry.versions())"))
    output, _ = child.communicate()
    assert child.returncode == 0
    assert set(output.splitlines()) == {"[1]"}
    registry = adapter.open()
    assert [verify(registry.folder(v)).version for v in registry.versions()] == [1, 2]
    assert [p.name for p in registry.folder(1).parent.iterdir() if p.name.startswith(".")] == []


def test_directory_a_disk_that_fills_up_leaves_the_rollout_as_it_was(folder: Path, tmp_path: Path) -> None:
    adapter = _directory(tmp_path)
    registry = adapter.open()
    registry.publish(folder)
    registry.set_rollout(promote(registry.rollout(), 1, CHANGE))
    action = "registry.set_rollout(promote(registry.rollout(), 1, Change('child', 0.0, 'more')))"
    found = "registry.rollout().generation, len(list(registry.ledger()))"
    child = spawn(adapter, FULL.format(action=action, step=37, found=found))
    output, _ = child.communicate()
    assert child.returncode == 0
    assert len(output.splitlines()) > 5
    assert set(output.splitlines()) == {"1 1"}
    assert [r.actor for r in adapter.open().ledger()] == ["test", "child"]


# --- files that lead out of the folder -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [TRUNK, CARD, MANIFEST])
def test_directory_links_are_not_published(tmp_path: Path, folder: Path, name: str) -> None:
    """A link to a secret would be copied into the registry, and served to whoever asks for the version."""
    registry = DirectoryRegistry(tmp_path / "registry", "tiny")
    (tmp_path / "secret").write_bytes((folder / name).read_bytes())
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / "secret")
    with pytest.raises(CorruptBundle, match="is a link"):
        registry.publish(folder)
    assert list(registry.versions()) == []


def test_directory_a_pipe_is_not_waited_for(tmp_path: Path, folder: Path) -> None:
    registry = DirectoryRegistry(tmp_path / "registry", "tiny")
    (folder / TRUNK).unlink()
    os.mkfifo(folder / TRUNK)
    with pytest.raises(CorruptBundle, match="is no regular file"):
        registry.publish(folder)
