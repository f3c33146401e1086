"""EventLog on Kafka: records keyed by prediction id, durable when every in-sync replica has them.

Kafka has no look-up by id, so this log only remembers the ids that it appended itself not long ago; readers drop
duplicates. Several records are not appended atomically either: transactions would halve the rate and gain nothing, as
appending again after a failure adds duplicates, which readers drop.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple

import structlog
from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError

from plaudit.adapters.log.encoding import payload_of, refusal
from plaudit.adapters.log.kafka.cluster import KafkaConnection, TopicPlan, ensure_topics, milliseconds
from plaudit.adapters.log.kafka.reader import EVENT_TYPE, KafkaReader
from plaudit.adapters.log.process_slot import ProcessSlot
from plaudit.core.errors import InvalidInput, LogUnavailable
from plaudit.core.events import DeadLetter, Decision, Event, Topic, event_id_of, key_of, time_of, topic_of
from plaudit.core.ports.log import Appended, AppendOutcome, Positions
from plaudit.core.wire import encode_event, event_type

CONTENT_TYPE: Final = "content-type"
PROTOBUF: Final = b"application/x-protobuf"

_HEADERS: Final = {topic: [(CONTENT_TYPE, PROTOBUF), (EVENT_TYPE, event_type(topic).encode())] for topic in Topic}
_OVERHEAD_BYTES: Final = 1024
"""Upper bound of the bytes of a record besides its payload: key, headers, framing."""
_BATCH_BYTES: Final = 256 * 1024
_REMEMBERED: Final = 50_000
_RETRY_S: Final = 1.0
_CLOSE_S: Final = 5.0
_GRACE_S: Final = 1.0
"""Time by which callers wait longer than the producer, so that the error is the producer's own."""


_log = structlog.get_logger("plaudit.kafka")


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """Options of the producer. Fields are the settings of [kafka] by the same names."""

    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "none"
    linger_s: float = 0.0
    delivery_timeout_s: float = 10.0


