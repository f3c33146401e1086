"""Events survive the wire unchanged, and nothing but an event gets through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from plaudit.core.errors import InvalidInput
from plaudit.core.events import (
    Answers,
    Content,
    Correction,
    DeadLetter,
    Decision,
    DynamicAction,
    EncodedContent,
    Event,
    ExperimentReport,
    Features,
    Feedback,
    Implicit,
    ImplicitKind,
    Preference,
    Rating,
    Retract,
    Role,
    ShadowAnswer,
    TensorContent,
    TextContent,
    Thumb,
    Topic,
    topic_of,
)
from plaudit.core.rollout import Rollout
from plaudit.core.wire import (
    UnreadableEvent,
    content_from_wire,
    content_to_wire,
    contents_from_wire,
    decode_event,
    encode_event,
    feedback_named_in,
    signal_from_wire,
    tensor_to_wire,
)
from plaudit.v1 import content_pb2, events_pb2, feedback_pb2, prediction_pb2
from plaudit_models.spec import TENSOR_DTYPES
from support.builders import a_decision

texts = st.text(st.characters(exclude_categories=["Cs"]))
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
ids = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=128)
given_ids = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=128)
# Whole microseconds, which is what the wire carries; 2001 to 2100.
times_s = st.integers(10**15, 4 * 10**15).map(lambda us: us / 1e6)
versions = st.integers(1, 2**40)
floats32 = st.floats(width=32, allow_nan=False)
tensors = st.one_of(
    npst.arrays(np.float32, npst.array_shapes(min_dims=0, max_dims=3, min_side=1, max_side=4), elements=floats32),
    npst.arrays(np.int64, npst.array_shapes(min_dims=0, max_dims=3, min_side=1, max_side=4)),
)
contents: st.SearchStrategy[Content] = st.one_of(
    st.builds(EncodedContent, st.sampled_from(["image", "audio"]), st.binary()),
    st.builds(TextContent, texts),
    st.builds(TensorContent, tensors),
)
signals = st.one_of(
    st.builds(Thumb, st.booleans()),
    st.builds(Rating, st.floats(0.0, 1.0)),
    st.builds(Correction, texts),
    st.builds(Preference, texts, texts),
    st.builds(Implicit, st.sampled_from(ImplicitKind)),
    st.builds(Retract, ids),
)
vectors = npst.arrays(np.float32, st.integers(0, 8), elements=floats32)
decisions = st.builds(
    Decision,
    prediction_id=names,
    model=ids,
    time_s=times_s,
    user_id=ids,
    version=versions,
    version_digest=texts,
    role=st.sampled_from(Role),
    action=texts,
    propensity=st.floats(0.0, 1.0, exclude_min=True),
    allowed_actions=st.lists(texts).map(tuple),
    greedy=st.booleans(),
    request_id=ids,
    features=st.none() | st.builds(Features, trunk_digest=texts, embedding=vectors, base_logits=vectors),
    content=st.dictionaries(texts, contents, max_size=3),
    user_group=ids,
)


@st.composite
def among_dynamic_actions(draw: st.DrawFn) -> Decision:
    ids = draw(st.lists(texts, min_size=1, max_size=5, unique=True))
    logits = draw(npst.arrays(np.float32, len(ids), elements=floats32))
    features = st.none() | st.builds(Features, trunk_digest=texts, embedding=vectors, base_logits=st.just(logits))
    return replace(
        draw(decisions),
        action=draw(st.sampled_from(ids)),
        allowed_actions=(),
        features=draw(features),
        dynamic_actions=tuple(DynamicAction(each, draw(texts)) for each in ids),
    )


feedbacks = st.builds(Feedback, feedback_id=given_ids, prediction_id=names, time_s=times_s, user_id=ids, signal=signals)
dead_letters = st.builds(
    DeadLetter, source_topic=texts, source_position=texts, reason=texts, payload=st.binary(), time_s=times_s
)
rollouts = st.builds(
    Rollout,
    model=texts,
    generation=st.integers(0, 2**40),
    live=st.none() | versions,
    previous=st.none() | versions,
    gated=st.none() | versions,
    candidate=st.none() | versions,
    candidate_share=st.floats(0.0, 1.0),
    pinned=st.booleans(),
    changed_at_s=times_s,
    reason=texts,
    actor=texts,
    shadow=st.booleans(),
    experiment=st.integers(0, 2**40),
)
counts = st.integers(0, 2**40)
answers = st.builds(Answers, failed=counts, latencies=st.lists(counts, max_size=5).map(tuple))
experiment_reports = st.builds(
    ExperimentReport,
    replica=given_ids,
    number=counts,
    model=ids,
    experiment=counts,
    version=counts,
    time_s=times_s,
    live=answers,
    candidate=answers,
    shadows=st.lists(
        st.builds(
            ShadowAnswer,
            prediction_id=texts,
            action=texts,
            agrees=st.booleans(),
            kl_nats=st.floats(0.0, 100.0),
            duration_s=st.floats(0.0, 100.0),
            failure=texts,
        ),
        max_size=2,
    ).map(tuple),
    dropped=counts,
    problem=texts,
)
events: st.SearchStrategy[Event] = st.one_of(
    decisions, among_dynamic_actions(), feedbacks, dead_letters, rollouts, experiment_reports
)


def plain(value: Any) -> Any:
    """A value that compares by content, arrays and their dtype included."""
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.shape, value.tobytes())
    if isinstance(value, (Decision, Features, TensorContent)):
        return (type(value), [plain(getattr(value, f.name)) for f in fields(value)])
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return value


@given(events)
def test_every_event_round_trips(event: Event) -> None:
    assert plain(decode_event(topic_of(event), encode_event(event))) == plain(event)


@given(contents)
def test_content_round_trips(content: Content) -> None:
    assert plain(content_from_wire(content_to_wire(content), "content")) == plain(content)


def decoded(topic: Topic, payload: bytes) -> Event | None:
    """None if unreadable; any other failure is one."""
    try:
        return decode_event(topic, payload)
    except UnreadableEvent:
        return None


@given(st.sampled_from(Topic), st.binary())
def test_any_bytes_are_an_event_of_the_topic_or_unreadable(topic: Topic, payload: bytes) -> None:
    event = decoded(topic, payload)
    assert event is None or topic_of(event) == topic


@given(decisions | among_dynamic_actions(), st.data())
def test_a_damaged_decision_is_a_decision_or_unreadable(decision: Decision, data: st.DataObject) -> None:
    payload = bytearray(encode_event(decision))
    payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    kept = data.draw(st.integers(0, len(payload)))
    assert isinstance(decoded(Topic.DECISIONS, bytes(payload[:kept])), Decision | None)


def test_fields_of_newer_schemas_are_ignored() -> None:
    """Field 1000 as a varint: tag (1000 << 3) | 0 = 8000 = 0xC0 0x3E, value 1."""
    decision = a_decision("p1")
    payload = encode_event(decision) + b"\xc0\x3e\x01"
    assert plain(decode_event(Topic.DECISIONS, payload)) == plain(decision)


@pytest.mark.parametrize("propensity", [0.0, -0.1, 1.5, float("nan")])
def test_a_decision_without_a_propensity_is_unreadable(propensity: float) -> None:
    message = events_pb2.DecisionEvent(prediction_id="p", propensity=propensity)
    with pytest.raises(UnreadableEvent, match="propensity"):
        decode_event(Topic.DECISIONS, message.SerializeToString())


@pytest.mark.parametrize(
    ("ids", "action", "problem"),
    [
        (["a", "b"], "c", "action: 'c' is not one of the 2 dynamic actions"),
        (["a", "a"], "a", "dynamic_actions: lists an id twice"),
        (["a", "b", "c"], "a", r"features\.base_logits: has 2 values for 3 dynamic actions"),
    ],
)
def test_a_decision_that_contradicts_its_dynamic_actions_is_unreadable(
    ids: list[str], action: str, problem: str
) -> None:
    features = Features("trunk", np.zeros(3, np.float32), np.zeros(2, np.float32))
    decision = replace(
        a_decision("p1"),
        action=action,
        features=features,
        dynamic_actions=tuple(DynamicAction(each, f"text of {each}") for each in ids),
    )
    with pytest.raises(UnreadableEvent, match=problem):
        decode_event(Topic.DECISIONS, encode_event(decision))


def test_a_report_with_a_negative_count_is_unreadable() -> None:
    message = events_pb2.ExperimentEvent(replica="r", live=events_pb2.Answers(latencies=[1, -1]))
    with pytest.raises(UnreadableEvent, match="live: holds a negative count"):
        decode_event(Topic.EXPERIMENTS, message.SerializeToString())


def test_features_of_broken_length_are_unreadable() -> None:
    message = events_pb2.DecisionEvent(prediction_id="p", propensity=0.5)
    message.features.embedding = b"123456"
    with pytest.raises(UnreadableEvent, match=r"features\.embedding: has 6 bytes"):
        decode_event(Topic.DECISIONS, message.SerializeToString())


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (content_pb2.Content(), "c: is empty"),
        (
            content_pb2.Content(tensor=content_pb2.Tensor(shape=[1], data=b"1234")),
            "c.data_type: 0 is none of DATA_TYPE_FP32, DATA_TYPE_INT64",
        ),
        (
            content_pb2.Content(
                tensor=content_pb2.Tensor(data_type=content_pb2.DATA_TYPE_FP32, shape=[2, 3], data=b"1234")
            ),
            r"c.data: has 4 bytes; shape \[2, 3\] of float32 needs 24",
        ),
        (
            content_pb2.Content(
                tensor=content_pb2.Tensor(data_type=content_pb2.DATA_TYPE_INT64, shape=[-1, -1], data=b"12345678")
            ),
            r"c.shape: \[-1, -1\] has a length below 1",
        ),
    ],
)
def test_wrong_content_names_the_field(message: content_pb2.Content, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        content_from_wire(message, "c")


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (feedback_pb2.SendFeedbackRequest(), "signal"),
        (feedback_pb2.SendFeedbackRequest(thumb=feedback_pb2.THUMB_UNSPECIFIED), "thumb"),
        (feedback_pb2.SendFeedbackRequest(rating=1.01), "rating"),
        (feedback_pb2.SendFeedbackRequest(rating=float("nan")), "rating"),
        (feedback_pb2.SendFeedbackRequest(implicit=feedback_pb2.Implicit()), "implicit.kind"),
    ],
)
def test_a_wrong_signal_names_the_field(message: feedback_pb2.SendFeedbackRequest, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        signal_from_wire(message)
    assert caught.value.field == field


@pytest.mark.parametrize("dtype", sorted(TENSOR_DTYPES))
def test_every_dtype_that_a_model_may_take_has_a_wire_form(dtype: str) -> None:
    array = np.array([[0, 1], [1, 0]], dtype)
    read = content_from_wire(content_pb2.Content(tensor=tensor_to_wire(array)), "c")
    assert isinstance(read, TensorContent)
    assert read.array.dtype == array.dtype
    np.testing.assert_array_equal(read.array, array)


UNBOUNDED_SHAPES = [
    pytest.param([2**62] * 40_000, "has 40000 axes; at most 8 are taken", id="40000 long axes"),
    pytest.param([1] * 65, "has 65 axes; at most 8 are taken", id="65 axes, more than numpy has"),
    pytest.param([1] * 9, "has 9 axes; at most 8 are taken", id="9 axes"),
    pytest.param([0, 2**62, 2**62], "has a length below 1", id="nothing, along lengths that no array has"),
    pytest.param([2**62] * 8, "has 4 bytes; shape", id="a product beyond 64 bits"),
]


@pytest.mark.parametrize(("shape", "problem"), UNBOUNDED_SHAPES)
def test_a_shape_that_no_array_has_is_refused_before_its_lengths_are_multiplied(
    shape: list[int], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As elsewhere, where nothing bounded the number of axes: https://github.com/tensorflow/tflite-micro/issues/3071."""
    multiplied: list[int] = []

    def noted(lengths: Sequence[int]) -> int:
        multiplied.append(len(lengths))
        return prod(lengths)

    monkeypatch.setattr("math.prod", noted)
    tensor = content_pb2.Tensor(data_type=content_pb2.DATA_TYPE_FP32, shape=shape, data=b"1234")
    with pytest.raises(InvalidInput, match=problem) as caught:
        content_from_wire(content_pb2.Content(tensor=tensor), 'content["x"]')
    assert len(str(caught.value)) < 500
    assert max(multiplied, default=0) <= 8


