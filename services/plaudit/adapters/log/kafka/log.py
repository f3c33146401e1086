"""EventLog on Kafka: records keyed by prediction id, durable when every in-sync replica has them.

Kafka cannot look an id up, so this log only remembers the ids that it appended itself not long ago; who reads drops
what is there twice. It cannot add several records as one either, unless by transactions, which would halve the rate and
buy nothing: whoever appends again what an append that failed had added adds duplicates.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Final, Literal

from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError

from plaudit.adapters.log.kafka.cluster import KafkaConnection, TopicPlan, ensure_topics, milliseconds
from plaudit.adapters.log.kafka.reader import EVENT_TYPE, KafkaReader
from plaudit.adapters.log.process_slot import ProcessSlot
from plaudit.core.errors import InvalidInput, LogUnavailable
from plaudit.core.events import DeadLetter, Event, Topic, event_id_of, key_of, topic_of
from plaudit.core.ports.log import Appended, Positions
from plaudit.core.wire import encode_event, event_type

CONTENT_TYPE: Final = "content-type"
PROTOBUF: Final = b"application/x-protobuf"

_HEADERS: Final = {topic: [(CONTENT_TYPE, PROTOBUF), (EVENT_TYPE, event_type(topic).encode())] for topic in Topic}
_OVERHEAD_BYTES: Final = 1024
"""What a record is longer than its payload, at the most: key, headers, framing."""
_BATCH_BYTES: Final = 256 * 1024
_REMEMBERED: Final = 50_000
_RETRY_S: Final = 1.0
_CLOSE_S: Final = 5.0
_GRACE_S: Final = 1.0
"""How much longer than the producer its callers wait, so that it is the producer who says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """How records are sent. Fields are the settings of [kafka] by the same names."""

    compression: Literal["none", "gzip", "lz4"] = "none"
    linger_s: float = 0.0
    delivery_timeout_s: float = 10.0


class KafkaLog:
    """See :class:`plaudit.core.ports.log.EventLog`.

    Connects when first used, and makes the topics that are not there. While the brokers are away every call fails,
    within ``delivery_timeout_s`` of the first one to notice and at once for those that follow within a second. Records
    of concurrent appends share requests.

    Args:
        seat: its name is that of the log's readers in their groups, so there may be one in each; left with the log.
    """

    def __init__(
        self, connection: KafkaConnection, plan: TopicPlan, delivery: Delivery, seat: ProcessSlot | None = None
    ) -> None:
        self._connection = connection
        self._plan = plan
        self._delivery = delivery
        self._seat = seat
        self._lock = threading.Lock()
        self._producer: KafkaProducer | None = None
        self._limits: Mapping[Topic, int] = {}
        self._retry_at_s = 0.0
        self._problem = ""
        self._recent = _Recent()

    def append(self, events: Sequence[Event]) -> Sequence[Appended]:
        if not events:
            return []
        producer = self._connected()
        rows = [(event, self._fitting(event)) for event in events]
        deadline_s = time.monotonic() + self._delivery.delivery_timeout_s + _GRACE_S
        try:
            sent = [self._send(producer, event, payload) for event, payload in rows]
            for entry, _ in sent:
                entry.wait(deadline_s)
        except KafkaError as error:
            self._give_up(producer)
            raise LogUnavailable(self._connection.explain(error)) from error
        return [Appended(duplicate) for _, duplicate in sent]

    def _send(self, producer: KafkaProducer, event: Event, payload: bytes) -> tuple[_Entry, bool]:
        """The record on its way; True if it was on its way, or there, before."""
        topic = topic_of(event)
        key = (topic, event_id_of(event))
        entry, known = self._recent.entry(key, event.time_s)
        if not known:
            try:
                future = producer.send(self._plan.name(topic), payload, key_of(event).encode(), headers=_HEADERS[topic])
            except KafkaError as error:
                self._recent.failed(key, entry, error)
                raise
            future.add_callback(entry.succeeded)
            future.add_errback(lambda error: self._recent.failed(key, entry, error))
        return entry, known

    def replay(self, events: Sequence[Event]) -> None:
        """Kafka takes everything twice; it is this log that remembers what it appended."""
        self._recent.forget([(topic_of(event), event_id_of(event)) for event in events])
        self.append(events)

    def reader(self, group: str, topics: Sequence[Topic], start: Callable[[], Positions] | None = None) -> KafkaReader:
        name = None if self._seat is None else self._seat.name()
        return KafkaReader(self._connection, self._plan, group, topics, start, name)

    def feedback_recorded(self, feedback_id: str) -> float | None:
        return self._recent.time_s((Topic.FEEDBACK, feedback_id))

    def close(self) -> None:
        with self._lock:
            producer, self._producer = self._producer, None
        if producer is not None:
            _close(producer, _CLOSE_S)
        if self._seat is not None:
            self._seat.leave()

    def _fitting(self, event: Event) -> bytes:
        """The payload; of a dead letter that is too large, the reason with as much of the record as fits."""
        payload = encode_event(event)
        allowed = min(self._plan.max_record_bytes, self._limits[topic_of(event)]) - _OVERHEAD_BYTES
        if len(payload) <= allowed:
            return payload
        if not isinstance(event, DeadLetter):
            raise InvalidInput(
                f"{type(event).__name__.lower()} {event_id_of(event)!r}",
                f"is {len(payload)} bytes long; a record may have {allowed} "
                "(kafka.max_record_bytes, and max.message.bytes of the topic)",
            )
        kept = max(0, len(event.payload) - (len(payload) - allowed) - _OVERHEAD_BYTES)
        reason = f"{event.reason} (the first {kept} of {len(event.payload)} bytes are kept)"
        return encode_event(replace(event, payload=event.payload[:kept], reason=reason))

    def _connected(self) -> KafkaProducer:
        """Only one caller tries; those who wait for it share what it found."""
        if (producer := self._producer) is not None:
            return producer
        with self._lock:
            if self._producer is not None:
                return self._producer
            if time.monotonic() < self._retry_at_s:
                raise LogUnavailable(self._problem)
            try:
                self._limits = ensure_topics(self._connection, self._plan)
                self._producer = self._new_producer()
            except LogUnavailable as error:
                self._problem, self._retry_at_s = error.problem, time.monotonic() + _RETRY_S
                raise
            return self._producer

    def _new_producer(self) -> KafkaProducer:
        timeout_ms = milliseconds(self._delivery.delivery_timeout_s)
        linger_ms = milliseconds(self._delivery.linger_s)
        compression = self._delivery.compression
        with self._connection.errors():
            return self._connection.build(
                KafkaProducer,
                request_timeout_ms=timeout_ms - linger_ms,
                max_block_ms=timeout_ms,
                acks="all",
                enable_idempotence=True,
                delivery_timeout_ms=timeout_ms,
                linger_ms=linger_ms,
                batch_size=min(_BATCH_BYTES, *self._limits.values()),
                max_request_size=self._plan.max_record_bytes,
                compression_type=None if compression == "none" else compression,
                allow_auto_create_topics=False,
            )

    def _give_up(self, producer: KafkaProducer) -> None:
        """The next append begins anew: looks at the topics, which may have been deleted, and makes a producer.

        An idempotent producer that met an error it cannot retry would answer all later records with it, and one whose
        topic was made anew never hears of it.
        """
        with self._lock:
            if producer is not self._producer:
                return
            self._producer = None
        _close(producer, 0.0)


