"""Checks of the doctor where the log is Kafka: the brokers, and each topic against what the settings ask for."""

from __future__ import annotations

from collections.abc import Iterator

from plaudit.adapters.log.kafka.cluster import (
    TOGETHER,
    KafkaConnection,
    TopicFound,
    TopicPlan,
    codec_problem,
    count_records,
    find_topics,
)
from plaudit.cli.doctor.findings import Finding, State
from plaudit.core.errors import LogUnavailable
from plaudit.core.events import Topic

_LOG = "event log"


def examine_kafka(connection: KafkaConnection, plan: TopicPlan, feedback_window_s: float) -> Iterator[Finding]:
    """Findings: one about the brokers, then one or more about each topic."""
    try:
        found = find_topics(connection, plan)
        recorded = count_records(connection, plan, [topic for topic in TOGETHER if topic in found])
    except LogUnavailable as error:
        yield Finding(_LOG, State.ERROR, str(error), _broker_fix(str(error)))
        return
    yield Finding(_LOG, State.OK, f"Kafka answers; {recorded} decisions and pieces of feedback recorded")
    missing = [plan.name(topic) for topic in Topic if topic not in found]
    if missing:
        fix = "they are made when first used, where the broker allows it; or make them with kafka-topics --create"
        yield Finding("topics", State.NOTE, f"{', '.join(missing)}: not there yet", fix)
    counts = {plan.name(topic): found[topic].partitions for topic in TOGETHER if topic in found}
    if len(set(counts.values())) > 1:
        fix = "kafka-topics --alter --partitions N on the one with fewer, best before anything is recorded"
        yield Finding("topics", State.ERROR, f"{counts}: decisions and their feedback are in different partitions", fix)
    for topic, each in found.items():
        yield from _topic(plan, topic, each, feedback_window_s)


def _topic(plan: TopicPlan, topic: Topic, found: TopicFound, feedback_window_s: float) -> Iterator[Finding]:
    name = plan.name(topic)
    problems = list(_problems(plan, topic, found, feedback_window_s))
    for state, problem, fix in problems:
        yield Finding(f"topic {name}", state, problem, fix)
    if not problems:
        copies = f"{found.replication_factor} of each record, {found.configs['min.insync.replicas']} to be durable"
        kept = "kept for good" if plan.description(topic)["configs"]["retention.ms"] == "-1" else _days(found) + " kept"
        yield Finding(f"topic {name}", State.OK, f"{found.partitions} partitions; copies: {copies}; {kept}")


def _problems(
    plan: TopicPlan, topic: Topic, found: TopicFound, feedback_window_s: float
) -> Iterator[tuple[State, str, str]]:
    name, configs = plan.name(topic), found.configs
    alter = f"kafka-configs --alter --entity-type topics --entity-name {name} --add-config"
    wanted = plan.description(topic)
    if found.partitions < wanted["num_partitions"]:
        yield (
            State.NOTE,
            f"{found.partitions} partitions, fewer than kafka.partitions = {wanted['num_partitions']}: "
            f"no more than {found.partitions} learners can share the work",
            "set kafka.partitions to what is there; adding partitions later separates decisions from their feedback",
        )
    if found.replication_factor < plan.replication_factor:
        yield (
            State.ERROR,
            f"{found.replication_factor} copies of each record, fewer than kafka.replication_factor = "
            f"{plan.replication_factor}: what is acknowledged is lost with its broker",
            "kafka-reassign-partitions gives it more",
        )
    in_sync = int(configs["min.insync.replicas"])
    if in_sync > found.replication_factor:
        yield (
            State.ERROR,
            f"min.insync.replicas is {in_sync}, and there are {found.replication_factor} copies: nothing is written",
            f"{alter} min.insync.replicas={found.replication_factor}",
        )
    elif found.replication_factor >= 3 and in_sync < 2:
        yield (
            State.NOTE,
            f"min.insync.replicas is 1 of {found.replication_factor} copies: a record counts as durable on one broker",
            f"{alter} min.insync.replicas=2",
        )
    if "compact" in configs["cleanup.policy"]:
        yield (
            State.ERROR,
            "cleanup.policy is compact: of several pieces of feedback on one decision all but the last are removed",
            f"{alter} cleanup.policy=delete",
        )
    if problem := codec_problem(configs["compression.type"]):
        yield State.ERROR, problem, f"or {alter} compression.type=producer"
    retention_ms = int(configs["retention.ms"])
    if topic in TOGETHER and 0 <= retention_ms < 1000 * feedback_window_s:
        yield (
            State.ERROR,
            f"records are kept for {_days(found)}, less than serving.feedback_window_s ({feedback_window_s / 86_400:g} "
            "days): a learner that was away could miss some",
            f"{alter} retention.ms={round(1000 * plan.retention_s)}",
        )
    if int(configs["max.message.bytes"]) < plan.max_record_bytes:
        yield (
            State.ERROR,
            f"takes records of {configs['max.message.bytes']} bytes, less than kafka.max_record_bytes = "
            f"{plan.max_record_bytes}: decisions with large content are logged without it",
            f"{alter} max.message.bytes={plan.max_record_bytes}",
        )


def _days(found: TopicFound) -> str:
    retention_ms = int(found.configs["retention.ms"])
    return "for good" if retention_ms < 0 else f"{retention_ms / 86_400_000:g} days"


def _broker_fix(problem: str) -> str:
    if "sasl" in problem:
        return "set kafka.sasl_username, PLAUDIT_KAFKA__SASL_PASSWORD and kafka.sasl_mechanism as the brokers have them"
    if "does not allow" in problem:
        return "have the rights to read, write, describe and create the topics given to this user"
    return "start the brokers, or set kafka.bootstrap_servers and kafka.security to where and how they listen"
