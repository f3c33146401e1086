"""Files of a data set by reference: a path, ``archive#member``, ``file.npz#array[i]`` or ``file.parquet#column[row]``.

Nothing outside the folder is read, links that lead out of it included; sizes are bounded before anything is unpacked.
Serves several threads.
"""

from __future__ import annotations

import io
import math
import re
import stat
import tarfile
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from plaudit_models.data.errors import UnusableItem

Array = npt.NDArray[Any]
Value = TypeVar("Value")

MAX_MEMBERS: Final = 2_000_000
"""Members of an archive."""
MAX_ARRAY_BYTES: Final = 2**30
"""Size of an array of an `.npz`, which is unpacked whole; an `.npy` may be larger."""
MAX_OPEN_ARCHIVES: Final = 16
"""Archives that are open at once."""

_CONTAINER = re.compile(r"(.+?\.(?:zip|tar|npz|npy|parquet))#(.*)", re.IGNORECASE | re.DOTALL)
_PACKED_TAR = re.compile(r".+\.(?:tar\.\w+|tgz|tbz2?|txz|7z|rar|gz)#.*", re.IGNORECASE | re.DOTALL)
_INDEXED = re.compile(r"(.*?)(?:\[(\d{1,12}(?:,\s*\d{1,12})*)\])?", re.DOTALL)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_ARRAY_CACHE_BYTES: Final = 2**30
_GROUP_CACHE: Final = 4
_NPY: Final = b"\x93NUMPY"
_ZIP: Final = b"PK\x03\x04"


