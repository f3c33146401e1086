"""Simulated users against a real server: each asks, looks at the answer, and gives a thumb. All over gRPC.

Knows nothing about models or learners: it sees what any client sees.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterator
from typing import Final, Literal, TypeVar

from plaudit.client import AsyncClient, ClientError, Prediction, Rollout, audio, image, text
from plaudit.demo.pace import Pace
from plaudit.demo.report import Answer, Failure
from plaudit.demo.users import Request, likes, thumb_up
from plaudit.demo.view import Watched

CONCURRENCY: Final = 16
"""Users who ask at the same time, at most."""

Result = TypeVar("Result")


async def drive(
    client: AsyncClient, requests: Iterator[Request], watched: Watched, *, pace: Pace, id_prefix: str
) -> None:
    """Send ``watched.total`` requests, each followed by its thumb.

    A server that is slower than ``pace`` slows the users down; what fails is noted and the users go on.

    Args:
        pace: when each request is due.
        id_prefix: begins every feedback id; the number of the request ends it.
    """
    numbers = iter(range(watched.total))

    async def user() -> None:
        for number in numbers:
            request = next(requests)
            await pace.turn(number)
            answer = await _ask(client, number, request, watched, id_prefix)
            if answer is not None:
                watched.answers.append(answer)

    await asyncio.gather(*(user() for _ in range(CONCURRENCY)))


async def follow(client: AsyncClient, watched: Watched) -> None:
    """Note every change of the rollout, until cancelled."""
    before: Rollout | None = None
    async for rollout in client.watch_versions():
        watched.live, watched.candidate = rollout.live, rollout.candidate
        if before is not None and rollout.live != before.live:
            watched.swaps += 1
        if before is not None and rollout.reason:
            at_s = time.time() - watched.started_s
            watched.happenings.append(f"{at_s:5.0f} s  version {rollout.live} serves: {rollout.reason}")
        before = rollout


async def _ask(client: AsyncClient, number: int, request: Request, watched: Watched, id_prefix: str) -> Answer | None:
    """One request and its thumb; None if either failed."""
    example = request.example
    content = {"image": image(example.image), "audio": audio(example.audio), "question": text(example.question)}
    asked_s = time.time()
    prediction: Prediction | None = await _noted(
        client.predict(content, user_id=request.user_id, top_k=1), number, "Predict", watched
    )
    if prediction is None:
        return None
    answered_s = time.time()
    up = thumb_up(request, prediction.action, shifted=True)
    give = client.thumbs_up if up else client.thumbs_down
    acknowledged = await _noted(give(prediction, feedback_id=f"{id_prefix}{number}"), number, "SendFeedback", watched)
    if acknowledged is None:
        return None
    return Answer(
        number=number,
        kind=example.kind,
        action=prediction.action,
        liked=likes(example, prediction.action, shifted=True),
        thumb_up=up,
        version=prediction.version,
        version_digest=prediction.version_digest,
        by_candidate=prediction.role == "candidate",
        feedback_id=acknowledged.feedback_id,
        asked_s=asked_s,
        answered_s=answered_s,
        acknowledged_s=time.time(),
    )


async def _noted(
    call: Awaitable[Result], number: int, name: Literal["Predict", "SendFeedback"], watched: Watched
) -> Result | None:
    try:
        return await call
    except ClientError as error:
        watched.failures.append(Failure(number, name, str(error)))
        return None
