"""Both colours of the client against a real gRPC server that records what it gets."""

from __future__ import annotations

import inspect
from typing import Any

import grpc
import pytest

from plaudit.client import (
    Acknowledgement,
    AsyncClient,
    Client,
    ClientError,
    Prediction,
    Receipt,
    RolloutSnapshot,
    feedback,
)
from plaudit.v1 import feedback_pb2
from support.recording_server import Call, Recorder


def test_predict_sends_every_option_and_reads_every_field(call: Call, server: Recorder) -> None:
    answer = call(
        "predict",
        {"text": "what is this?"},
        user_id="ada",
        allowed_actions=["cat", "dog"],
        greedy=True,
        top_k=2,
        explain=True,
        request_id="r1",
        model="pets",
        user_group="premium",
    )

    (request,) = server.received
    assert request.content["text"].text == "what is this?"
    assert (request.user_id, list(request.allowed_actions), request.greedy) == ("ada", ["cat", "dog"], True)
    assert request.user_group == "premium"
    assert (request.top_k, request.explain, request.request_id, request.model) == (2, True, "r1", "pets")
    assert answer == Prediction(
        prediction_id="signed",
        action="cat",
        propensity=0.25,
        scores={"dog": 0.75, "cat": 0.25},
        version=3,
        version_digest="d3",
        role="candidate",
        model="pets",
        contributions={"image": 0.5},
        request_id="r1",
        user_id="ada",
    )
    assert list(answer.scores) == ["dog", "cat"]


def test_no_allowed_action_is_refused_before_it_would_mean_all(call: Call, server: Recorder) -> None:
    with pytest.raises(ClientError, match=r"\[\] allows no action") as refused:
        call("predict", {"text": "hi"}, allowed_actions=[])
    assert (refused.value.code, refused.value.field) == (grpc.StatusCode.INVALID_ARGUMENT, "allowed_actions")
    assert server.received == []


def test_dynamic_actions_are_sent_in_their_order(call: Call, server: Recorder) -> None:
    call("predict", {"text": "hi"}, dynamic_actions={"b": "block a card", "a": "change a PIN"})
    sent = [(each.id, each.text) for each in server.received[0].dynamic_actions]
    assert sent == [("b", "block a card"), ("a", "change a PIN")]


@pytest.mark.parametrize(
    ("dynamic_actions", "complaint"),
    [
        ({}, "{} lists nothing to pick"),
        (["a", "b"], "list is not a mapping; give the text of each by its id"),
        ({"a": 3}, "'a': 3 is not an id and its text"),
    ],
)
def test_dynamic_actions_that_cannot_be_sent(
    call: Call, server: Recorder, dynamic_actions: dict[str, int] | list[str], complaint: str
) -> None:
    with pytest.raises(ClientError, match=complaint) as refused:
        call("predict", {"text": "hi"}, dynamic_actions=dynamic_actions)
    assert refused.value.field == "dynamic_actions"
    assert server.received == []


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ("dynamic_actions[3].text: '' is blank", "dynamic_actions[3].text"),
        ("allowed_actions[0]: 'x' is not an action", "allowed_actions[0]"),
        ('content["a"]: is empty', 'content["a"]'),
        ("everything: went wrong", "everything"),
        ("Something went wrong", ""),
    ],
)
def test_an_error_knows_the_field_it_is_about(message: str, field: str) -> None:
    assert ClientError(grpc.StatusCode.INVALID_ARGUMENT, message).field == field


def test_a_bare_string_of_allowed_actions_is_not_a_list_of_letters(call: Call) -> None:
    with pytest.raises(ClientError, match="'cat' is one string"):
        call("predict", {"text": "hi"}, allowed_actions="cat")


@pytest.mark.parametrize(
    ("method", "arguments", "signal", "value"),
    [
        ("thumbs_up", (), "thumb", feedback_pb2.THUMB_UP),
        ("thumbs_down", (), "thumb", feedback_pb2.THUMB_DOWN),
        ("rate", (0.0,), "rating", 0.0),
        ("correct", ("dog",), "correction", "dog"),
        ("prefer", ("dog", "cat"), "preference", feedback_pb2.Preference(preferred="dog", rejected="cat")),
        ("implicit", ("rephrased",), "implicit", feedback_pb2.Implicit(kind=feedback_pb2.IMPLICIT_KIND_REPHRASED)),
        ("retract", (), "retract", feedback_pb2.Retract()),
        ("retract", ("f0",), "retract", feedback_pb2.Retract(feedback_id="f0")),
    ],
)
def test_each_kind_of_feedback(
    call: Call, server: Recorder, method: str, arguments: tuple[Any, ...], signal: str, value: Any
) -> None:
    acknowledged = call(method, "signed", *arguments, user_id="ada", feedback_id="f1")

    (request,) = server.received
    assert request.WhichOneof("signal") == signal
    assert getattr(request, signal) == value
    assert (request.prediction_id, request.user_id, request.feedback_id) == ("signed", "ada", "f1")
    assert acknowledged == Acknowledgement("f1", duplicate=False)