@pytest.mark.parametrize(("shape", "problem"), UNBOUNDED_SHAPES)
def test_a_record_with_such_a_shape_is_unreadable(shape: list[int], problem: str) -> None:
    message = events_pb2.DecisionEvent(prediction_id="p", propensity=0.5, time_us=10**15)
    message.content["x"].tensor.CopyFrom(
        content_pb2.Tensor(data_type=content_pb2.DATA_TYPE_FP32, shape=shape, data=b"1234")
    )
    with pytest.raises(UnreadableEvent, match=problem):
        decode_event(Topic.DECISIONS, message.SerializeToString())


def test_whatever_a_decoder_raises_makes_its_record_unreadable_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("x" * 10_000)

    monkeypatch.setattr("plaudit.core.wire._decision_from_wire", fail)
    with pytest.raises(UnreadableEvent, match="MemoryError: x") as caught:
        decode_event(Topic.DECISIONS, encode_event(a_decision("p1")))
    assert len(str(caught.value)) < 1_000


def test_more_modalities_than_any_model_has_are_refused() -> None:
    message = prediction_pb2.PredictRequest(content={str(n): content_pb2.Content(text="x") for n in range(1_025)})
    with pytest.raises(InvalidInput, match="has 1025 modalities; at most 1024"):
        contents_from_wire(message.content)


