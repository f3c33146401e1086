"""Reasons that libraries give for their errors, as one line of bounded length that may be told to clients."""

from __future__ import annotations

import re
from typing import Final

from plaudit.core.limits import MAX_TOLD_REASON_CHARACTERS

_PREFIX: Final = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_SOURCE: Final = re.compile(r"\S+\.(?:cc|cpp|cu|cuh|h|hpp|py):\d+,?\s?(?:[\w:~<>]+\([^()]*\)(?: const)?:?\s?)?")
"""Place in a library's source, with the signature of its function."""
_FUNCTION: Final = re.compile(r"(?:\bvoid\*? )?\bonnxruntime::[\w:~<>]+(?:\([^()]*\))?(?: const)?\s?")
_NODE: Final = re.compile(r"Name:\s?'[^']*'")
"""Name of a node, which may look like a path."""
_LOADED: Final = re.compile(r"Load model from .*? failed:\s?")
_PATH: Final = re.compile(r"(?<![\w.])(?:file://)?(?:/|[A-Za-z]:[\\/])(?:[^\s'\":;,()<>|]+)")


def told_reason(error: BaseException | str) -> str:
    """Reason of an error without paths of this machine, places in sources and line breaks; cut at its end."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = _LOADED.sub("", _PREFIX.sub("", text))
    nodes = _NODE.findall(text)
    text = _FUNCTION.sub("", _SOURCE.sub("", _NODE.sub("Name:\0", text)))
    text = _PATH.sub("…", text)
    for node in nodes:
        text = text.replace("\0", node.removeprefix("Name:").strip(), 1)
    text = "".join(each for each in text if each.isprintable()).strip(" :")
    if len(text) > MAX_TOLD_REASON_CHARACTERS:
        text = f"{text[: MAX_TOLD_REASON_CHARACTERS - 1]}…"
    return text or type(error).__name__