def test_feedback_on_a_prediction_is_its_users_and_has_an_id_of_its_own(call: Call, server: Recorder) -> None:
    answer = call("predict", {"text": "hi"}, user_id="ada")
    call("thumbs_up", answer)
    call("thumbs_up", answer, user_id="bob")

    _, first, second = server.received
    assert (first.prediction_id, first.user_id, second.user_id) == ("signed", "ada", "bob")
    assert len(first.feedback_id) == 36
    assert first.feedback_id != second.feedback_id


def test_a_stream_of_feedback_goes_on_after_a_refused_piece(call: Call) -> None:
    pieces = [
        feedback.thumbs_up("signed", feedback_id="f1"),
        feedback.thumbs_up("forged", feedback_id="f2"),
        feedback.rate("signed", 0.5, feedback_id="f3"),
    ]
    assert call("stream_feedback", pieces) == [
        Acknowledgement("f1", duplicate=True),
        Acknowledgement("f2", duplicate=False, error="prediction_id: 'forged' is not a prediction id"),
        Acknowledgement("f3", duplicate=True),
    ]


def test_a_receipt(call: Call) -> None:
    assert call("receipt", "f1") == Receipt(
        feedback_id="f1", state="used", reason="", recorded_at_s=1.5, used_in_version=4, live_since_s=None
    )


def test_versions_and_rollout(call: Call) -> None:
    listed = call("versions")
    assert [(v.version, v.kind, v.parent, v.manifest) for v in listed.versions] == [(1, "head", None, {"floor": 0.02})]
    assert listed.rollout == RolloutSnapshot(
        model="pets",
        generation=7,
        live=3,
        previous=None,
        gated=2,
        candidate=None,
        candidate_share=0.0,
        pinned=True,
        changed_at_s=None,
        reason="why",
        actor="ada",
    )
    assert call("version", 5).version == 5


@pytest.mark.parametrize(
    ("method", "arguments", "on_the_wire"),
    [("promote", (4,), 4), ("rollback", (), None), ("pin", (4,), 4), ("unpin", (), 0)],
)
def test_changes_of_the_rollout_carry_the_admin_token(
    call: Call, server: Recorder, method: str, arguments: tuple[int, ...], on_the_wire: int | None
) -> None:
    rollout = call(method, *arguments, reason="it is better", actor="ada", expected_generation=6)

    (request,) = server.received
    assert getattr(request, "version", None) == on_the_wire
    assert (request.reason, request.actor, request.expected_generation) == ("it is better", "ada", 6)
    assert server.metadata["authorization"] == "Bearer sesame"
    assert rollout.generation == 7


def test_calls_that_need_no_admin_token_do_not_show_it(call: Call, server: Recorder) -> None:
    call("versions")
    assert "authorization" not in server.metadata


def test_pinning_version_0_is_not_unpinning(call: Call, server: Recorder) -> None:
    with pytest.raises(ClientError, match="versions count from 1"):
        call("pin", 0)
    assert server.received == []


def test_watching_ends_when_the_server_ends_it(call: Call) -> None:
    assert [rollout.generation for rollout in call("watch_versions")] == [1, 2]


def test_feedback_is_sent_again_when_the_server_is_away_under_the_same_id(call: Call, server: Recorder) -> None:
    server.failures.extend([(grpc.StatusCode.UNAVAILABLE, "draining")] * 2)
    call("thumbs_up", "signed")
    assert len(server.received) == 3
    assert len({request.feedback_id for request in server.received}) == 1


def test_a_change_of_the_rollout_is_never_sent_twice(call: Call, server: Recorder) -> None:
    server.failures.append((grpc.StatusCode.UNAVAILABLE, "draining"))
    with pytest.raises(ClientError, match="draining") as refused:
        call("rollback")
    assert refused.value.code is grpc.StatusCode.UNAVAILABLE
    assert len(server.received) == 1


def test_an_error_keeps_the_status_and_names_the_field(call: Call, server: Recorder) -> None:
    server.failures.append((grpc.StatusCode.INVALID_ARGUMENT, 'content["image"]: 3 bytes are no image'))
    with pytest.raises(ClientError) as refused:
        call("predict", {"text": "hi"})
    assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.field == 'content["image"]'
    assert refused.value.message == 'content["image"]: 3 bytes are no image'


def test_an_error_on_a_stream_is_the_same_error(call: Call, server: Recorder) -> None:
    server.failures.append((grpc.StatusCode.NOT_FOUND, "model: 'pets' is not served here"))
    with pytest.raises(ClientError) as refused:
        call("watch_versions", model="pets")
    assert (refused.value.code, refused.value.field) == (grpc.StatusCode.NOT_FOUND, "model")


def test_an_unknown_option_is_a_type_error(call: Call) -> None:
    with pytest.raises(TypeError, match="usr_id"):
        call("predict", {"text": "hi"}, usr_id="ada")


def test_both_clients_have_the_same_methods() -> None:
    methods = {name for name in dir(Client) if not name.startswith("_")}
    assert methods == {name for name in dir(AsyncClient) if not name.startswith("_")}
    streams = inspect.signature(Client.watch_versions), inspect.signature(AsyncClient.watch_versions)
    assert streams[0].parameters == streams[1].parameters
