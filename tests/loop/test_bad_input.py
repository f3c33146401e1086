"""Records that are too large, of a newer version or broken, a full disk, a store that goes away: each is said clearly,
and nothing is lost or counted twice.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from plaudit.core.errors import WrongLog
from plaudit.core.events import DeadLetter, Decision, EncodedContent, Thumb, Topic
from plaudit.core.ports.store import IngestBatch
from plaudit.core.wire import decode_event, encode_event
from plaudit.learner.loop import Learner
from plaudit.learner.status import STATUS, read_status
from plaudit.v1 import content_pb2, events_pb2
from plaudit_models.bundle import HEAD, MANIFEST, TRUNK, CorruptBundle, verify
from support.loop_recount import recount
from support.loop_world import SPEC, World, assert_same_sums, reward_state
from support.postgres_server import PostgresServer

MakeWorld = Callable[..., World]


def likes_fish(decision: Decision) -> bool:
    return decision.action == "fish"


class Stop:
    """Ends the loop once so many experiences are learned. Instead of waiting after a failure it calls ``mend``."""

    def __init__(self, learner: Learner, experiences: int, mend: Callable[[], None]) -> None:
        self._learner = learner
        self._experiences = experiences
        self._mend = mend

    def is_set(self) -> bool:
        return self._learner.state.progress.experiences == self._experiences

    def wait(self, timeout_s: float) -> bool:
        self._mend()
        return False


def check(world: World, learner: Learner) -> None:
    assert_same_sums(reward_state(learner), recount(world.log, SPEC, reward_state(learner).space)[0])


def test_fields_of_a_newer_version_are_passed_over(make_world: MakeWorld) -> None:
    """Field 999, of wire type 2, is none that this version knows."""
    unknown = b"\xba\x3e\x05newer"
    world = make_world()
    learner = world.learner()
    decision = world.decide()
    for event in (decision, world.say(decision, Thumb(up=True))):
        topic = Topic.DECISIONS if isinstance(event, Decision) else Topic.FEEDBACK
        newer = encode_event(event) + unknown
        decoded = decode_event(topic, newer)
        message = events_pb2.DecisionEvent if isinstance(event, Decision) else events_pb2.FeedbackEvent
        # As messages: maps have no order among their bytes.
        assert message.FromString(encode_event(decoded)) == message.FromString(encode_event(event))
        world.log._connection.execute(  # type: ignore[attr-defined]
            "INSERT INTO events (topic, event_id, key, time_s, payload) VALUES (?, ?, 'k', 0, ?)",
            (topic, str(id(event)), newer),
        )
    world.settle(learner)
    assert learner.state.progress.experiences == 1
    assert "unreadable" not in learner.store.intake_stats().outcomes


def test_a_record_of_50_megabytes_is_learned_from(make_world: MakeWorld) -> None:
    world = make_world()
    learner = world.learner()
    large = {"image": EncodedContent("image", bytes(50_000_000))}
    decision = world.decide(content=large)
    world.log.append([decision, world.say(decision, Thumb(up=True))])
    world.traffic(5, likes_fish)
    world.settle(learner)
    assert learner.state.progress.experiences == 6
    assert world.store.contents([decision.prediction_id])[decision.prediction_id] == large
    check(world, learner)


@pytest.mark.parametrize("moment", ["before what was read is saved", "before what was learned is saved"])
def test_a_store_that_goes_away_in_the_middle_of_a_step(
    tmp_path: Path, own_postgres: PostgresServer, moment: str
) -> None:
    """The server crashes; the learner says so, and begins again from what was saved when it is back."""
    settings: dict[str, dict[str, Any]] = {"learner": {"batch": 1, "max_wait_s": 0.001}, "finetune": {"enabled": False}}
    world = World(tmp_path, settings=settings, store_url=own_postgres.create_database(), lease_s=0.0)
    world.first_version()
    learner = world.learner()
    world.traffic(10, likes_fish)
    method = "save_batch" if moment == "before what was read is saved" else "save"
    original, calls = getattr(world.store, method), []

    def crash_first(changes: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            own_postgres.stop()
        original(changes)

    setattr(world.store, method, crash_first)
    world.traffic(10, likes_fish)
    failures: list[int] = []

    def mend() -> None:
        failures.append(1)
        if len(failures) == 2:  # it is still away when the learner tries to begin again
            own_postgres.start()

    with capture_logs() as said:
        learner.consumer.limit = 20
        learner.run(Stop(learner, 20, mend))  # type: ignore[arg-type]
    assert len(failures) >= 2
    problems = [each["problem"] for each in said if each["log_level"] == "error"]
    assert all(
        "the experience store is unavailable, nothing was saved: postgresql+psycopg://" in each for each in problems
    )
    check(world, learner)
    learner.close()
    world.close()


FULL_DISK = textwrap.dedent("""
    import os, resource, sys
    from pathlib import Path
    from support.loop_world import World

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    world = World(Path(sys.argv[1]), settings={
        "learner": {"batch": 8, "max_wait_s": 0.001, "poll_limit": 32}, "finetune": {"enabled": False},
    })
    learner = world.learner()
    failures = []

    class Stop:
        def is_set(self):
            return learner.state.progress.experiences == 40
        def wait(self, timeout_s):
            failures.append(1)
            if len(failures) == 3:
                limit(resource.RLIM_INFINITY)

    limit(int(sys.argv[2]))
    learner.run(Stop())
    assert len(failures) >= 3, failures
    """)


@pytest.mark.parametrize("size_bytes", [0, 100_000])
def test_a_full_disk(make_world: MakeWorld, tmp_path: Path, size_bytes: int) -> None:
    """No file may grow beyond the size: the learner says what it cannot write, and goes on when there is room."""
    world = make_world()
    world.traffic(40, likes_fish)
    path = ":".join(str(Path(__file__).parents[2] / part) for part in ("tests", "services", "models"))
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), str(size_bytes)],
        env={"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step given up, will be done again" in done.stdout
    assert any(words in done.stdout for words in ("disk is full", "disk I/O error", "File too large"))
    check(world, world.learner())


def test_what_no_server_of_ours_would_log_goes_to_the_dead_letters_by_field(make_world: MakeWorld) -> None:
    """A reward outside [0, 1] and a propensity of 0, written into the log by another program; the loop goes on."""
    world = make_world()
    learner = world.learner()
    decision = world.decide()
    impossible = events_pb2.DecisionEvent.FromString(encode_event(world.decide()))
    impossible.propensity = 0.0
    too_good = events_pb2.FeedbackEvent.FromString(encode_event(world.say(decision, Thumb(up=True))))
    too_good.rating = 1.5
    for topic, message in (("plaudit.decisions", impossible), ("plaudit.feedback", too_good)):
        world.log._connection.execute(  # type: ignore[attr-defined]
            "INSERT INTO events (topic, event_id, key, time_s, payload) VALUES (?, ?, 'k', 0, ?)",
            (topic, topic, message.SerializeToString()),
        )
    world.log.append([decision, world.say(decision, Thumb(up=True))])
    world.settle(learner)
    assert (learner.state.progress.experiences, learner.store.intake_stats().outcomes["unreadable"]) == (1, 2)
    reader = world.log.reader("test", [Topic.DEAD_LETTER], start=dict)
    letters = [record.event for record in reader.poll(10, 0.0)]
    reader.close()
    reasons = [letter.reason for letter in letters if isinstance(letter, DeadLetter)]
    assert any("propensity" in reason and "0.0 is not in (0, 1]" in reason for reason in reasons)
    assert any("rating" in reason and "1.5 is not in [0, 1]" in reason for reason in reasons)
    check(world, learner)


@pytest.mark.parametrize("shape", [[1] * 65, [0, 2**62, 2**62], [2**62] * 10_000], ids=["65 axes", "empty", "long"])
def test_a_record_that_its_decoder_fails_on_does_not_end_the_learner(make_world: MakeWorld, shape: list[int]) -> None:
    """numpy's ValueError ended it, and again after each restart."""
    world = make_world()
    learner = world.learner()
    decision = world.decide()
    poisonous = events_pb2.DecisionEvent.FromString(encode_event(world.decide()))
    poisonous.content["sensor"].tensor.data_type = content_pb2.DATA_TYPE_FP32
    poisonous.content["sensor"].tensor.shape[:] = shape
    world.log._connection.execute(  # type: ignore[attr-defined]
        "INSERT INTO events (topic, event_id, key, time_s, payload) VALUES ('plaudit.decisions', 'x', 'k', 0, ?)",
        (poisonous.SerializeToString(),),
    )
    world.log.append([decision, world.say(decision, Thumb(up=True))])
    world.settle(learner)
    assert (learner.state.progress.experiences, learner.store.intake_stats().outcomes["unreadable"]) == (1, 1)
    check(world, learner)


