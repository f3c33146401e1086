"""What only Kafka does: brokers that go away or refuse, topics that are not as they should be, readers that share."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.net.compat import KafkaNetClient
from kafka.structs import MemberState

from plaudit.adapters.log.kafka.cluster import KafkaConnection, TopicPlan, _with_backoff, find_topics
from plaudit.adapters.log.kafka.log import KafkaLog
from plaudit.adapters.log.process_slot import ProcessSlot
from plaudit.core.errors import InvalidInput, LogUnavailable
from plaudit.core.events import DeadLetter, Decision, EncodedContent, Feedback, TextContent, Topic
from plaudit.core.ports.log import Appended, EventReader, Positions, Record, UnreadableRecord
from plaudit.core.wire import encode_event
from support.builders import a_decision, some_feedback
from support.kafka_broker import Cluster, Kafka, need_broker

pytestmark = pytest.mark.kafka

WAIT_S = 60.0
BOTH = (Topic.DECISIONS, Topic.FEEDBACK)


@pytest.fixture
def log(kafka: Kafka) -> Iterator[KafkaLog]:
    with contextlib.closing(kafka.log()) as log:
        yield log


@pytest.fixture
def admin(kafka: Kafka) -> Iterator[KafkaAdminClient]:
    with KafkaAdminClient(bootstrap_servers=kafka.bootstrap) as admin:
        yield admin


def read(reader: EventReader, count: int) -> list[Record]:
    records: list[Record] = []
    while len(records) < count:
        batch = reader.poll(count - len(records), WAIT_S)
        assert batch, f"{len(records)} of {count} records came"
        records += batch
    return records


def read_all(log: KafkaLog, topics: Sequence[Topic] = BOTH, start: Callable[[], Positions] = dict) -> list[Record]:
    with contextlib.closing(log.reader("all", topics, start)) as reader:
        return read(reader, reader.lag())


def feedback_ids(records: Sequence[Record]) -> list[str]:
    return [record.event.feedback_id for record in records if isinstance(record.event, Feedback)]


def problems(records: Sequence[Record]) -> list[str]:
    return [record.event.problem for record in records if isinstance(record.event, UnreadableRecord)]


def positions(records: Sequence[Record]) -> Callable[[], Positions]:
    """Positions after the records, as a reader saves them."""
    saved = {record.partition: record.cursor for record in records}
    return lambda: saved


def send(kafka: Kafka, topic: Topic, payload: bytes, **options: Any) -> None:
    """As a program would that is not ours."""
    with KafkaProducer(bootstrap_servers=kafka.bootstrap, max_request_size=100_000_000) as producer:
        producer.send(kafka.prefix + topic, payload, key=b"p", **options).get(WAIT_S)


def set_config(kafka: Kafka, topic: Topic, key: str, value: str) -> None:
    with KafkaAdminClient(bootstrap_servers=kafka.bootstrap) as admin:
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, kafka.prefix + topic, configs={key: value})])


# --- records and topics ----------------------------------------------------------------------------------------------


def test_topics_are_made_as_the_settings_say(kafka: Kafka) -> None:
    plan = TopicPlan(topic_prefix=kafka.prefix, partitions=3, retention_s=100.0, max_record_bytes=70_000)
    with contextlib.closing(kafka.log(partitions=3, retention_s=100.0, max_record_bytes=70_000)) as log:
        log.append([some_feedback("p")])
    found = find_topics(KafkaConnection(bootstrap_servers=kafka.bootstrap), plan)
    assert {topic: each.partitions for topic, each in found.items()} == {
        Topic.DECISIONS: 3,
        Topic.FEEDBACK: 3,
        Topic.DEAD_LETTER: 1,
        Topic.VERSIONS: 1,
        Topic.EXPERIMENTS: 1,
    }
    assert found[Topic.FEEDBACK].configs["retention.ms"] == "100000"
    assert found[Topic.DEAD_LETTER].configs["retention.ms"] == "-1"
    assert found[Topic.DECISIONS].configs["max.message.bytes"] == "70000"


def test_a_decision_and_its_feedback_stand_in_partitions_of_one_number(kafka: Kafka) -> None:
    with contextlib.closing(kafka.log(partitions=5)) as log:
        keys = [f"p{number}" for number in range(20)]
        log.append([event for key in keys for event in (a_decision(key), some_feedback(key, feedback_id=key))])
        where: dict[str, set[str]] = {}
        for record in read_all(log):
            assert isinstance(record.event, Decision | Feedback)
            where.setdefault(record.event.prediction_id, set()).add(record.partition)
    assert [len(where[key]) for key in keys] == [1] * 20
    assert len(set().union(*where.values())) > 1


def test_cursors_continue_every_partition_and_topic(kafka: Kafka) -> None:
    with contextlib.closing(kafka.log(partitions=3)) as log:
        log.append([a_decision(f"p{number}") for number in range(12)])
        log.append([some_feedback(f"p{number}", feedback_id=f"f{number}") for number in range(12)])
        first = log.reader("g", BOTH, dict)
        taken = read(first, 10)
        first.close()
        rest = read_all(log, start=positions(taken))
    seen = [(record.topic, record.position) for record in [*taken, *rest]]
    assert len(seen) == len(set(seen)) == 24


def test_a_reader_of_one_topic_keeps_the_place_in_the_other(log: KafkaLog) -> None:
    log.append([a_decision("p1"), some_feedback("p1", feedback_id="f1")])
    both = read_all(log)
    log.append([some_feedback("p1", feedback_id="f2")])
    one = read_all(log, [Topic.FEEDBACK], positions(both))
    assert feedback_ids(one) == ["f2"]
    log.append([a_decision("p2")])
    (last,) = read_all(log, BOTH, positions(one))
    assert isinstance(last.event, Decision)
    assert last.event.prediction_id == "p2"


def test_unequal_partitions_are_refused(kafka: Kafka, admin: KafkaAdminClient) -> None:
    plan = TopicPlan(topic_prefix=kafka.prefix, partitions=2)
    topics = {plan.name(topic): plan.description(topic) for topic in BOTH}
    topics[plan.name(Topic.FEEDBACK)]["num_partitions"] = 3
    admin.create_topics(topics, wait_for_metadata=True)
    with contextlib.closing(kafka.log()) as log, pytest.raises(LogUnavailable, match="equally many partitions"):
        log.append([some_feedback("p")])


def test_an_append_recovers_when_topics_were_deleted(kafka: Kafka, admin: KafkaAdminClient) -> None:
    with contextlib.closing(kafka.log(delivery_timeout_s=2.0)) as log:
        log.append([some_feedback("p", feedback_id="f1")])
        admin.delete_topics([kafka.prefix + topic for topic in Topic])
        with pytest.raises(LogUnavailable):
            log.append([some_feedback("p", feedback_id="f2")])
        log.append([some_feedback("p", feedback_id="f2")])
        assert feedback_ids(read_all(log)) == ["f2"]


# --- contents --------------------------------------------------------------------------------------------------------


def test_an_event_that_is_too_large_is_refused_by_name(kafka: Kafka) -> None:
    large = some_feedback("p", feedback_id="large", user_id="x" * 50_000_000)
    with contextlib.closing(kafka.log()) as log:
        outcomes = log.append([some_feedback("p", feedback_id="f1"), large, some_feedback("p", feedback_id="f2")])
        assert [outcomes[0], outcomes[2]] == [Appended(duplicate=False)] * 2
        assert isinstance(outcomes[1], InvalidInput)
        assert re.match(r"feedback 'large': is 50\d+ bytes long; .*kafka.max_record_bytes", str(outcomes[1]))
        assert feedback_ids(read_all(log)) == ["f1", "f2"]


def test_one_large_record_among_small_ones_has_a_fate_of_its_own(kafka: Kafka) -> None:
    """https://github.com/Trendyol/go-pq-cdc-kafka/issues/41: topics of 1 MB, images of 1.3 MB among small decisions.

    Large ones lose their content, which is what makes them large, and can still be learned from.
    """
    with contextlib.closing(kafka.log(max_record_bytes=1_048_588)) as operators:
        operators.append([some_feedback("p", feedback_id="first")])
    image = {"photo": EncodedContent("image", b"x" * 1_300_000)}
    made = [a_decision(f"d{n}", content=image if n % 8 == 3 else {"q": TextContent("small")}) for n in range(48)]
    with contextlib.closing(kafka.log()) as log:
        outcomes = log.append(made)
        assert outcomes == [Appended(duplicate=False, without_content=n % 8 == 3) for n in range(48)]
        found = {r.event.prediction_id: r.event for r in read_all(log) if isinstance(r.event, Decision)}
    assert found.keys() == {decision.prediction_id for decision in made}
    assert [sorted(found[f"d{n}"].content) for n in (2, 3)] == [["q"], []]
    assert found["d3"].features is not None


def test_a_topic_that_takes_less_than_configured_says_so(kafka: Kafka) -> None:
    with contextlib.closing(kafka.log(max_record_bytes=70_000)) as log:
        log.append([some_feedback("p")])
    with contextlib.closing(kafka.log()) as log:
        refused, taken = log.append(
            [some_feedback("p", feedback_id="large", user_id="x" * 200_000), some_feedback("p", feedback_id="small")]
        )
        assert "max.message.bytes" in str(refused)
        assert taken == Appended(duplicate=False)


def test_what_cannot_be_written_is_refused_alone(kafka: Kafka) -> None:
    with contextlib.closing(kafka.log()) as log:
        bad, good = log.append([some_feedback("p", feedback_id="\ud800"), some_feedback("p", feedback_id="good")])
        assert isinstance(bad, InvalidInput)
        assert good == Appended(duplicate=False)
        assert feedback_ids(read_all(log)) == ["good"]


def test_a_record_of_50_mb_is_unreadable_and_its_dead_letter_fits(kafka: Kafka) -> None:
    """A topic that takes it, and a program that writes it: the reader goes on, and the letter says what was cut off."""
    with contextlib.closing(kafka.log(max_record_bytes=60_000_000)) as generous:
        generous.append([some_feedback("p", feedback_id="f1")])
    payload = b"\xff" * 50_000_000
    send(kafka, Topic.FEEDBACK, payload)
    with contextlib.closing(kafka.log(max_record_bytes=1_000_000)) as log:
        log.append([some_feedback("p", feedback_id="f2")])
        before, unreadable, after = read_all(log)
        assert feedback_ids([before, after]) == ["f1", "f2"]
        assert isinstance(unreadable.event, UnreadableRecord)
        assert unreadable.event.payload == payload
        log.append([DeadLetter(unreadable.topic, unreadable.position, unreadable.event.problem, payload, 1.0)])
        (letter,) = (record.event for record in read_all(log, [Topic.DEAD_LETTER]))
    assert isinstance(letter, DeadLetter)
    assert letter.source_position == "0:1"
    assert len(letter.payload) > 990_000
    assert payload.startswith(letter.payload)
    assert letter.reason.endswith(f"(the first {len(letter.payload)} of 50000000 bytes are kept)")


def test_fields_of_a_newer_schema_are_read_past_and_stay_in_the_log(kafka: Kafka, log: KafkaLog) -> None:
    event = some_feedback("p", feedback_id="f1")
    newer = encode_event(event) + b"\xfa\x3e\x05hello"  # field 1007, which is not defined yet
    log.append([some_feedback("p", feedback_id="f0")])
    send(kafka, Topic.FEEDBACK, newer, headers=[("event-type", b"plaudit.v1.FeedbackEvent")])
    assert read_all(log)[1].event == event
    consumed = kafka_records(kafka, Topic.FEEDBACK)
    assert consumed[1] == newer


def test_a_record_of_another_topic_is_unreadable_though_it_could_be_decoded(kafka: Kafka, log: KafkaLog) -> None:
    log.append([some_feedback("p", feedback_id="f0")])
    send(
        kafka,
        Topic.FEEDBACK,
        encode_event(some_feedback("p", feedback_id="f1")),
        headers=[("event-type", b"plaudit.v1.DecisionEvent")],
    )
    send(kafka, Topic.FEEDBACK, encode_event(a_decision("p")))
    send(kafka, Topic.FEEDBACK, b"")
    records = read_all(log)
    assert feedback_ids(records) == ["f0"]
    said, unsaid, empty = problems(records)
    assert (
        said
        == "plaudit.feedback holds plaudit.v1.FeedbackEvent; the header of this record says plaudit.v1.DecisionEvent"
    )
    assert "plaudit.feedback" in unsaid
    assert "feedback_id: is empty" in empty


def kafka_records(kafka: Kafka, topic: Topic) -> list[bytes]:
    """Payloads as they are in the log."""
    from kafka import KafkaConsumer

    where = TopicPartition(kafka.prefix + topic, 0)
    with KafkaConsumer(bootstrap_servers=kafka.bootstrap, enable_auto_commit=False) as consumer:
        consumer.assign([where])
        consumer.seek(where, 0)
        count = consumer.end_offsets([where])[where]
        payloads: list[bytes] = []
        while len(payloads) < count:
            payloads += [record.value for each in consumer.poll(1000).values() for record in each]
    return payloads


# --- what the log lost -----------------------------------------------------------------------------------------------


def test_what_retention_took_before_it_was_read_is_said_once(
    kafka: Kafka, log: KafkaLog, admin: KafkaAdminClient
) -> None:
    log.append([some_feedback("p", feedback_id=f"f{number}") for number in range(6)])
    reader = log.reader("g", BOTH, dict)
    taken = read(reader, 2)
    reader.close()
    admin.delete_records({TopicPartition(kafka.prefix + Topic.FEEDBACK, 0): 4})
    records = read_all(log, start=positions(taken))  # lag counts from 4 on; the notice comes first
    (problem,) = problems(records)
    assert problem.endswith("plaudit.feedback-0: offsets 2 to 3 were removed from the log before they were read")
    assert records[0].position == "0:2-3"
    again = read_all(log, start=positions(records))
    assert problems(again) == []
    assert feedback_ids([*records, *again]) == ["f4", "f5"]


@pytest.mark.parametrize("records_before", [1, 5], ids=["fewer before", "more before"])
def test_a_topic_made_anew_is_read_from_its_beginning(
    kafka: Kafka, admin: KafkaAdminClient, records_before: int
) -> None:
    with contextlib.closing(kafka.log()) as log:
        log.append([some_feedback("p", feedback_id=f"old{number}") for number in range(records_before)])
        taken = read_all(log)
    admin.delete_topics([kafka.prefix + topic for topic in Topic])
    with contextlib.closing(kafka.log()) as log:
        log.append([some_feedback("p", feedback_id=f"new{number}") for number in range(3)])
        reader = log.reader("g", BOTH, positions(taken))
        notices = read(reader, 2)  # one of each topic
        assert all("recreated" in problem for problem in problems(notices))
        assert len(problems(notices)) == 2
        records = read(reader, 3)
        reader.close()
        assert feedback_ids(records) == ["new0", "new1", "new2"]
        assert read_all(log, start=positions([*notices, *records])) == []


@pytest.mark.parametrize("seen_gone", [False, True], ids=["at once", "after it was seen gone"])
def test_a_topic_made_anew_under_a_reader(kafka: Kafka, admin: KafkaAdminClient, seen_gone: bool) -> None:
    """Nothing of the new topic is missed. Some of it may come twice: it can be fetched before it is known to be new."""
    saved: dict[str, str] = {}

    def take() -> list[Record]:
        records = list(reader.poll(100, 0.1))
        saved.update(positions(records)())
        return records

    with contextlib.closing(kafka.log()) as log:
        log.append([some_feedback("p", feedback_id=f"old{number}") for number in range(3)])
        reader = log.reader("g", BOTH, lambda: saved)
        while "0" not in saved or saved["0"].count(", 3]") != 1:
            take()
    admin.delete_topics([kafka.prefix + topic for topic in Topic])
    while seen_gone and reader._places:
        assert take() == []
    with contextlib.closing(kafka.log()) as log:
        log.append([some_feedback("p", feedback_id=f"new{number}") for number in range(5)])
    records: list[Record] = []
    while len(set(feedback_ids(records))) < 5 or not problems(records):
        records += take()
    reader.close()
    assert set(feedback_ids(records)) == {f"new{number}" for number in range(5)}
    assert any("recreated" in problem for problem in problems(records))


def test_a_group_that_is_reset_changes_nothing(kafka: Kafka, log: KafkaLog, admin: KafkaAdminClient) -> None:
    log.append([some_feedback("p", feedback_id=f"f{number}") for number in range(4)])
    reader = log.reader("g", BOTH, dict)
    taken = read(reader, 2)
    reader.commit(positions(taken)())
    reader.close()
    group = kafka.prefix + "g"
    committed = admin.list_group_offsets([group])[group]
    assert committed[TopicPartition(kafka.prefix + Topic.FEEDBACK, 0)].offset == 2
    admin.delete_groups([group])
    reader = log.reader("g", BOTH, positions(taken))
    assert feedback_ids(read(reader, 2)) == ["f2", "f3"]
    reader.close()


# --- a log that others write to ------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
@pytest.mark.parametrize("by", ["producer", "broker"])
def test_every_codec_that_brokers_allow_is_read(kafka: Kafka, log: KafkaLog, codec: str, by: str) -> None:
    """https://github.com/dpkp/kafka-python/issues/2316: a topic's codec and a foreign producer's are not alike."""
    log.append([some_feedback("p", feedback_id="ours")])
    topic = kafka.prefix + Topic.FEEDBACK
    if by == "broker":
        set_config(kafka, Topic.FEEDBACK, "compression.type", codec)
    large = "x" * 3_000_000  # more than the megabyte that a decoder may take for granted
    with KafkaProducer(
        bootstrap_servers=kafka.bootstrap,
        compression_type=codec if by == "producer" else None,
        max_request_size=10_000_000,
    ) as producer:
        for number in range(3):
            event = some_feedback(large if number == 1 else "p", feedback_id=f"theirs {number}")
            producer.send(topic, encode_event(event), key=b"p")
    assert feedback_ids(read_all(log)) == ["ours", "theirs 0", "theirs 1", "theirs 2"]