def test_the_name_of_a_modality_is_repeated_in_part() -> None:
    message = prediction_pb2.PredictRequest(content={"x" * 1_000_000: content_pb2.Content()})
    with pytest.raises(InvalidInput) as caught:
        contents_from_wire(message.content)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("field", ["user_id", "request_id", "model", "user_group"])
@pytest.mark.parametrize(
    ("value", "problem"), [("x" * 129, "has 129 characters"), ("a\0b", r"U\+0000"), ("a\x1b[2J", r"U\+001B")]
)
def test_a_decision_with_an_id_that_is_none_is_unreadable(field: str, value: str, problem: str) -> None:
    """A NUL is in no text of PostgreSQL: https://github.com/apache/devlake/issues/3564."""
    changed: dict[str, Any] = {field: value}
    with pytest.raises(UnreadableEvent, match=f"{field}: .*{problem}"):
        decode_event(Topic.DECISIONS, encode_event(replace(a_decision("p1"), **changed)))


@pytest.mark.parametrize("field", ["user_id", "feedback_id"])
@pytest.mark.parametrize("value", ["x" * 129, "a\0b"])
def test_feedback_with_an_id_that_is_none_is_unreadable(field: str, value: str) -> None:
    feedback, changed = Feedback("f1", "p1", 1e9, "ada", Thumb(up=True)), dict[str, Any]({field: value})
    with pytest.raises(UnreadableEvent, match=f"{field}: "):
        decode_event(Topic.FEEDBACK, encode_event(replace(feedback, **changed)))


