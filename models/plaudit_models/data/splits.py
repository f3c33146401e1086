"""Splits by hash of the group: the same on every machine, and a row that is added moves no other row.

Rows without a group are hashed by their content, so that copies of an item stay in one split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final, Literal

Split = Literal["train", "val", "test"]

SPLITS: Final[tuple[Split, ...]] = ("train", "val", "test")
SPLIT_WORDS: Final[Mapping[str, Split]] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
"""Words for splits in the names of files and folders, and in split columns of others."""

_SCALE: Final = 2.0**64


def place_in_unit_interval(key: str) -> float:
    """Hash of a key in [0, 1), uniform over keys."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8], "big") / _SCALE


def split_by_hash(keys: Sequence[str], *, val_share: float, test_share: float) -> list[Split]:
    """Split of each row; rows with one key share it.

    A split that is wanted and got nothing takes the key whose hash is nearest, as long as training keeps one.

    Args:
        keys: group of each row, or its content.
    """
    places = {key: place_in_unit_interval(key) for key in keys}
    made: dict[str, Split] = {}
    for key, place in places.items():
        made[key] = "test" if place < test_share else "val" if place < test_share + val_share else "train"
    wanted: list[Split] = [name for name, share in (("test", test_share), ("val", val_share)) if share > 0]  # type: ignore[misc]
    for name in wanted:
        train = [key for key, split in made.items() if split == "train"]
        if name not in made.values() and len(train) > 1:
            made[min(train, key=lambda key: places[key])] = name
    if made and "train" not in made.values():
        made[max(made, key=lambda key: places[key])] = "train"
    return [made[key] for key in keys]
