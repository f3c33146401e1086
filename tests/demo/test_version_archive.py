"""Versions are archived for the report while the registry prunes them."""

from __future__ import annotations

from pathlib import Path

from plaudit.adapters.registry.directory import DirectoryRegistry
from plaudit.core.rollout import Change, promote
from plaudit.demo.version_archive import VersionArchive
from plaudit_models.bundle import verify
from support.builders import tiny_bundle, tiny_head_refresh, tiny_spec


def _publish_heads(registry: DirectoryRegistry, folder: Path, count: int) -> None:
    for i in range(count):
        head = folder / f"after{registry.versions()[-1]}"
        tiny_head_refresh(head, registry.folder(1), prefer=tiny_spec().actions[i % 2])
        registry.publish(head)


def test_versions_outlive_the_registrys_pruning_until_they_are_removed(tmp_path: Path) -> None:
    registry = DirectoryRegistry(tmp_path / "registry", "tiny")
    tiny_bundle(tmp_path / "first")
    registry.publish(tmp_path / "first")
    registry.set_rollout(promote(registry.rollout(), 1, Change("test", 0.0, "")))
    archive = VersionArchive(registry, tmp_path / "served")
    _publish_heads(registry, tmp_path, 3)
    archive.sync()
    registry.prune(keep=0)
    _publish_heads(registry, tmp_path, 1)
    archive.sync()
    assert list(registry.versions()) == [1, 4, 5]
    assert list(archive.manifests) == [1, 2, 3, 4, 5]
    assert [verify(archive.folder(version)).version for version in archive.manifests] == [1, 2, 3, 4, 5]
    trunks = {(archive.folder(version) / "trunk.onnx").stat().st_ino for version in archive.manifests}
    assert len(trunks) == 1, "a version archive is made of links"
    archive.remove()
    assert not (tmp_path / "served").exists()


def test_what_the_registry_removed_before_the_look_is_left_out(tmp_path: Path) -> None:
    registry = DirectoryRegistry(tmp_path / "registry", "tiny")
    tiny_bundle(tmp_path / "first")
    registry.publish(tmp_path / "first")
    _publish_heads(registry, tmp_path, 3)
    registry.prune(keep=0)
    archive = VersionArchive(registry, tmp_path / "served")
    archive.sync()
    assert list(archive.manifests) == [1, 4]
