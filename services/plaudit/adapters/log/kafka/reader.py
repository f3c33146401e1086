"""EventReader on Kafka: a member of a consumer group that starts at given positions.

The group only assigns the partitions. ``start`` says where reading continues, so that positions are saved together with
their effects; the group's committed offsets are for monitoring. Partition ``3`` of the port is partition 3 of every
topic that is read, and its cursor has, by topic, the next offset and the id of the topic: offsets of a topic that was
recreated count from zero, and its records are others.

Records that the log lost before they were read (retention, a recreated topic) are reported: an unreadable record takes
their place.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import structlog
from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.errors import CorruptRecordError, KafkaError, UnsupportedCodecError
from kafka.structs import MemberState, OffsetAndMetadata

from plaudit.adapters.log.kafka.assignor import CopartitionedAssignor
from plaudit.adapters.log.kafka.cluster import (
    KafkaConnection,
    TopicPlan,
    ensure_topics,
    milliseconds,
    unpacking_problem,
)
from plaudit.core.errors import LogUnavailable
from plaudit.core.events import Event, Topic
from plaudit.core.limits import MAX_POLL_BYTES
from plaudit.core.ports.log import Cursor, Positions, Record, UnreadableRecord
from plaudit.core.wire import UnreadableEvent, decode_event, event_type

EVENT_TYPE: Final = "event-type"
"""Header that names the protobuf message of a record."""

_SESSION_S: Final = 6.0
"""Time without a heartbeat after which a reader's partitions go to others."""
_HEARTBEAT_S: Final = 1.0
_FETCH_WAIT_S: Final = 0.1
_METADATA_S: Final = 5.0
"""Interval at which the topics are checked: nothing else reveals one that was deleted and recreated."""
_CLOSE_S: Final = 5.0
_STEP_S: Final = 0.05
"""Longest single poll of kafka-python: partitions assigned meanwhile must be positioned before they can be read."""
_JOINING_LIMIT: Final = 500
"""Records fetched at once while the group is joined."""
_UNPACK_AGAIN_S: Final = 30.0
"""Pause of a partition whose records cannot be unpacked."""
_OF_RECORDS: Final = (UnsupportedCodecError, CorruptRecordError)
_GAP: Final = 10**18

_log = structlog.get_logger("plaudit.kafka")


