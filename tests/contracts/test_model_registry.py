"""The contract of ModelRegistry, for every adapter. An adapter joins by joining ``ADAPTERS``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from plaudit.adapters.registry.directory import DirectoryRegistry
from plaudit.core.errors import InvalidInput, RolloutMoved, UnknownVersion
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
