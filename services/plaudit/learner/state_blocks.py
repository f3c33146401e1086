"""Reward states in the store as blocks of bounded size, each under the digest of its content.

States that have a block in common keep it once, so what is written at a step, and what one more served head takes,
grows with what has changed. Knows nothing about when a state is saved.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import blake2b
from typing import Any, Final

import numpy as np

from plaudit_models.bandit.features import FeatureSpace, Float64
from plaudit_models.bandit.own_evidence import OwnEvidence
from plaudit_models.bandit.reward_model import (
    CorruptState,
    RewardState,
    half_of,
    state_from_bytes,
    whole_of,
)

ACTIONS_PER_BLOCK: Final = 128
"""Actions whose targets are in one block."""

_MAGIC: Final = b"plaudit blocks 1\n"
_PREFIX: Final = "block/"
_DIGEST_BYTES: Final = 16
_ROWS: Final = b"rows"
_SUM: Final = b"sum "


@dataclass(frozen=True, slots=True)
class BlockIndex:
    """Blocks that are in the store.

    Attributes:
        digests: of the blocks of each part, by the part's name.
    """

    digests: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def changed(self, states: Mapping[str, RewardState | None]) -> tuple[dict[str, bytes | None], BlockIndex]:
        """What is to be written so that these parts are saved, and the index after that.

        Args:
            states: by part; None removes the part.

        Returns:
            Values by name, None for what nothing refers to any more.
        """
        before, digests = Counter(self._all()), dict(self.digests)
        written: dict[str, bytes | None] = {}
        for part, state in states.items():
            digests.pop(part, None)
            written[part] = None
            if state is not None:
                blocks, header = _split(state)
                written |= {_PREFIX + digest: block() for digest, block in blocks.items() if digest not in before}
                written[part], digests[part] = header, tuple(blocks)
        after = BlockIndex(digests)
        gone = before.keys() - set(after._all())
        return written | {_PREFIX + digest: None for digest in gone}, after

    def _all(self) -> Iterable[str]:
        return (digest for of_part in self.digests.values() for digest in of_part)


def read_state(part: str, get: Callable[[str], bytes | None]) -> tuple[RewardState | None, BlockIndex]:
    """A reward state that was saved, as blocks or as the version before saved it, and the blocks it is made of.

    Args:
        get: value of a name in the store.

    Raises:
        CorruptState: a block is missing, or is none.
    """
    raw = get(part)
    if raw is None:
        return None, BlockIndex()
    if not raw.startswith(_MAGIC):
        return state_from_bytes(raw), BlockIndex()

    def block(digest: str) -> bytes:
        found = get(_PREFIX + digest)
        if found is None:
            raise CorruptState(f"{part}: block {digest} of the learner's state is missing in the store")
        return found

    try:
        header: dict[str, Any] = json.loads(raw[len(_MAGIC) :])
        space = FeatureSpace(**header["space"])
        a, g = space.n_actions, space.n_regressors
        shared = _whole(_numbers(block(header["shared"])), g)
        target = np.concatenate([_numbers(block(digest)) for digest in header["targets"]]).reshape(a, g)
        weight = _numbers(block(header["weight"])).reshape(a)
        own = {int(k): _own_from_bytes(block(digest), g) for k, digest in header["own"].items()}
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptState(f"{part}: not a reward state: {type(error).__name__}: {error}") from error
    return RewardState(space, shared, own, target, weight), BlockIndex({part: _named(header)})


def block_digests(part: str, get: Callable[[str], bytes | None]) -> dict[str, tuple[str, ...]]:
    """Digests of the blocks of a saved part, by its name; none of a part that is not there or not in blocks."""
    raw = get(part)
    return {part: _named(json.loads(raw[len(_MAGIC) :]))} if raw is not None and raw.startswith(_MAGIC) else {}


def _named(header: Mapping[str, Any]) -> tuple[str, ...]:
    return (header["shared"], header["weight"], *header["targets"], *header["own"].values())


def _split(state: RewardState) -> tuple[dict[str, Callable[[], bytes]], bytes]:
    """Blocks by digest, and the header that names them."""
    arrays = [half_of(state.shared[None]), state.weight]
    arrays += [state.target[i : i + ACTIONS_PER_BLOCK] for i in range(0, len(state.target), ACTIONS_PER_BLOCK)]
    raw = [np.ascontiguousarray(array).astype("<f8").tobytes() for array in arrays]
    digests = [blake2b(each, digest_size=_DIGEST_BYTES).hexdigest() for each in raw]
    blocks: dict[str, Callable[[], bytes]] = {
        digest: partial(bytes, each) for digest, each in zip(digests, raw, strict=True)
    }
    blocks |= {own.digest: partial(_own_bytes, own) for own in state.own.values()}
    header = {
        "space": asdict(state.space),
        "shared": digests[0],
        "weight": digests[1],
        "targets": digests[2:],
        "own": {k: own.digest for k, own in state.own.items()},
    }
    return blocks, _MAGIC + json.dumps(header).encode()


def _own_bytes(own: OwnEvidence) -> bytes:
    """Weights and rows after their kind, or one half of the sum after its."""
    if own.total is not None:
        return _SUM + bytes(half_of(own.total[None]).astype("<f8").tobytes())
    return _ROWS + bytes(np.concatenate([own.weights[:, None], own.rows], axis=1).astype("<f8").tobytes())


def _own_from_bytes(raw: bytes, g: int) -> OwnEvidence:
    kind, values = raw[: len(_ROWS)], _numbers(raw[len(_ROWS) :])
    if kind == _SUM:
        return OwnEvidence(np.zeros((0, g)), np.zeros(0), _whole(values, g))
    rows = values.reshape(-1, g + 1)
    return OwnEvidence(np.ascontiguousarray(rows[:, 1:]), rows[:, 0].copy())


def _numbers(raw: bytes) -> Float64:
    return np.frombuffer(raw, "<f8").astype(np.float64)


def _whole(half: Float64, g: int) -> Float64:
    if half.shape != (g * (g + 1) // 2,):
        raise ValueError(f"{half.size} numbers are not half of a sum over {g} regressors")
    whole: Float64 = whole_of(half[None], g)[0]
    return whole