class KafkaReader:
    """See :class:`plaudit.core.ports.log.EventReader`. Connects when first used; not safe for several threads.

    Args:
        start: returns the positions of newly assigned partitions; None: the offsets that the group committed.
        name: member name of this reader in its group (static membership). Another reader with the name gets its
            partitions at once; without a name, those of a killed reader are idle until its session ends.

    Raises:
        LogUnavailable: raised by all methods that poll; another reader gets the polled records again.
        ValueError: ``start`` returned a cursor that is not of this adapter.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        plan: TopicPlan,
        group: str,
        topics: Sequence[Topic],
        start: Callable[[], Positions] | None,
        name: str | None = None,
    ) -> None:
        self._connection = connection
        self._plan = plan
        self._group = f"{plan.topic_prefix}{group}"
        # Decisions before their feedback, where both are there.
        self._topics = {plan.name(topic): topic for topic in sorted(topics, key=list(Topic).index)}
        self._start = start
        self._name = name
        self._assignor = CopartitionedAssignor()
        self._membership = _Membership(self._assignor)
        self._consumer: KafkaConsumer | None = None
        self._order = {name: place for place, name in enumerate(self._topics)}
        self._places: dict[int, dict[str, _Place]] = {}
        self._ready: list[Record] = []
        self._committing: Any = None
        self._joined = False
        self._fetched_bytes = 0
        """Bytes of all records ever fetched."""
        self._unpacked_at_s: dict[TopicPartition, float] = {}
        """When partitions whose records could not be unpacked are tried again."""

    def poll(self, limit: int, timeout_s: float) -> Sequence[Record]:
        consumer = self._connect()
        deadline = time.monotonic() + timeout_s
        with self._connection.errors():
            while True:
                self._place(consumer)
                if self._ready:
                    break
                self._fetch(consumer, limit, min(_STEP_S, max(0.0, deadline - time.monotonic())))
                if self._ready or time.monotonic() >= deadline:
                    break
            # Records that were fetched must be returned even if fetching more fails.
            with contextlib.suppress(KafkaError):
                size = self._fetched_bytes
                while 0 < len(self._ready) < limit and self._fetched_bytes - size < MAX_POLL_BYTES:
                    if not self._fetch(consumer, limit - len(self._ready), 0.0):
                        break
                    self._place(consumer)
        records, self._ready = self._ready[:limit], self._ready[limit:]
        return records

    def commit(self, positions: Positions) -> None:
        """Commit offsets of this reader's partitions, in the background: they only serve monitoring."""
        if self._consumer is None:
            return
        offsets = {
            TopicPartition(name, int(partition)): OffsetAndMetadata(place.offset, "", -1)
            for partition, cursor in positions.items()
            if int(partition) in self._places
            for name, place in _from_cursor(cursor).items()
            if name in self._topics
        }
        if offsets:
            with self._connection.errors():
                self._committing = self._consumer.commit_async(offsets)

    def lag(self) -> int:
        """See the port. Joins the group first, if it has not yet; a rebalance later on is not waited for."""
        consumer = self._connect()
        with self._connection.errors():
            if not self._joined:
                self._join(consumer)
            self._place(consumer)
            assigned = consumer.assignment()
            places = {
                each: max(place.offset, self._consumed(consumer, each))
                for partition, topics in self._places.items()
                for name, place in topics.items()
                if name in self._topics and (each := TopicPartition(name, partition)) in assigned
            }
            timeout_ms = milliseconds(self._connection.timeout_s)
            ends = consumer.end_offsets(list(places), timeout_ms=timeout_ms) if places else {}
        unread: int = sum(max(0, end - places[place]) for place, end in ends.items())
        return len(self._ready) + unread

    def close(self) -> None:
        """Leave the group, so that others get the partitions at once."""
        if self._consumer is None:
            return
        if self._committing is not None:
            deadline = time.monotonic() + _CLOSE_S
            while not self._committing.is_done and time.monotonic() < deadline:
                time.sleep(_STEP_S / 10)
        # Members with a name never leave in kafka-python, and their partitions would wait for a session's end.
        self._consumer._coordinator.is_dynamic_member = lambda: True
        self._consumer.close(autocommit=False, timeout_ms=milliseconds(_CLOSE_S))
        self._consumer = None
        self._joined = False

    # --- the group ---------------------------------------------------------------------------------------------------

    def _connect(self) -> KafkaConsumer:
        if self._consumer is None:
            ensure_topics(self._connection, self._plan, to_read=[*self._topics.values()])
            with self._connection.errors():
                consumer = self._connection.build(
                    KafkaConsumer,
                    group_id=self._group,
                    group_instance_id=self._name,
                    partition_assignment_strategy=[self._assignor],
                    enable_auto_commit=False,
                    allow_auto_create_topics=False,
                    auto_offset_reset="earliest",
                    isolation_level="read_committed",
                    fetch_max_wait_ms=milliseconds(_FETCH_WAIT_S),
                    session_timeout_ms=milliseconds(_SESSION_S),
                    heartbeat_interval_ms=milliseconds(_HEARTBEAT_S),
                    metadata_max_age_ms=milliseconds(_METADATA_S),
                )
                self._membership.pause = consumer.pause
                consumer.subscribe(list(self._topics), listener=self._membership)
                for name in self._topics:
                    consumer.partitions_for_topic(name)  # known before joining: the leader of the group assigns them
            self._consumer = consumer
        return self._consumer

    def _join(self, consumer: KafkaConsumer) -> None:
        """Poll until the group has assigned partitions for the first time."""
        deadline = time.monotonic() + self._connection.timeout_s
        while consumer.group_metadata().state != MemberState.STABLE:
            if time.monotonic() > deadline:
                raise LogUnavailable(
                    f"Kafka at {self._connection.bootstrap_servers}: group {self._group} does not admit this reader "
                    f"within {self._connection.timeout_s:g} s"
                )
            self._place(consumer)
            self._fetch(consumer, _JOINING_LIMIT, _STEP_S)
        self._joined = True

    def _place(self, consumer: KafkaConsumer) -> None:
        """Position the newly assigned partitions. What was fetched of revoked ones is left to their next reader."""
        added, gone = self._membership.changes()
        for each in gone:
            self._unpacked_at_s.pop(each, None)
            topics = self._places.get(each.partition, {})
            topics.pop(each.topic, None)
            if not topics.keys() & self._topics.keys():
                self._places.pop(each.partition, None)
        if gone:
            numbers = {(self._topics[each.topic], str(each.partition)) for each in gone}
            self._ready = [record for record in self._ready if (record.topic, record.partition) not in numbers]
        if added:
            try:
                self._position(consumer, added)
            except BaseException:
                self._membership.repeat(added)
                raise

    def _position(self, consumer: KafkaConsumer, added: set[TopicPartition]) -> None:
        timeout_ms = milliseconds(self._connection.timeout_s)
        wanted = self._wanted(consumer, added)
        first = consumer.beginning_offsets(list(added), timeout_ms=timeout_ms)
        end = consumer.end_offsets(list(added), timeout_ms=timeout_ms)
        assigned = consumer.assignment()
        moved = []
        for each in sorted(added & assigned):
            here = _Place(self._topic_id(consumer, each.topic), first[each])
            before = wanted.get(each)
            if before is None:
                place = here
            elif before.topic_id != here.topic_id or before.offset > end[each]:
                place, problem = here, _recreated(each, before, end[each])
                moved.append((each, f"{before.topic_id}:{before.offset}", problem))
            elif before.offset < here.offset:
                place, problem = here, _lost(each, before.offset, here.offset)
                moved.append((each, f"{before.offset}-{here.offset - 1}", problem))
            else:
                place = before
            self._places.setdefault(each.partition, {})[each.topic] = place
            consumer.seek(each, place.offset)
            consumer.resume(each)
        self._ready += [self._notice(*each) for each in moved]

    def _wanted(self, consumer: KafkaConsumer, added: Iterable[TopicPartition]) -> dict[TopicPartition, _Place]:
        """Next offsets of those of the partitions that were read before."""
        if self._start is None:
            committed = {
                each: consumer.committed(each, timeout_ms=milliseconds(self._connection.timeout_s)) for each in added
            }
            return {
                each: _Place(self._topic_id(consumer, each.topic), offset)
                for each, offset in committed.items()
                if offset is not None
            }
        wanted = {}
        positions = self._start()
        for partition in {each.partition for each in added}:
            cursor = positions.get(str(partition))
            for name, place in {} if cursor is None else _from_cursor(cursor).items():
                wanted[TopicPartition(name, partition)] = place
                # Stored for the next cursors if this reader does not read the topic.
                self._places.setdefault(partition, {}).setdefault(name, place)
        return wanted

    def _topic_id(self, consumer: KafkaConsumer, name: str) -> str:
        """Id of the topic; kafka-python has no public way to ask for it."""
        return str(consumer._cluster.topic_id(name))

    # --- records -----------------------------------------------------------------------------------------------------

    def _fetch(self, consumer: KafkaConsumer, limit: int, wait_s: float) -> int:
        """Fetch records of positioned partitions into ``_ready``; returns their number."""
        before = len(self._ready)
        fetched = self._polled(consumer, limit, wait_s)
        anew = self._topics_recreated(consumer)
        for each in sorted(fetched.keys() - anew, key=lambda each: (self._order[each.topic], each.partition)):
            if each.topic in self._places.get(each.partition, {}):  # else it was revoked meanwhile
                self._fetched_bytes += sum(len(message.value or b"") for message in fetched[each])
                self._ready += self._records(consumer, each, fetched[each])
        return len(self._ready) - before

    def _polled(self, consumer: KafkaConsumer, limit: int, wait_s: float) -> Mapping[TopicPartition, Sequence[Any]]:
        """Messages by partition. A partition whose records cannot be unpacked is set aside; the others go on."""
        now_s = time.monotonic()
        for each in [each for each, at_s in self._unpacked_at_s.items() if at_s <= now_s]:
            del self._unpacked_at_s[each]
            consumer.resume(each)
        try:
            return consumer.poll(timeout_ms=milliseconds(wait_s), max_records=limit)  # type: ignore[no-any-return]
        except Exception as error:
            # kafka-python would hand out nothing of this partition for ever after, in a loop without an end.
            part = consumer._fetcher._next_partition_records
            of_records = isinstance(error, _OF_RECORDS) or not isinstance(error, KafkaError)
            if not part or not of_records:
                raise
            part.drain()
            each = part.topic_partition
            if each in consumer.assignment():
                consumer.pause(each)
                self._unpacked_at_s[each] = now_s + _UNPACK_AGAIN_S
            _log.error(
                "partition cannot be read",
                partition=f"{each.topic}-{each.partition}",
                offset=part.next_fetch_offset,
                problem=unpacking_problem(each.topic, error),
                again_in_s=_UNPACK_AGAIN_S,
            )
            return {}

    def _records(self, consumer: KafkaConsumer, each: TopicPartition, fetched: Sequence[Any]) -> list[Record]:
        """Records fetched of one partition; an unreadable one in place of those that were lost before or between.

        Not every offset is a record: markers of transactions have some, and so do records that were never committed.
        """
        topic, partition = self._topics[each.topic], str(each.partition)
        places = self._places[each.partition]
        topic_id, expected = places[each.topic]
        first = expected
        if any(message.offset != offset for offset, message in enumerate(fetched, expected)):
            try:
                first = consumer.beginning_offsets([each], timeout_ms=milliseconds(self._connection.timeout_s))[each]
            except KafkaError:
                consumer.seek(each, expected)  # to be fetched again: what is not returned now must not be skipped
                raise
        before, after = _around(places, each.topic)
        records = []
        for message in fetched:
            offset = message.offset
            continues = offset if offset < expected else max(expected, min(first, offset))
            if continues != expected:
                places[each.topic] = _Place(topic_id, offset)
                records.append(self._notice(each, f"{expected}-{continues - 1}", _lost(each, expected, continues)))
            expected = offset + 1
            cursor = f"{before}{expected}{after}"
            records.append(Record(topic, f"{partition}:{offset}", partition, cursor, _event(topic, message)))
        places[each.topic] = _Place(topic_id, expected)
        return records

    def _consumed(self, consumer: KafkaConsumer, each: TopicPartition) -> int:
        """Offset up to which kafka-python has consumed the partition, beyond markers of transactions too."""
        position = consumer._subscription.position(each)
        return 0 if position is None else int(position.offset)

    def _topics_recreated(self, consumer: KafkaConsumer) -> set[TopicPartition]:
        """Partitions of topics that were recreated while they were read; they are positioned at their beginning."""
        known = {name: self._topic_id(consumer, name) for name in self._topics}
        anew = {
            TopicPartition(name, partition): places[name]
            for partition, places in self._places.items()
            for name, topic_id in known.items()
            if name in places and topic_id != "None" and places[name].topic_id != topic_id
        }
        for each, place in anew.items():
            self._places[each.partition][each.topic] = _Place(known[each.topic], 0)
            self._ready.append(self._notice(each, f"{place.topic_id}:{place.offset}", _recreated(each, place)))
            consumer.seek(each, 0)
        return set(anew)

    def _notice(self, each: TopicPartition, where: str, problem: str) -> Record:
        """An unreadable record in place of lost ones; it is logged too."""
        _log.error("records lost", partition=f"{each.topic}-{each.partition}", problem=problem)
        partition = str(each.partition)
        cursor = _to_cursor(self._places[each.partition])
        return Record(
            self._topics[each.topic], f"{partition}:{where}", partition, cursor, UnreadableRecord(b"", problem)
        )