class _Entry:
    """One record that is on its way or there, and how to wait for it."""

    __slots__ = ("_landing", "time_s")

    def __init__(self, time_s: float) -> None:
        self.time_s = time_s
        self._landing: Future[None] | None = Future()

    def wait(self, deadline_s: float) -> None:
        """Raises KafkaError: it is not durable, or not known to be by then."""
        landing = self._landing
        if landing is not None:
            try:
                landing.result(max(0.0, deadline_s - time.monotonic()))
            except TimeoutError as error:
                raise KafkaTimeoutError("no acknowledgement in time") from error

    def succeeded(self, _: object) -> None:
        landing, self._landing = self._landing, None
        assert landing is not None
        landing.set_result(None)

    def failed(self, error: Exception) -> None:
        assert self._landing is not None
        self._landing.set_exception(error)

    @property
    def landed(self) -> bool:
        return self._landing is None


class _Recent:
    """The records appended last, by topic and id. What failed is forgotten, so that it can be appended again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[tuple[Topic, str], _Entry] = OrderedDict()

    def entry(self, key: tuple[Topic, str], time_s: float) -> tuple[_Entry, bool]:
        """The entry of ``key``, and whether it was there before."""
        with self._lock:
            known = self._entries.get(key)
            if known is not None:
                return known, True
            entry = self._entries[key] = _Entry(time_s)
            if len(self._entries) > _REMEMBERED:
                self._entries.popitem(last=False)
            return entry, False

    def failed(self, key: tuple[Topic, str], entry: _Entry, error: Exception) -> None:
        with self._lock:
            if self._entries.get(key) is entry:
                del self._entries[key]
        entry.failed(error)

    def forget(self, keys: Sequence[tuple[Topic, str]]) -> None:
        with self._lock:
            for key in keys:
                self._entries.pop(key, None)

    def time_s(self, key: tuple[Topic, str]) -> float | None:
        """When the event says it was; None unless it is durable and remembered."""
        with self._lock:
            entry = self._entries.get(key)
            return entry.time_s if entry is not None and entry.landed else None


def _close(producer: KafkaProducer, timeout_s: float) -> None:
    """What is not sent by then fails, for those who wait for it."""
    try:
        producer.close(timeout=timeout_s)
    except KafkaTimeoutError:
        # It gave up with its thread and sockets in place, and has no public way to insist.
        producer._sender.force_close()
        producer.close(timeout=_CLOSE_S)