def test_other_dtypes_have_no_wire_form() -> None:
    with pytest.raises(ValueError, match="complex128"):
        tensor_to_wire(np.zeros(2, complex))


@pytest.mark.parametrize("time_us", [2**62, -1, 0, 10**12, 5 * 10**15, -(2**63)])
@pytest.mark.parametrize("topic", [Topic.DECISIONS, Topic.FEEDBACK])
def test_a_record_of_a_time_that_no_calendar_has_is_unreadable(topic: Topic, time_us: int) -> None:
    """https://github.com/confluentinc/ksql/issues/6563 is of the kind."""
    message: Any = (
        events_pb2.DecisionEvent(prediction_id="p", propensity=0.5)
        if topic == Topic.DECISIONS
        else events_pb2.FeedbackEvent(feedback_id="f", prediction_id="p", rating=0.5)
    )
    message.time_us = time_us
    with pytest.raises(UnreadableEvent, match=f"time_us: {time_us} µs is not between"):
        decode_event(topic, message.SerializeToString())


def test_what_can_be_read_of_damaged_feedback_names_it() -> None:
    message = events_pb2.FeedbackEvent(feedback_id="f", prediction_id="p", rating=7.0, time_us=10**15)
    assert feedback_named_in(message.SerializeToString()) == ("f", 1e9)
    assert feedback_named_in(b"\xff\xff") is None
    assert feedback_named_in(events_pb2.FeedbackEvent(feedback_id="a\0b").SerializeToString()) is None
