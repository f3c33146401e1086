"""Traffic of the simulated users over gRPC: each sends a request, reads the answer and gives a thumb.

Knows nothing about models or learners: it sees what any client sees.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterator
from typing import Final, Literal, TypeVar

from plaudit.client import AsyncClient, ClientError, Prediction, RolloutSnapshot, audio, image, text
from plaudit.demo.report import Answer, Failure
from plaudit.demo.request_pacing import RequestPacing
from plaudit.demo.users import Request, likes, thumb_up
from plaudit.demo.view import TrafficState

CONCURRENCY: Final = 16
"""Largest number of requests at the same time."""

Result = TypeVar("Result")


async def drive(
    client: AsyncClient, requests: Iterator[Request], state: TrafficState, *, pacing: RequestPacing, id_prefix: str
) -> None:
    """Send ``state.total`` requests, each followed by its thumb.

    A server that is slower than ``pacing`` slows the traffic down; failures are recorded and the traffic goes on.

    Args:
        pacing: time at which each request is due.
        id_prefix: start of every feedback id; the number of the request is its end.
    """
    numbers = iter(range(state.total))

    async def user() -> None:
        for number in numbers:
            request = next(requests)
            await pacing.wait_turn(number)
            answer = await _ask(client, number, request, state, id_prefix)
            if answer is not None:
                state.answers.append(answer)

    await asyncio.gather(*(user() for _ in range(CONCURRENCY)))


async def follow_rollout(client: AsyncClient, state: TrafficState) -> None:
    """Record every change of the rollout, until cancelled."""
    before: RolloutSnapshot | None = None
    async for rollout in client.watch_versions():
        state.live, state.candidate = rollout.live, rollout.candidate
        if before is not None and rollout.live != before.live:
            state.swaps += 1
        if before is not None and rollout.reason:
            at_s = time.time() - state.started_s
            state.changes.append(f"{at_s:5.0f} s  version {rollout.live} serves: {rollout.reason}")
        before = rollout


async def _ask(
    client: AsyncClient, number: int, request: Request, state: TrafficState, id_prefix: str
) -> Answer | None:
    """Send one request and its thumb; None if either failed."""
    example = request.example
    content = {"image": image(example.image), "audio": audio(example.audio), "question": text(example.question)}
    asked_s = time.time()
    asking = client.predict(content, user_id=request.user_id, top_k=1)
    prediction: Prediction | None = await _or_failure(asking, number, "Predict", state)
    if prediction is None:
        return None
    answered_s = time.time()
    up = thumb_up(request, prediction.action, shifted=True)
    give = client.thumbs_up if up else client.thumbs_down
    giving = give(prediction, feedback_id=f"{id_prefix}{number}")
    acknowledged = await _or_failure(giving, number, "SendFeedback", state)
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


async def _or_failure(
    call: Awaitable[Result], number: int, name: Literal["Predict", "SendFeedback"], state: TrafficState
) -> Result | None:
    try:
        return await call
    except ClientError as error:
        state.failures.append(Failure(number, name, str(error)))
        return None
