"""What the service's own log says about requests: their ids, and nothing that users sent or are."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from plaudit.cli.processes.services import log_to_stderr
from plaudit.core.ports.runtime import ModelRuntime
from plaudit.core.wire import contents_to_wire
from plaudit.v1 import prediction_pb2
from support.builders import tiny_content
from support.serving_harness import Serve, a_thumb, refusal, until

TEXT = "what does Ada Lovelace ask"
USER = "ada.lovelace@example.org"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(params=[io.StringIO, Terminal])
def stderr(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What a service writes there, on a terminal and elsewhere."""
    written: io.StringIO = request.param()
    monkeypatch.setattr(sys, "stderr", written)
    log_to_stderr()
    yield written
    structlog.reset_defaults()


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    """What is logged, as it is before it is written."""
    with structlog.testing.capture_logs() as lines:
        yield lines


def request(**fields: Any) -> prediction_pb2.PredictRequest:
    content = contents_to_wire(tiny_content())
    content["question"].text = TEXT
    return prediction_pb2.PredictRequest(content=content, user_id=USER, request_id="r7", **fields)


def lines(logged: list[Any], event: str) -> list[Any]:
    return [line for line in logged if line["event"] == event]


async def test_a_decision_and_its_feedback_are_found_by_their_ids(serve: Serve, logged: list[Any]) -> None:
    running = await serve(log_requests=True, raters="anyone")
    answer = await running.predictions.Predict(request())
    for _ in range(2):
        await running.feedback.SendFeedback(a_thumb(answer.prediction_id, "f1"))
    await until(lambda: len(lines(logged, "decided")) == 1)
    (decided,) = lines(logged, "decided")
    assert decided == {
        "event": "decided",
        "log_level": "info",
        "model": "tiny",
        "version": 1,
        "role": "live",
        "request_id": "r7",
        "prediction_id": answer.prediction_id,
    }
    first, again = lines(logged, "feedback")
    assert (first["feedback_id"], first["prediction_id"]) == ("f1", answer.prediction_id)
    assert (first["model"], first["version"], first["kind"]) == ("tiny", 1, "thumb")
    assert (first["duplicate"], again["duplicate"]) == (False, True)


async def test_a_refusal_names_the_field_and_not_what_was_in_it(serve: Serve, logged: list[Any]) -> None:
    running = await serve(log_requests=True, raters="anyone")
    await refusal(running.predictions.Predict(request(allowed_actions=[TEXT])))
    (refused,) = lines(logged, "refused")
    assert (refused["code"], refused["problem"]) == ("INVALID_ARGUMENT", "InvalidInput")
    assert (refused["field"], refused["request_id"]) == ("allowed_actions[0]", "r7")
    assert TEXT not in str(logged)


async def test_requests_are_not_logged_unless_asked_for(serve: Serve, logged: list[Any]) -> None:
    running = await serve()
    await running.predictions.Predict(request())
    await refusal(running.predictions.Predict(request(allowed_actions=[TEXT])))
    await until(lambda: running.metric("plaudit_serving_decisions_logged_total") == 1)
    assert not any("request_id" in line for line in logged)


async def test_nothing_that_users_sent_or_are_is_written(
    serve: Serve, runtime: ModelRuntime, stderr: io.StringIO
) -> None:
    """Not with an answer, not with a refusal, and not where the model fails with all of it in its variables."""

    class Failing:
        def load(self, folder: Any) -> Any:
            model: Any = runtime.load(folder)
            trunk = model.trunk

            def failing(inputs: Any, outputs: Any = (), deadline_s: float = math.inf) -> Any:
                if broken:
                    raise RuntimeError("the graph is broken")
                return trunk(inputs, outputs, deadline_s)

            model.trunk = failing
            return model

    broken = False
    running = await serve(log_requests=True, raters="anyone", runtime=Failing())
    answer = await running.predictions.Predict(request())
    await running.feedback.SendFeedback(a_thumb(answer.prediction_id, "f1", correction="dog"))
    await refusal(running.predictions.Predict(request(allowed_actions=[TEXT])))
    await refusal(running.feedback.SendFeedback(a_thumb(answer.prediction_id, "f2", correction=TEXT)))
    broken = True
    await refusal(running.predictions.Predict(request()))
    await until(lambda: "decided" in stderr.getvalue())
    written = stderr.getvalue()
    for said in ("refused", "internal_error", "the graph is broken", "r7", "f2", answer.prediction_id):
        assert said in written
    for private in (TEXT, "Lovelace", USER, "ada"):
        assert private not in written


async def test_lines_are_json_where_machines_read(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    log_to_stderr()
    try:
        running = await serve(log_requests=True, raters="anyone")
        answer = await running.predictions.Predict(request())
        await until(lambda: "decided" in written.getvalue())
    finally:
        structlog.reset_defaults()
    found = [json.loads(line) for line in written.getvalue().splitlines()]
    (decided,) = [line for line in found if line["event"] == "decided"]
    assert (decided["prediction_id"], decided["level"]) == (answer.prediction_id, "info")