class KafkaLog:
    """See :class:`plaudit.core.ports.log.EventLog`.

    Connects when first used, and makes the topics that are missing. While the brokers are unavailable every call fails,
    within ``delivery_timeout_s`` of the first one to notice and at once for those that follow within a second. Records
    of concurrent appends share requests.

    Args:
        slot: its name is the member name of this log's readers, at most one per group; released with the log.
    """

    def __init__(
        self, connection: KafkaConnection, plan: TopicPlan, delivery: Delivery, slot: ProcessSlot | None = None
    ) -> None:
        self._connection = connection
        self._plan = plan
        self._delivery = delivery
        self._slot = slot
        self._lock = threading.Lock()
        self._producer: KafkaProducer | None = None
        self._limits: Mapping[Topic, int] = {}
        self._retry_at_s = 0.0
        self._problem = ""
        self._recent = _Recent()

    def append(self, events: Sequence[Event]) -> Sequence[AppendOutcome]:
        """See the port. A decision that is too large is appended without its content: it can still be learned from."""
        if not events:
            return []
        producer = self._connected()
        rows = [self._fitting(event) for event in events]
        deadline_s = time.monotonic() + self._delivery.delivery_timeout_s + _GRACE_S
        outcomes: list[AppendOutcome] = []
        entries = []
        try:
            for row in rows:
                if isinstance(row, InvalidInput):
                    outcomes.append(row)
                else:
                    entry, duplicate = self._send(producer, row.event, row.payload)
                    entries.append(entry)
                    outcomes.append(Appended(duplicate, row.without_content))
            for entry in entries:
                entry.wait(deadline_s)
        except KafkaError as error:
            self._discard(producer)
            raise LogUnavailable(self._connection.explain(error)) from error
        return outcomes

    def _send(self, producer: KafkaProducer, event: Event, payload: bytes) -> tuple[_Entry, bool]:
        """Entry of the record, which is sent unless it was before; True if it was."""
        topic = topic_of(event)
        key = (topic, event_id_of(event))
        entry, known = self._recent.entry(key, time_of(event))
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
        """Kafka itself accepts duplicates; only the ids remembered here are forgotten first."""
        self._recent.forget([(topic_of(event), event_id_of(event)) for event in events])
        self.append(events)

    def reader(self, group: str, topics: Sequence[Topic], start: Callable[[], Positions] | None = None) -> KafkaReader:
        name = None if self._slot is None else self._slot.name()
        return KafkaReader(self._connection, self._plan, group, topics, start, name)

    def feedback_recorded(self, feedback_id: str) -> float | None:
        return self._recent.time_s((Topic.FEEDBACK, feedback_id))

    def close(self) -> None:
        with self._lock:
            producer, self._producer = self._producer, None
        if producer is not None:
            _close(producer, _CLOSE_S)
        if self._slot is not None:
            self._slot.release()

    def _fitting(self, event: Event) -> _Row | InvalidInput:
        """The event as a record that fits; a dead letter that is too large has its record cut."""
        payload = payload_of(event)
        if isinstance(payload, InvalidInput):
            return payload
        allowed = min(self._plan.max_record_bytes, self._limits[topic_of(event)]) - _OVERHEAD_BYTES
        if len(payload) <= allowed:
            return _Row(event, payload)
        match event:
            case DeadLetter():
                kept = max(0, len(event.payload) - (len(payload) - allowed) - _OVERHEAD_BYTES)
                reason = f"{event.reason} (the first {kept} of {len(event.payload)} bytes are kept)"
                return _Row(event, encode_event(replace(event, payload=event.payload[:kept], reason=reason)))
            case Decision() if event.content:
                less = encode_event(replace(event, content={}))
                if len(less) <= allowed:
                    _log.warning("decision logged without its content", bytes=len(payload), allowed=allowed)
                    return _Row(event, less, without_content=True)
        return refusal(
            event,
            f"is {len(payload)} bytes long; a record may have {allowed} "
            "(kafka.max_record_bytes, and max.message.bytes of the topic)",
        )

    def _connected(self) -> KafkaProducer:
        """The producer. Only one caller connects; those that wait for it share the result."""
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

    def _discard(self, producer: KafkaProducer) -> None:
        """Let the next append check the topics, which may have been deleted, and make another producer.

        An idempotent producer fails all records after an error that it cannot retry, and one whose topic was recreated
        does not notice.
        """
        with self._lock:
            if producer is not self._producer:
                return
            self._producer = None
        _close(producer, 0.0)


class _Row(NamedTuple):
    """One event as it is sent."""

    event: Event
    payload: bytes
    without_content: bool = False


class _Entry:
    """One record that was sent, and its acknowledgement."""

    __slots__ = ("_acknowledged", "time_s")

    def __init__(self, time_s: float) -> None:
        self.time_s = time_s
        self._acknowledged: Future[None] | None = Future()

    def wait(self, deadline_s: float) -> None:
        """Raises KafkaError: the record is not durable, or not known to be by then."""
        acknowledged = self._acknowledged
        if acknowledged is not None:
            try:
                acknowledged.result(max(0.0, deadline_s - time.monotonic()))
            except TimeoutError as error:
                raise KafkaTimeoutError("no acknowledgement in time") from error

    def succeeded(self, _: object) -> None:
        acknowledged, self._acknowledged = self._acknowledged, None
        assert acknowledged is not None
        acknowledged.set_result(None)

    def failed(self, error: Exception) -> None:
        assert self._acknowledged is not None
        self._acknowledged.set_exception(error)

    @property
    def durable(self) -> bool:
        return self._acknowledged is None


class _Recent:
    """Entries of the latest records, by topic and id. Failed ones are removed, so that they can be appended again."""

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
        """Time of the event; None unless it is durable and remembered."""
        with self._lock:
            entry = self._entries.get(key)
            return entry.time_s if entry is not None and entry.durable else None


def _close(producer: KafkaProducer, timeout_s: float) -> None:
    """Close the producer; records that are not sent by then fail."""
    try:
        producer.close(timeout=timeout_s)
    except KafkaTimeoutError:
        # Its thread and sockets are left open, and there is no public way to close them.
        producer._sender.force_close()
        producer.close(timeout=_CLOSE_S)
