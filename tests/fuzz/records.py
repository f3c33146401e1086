"""Parsers of messages and records: content, feedback, events of every topic, prediction ids, Kafka's headers, texts."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
from google.protobuf.message import DecodeError

from fuzz.parser import Parser, must
from plaudit.adapters.log.kafka import reader as kafka_reader
from plaudit.core.errors import ExpiredPredictionId, InvalidInput, InvalidPredictionId
from plaudit.core.events import (
    Answers,
    Content,
    Correction,
    DeadLetter,
    DynamicAction,
    Event,
    ExperimentReport,
    Implicit,
    ImplicitKind,
    Preference,
    Rating,
    Retract,
    ShadowAnswer,
    TensorContent,
    Thumb,
    Topic,
)
from plaudit.core.limits import MAX_TOLD_REASON_CHARACTERS
from plaudit.core.ports.log import UnreadableRecord
from plaudit.core.prediction_id import PredictionIds, SignedPrediction
from plaudit.core.rollout import Change, Rollout, promote
from plaudit.core.text.identifiers import check_id
from plaudit.core.text.printable import printable
from plaudit.core.text.reasons import told_reason
from plaudit.core.text.user_groups import group_problem
from plaudit.core.wire import (
    UnreadableEvent,
    content_from_wire,
    content_to_wire,
    decode_event,
    encode_event,
    event_type,
    feedback_named_in,
    set_signal,
    signal_from_wire,
)
from plaudit.v1 import content_pb2, events_pb2, feedback_pb2
from support.builders import a_decision, some_feedback, tiny_content

KEY: Final = b"k" * 32
NOW_S: Final = 1_700_000_000.0
_TOPICS: Final = (Topic.DECISIONS, Topic.FEEDBACK, Topic.DEAD_LETTER, Topic.VERSIONS, Topic.EXPERIMENTS)
_IDS: Final = PredictionIds(KEY, 3600.0)


# --- content ---------------------------------------------------------------------------------------------------------


def _contents() -> list[bytes]:
    return [content_to_wire(part).SerializeToString() for part in tiny_content().values()]


def content(data: bytes) -> bool:
    try:
        found = content_from_wire(content_pb2.Content.FromString(data), "x")
    except (DecodeError, InvalidInput):
        return False
    again = content_from_wire(content_to_wire(found), "x")
    must(_same(found, again), f"{found!r} became {again!r}")
    return True


def _same(one: Content, other: Content) -> bool:
    if isinstance(one, TensorContent) and isinstance(other, TensorContent):
        a, b = one.array, other.array
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() and bool(np.size(a))
    return one == other


# --- feedback --------------------------------------------------------------------------------------------------------

_SIGNALS: Final = (
    *(Thumb(True), Rating(0.5), Correction("a"), Preference("a", "b"), Implicit(ImplicitKind.ACCEPTED)),
    Retract("f"),
)


def _feedback_messages() -> list[bytes]:
    messages = []
    for signal in _SIGNALS:
        message = feedback_pb2.SendFeedbackRequest(feedback_id="f", prediction_id="p", user_id="u")
        set_signal(message, signal)
        messages.append(message.SerializeToString())
    return messages


def feedback(data: bytes) -> bool:
    try:
        message = feedback_pb2.SendFeedbackRequest.FromString(data)
        signal = signal_from_wire(message)
    except (DecodeError, InvalidInput):
        return False
    written = feedback_pb2.SendFeedbackRequest()
    set_signal(written, signal)
    must(signal_from_wire(written) == signal, f"{signal!r} is written as another one")
    return True


# --- events ----------------------------------------------------------------------------------------------------------


def _events() -> list[bytes]:
    """Payloads behind a byte for the topic."""
    decision = a_decision("p")
    some: list[tuple[Topic, Event]] = [(Topic.DECISIONS, decision)]
    dynamic = (DynamicAction(decision.action, "text"), DynamicAction("other", "more"))
    some.append((Topic.DECISIONS, replace(decision, dynamic_actions=dynamic, features=None)))
    some += [(Topic.FEEDBACK, some_feedback("p", signal)) for signal in _SIGNALS]
    some.append((Topic.DEAD_LETTER, DeadLetter("decisions", "7", "reason", b"payload", NOW_S)))
    some.append((Topic.VERSIONS, promote(Rollout("tiny"), 1, Change("me", NOW_S, "because"))))
    report = ExperimentReport(
        replica="r",
        number=1,
        model="tiny",
        experiment=1,
        version=2,
        time_s=NOW_S,
        live=Answers(0, (1, 2)),
        candidate=Answers(1, (3,)),
        shadows=(ShadowAnswer("p", "a", True, 0.1, 0.2),),
    )
    some.append((Topic.EXPERIMENTS, report))
    return [bytes([_TOPICS.index(topic)]) + encode_event(event) for topic, event in some]


def event(data: bytes) -> bool:
    topic, payload = _TOPICS[(data[0] if data else 0) % len(_TOPICS)], data[1:]
    feedback_named_in(payload)
    try:
        found = decode_event(topic, payload)
    except UnreadableEvent as error:
        must(len(str(error)) < 700, "an error as long as its record")
        return False
    encoded = encode_event(found)
    again = encode_event(decode_event(topic, encoded))
    must(_equal(topic, encoded, again), f"{found!r} is written as another one")
    return True


_MESSAGES: Final[dict[Topic, Any]] = {
    Topic.DECISIONS: events_pb2.DecisionEvent,
    Topic.FEEDBACK: events_pb2.FeedbackEvent,
    Topic.DEAD_LETTER: events_pb2.DeadLetterEvent,
    Topic.VERSIONS: events_pb2.RolloutEvent,
    Topic.EXPERIMENTS: events_pb2.ExperimentEvent,
}


def _equal(topic: Topic, one: bytes, other: bytes) -> bool:
    """Equal bytes, or, as maps have no order, equal messages."""
    return one == other or _MESSAGES[topic].FromString(one) == _MESSAGES[topic].FromString(other)


# --- Kafka -----------------------------------------------------------------------------------------------------------

_CURSORS: Final = (b'{"decisions": ["id", 7]}', b"{}", b'{"a": ["b", -1], "c": ["d", 2]}')


def _kafka_records() -> list[bytes]:
    right = [payload[:1] + event_type(_TOPICS[payload[0]]).encode() + b"\0" + payload[1:] for payload in _events()]
    return [*right, *(b"\xff" + cursor for cursor in _CURSORS)]


def kafka_record(data: bytes) -> bool:
    """A record with the header of its type; behind byte 255, a cursor of ours in the store."""
    if data[:1] == b"\xff":
        try:
            places = kafka_reader._from_cursor(data[1:].decode(errors="replace"))
        except ValueError:
            return False
        must(kafka_reader._from_cursor(kafka_reader._to_cursor(places)) == places, "a cursor is written as another one")
        return True
    topic = _TOPICS[(data[0] if data else 0) % len(_TOPICS)]
    header, _, payload = data[1:].partition(b"\0")
    message = SimpleNamespace(value=payload or None, headers=[(kafka_reader.EVENT_TYPE, header or None)])
    return not isinstance(kafka_reader._event(topic, message), UnreadableRecord)


# --- prediction ids --------------------------------------------------------------------------------------------------


def _prediction_ids() -> list[bytes]:
    made = [
        SignedPrediction(NOW_S - 5.0, "tiny", 1, "lamp_on", 0.5),
        SignedPrediction(NOW_S - 5.0, "tiny", 2**32 - 1, "ä" * 30, 1.0, dynamic=True),
        SignedPrediction(NOW_S - 9e5, "t", 1, "", 1e-9),
    ]
    ids = [_IDS.sign(each).encode() for each in made]
    bodies = [base64.urlsafe_b64decode(each + b"=" * (-len(each) % 4))[:-16] for each in ids]
    return [*(b"\0" + each for each in ids), *(b"\1" + body for body in bodies)]


def prediction_id(data: bytes) -> bool:
    """Behind a byte that is even an id, behind an odd one what is signed in it, signed."""
    if data[:1] and data[0] % 2:
        tag = hmac.digest(KEY, data[1:], hashlib.sha256)[:16]
        text = base64.urlsafe_b64encode(data[1:] + tag).rstrip(b"=").decode()
    else:
        text = data[1:].decode(errors="surrogateescape")
    try:
        found = _IDS.check(text, now_s=NOW_S)
    except (InvalidPredictionId, ExpiredPredictionId) as error:
        must(len(str(error)) < 1_000, "an error that is much longer than what it shows of the id")
        return False
    if found.time_s < 2**53 / 1e6:  # else the float has not all of its microseconds
        again = _IDS.check(_IDS.sign(found), now_s=NOW_S)
        must(again == found or found.propensity != found.propensity, f"{found!r} is signed as {again!r}")
    return True


# --- texts -----------------------------------------------------------------------------------------------------------


def _texts() -> list[bytes]:
    return [
        *(b"user-7", b"de-DE", "Müller ‮ \x1b[2J".encode(), b"[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : x.cc:12 y"),
        *(b"Load model from /srv/a/b.onnx failed: no", b"Name:'/a/b' Status /home/me/x", json.dumps("\ud800").encode()),
    ]


def text(data: bytes) -> bool:
    given = data.decode(errors="surrogateescape")
    shown = printable(given, one_line=True)
    must(shown.isprintable() or printable(shown, one_line=True) == shown, f"{shown!r} acts on a terminal")
    must("\x1b" not in shown and "\n" not in shown, f"{shown!r} acts on a terminal")
    reason = told_reason(given)
    must(0 < len(reason) <= MAX_TOLD_REASON_CHARACTERS and reason.isprintable(), f"{reason!r} is no line")
    group_problem(given)
    try:
        check_id("user_id", given)
    except InvalidInput as error:
        must(str(error).isprintable() and len(str(error)) < 200, f"{error} is no line")
        return False
    must(given.encode().decode() == given and "\0" not in given, f"{given!r} is no id")
    return True


PARSERS: Final = (
    Parser("content", _contents, content),
    Parser("feedback", _feedback_messages, feedback),
    Parser("event", _events, event),
    Parser("kafka_record", _kafka_records, kafka_record),
    Parser("prediction_id", _prediction_ids, prediction_id, 512),
    Parser("text", _texts, text, 512),
)