class DataFiles:
    """Files of one folder.

    Args:
        max_item_bytes: size of the largest file or member that is read.
    """

    def __init__(self, folder: Path, *, max_item_bytes: int) -> None:
        self._folder = folder
        self._root = folder.resolve()
        self._limit = max_item_bytes
        self._lock = threading.RLock()
        self._open = _Cache[Any](MAX_OPEN_ARCHIVES, lambda each: 1)
        self._arrays = _Cache[Array](_ARRAY_CACHE_BYTES, lambda array: int(array.nbytes))
        self._groups = _Cache[Any](_GROUP_CACHE, lambda each: 1)

    def read(self, reference: str) -> bytes | Array:
        """Bytes of a file or member, or the array that the reference names.

        Raises:
            UnusableItem: there is nothing, it is outside the folder, too large, or damaged.
        """
        found = _CONTAINER.fullmatch(reference)
        if found is None or self._is_file(reference):
            if _PACKED_TAR.fullmatch(reference):
                raise UnusableItem("has members that cannot be reached without unpacking all; make it a .zip or .tar")
            return self._file(reference)
        path, inside = self._path(found[1]), found[2]
        try:
            match path.suffix.lower():
                case ".zip":
                    return self._zip_member(path, inside)
                case ".tar":
                    return self._tar_member(path, inside)
                case ".parquet":
                    return self._parquet_cell(path, inside)
                case ".npy":
                    return self._element(self._mapped(path), inside)
                case _:
                    return self._npz_array(path, inside)
        except UnusableItem:
            raise
        except Exception as error:  # an archive that is damaged in a way that nobody thought of
            raise UnusableItem(f"{found[1]} cannot be read ({str(error)[:200] or type(error).__name__})") from error

    def size_bytes(self, reference: str) -> int | None:
        """Size of the file or member; None for an element of an array, or where there is nothing."""
        try:
            content = self.read(reference)
        except UnusableItem:
            return None
        return len(content) if isinstance(content, bytes) else None

    def _is_file(self, reference: str) -> bool:
        try:
            return (self._folder / reference).is_file()
        except (OSError, ValueError):
            return False

    def _path(self, relative: str) -> Path:
        if _ADDRESS.match(relative):
            raise UnusableItem("is an address; nothing is downloaded: put the file into the folder and name its path")
        if "\0" in relative:
            raise UnusableItem("has a NUL character, which no path has")
        if PurePosixPath(relative).is_absolute():
            raise UnusableItem("is an absolute path; name it relative to the folder, so that the data set can be moved")
        try:
            path = (self._folder / relative).resolve(strict=True)
        except (OSError, RuntimeError, ValueError) as error:
            hint = "; a path has / between its parts, not \\" if "\\" in relative else ""
            reason = getattr(error, "strerror", None) or str(error)
            raise UnusableItem(f"cannot be opened ({reason}: {relative[:200]!r}){hint}") from error
        if not path.is_relative_to(self._root):
            raise UnusableItem("leads out of the folder; copy the file into it (links inside: cp -rL)")
        return path

    def _file(self, relative: str) -> bytes | Array:
        path = self._path(relative)
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise UnusableItem("is not a file; name the file itself")
            if path.suffix.lower() == ".npy":
                return self._mapped(path)
            self._check_size(status.st_size)
            with path.open("rb") as file:
                data = file.read(self._limit + 1)
        except OSError as error:
            raise UnusableItem(f"cannot be read ({error.strerror})") from error
        self._check_size(len(data))
        return data

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self._limit:
            raise UnusableItem(f"{size_bytes} bytes are more than data.max_item_bytes = {self._limit}; raise it")

    def _zip_member(self, path: Path, name: str) -> bytes:
        with self._lock:
            archive: zipfile.ZipFile = self._open.get(path, lambda: _opened_zip(path))
        try:
            info = archive.getinfo(name)
        except KeyError:
            raise _no_member(name, archive.namelist()) from None
        if info.flag_bits & 1:
            raise UnusableItem("is encrypted; pack it without a password")
        self._check_size(info.file_size)
        with self._lock, archive.open(info) as member:  # bounded again: what a header says need not be so
            data = member.read(self._limit + 1)
        self._check_size(len(data))
        return data

    def _tar_member(self, path: Path, name: str) -> bytes:
        with self._lock:
            members: dict[str, tarfile.TarInfo] = self._open.get(path, lambda: _tar_index(path))
        info = members.get(name) or members.get(f"./{name}")
        if info is None:
            raise _no_member(name, list(members))
        if not info.isreg() or info.issparse():
            raise UnusableItem("is a link or a device in its archive; pack the file itself (tar --dereference)")
        self._check_size(info.size)
        with path.open("rb") as file:
            file.seek(info.offset_data)
            data = file.read(info.size)
        if len(data) < info.size:
            raise UnusableItem("is cut short with its archive; copy the archive again")
        return data

    def _npz_array(self, path: Path, inside: str) -> Array:
        found = _INDEXED.fullmatch(inside)
        assert found is not None
        name = found[1]
        with self._lock:
            array = self._arrays.get((path, name), lambda: _npz_array(path, name))
        return _element(array, found[2])

    def _element(self, array: Array, inside: str) -> Array:
        found = _INDEXED.fullmatch(inside)
        assert found is not None
        if found[1]:
            raise UnusableItem(f"an .npy has one array: write file.npy#[i], not {inside[:80]!r}")
        return _element(array, found[2])

    def _mapped(self, path: Path) -> Array:
        with self._lock:
            array: Array = self._open.get(path, lambda: _mapped(path))
            return array

    def _parquet_cell(self, path: Path, inside: str) -> bytes | Array:
        found = _INDEXED.fullmatch(inside)
        assert found is not None
        if found[2] is None or "," in found[2]:
            raise UnusableItem(f"names no row: write file.parquet#column[row], not {inside[:80]!r}")
        with self._lock:
            value = self._row_group_cell(path, found[1], int(found[2]))
        if isinstance(value, dict):  # of datasets' Image and Audio: the bytes, or where they are
            if value.get("bytes") is None and value.get("path"):
                return self._file(str(value["path"]))
            value = value.get("bytes")
        if not isinstance(value, bytes):
            raise UnusableItem("has no bytes in that cell; leave the modality out")
        self._check_size(len(value))
        return value

    def _row_group_cell(self, path: Path, column: str, row: int) -> object:
        try:
            from pyarrow import parquet
        except ModuleNotFoundError as error:
            raise UnusableItem("needs the extra data: pip install 'plaudit[data]'") from error
        file: Any = self._open.get(path, lambda: parquet.ParquetFile(path))
        first = 0
        for group in range(file.num_row_groups):
            length = file.metadata.row_group(group).num_rows
            if row < first + length:
                read = partial(file.read_row_group, group, columns=[column])
                return self._groups.get((path, column, group), read).column(column)[row - first].as_py()
            first += length
        raise UnusableItem(f"has {first} rows, and row {row} is not one of them")


class _Cache(Generic[Value]):
    """Values used last, up to a bound on their sizes together."""

    def __init__(self, bound: int, size: Callable[[Value], int]) -> None:
        self._bound, self._size, self._total = bound, size, 0
        self._values: OrderedDict[Hashable, Value] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = make()
        self._values[key] = value
        self._total += self._size(value)
        while self._total > self._bound and len(self._values) > 1:
            _, old = self._values.popitem(last=False)  # closed when whoever still reads it lets go of it
            self._total -= self._size(old)
        return value