def test_a_codec_without_its_library_is_refused_by_name(
    kafka: Kafka, log: KafkaLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.append([some_feedback("p")])
    topic = kafka.prefix + Topic.FEEDBACK
    set_config(kafka, Topic.FEEDBACK, "compression.type", "zstd")
    monkeypatch.setattr("kafka.codec.zstd", None)
    with contextlib.closing(log.reader("g", BOTH, dict)) as reader, pytest.raises(LogUnavailable) as caught:
        reader.poll(10, 1.0)
    assert f"{topic}: its records are compressed with zstd, which needs zstandard" in caught.value.problem


def test_a_batch_that_cannot_be_unpacked_holds_up_its_own_partition_alone(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """https://github.com/dpkp/kafka-python/issues/2044: kafka-python never returned from the poll after the first one.

    Once the library is there, the partition goes on where it stopped.
    """
    with contextlib.closing(kafka.log(partitions=2)) as log:
        log.append([some_feedback("other", feedback_id=f"other {number}") for number in range(2)])
        (taken,) = {record.partition for record in read_all(log)}
        with KafkaProducer(bootstrap_servers=kafka.bootstrap, compression_type="zstd") as producer:
            payload = encode_event(some_feedback("p" * 1000, feedback_id="zstd"))
            producer.send(kafka.prefix + Topic.FEEDBACK, payload, partition=1 - int(taken)).get(WAIT_S)
        with monkeypatch.context() as missing, contextlib.closing(log.reader("g", BOTH, dict)) as reader:
            missing.setattr("kafka.codec.zstd", None)
            assert sorted(feedback_ids(read(reader, 2))) == ["other 0", "other 1"]
            while not reader._unpacked_at_s:
                assert not reader.poll(10, 1.0)
            assert not reader.poll(10, 0.5)
            log.append([some_feedback("other", feedback_id="other 2")])
            assert feedback_ids(read(reader, 1)) == ["other 2"]
            missing.undo()
            reader._unpacked_at_s = dict.fromkeys(reader._unpacked_at_s, 0.0)
            assert feedback_ids(read(reader, 1)) == ["zstd"]


def test_transactions_of_others_are_read_once_committed_and_their_markers_are_no_losses(
    kafka: Kafka, log: KafkaLog
) -> None:
    """https://github.com/apache/pinot/pull/19161, https://github.com/dpkp/kafka-python/issues/1707: markers take
    offsets, and what was aborted must not be learned from.
    """
    topic = kafka.prefix + Topic.FEEDBACK
    log.append([some_feedback("p", feedback_id="ours 1")])
    with KafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id=f"{kafka.prefix}t") as producer:
        producer.init_transactions()
        for number in range(4):
            producer.begin_transaction()
            producer.send(topic, encode_event(some_feedback("p", feedback_id=f"theirs {number}")), key=b"p")
            (producer.abort_transaction if number % 2 else producer.commit_transaction)()
        log.append([some_feedback("p", feedback_id="ours 2")])
        producer.begin_transaction()
        producer.send(topic, encode_event(some_feedback("p", feedback_id="theirs 4")), key=b"p")
        producer.flush()
        log.append([some_feedback("p", feedback_id="ours 3")])
        with contextlib.closing(log.reader("g", BOTH, dict)) as reader:
            records = read(reader, 4)
            assert feedback_ids(records) == ["ours 1", "theirs 0", "theirs 2", "ours 2"]
            assert problems(records) == []
            assert (reader.poll(10, 0.5), reader.lag()) == ([], 0)
            producer.commit_transaction()
            records += read(reader, 2)
            assert feedback_ids(records[4:]) == ["theirs 4", "ours 3"]
            while reader.lag():  # of the last marker
                assert not reader.poll(10, 0.1)
    with contextlib.closing(log.reader("g", BOTH, positions(records))) as reader:
        while reader.lag():
            assert not reader.poll(10, 0.1)


# --- readers that share ----------------------------------------------------------------------------------------------


class Readers:
    """Readers of one group, each on a thread of its own, that save what they take in at one place."""

    def __init__(self, log: KafkaLog) -> None:
        self._log = log
        self._changed = threading.Condition()
        self._threads: dict[str, threading.Thread] = {}
        self._stopping: set[str] = set()
        self._saved: dict[str, str] = {}
        self.partitions: dict[str, int] = {}
        self.found: list[str] = []
        self.owners: dict[str, set[str]] = {}

    def start(self, name: str) -> None:
        self._threads[name] = threading.Thread(target=self._read, args=(name,))
        self._threads[name].start()

    def stop(self, name: str) -> None:
        self._stopping.add(name)
        self._threads.pop(name).join()

    def wait(self, until: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(until, WAIT_S)

    def _read(self, name: str) -> None:
        with contextlib.closing(self._log.reader("g", BOTH, lambda: dict(self._saved))) as reader:
            while name not in self._stopping:
                records = reader.poll(100, 0.1)
                with self._changed:
                    for record in records:
                        assert isinstance(record.event, Decision | Feedback)
                        self._saved[record.partition] = record.cursor
                        self.owners.setdefault(record.event.prediction_id, set()).add(name)
                        self.found += feedback_ids([record])
                    self.partitions[name] = len(reader._places)
                    self._changed.notify_all()
        with self._changed:
            self.partitions[name] = 0
            self._changed.notify_all()


def test_asking_for_the_lag_while_the_group_rebalances_skips_no_record(kafka: Kafka) -> None:
    """What kafka-python fetched of a partition that the reader keeps was thrown away while it waited for the group."""
    with contextlib.closing(kafka.log()) as log, contextlib.closing(log.reader("g", BOTH, dict)) as reader:
        log.append([some_feedback("p", feedback_id=f"f{number}") for number in range(20)])
        records = read(reader, 1)
        coordinator = reader._consumer._coordinator
        with coordinator._lock:  # as when another member joins
            coordinator.state = MemberState.REBALANCING
            coordinator.request_rejoin()
        assert reader.lag() == 19
        assert feedback_ids([*records, *read(reader, 19)]) == [f"f{number}" for number in range(20)]


def test_a_partition_that_is_lost_in_one_topic_goes_on_in_the_other(kafka: Kafka) -> None:
    with contextlib.closing(kafka.log()) as log, contextlib.closing(log.reader("g", BOTH, dict)) as reader:
        log.append([a_decision("p"), some_feedback("p", feedback_id="f1")])
        read(reader, 2)
        lost = TopicPartition(kafka.prefix + Topic.DECISIONS, 0)
        reader._membership.on_partitions_revoked([lost])
        log.append([some_feedback("p", feedback_id="f2")])
        assert feedback_ids(read(reader, 1)) == ["f2"]


def test_readers_of_a_group_share_and_hand_over(kafka: Kafka) -> None:
    """A second reader joins and gets half the partitions; the first one leaves and the second one gets the rest.

    Nothing is missed; nothing is read twice either, because each saves before it releases its partitions.
    """
    with contextlib.closing(kafka.log(partitions=4)) as log:

        def write(when: str) -> list[str]:
            names = [f"{when} {number}" for number in range(40)]
            log.append([event for name in names for event in (a_decision(name), some_feedback(name, feedback_id=name))])
            return names

        readers = Readers(log)
        readers.start("first")
        alone = write("alone")
        readers.wait(lambda: len(readers.found) == 40)
        readers.start("second")
        readers.wait(lambda: readers.partitions == {"first": 2, "second": 2})
        together = write("together")
        readers.wait(lambda: len(readers.found) == 80)
        readers.stop("first")
        after = write("after")
        readers.wait(lambda: len(readers.found) == 120)
        readers.stop("second")
    assert sorted(readers.found) == sorted(alone + together + after)
    shared = [readers.owners[name] for name in together]
    assert {len(owners) for owners in shared} == {1}, "a decision and its feedback were with different readers"
    assert set().union(*shared) == {"first", "second"}
    assert [readers.owners[name] for name in after] == [{"second"}] * 40


def test_a_reader_that_takes_a_process_slot_goes_on_in_its_place_at_once(kafka: Kafka, tmp_path: Path) -> None:
    """Though the one before is, for all that the brokers know, still there: killed a moment ago, or stuck."""
    slot = ProcessSlot(tmp_path)
    with contextlib.closing(kafka.log(slot=slot)) as log:
        log.append([some_feedback("p", feedback_id=f"f{number}") for number in range(4)])
        before = log.reader("g", BOTH, dict)
        taken = read(before, 2)
        with contextlib.closing(log.reader("g", BOTH, positions(taken))) as after:
            assert feedback_ids(read(after, 2)) == ["f2", "f3"]
        before.close()


def test_a_reader_with_a_process_slot_leaves_the_group_when_it_is_closed(
    kafka: Kafka, admin: KafkaAdminClient, tmp_path: Path
) -> None:
    with contextlib.closing(kafka.log(slot=ProcessSlot(tmp_path))) as log:
        log.append([some_feedback("p", feedback_id="f")])
        reader = log.reader("g", BOTH, dict)
        read(reader, 1)
        group = kafka.prefix + "g"
        assert len(admin.describe_groups([group])[group]["members"]) == 1
        reader.close()
        assert admin.describe_groups([group])[group]["members"] == []


# --- brokers that go away --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A broker that may be hurt; every test leaves it running."""
    need_broker()
    with Cluster(tmp_path_factory.mktemp("frail")) as cluster:
        yield cluster


def test_no_broker_there(kafka: Kafka) -> None:
    with contextlib.closing(Kafka("127.0.0.1:9").log()) as log:
        with pytest.raises(LogUnavailable, match=r"kafka\.bootstrap_servers: 127\.0\.0\.1:9 cannot be reached"):
            log.append([some_feedback("p")])
        with contextlib.closing(log.reader("g", BOTH, dict)) as reader, pytest.raises(LogUnavailable):
            reader.poll(1, 0)


def test_another_service_there() -> None:
    """Something listens that is no broker."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        log = Kafka(f"127.0.0.1:{port}").log(timeout_s=0.5)
        with pytest.raises(LogUnavailable, match=f"127.0.0.1:{port} accepts connections but does not answer"):
            log.append([some_feedback("p")])
        log.close()


def test_a_port_that_opens_and_shuts_at_once_is_tried_again_after_a_pause() -> None:
    """As that of a proxy whose broker is away. kafka-python alone would try again without any."""
    with socket.create_server(("127.0.0.1", 0)) as port:
        server = f"127.0.0.1:{port.getsockname()[1]}"
        threading.Thread(target=lambda: port.accept()[0].close(), daemon=True).start()
        client = _with_backoff(KafkaNetClient(bootstrap_servers=server, reconnect_backoff_ms=60_000))
        node = client.cluster.bootstrap_brokers()[0].node_id
        client.maybe_connect(node)
        _eventually(lambda: _shut(client, node))
        client.poll(timeout_ms=10)
        assert client.connection_delay(node) > 0
        client.close()


def _shut(client: KafkaNetClient, node: str) -> None:
    client.poll(timeout_ms=10)
    if node in client._manager._conns:
        raise LogUnavailable("not yet")


def test_killed_and_back(frail: Cluster) -> None:
    kafka = Kafka(frail.bootstrap).corner()
    log = kafka.log(delivery_timeout_s=2.0)
    log.append([some_feedback("p", feedback_id="before")])
    reader = log.reader("g", BOTH, dict)
    assert feedback_ids(read(reader, 1)) == ["before"]
    frail.brokers[0].kill()
    for _ in range(3):
        with pytest.raises(LogUnavailable, match=frail.bootstrap):
            log.append([some_feedback("p", feedback_id="meanwhile")])
    frail.brokers[0].start()
    log.append([some_feedback("p", feedback_id="after")])
    assert feedback_ids(read(reader, 1)) == ["after"]
    reader.close()
    log.close()


def test_stopped_in_its_tracks_and_back(frail: Cluster) -> None:
    """A paused broker takes connections and says nothing; what it was sent may be added all the same."""
    kafka = Kafka(frail.bootstrap).corner()
    log = kafka.log(delivery_timeout_s=1.0, timeout_s=1.0)
    log.append([some_feedback("p", feedback_id="before")])
    frail.brokers[0].pause()
    try:
        for _ in range(2):
            with pytest.raises(LogUnavailable):
                log.append([some_feedback("p", feedback_id="meanwhile")])
    finally:
        frail.brokers[0].resume()
    _eventually(lambda: log.append([some_feedback("p", feedback_id="after")]))
    found = feedback_ids(read_all(log))
    assert found[0] == "before"
    assert found[-1] == "after"
    assert set(found[1:-1]) <= {"meanwhile"}
    log.close()


def test_what_was_acknowledged_survives_the_brokers_kill_9(frail: Cluster) -> None:
    kafka = Kafka(frail.bootstrap).corner()
    log = kafka.log(delivery_timeout_s=1.0)
    acknowledged: list[str] = []
    enough, stop = threading.Event(), threading.Event()

    def write(thread: int) -> None:
        number = 0
        while not stop.is_set():
            name = f"{thread}-{number}"
            try:
                log.append([some_feedback(name, feedback_id=name)])
            except LogUnavailable:
                return
            acknowledged.append(name)
            number += 1
            if len(acknowledged) > 200:
                enough.set()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    assert enough.wait(WAIT_S)
    frail.brokers[0].kill()
    stop.set()
    for thread in threads:
        thread.join()
    frail.brokers[0].start()
    found = feedback_ids(read_all(log))
    assert set(acknowledged) <= set(found)
    assert len(found) - len(acknowledged) <= 4  # one in flight per thread
    log.close()


def _eventually(attempt: Callable[[], object]) -> None:
    """Until it works; pytest's own time limit ends it."""
    while True:
        try:
            attempt()
            return
        except LogUnavailable:
            continue


# --- brokers that refuse ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A broker that only lets alice in."""
    need_broker()
    with Cluster(tmp_path_factory.mktemp("guarded"), users={"alice": "wonderland"}) as cluster:
        yield cluster


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256"])
def test_who_is_known_may_write_and_read(guarded: Cluster, mechanism: str) -> None:
    kafka = Kafka(guarded.bootstrap).corner()
    log = kafka.log(
        security="SASL_PLAINTEXT", sasl_mechanism=mechanism, sasl_username="alice", sasl_password="wonderland"
    )
    with contextlib.closing(log):
        log.append([some_feedback("p", feedback_id="f1")])
        assert feedback_ids(read_all(log)) == ["f1"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"sasl_password": "wrong"}, r"kafka\.sasl_username: .* 'alice'"),
        ({"sasl_password": "wrong", "sasl_mechanism": "PLAIN"}, r"kafka\.sasl_username: .* 'alice'"),
        ({"sasl_mechanism": "SCRAM-SHA-512"}, "SCRAM-SHA-512"),
        ({"security": "PLAINTEXT"}, r"is kafka\.security \(PLAINTEXT\) that of the port"),
        ({"security": "SASL_SSL"}, r"cannot agree on TLS"),
    ],
)
def test_who_is_not_known_is_told_which_setting_is_wrong(
    guarded: Cluster, changes: dict[str, str], problem: str
) -> None:
    known = {"security": "SASL_PLAINTEXT", "sasl_username": "alice", "sasl_password": "wonderland", "timeout_s": 2.0}
    with contextlib.closing(Kafka(guarded.bootstrap).log(**known | changes)) as log:
        with pytest.raises(LogUnavailable, match=problem):
            log.append([some_feedback("p")])
        with contextlib.closing(log.reader("g", BOTH, dict)) as reader, pytest.raises(LogUnavailable, match=problem):
            reader.poll(1, 0)


def test_tls(tmp_path: Path) -> None:
    need_broker()
    key, certificate, both = tmp_path / "key.pem", tmp_path / "certificate.pem", tmp_path / "both.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    both.write_bytes(key.read_bytes() + certificate.read_bytes())
    with Cluster(tmp_path / "broker", keystore=both) as cluster:
        with contextlib.closing(Kafka(cluster.bootstrap).log(security="SSL", tls_ca_file=str(certificate))) as log:
            log.append([some_feedback("p", feedback_id="f1")])
            assert feedback_ids(read_all(log)) == ["f1"]
        log = Kafka(cluster.bootstrap).log(security="SSL")
        with pytest.raises(LogUnavailable, match=r"CERTIFICATE_VERIFY_FAILED.*kafka\.tls_ca_file"):
            log.append([some_feedback("p")])


def test_cursor_is_json_for_people(log: KafkaLog) -> None:
    log.append([some_feedback("p", feedback_id="f1")])
    (record,) = read_all(log)
    offsets = {name.rpartition("plaudit.")[2]: offset for name, (_, offset) in json.loads(record.cursor).items()}
    assert offsets == {"decisions": 0, "feedback": 1}