class _Place(NamedTuple):
    """Next offset, and the id of the topic that it belongs to."""

    topic_id: str
    offset: int


class _Membership(ConsumerRebalanceListener):  # type: ignore[misc]
    """Collects assigned and revoked partitions on kafka-python's own thread; the reader's thread asks :meth:`changes`.

    Assigned partitions are paused at once: none may be read before the reader has positioned it.
    """

    def __init__(self, assignor: CopartitionedAssignor) -> None:
        self.pause: Callable[..., None] = lambda *_: None
        self._assignor = assignor
        self._lock = threading.Lock()
        self._added: set[TopicPartition] = set()
        self._gone: set[TopicPartition] = set()

    def changes(self) -> tuple[set[TopicPartition], set[TopicPartition]]:
        """Partitions assigned, and revoked, since the last call; one that was revoked and assigned again is in both."""
        with self._lock:
            added, gone = self._added, self._gone
            self._added, self._gone = set(), set()
        return added, gone

    def repeat(self, added: set[TopicPartition]) -> None:
        """Return them by the next call again."""
        with self._lock:
            self._added |= added

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self.pause(*assigned)
        with self._lock:
            self._added |= set(assigned)

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        with self._lock:
            self._added -= set(revoked)
            self._gone |= set(revoked)

    def on_partitions_lost(self, lost: Iterable[TopicPartition]) -> None:
        self._assignor.forget()
        self.on_partitions_revoked(lost)