def array_in(data: bytes) -> Array:
    """Array in the bytes of an ``.npy``, or of an ``.npz`` with one array.

    Raises:
        UnusableItem: neither, or cut short.
    """
    if data.startswith(_NPY):
        return _npy(io.BytesIO(data), len(data))
    if data.startswith(_ZIP):
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                names = archive.namelist()
                if len(names) != 1:
                    arrays = [name.removesuffix(".npy") for name in names[:10]]
                    raise UnusableItem(f"has {len(names)} arrays, {arrays}; save the wanted one alone")
                info = archive.getinfo(names[0])
                with archive.open(info) as member:
                    return _npy(member, info.file_size)
        except UnusableItem:
            raise
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:  # the last: of a compression
            raise UnusableItem(f"is damaged ({error}); save it again") from error
    raise UnusableItem("is neither an .npy nor an .npz file; save it with numpy.save")


def _npy(file: Any, size_bytes: int) -> Array:
    """Array of an ``.npy`` stream; its size is compared with what is there before memory is taken."""
    try:
        version = np.lib.format.read_magic(file)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = reader(file)
    except (ValueError, SyntaxError, KeyError, TypeError) as error:
        raise UnusableItem(f"is not an .npy array ({str(error)[:200]}); save it with numpy.save") from error
    if dtype.hasobject or dtype.kind not in "biuf":
        raise UnusableItem(f"holds {dtype}, and only numbers are read; save it as float32")
    count = math.prod(shape)
    if count * dtype.itemsize > min(size_bytes, MAX_ARRAY_BYTES):
        raise UnusableItem(
            f"says it has {count} values of {dtype} and has {size_bytes} bytes, of at most {MAX_ARRAY_BYTES}; "
            "save it again, a larger one as .npy"
        )
    data = file.read(count * dtype.itemsize)
    if len(data) < count * dtype.itemsize:
        raise UnusableItem("is cut short; copy it again")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _mapped(path: Path) -> Array:
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise UnusableItem(f"is not an .npy array ({str(error)[:200]}); save it with numpy.save") from error
    if not isinstance(array, np.ndarray):
        raise UnusableItem("is an .npz with the name of an .npy; write file.npz#array")
    if array.dtype.kind not in "biuf":
        raise UnusableItem(f"holds {array.dtype}, and only numbers are read; save it as float32")
    return array


def _npz_array(path: Path, name: str) -> Array:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {each.filename.removesuffix(".npy"): each for each in archive.infolist()}
            if name not in names:
                raise UnusableItem(f"has no array {name!r}; its arrays are {sorted(names)[:20]}")
            info = names[name]
            if info.file_size > MAX_ARRAY_BYTES + 2**16:
                raise UnusableItem(
                    f"array {name!r} has {info.file_size} bytes, more than {MAX_ARRAY_BYTES}; save it as .npy"
                )
            with archive.open(info) as member:
                return _npy(member, info.file_size)
    except (zipfile.BadZipFile, OSError) as error:
        raise UnusableItem(f"is not an .npz file ({error}); save it with numpy.savez") from error


def _element(array: Array, numbers: str | None) -> Array:
    if numbers is None:
        return array
    place = tuple(int(each) for each in numbers.split(","))
    if len(place) > array.ndim or any(i >= length for i, length in zip(place, array.shape, strict=False)):
        raise UnusableItem(f"has the shape {list(array.shape)}, and {list(place)} is outside of it")
    return np.asarray(array[place])


def _opened_zip(path: Path) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise UnusableItem(f"{path.name} is not a zip archive ({error}); pack it again") from error
    if len(archive.filelist) > MAX_MEMBERS:
        archive.close()
        raise UnusableItem(f"{path.name} has more than {MAX_MEMBERS} members; split it")
    return archive


def _tar_index(path: Path) -> dict[str, tarfile.TarInfo]:
    members: dict[str, tarfile.TarInfo] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for info in archive:
                if len(members) >= MAX_MEMBERS:
                    raise UnusableItem(f"{path.name} has more than {MAX_MEMBERS} members; split it")
                members[info.name] = info
    except (tarfile.TarError, OSError) as error:
        raise UnusableItem(f"{path.name} is not a tar archive, or packed as .tar.gz is ({error}); unpack it") from error
    return members


def _no_member(name: str, names: list[str]) -> UnusableItem:
    base = PurePosixPath(name).name
    like = next((each for each in names if PurePosixPath(each).name == base), None)
    known = f"it has {like!r}" if like is not None else f"it has {len(names)} members, such as {names[:2]}"
    return UnusableItem(f"the archive has no member {name[:200]!r}; {known}")
