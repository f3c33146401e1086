"""Deployment of the two models of graphs.py: imported, published, live."""

from __future__ import annotations

from pathlib import Path

from benchmarks.serving.graphs import SIZES, transformer
from plaudit.adapters.runtime.importer import ImportOptions
from plaudit.cli.commands.importing import ImportRequest, import_model
from plaudit.core.settings import Settings

IMPORT = ImportOptions(logits="logits", embedding="hidden")


def write_graph(data_dir: Path, name: str, seed: int = 0) -> Path:
    """The model as an ONNX file in ``data_dir``; another seed gives other weights."""
    path = data_dir / f"{name}-{seed}.onnx"
    path.write_bytes(transformer(SIZES[name], seed).SerializeToString())
    return path


def deploy(data_dir: Path, *names: str) -> Settings:
    """Make a data directory in which these models are imported and live. Their graphs are ``NAME-0.onnx`` in it."""
    settings = Settings(data_dir=data_dir)
    for name in names:
        request = ImportRequest(
            file=write_graph(data_dir, name), name=name, logits=IMPORT.logits, embedding=IMPORT.embedding
        )
        import_model(settings, request, go_live=True)
    return settings