def test_no_thumbs_at_all_change_nothing(make_world: MakeWorld) -> None:
    """However many answers get no feedback: no version is made, no job is due, nothing is learned."""
    world = make_world({"learner": {"batch": 8}, "finetune": {"enabled": True, "every": 10}})
    learner = world.learner()
    world.log.append([world.decide() for _ in range(100)])
    world.now_s += 1_000
    world.settle(learner)
    learner.step()
    assert (learner.state.progress.experiences, world.registry.versions()) == (0, [1])
    assert learner.report()["finetune"]["phase"] == "idle"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EROFS, "Read-only file system", "/r"), "/r: Read-only file system; mount the file system so"),
        (
            OSError(errno.EACCES, "Permission denied", "/r"),
            f"/r: Permission denied; give this user (uid {os.getuid()})",
        ),
        (OSError(errno.EIO, "Input/output error", "/r"), "/r: Input/output error; the disk reports errors"),
        (CorruptBundle("manifest.json: cut"), "manifest.json: cut"),
    ],
    ids=["read-only", "rights", "disk", "half a file"],
)
def test_what_keeps_a_version_from_being_published_is_waited_for_with_growing_pauses(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    """The learner stays up, says what is missing wherever somebody may look, and goes on once it is put right."""
    world = make_world()
    learner = world.learner()
    world.traffic(3, likes_fish)
    pauses: list[float] = []
    statuses: list[Any] = []
    publish = world.registry.publish

    def refuse(_: Path) -> None:
        raise error

    class Mended(threading.Event):
        """Three attempts fail; then the registry can be written to, and the loop ends with the first version."""

        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            pauses.append(timeout)
            assert world.metric("plaudit_learner_blocked") == 1.0
            statuses.append(read_status(world.folder / "work" / STATUS))
            if len(pauses) == 3:
                monkeypatch.setattr(world.registry, "publish", publish)
            return False

        def is_set(self) -> bool:
            return world.registry.rollout().live != 1

    monkeypatch.setattr(world.registry, "publish", refuse)
    learner.run(Mended())
    assert pauses[:3] == [1.0, 2.0, 4.0]
    assert statuses[2]["problem"]["text"].startswith(said)
    assert statuses[2]["problem"]["since_s"] == statuses[0]["problem"]["since_s"]
    assert world.metric("plaudit_learner_failures_total") == 3
    learner.step()
    assert world.metric("plaudit_learner_leader") == 1.0
    check(world, learner)


def test_a_store_of_another_log_ends_the_learner_with_the_way_out(make_world: MakeWorld) -> None:
    """As where log.kind was changed and the store was kept."""
    world = make_world()
    world.store.save_batch(IngestBatch(positions={"0": "17,4"}))
    with pytest.raises(WrongLog, match=r"cursor '17,4' is not one of a SQLite log.*move the store away"):
        world.learner()


@pytest.mark.parametrize("name", [TRUNK, HEAD, MANIFEST])
def test_a_damaged_live_version_is_waited_for_and_not_sealed_again(make_world: MakeWorld, name: str) -> None:
    """The learner went down with a traceback at every start; and a head refresh would have taken a damaged trunk for
    one of its own. Mended, it goes on.
    """
    world = make_world()
    learner = world.learner()
    world.traffic(64, likes_fish)
    file = world.registry.folder(1) / name
    whole = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(whole[: len(whole) // 2])
    failures = 0

    def mend() -> None:
        nonlocal failures
        failures += 1
        assert list(world.registry.versions()) in ([1], [])
        if failures == 3:
            file.write_bytes(whole)

    learner.run(Stop(learner, 64, mend))  # type: ignore[arg-type]
    assert failures == 3
    assert learner.state.progress.experiences == 64
    world.settle(learner)
    verify(world.registry.folder(world.registry.versions()[-1]))