def _event(topic: Topic, message: Any) -> Event | UnreadableRecord:
    payload: bytes = message.value or b""
    for header, value in message.headers:
        claimed = (value or b"").decode(errors="replace")
        if header == EVENT_TYPE and claimed != event_type(topic):
            return UnreadableRecord(
                payload, f"{topic} holds {event_type(topic)}; the header of this record says {claimed}"
            )
    try:
        return decode_event(topic, payload)
    except UnreadableEvent as error:
        return UnreadableRecord(payload, str(error))


def _lost(each: TopicPartition, expected: int, found: int) -> str:
    where = f"{each.topic}-{each.partition}"
    if found < expected:
        return f"{where} was truncated: it was read up to offset {expected}, and continues at {found}"
    return f"{where}: offsets {expected} to {found - 1} were removed from the log before they were read"


def _recreated(each: TopicPartition, before: _Place, end: int | None = None) -> str:
    ends = "" if end is None else f", and ends at {end}"
    return (
        f"{each.topic}-{each.partition} is another log than before: topic {before.topic_id} was read up to offset "
        f"{before.offset}; the topic was recreated or truncated{ends}; it is read from its beginning"
    )


def _to_cursor(places: Mapping[str, _Place]) -> Cursor:
    return json.dumps(places)


def _around(places: Mapping[str, _Place], name: str) -> tuple[str, str]:
    """The cursor in two halves, without the offset of the topic ``name`` between them."""
    before, after = _to_cursor({**places, name: _Place(places[name].topic_id, _GAP)}).split(str(_GAP))
    return before, after


def _from_cursor(cursor: Cursor) -> dict[str, _Place]:
    try:
        return {
            str(name): _Place(str(topic_id), int(offset)) for name, (topic_id, offset) in json.loads(cursor).items()
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"cursor {cursor!r} is not one of a Kafka log") from error
