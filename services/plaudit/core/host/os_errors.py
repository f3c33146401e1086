"""Errors of the operating system as sentences: which file, what is wrong, and the way out. For operators."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Final

_WAYS_OUT: Final[Mapping[int, str]] = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room, or have the quota of this user raised",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "mount the file system so that it can be written to, or choose another data directory",
    errno.EACCES: "give this user (uid {uid}) the right to do that, or run as the owner of the files",
    errno.EPERM: "give this user (uid {uid}) the right to do that, or run as the owner of the files",
    errno.EIO: "the disk reports errors: see the kernel's log (dmesg), and move the data to another disk",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "the machine has too many open files: end other programs, or raise fs.file-max",
    errno.ENOMEM: "the machine has too little memory left: end other programs",
    errno.ESTALE: "the file server has lost the file: mount the file system again",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ENOTDIR: "a part of the path is a file: move it away, or choose another path",
    errno.EISDIR: "it is a folder where a file is expected: move it away",
    errno.ENOENT: "put it back",
    errno.ENOLCK: "use a file system with locks",
    errno.EOPNOTSUPP: "use another file system for the data directory",
    errno.ELOOP: "mend the symbolic links",
}


def is_explained(error: OSError) -> bool:
    """Whether the error is about the machine, so that a sentence says more than a traceback."""
    return error.errno in _WAYS_OUT and error.filename is not None


def explain(error: OSError) -> str:
    """The file, what is wrong, and the way out, in one sentence."""
    what = error.strerror or str(error)
    place = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    way_out = _WAYS_OUT.get(error.errno or 0, "")
    return f"{place}{what}" + (f"; {way_out.format(uid=os.getuid())}" if way_out else "")
