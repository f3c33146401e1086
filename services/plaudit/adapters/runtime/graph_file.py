"""An ONNX file with its data → one graph in memory. Runs nothing.

Data files are found as ONNX Runtime finds them: beside the name that was given, also where that is a link, as in the
cache of Hugging Face; what lies neither there nor beside the file itself is not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import onnx
from onnx.external_data_helper import uses_external_data

MAX_BYTES: Final = 2_000_000_000
"""Largest size of one ONNX file, its data included: protobuf cannot hold more."""

_LFS: Final = b"version https://git-lfs"
_LINK_AS_TEXT: Final = re.compile(rb"(?:\.\./)+blobs/[0-9a-f]{8,64}\n?")
"""Link of Hugging Face's cache as copied by what knows no links."""


class CannotImport(Exception):
    """The file cannot become a version; the message names the input or output and the way out."""


def read_graph(file: Path) -> onnx.ModelProto:
    """The graph with all its data.

    Raises:
        CannotImport: it cannot be read, is too large, or lacks data.
    """
    real = _resolved(file)
    try:
        size_bytes = real.stat().st_size
        if size_bytes > MAX_BYTES:
            raise CannotImport(_too_large(file, size_bytes))
        data = real.read_bytes()
    except OSError as error:
        raise CannotImport(f"{file}: {error.strerror or error}") from error
    if data.startswith(_LFS):
        raise CannotImport(f"{file}: is a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`")
    try:
        graph = onnx.ModelProto.FromString(data)
    except Exception as error:  # protobuf raises several kinds of exceptions on damaged files
        raise CannotImport(f"{file}: is not a readable ONNX file ({type(error).__name__}: {error})") from error
    if not graph.HasField("graph") or not (graph.graph.node or graph.graph.output):
        raise CannotImport(f"{file}: is not a readable ONNX file (it holds no graph)")
    _take_in_data(graph, file, real, size_bytes)
    return graph


def tensors(graph: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All constants of a graph, those of nodes, inner graphs and functions included."""
    yield from _tensors_of_graph(graph.graph)
    for function in graph.functions:
        yield from _tensors_of_nodes(function.node)


def _tensors_of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _tensors_of_nodes(graph.node)


def _tensors_of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
            for each in (*sparse, *attribute.sparse_tensors):
                yield from (each.values, each.indices)
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _tensors_of_graph(inner)


def _take_in_data(graph: onnx.ModelProto, file: Path, real: Path, size_bytes: int) -> None:
    external = [(tensor, _place(tensor, file)) for tensor in tensors(graph) if uses_external_data(tensor)]
    paths = {location: _data_file(location, file, real) for _, (location, _, _) in external}
    total_bytes = size_bytes + sum(path.stat().st_size for path in set(paths.values()))
    if total_bytes > MAX_BYTES:
        raise CannotImport(_too_large(file, total_bytes))
    loaded_bytes = size_bytes
    for tensor, (location, offset, length) in external:
        with paths[location].open("rb") as data:
            data.seek(offset)
            raw = data.read(length or -1)
        if length and len(raw) != length:
            raise CannotImport(
                f"{file}: its data file {location} ends before constant {tensor.name!r} does; fetch the whole file"
            )
        loaded_bytes += len(raw)
        if loaded_bytes > MAX_BYTES:  # the same bytes may be named again and again
            raise CannotImport(_too_large(file, loaded_bytes))
        tensor.raw_data = raw
        tensor.ClearField("external_data")
        tensor.data_location = onnx.TensorProto.DEFAULT


def _place(tensor: onnx.TensorProto, file: Path) -> tuple[str, int, int]:
    """Data file of a constant, where it begins there, and its bytes; 0: all that follow."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    numbers = [entries.get(key) or "0" for key in ("offset", "length")]
    if not all(number.isascii() and number.isdecimal() and len(number) < 16 for number in numbers):
        raise CannotImport(f"{file}: the place of constant {tensor.name!r} in its data file is damaged")
    return entries.get("location", ""), int(numbers[0]), int(numbers[1])


def _data_file(location: str, file: Path, real: Path) -> Path:
    """Path of a data file. Raises CannotImport: it leaves the folder, or is not there."""
    if not location or Path(location).is_absolute() or ".." in Path(location).parts:
        raise CannotImport(f"{file}: its data file {location!r} is not in its folder; put it beside the file")
    beside = file.parent / location
    try:
        path = _resolved(beside)
    except CannotImport as error:
        raise CannotImport(f"{file}: its data file {location} is not there; put it beside the file") from error
    homes = (file.parent.resolve(), real.parent)
    if not any(path.is_relative_to(home) for home in homes) or not path.is_file():
        raise CannotImport(
            f"{file}: its data file {location} is a link that leaves the folder; put the file itself beside it"
        )
    return path


def _resolved(file: Path) -> Path:
    """The file behind links. Raises CannotImport: there is none."""
    try:
        path = file.resolve(strict=True)
        if not path.is_file():
            raise CannotImport(f"{file}: is not a file")
        if path.stat().st_size <= 256:
            text = path.read_bytes()
            if _LINK_AS_TEXT.fullmatch(text):
                return (file.parent / text.decode().strip()).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CannotImport(f"{file}: {reason}") from error
    return path


def _too_large(file: Path, size_bytes: int) -> str:
    return (
        f"{file}: holds {size_bytes} bytes with its data; up to {MAX_BYTES} can be imported; export smaller "
        "weights (float16, or quantized)"
    )
