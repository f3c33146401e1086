"""Simulated users: their requests, the answers they like, and the thumbs they give.

Two things change in production that no label tells. Once their taste has shifted, for sums users like only the last
digit; and a kind of question that was never labelled makes up a share of the traffic.
Knows nothing about servers or models. Same seed, same stream, whatever is answered in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from plaudit.demo.task import LABELLED_KINDS, NEW_KIND, SPEC, Example, Kind, Pool, draw, questions

NEW_KIND_SHARE: Final = 0.3
WRONG_THUMB_SHARE: Final = 0.05
USERS: Final = 400


@dataclass(frozen=True, slots=True)
class Request:
    """Request of one user; ``wrong_thumb``: True: the thumb contradicts what the user likes."""

    user_id: str
    example: Example
    wrong_thumb: bool


def traffic(
    pool: Pool,
    *,
    seed: int,
    new_kind: Kind = NEW_KIND,
    new_kind_share: float = NEW_KIND_SHARE,
    wrong_thumb_share: float = WRONG_THUMB_SHARE,
) -> Iterator[Request]:
    """Endless stream of requests: ``new_kind_share`` asks for ``new_kind``, the rest evenly for the labelled ones."""
    rng = np.random.default_rng(seed)
    texts = {kind: questions(kind, pool.part) for kind in (*LABELLED_KINDS, new_kind)}
    while True:
        kind = new_kind if rng.random() < new_kind_share else LABELLED_KINDS[rng.integers(len(LABELLED_KINDS))]
        yield Request(
            user_id=f"user-{rng.integers(USERS):03}",
            example=draw(pool, kind, texts[kind], rng),
            wrong_thumb=bool(rng.random() < wrong_thumb_share),
        )


def liked_answer(example: Example, *, shifted: bool) -> str:
    """Answer that users like: the right one, but for sums its last digit once their taste has ``shifted``."""
    return example.answer[-1] if shifted and example.kind == "add" else example.answer


def likes(example: Example, action: str, *, shifted: bool) -> bool:
    """Whether users like ``action``; the truth, without wrong thumbs."""
    return action == liked_answer(example, shifted=shifted)


def thumb_up(request: Request, action: str, *, shifted: bool) -> bool:
    """Thumb that the user gives for ``action``: True is up."""
    return likes(request.example, action, shifted=shifted) != request.wrong_thumb


def likes_matrix(examples: Sequence[Example], *, shifted: bool) -> npt.NDArray[np.bool_]:
    """Matrix ``[n, a]``, True where users like action a for example n."""
    truth = np.zeros((len(examples), len(SPEC.actions)), np.bool_)
    for row, example in enumerate(examples):
        truth[row, SPEC.action_index(liked_answer(example, shifted=shifted))] = True
    return truth
