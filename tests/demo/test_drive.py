"""The simulated users, against a client that answers from a script instead of from a server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Set
from itertools import cycle
from typing import Any, cast

import grpc
import pytest

from plaudit.client import Acknowledgement, AsyncClient, ClientError, Prediction, RolloutSnapshot
from plaudit.demo.drive import drive, follow_rollout
from plaudit.demo.request_pacing import RequestPacing
from plaudit.demo.task import Example
from plaudit.demo.users import Request
from plaudit.demo.view import TrafficState

GONE = ClientError(grpc.StatusCode.UNAVAILABLE, "gone")
RIGHT = Example(kind="see", image=b"png", audio=b"wav", question="which?", seen=3, heard=4, answer="3")
SUM = Example(kind="add", image=b"png", audio=b"wav", question="sum?", seen=8, heard=9, answer="17")


class ScriptedClient:
    """Answers "7" with version 2; request n fails where ``fail_predict`` or ``fail_feedback`` name it."""

    def __init__(self, fail_predict: Set[int] = frozenset(), fail_feedback: Set[int] = frozenset()) -> None:
        self.fail_predict, self.fail_feedback = fail_predict, fail_feedback
        self.users: list[str] = []
        self.thumbs: dict[str, bool] = {}
        self.rollouts: list[RolloutSnapshot] = []

    async def predict(self, content: dict[str, Any], *, user_id: str, top_k: int) -> Prediction:
        assert set(content) == {"image", "audio", "question"}
        self.users.append(user_id)
        if len(self.users) - 1 in self.fail_predict:
            raise GONE
        return Prediction(
            prediction_id="signed",
            action="7",
            propensity=0.9,
            scores={},
            version=2,
            version_digest="d2",
            role="live",
            model="hear-see-ask",
            contributions={},
            request_id="",
            user_id=user_id,
        )

    async def thumbs_up(self, prediction: Prediction, *, feedback_id: str) -> Acknowledgement:
        return self._thumb(feedback_id, up=True)

    async def thumbs_down(self, prediction: Prediction, *, feedback_id: str) -> Acknowledgement:
        return self._thumb(feedback_id, up=False)

    def _thumb(self, feedback_id: str, *, up: bool) -> Acknowledgement:
        if int(feedback_id.split("-")[-1]) in self.fail_feedback:
            raise GONE
        self.thumbs[feedback_id] = up
        return Acknowledgement(feedback_id, duplicate=False)

    async def watch_versions(self) -> AsyncIterator[RolloutSnapshot]:
        for rollout in self.rollouts:
            yield rollout


async def send(client: ScriptedClient, requests: list[Request], total: int) -> TrafficState:
    """``total`` requests, all of them due at once, so that none waits."""
    state = TrafficState(total=total, started_s=0.0)
    await drive(cast(AsyncClient, client), cycle(requests), state, pacing=RequestPacing(0.0), id_prefix="t-")
    return state


async def test_every_request_is_asked_and_judged_once() -> None:
    """ "7" is wrong for RIGHT, and right for SUM, of whose answer users want the last digit only."""
    requests = [Request("ada", RIGHT, False), Request("bob", SUM, False), Request("eve", SUM, True)]
    client = ScriptedClient()
    state = await send(client, requests, total=60)
    assert client.users == ["ada", "bob", "eve"] * 20
    assert client.thumbs == {f"t-{n}": n % 3 == 1 for n in range(60)}
    assert sorted(a.number for a in state.answers) == list(range(60))
    assert {(a.number % 3, a.kind, a.liked, a.thumb_up) for a in state.answers} == {
        (0, "see", False, False),
        (1, "add", True, True),
        (2, "add", True, False),
    }
    assert {(a.version, a.version_digest, a.action) for a in state.answers} == {(2, "d2", "7")}
    assert [a.acknowledged_s for a in state.answers] == sorted(a.acknowledged_s for a in state.answers)
    assert state.failures == []


async def test_failures_are_noted_and_the_users_go_on() -> None:
    client = ScriptedClient(fail_predict={3}, fail_feedback={5})
    state = await send(client, [Request("ada", RIGHT, False)], total=40)
    assert len(state.answers) == 38
    assert [(f.number, f.call, f.problem) for f in state.failures] == [
        (3, "Predict", "UNAVAILABLE: gone"),
        (5, "SendFeedback", "UNAVAILABLE: gone"),
    ]


async def test_anything_but_a_refusal_ends_the_drive() -> None:
    class Broken(ScriptedClient):
        async def predict(self, content: dict[str, Any], *, user_id: str, top_k: int) -> Prediction:
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        await send(Broken(), [Request("ada", RIGHT, False)], total=4)


def a_rollout(generation: int, live: int, reason: str) -> RolloutSnapshot:
    return RolloutSnapshot(
        model="m",
        generation=generation,
        live=live,
        previous=None,
        gated=1,
        candidate=None,
        candidate_share=0.0,
        pinned=False,
        changed_at_s=0.0,
        reason=reason,
        actor="learner",
    )


async def test_follow_counts_swaps() -> None:
    """What was live at first is no swap, and neither is a change that leaves the live version."""
    client = ScriptedClient()
    client.rollouts = [a_rollout(1, 1, "first"), a_rollout(2, 2, "refreshed"), a_rollout(3, 2, "confirmed")]
    state = TrafficState(total=1, started_s=0.0)
    await follow_rollout(cast(AsyncClient, client), state)
    assert (state.live, state.swaps) == (2, 1)
    assert [text.partition("version")[2] for text in state.changes] == [
        " 2 serves: refreshed",
        " 2 serves: confirmed",
    ]
