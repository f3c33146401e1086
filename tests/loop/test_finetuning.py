"""Fine-tuning seen from the loop: due, trained elsewhere, judged on fresh experiences, promoted or not.

A tiny candidate takes the place of training: another trunk whose head prefers one action.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from safetensors.numpy import save_file

from plaudit.adapters.jobs.subprocess import SubprocessJobs
from plaudit.adapters.tracing.otel import OtelTracing
from plaudit.core.errors import StoreUnavailable
from plaudit.core.events import Decision
from plaudit.core.job_run import CANDIDATE, RESULT, write_json
from plaudit.core.ports.jobs import JobLauncher, JobState, JobStatus
from plaudit.core.ports.store import LeaderCommit
from plaudit.core.rollout import Change, pin
from plaudit.learner.finetuning.job_spec import CHECKPOINT, STATE, read_job_spec
from plaudit.learner.loop import Learner
from plaudit_models.bandit.reward_model import empty_state
from plaudit_models.spec import OutputSpec
from support.builders import NOW_S, tiny_bundle
from support.inline_jobs import InlineJobs
from support.loop_world import SPEC, World, assert_same_sums, candidate_that_prefers, reward_state

MakeWorld = Callable[..., World]


def likes_fish(decision: Decision) -> bool:
    return decision.action == "fish"


def tuning_world(
    make_world: MakeWorld,
    run_job: Callable[[Path], None],
    canary: Any = None,
    jobs: JobLauncher | None = None,
    **gate: Any,
) -> World:
    """A job is due after 50 experiences; heads are not refreshed, so that what is compared stands still."""
    return make_world(
        {
            "learner": {"batch": 10**6, "max_wait_s": 10**6},
            "finetune": {"enabled": True, "every": 50},
            "gate": {"min_events": 50, **gate},
            "canary": canary or {},
        },
        run_job=run_job,
        jobs=jobs,
    )


def keep_asking(world: World, learner: Learner, n: int = 25) -> None:
    """Eight rounds of traffic, enough for the gate to give up and an experiment to begin."""
    for _ in range(8):
        world.traffic(n, likes_fish)
        world.settle(learner)
        learner.step()


def drive(world: World, learner: Learner, rounds: int = 40) -> dict[str, Any]:
    """Traffic until the first candidate or job has an outcome; returns that outcome."""
    for _ in range(rounds):
        world.traffic(25, likes_fish)
        world.settle(learner)
        for _ in range(3):
            learner.step()
        outcomes = learner.report()["finetune"]["outcomes"]
        if outcomes:
            return dict(outcomes[0])
    pytest.fail(f"no outcome after {rounds} rounds: {learner.report()['finetune']}")


def test_an_imported_graph_has_its_head_refreshed_but_is_not_trained(make_world: MakeWorld) -> None:
    world = make_world({"learner": {"batch": 25}, "finetune": {"enabled": True, "every": 50}}, live=False)
    world.first_version(spec=replace(SPEC, outputs={"logits": OutputSpec("float32", (4,))}), kind="imported")
    learner = world.learner()
    for _ in range(6):
        world.traffic(25, likes_fish)
        world.settle(learner)
    live = world.registry.manifest(world.registry.rollout().live or 0)
    assert (live.kind, live.trainable) == ("head", False)
    tuning = learner.report()["finetune"]
    assert (tuning["phase"], tuning["outcomes"]) == ("idle", [])
    assert f"version {live.version} is an imported graph" in tuning["off"]


def test_a_better_candidate_passes_the_gate_and_goes_live(make_world: MakeWorld) -> None:
    world = tuning_world(make_world, candidate_that_prefers("fish"))
    learner = world.learner()
    outcome = drive(world, learner)
    assert (outcome["outcome"], outcome["version"]) == ("promote", 2)
    rollout = world.registry.rollout()
    assert (rollout.live, rollout.gated, rollout.previous) == (2, 2, 1)
    assert "passed the gate" in rollout.reason
    manifest = world.registry.manifest(2)
    assert manifest.kind == "finetuned"
    assert manifest.gate["verdict"] == "promote"
    assert manifest.gate["n"] >= 50
    learner.step()
    assert reward_state(learner).space.trunk_digest == manifest.trunk_digest
    assert reward_state(learner).weight.sum() == pytest.approx(learner.state.progress.experiences)


def test_a_worse_candidate_is_published_with_the_evidence_but_never_serves(make_world: MakeWorld) -> None:
    world = tuning_world(make_world, candidate_that_prefers("cat"))
    outcome = drive(world, world.learner())
    assert (outcome["outcome"], outcome["version"]) == ("reject", 2)
    assert world.registry.rollout().live == 1
    assert world.registry.manifest(2).gate["verdict"] == "reject"


def test_a_fine_tuned_version_can_be_traced_back_to_feedback_also_after_a_restart(make_world: MakeWorld) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    world = tuning_world(make_world, candidate_that_prefers("fish"))
    world.tracing = OtelTracing(provider)
    learner = world.learner()
    decision = world.decide()
    traced = world.say(decision, world.thumb(True), traceparent=f"00-{'a' * 32}-{'b' * 16}-01")
    world.log.append([decision, traced])
    while learner.report()["finetune"]["phase"] == "idle":
        world.traffic(25, likes_fish)
        world.settle(learner)
    learner.close()
    outcome = drive(world, world.learner())
    assert outcome["outcome"] == "promote"
    spans = {span.name: span for span in reversed(exporter.get_finished_spans())}  # the first of each name
    started, gate = spans["start fine-tuning"], spans["gate"]
    assert 0xB * 0x1111111111111111 in {link.context.span_id for link in started.links}
    assert dict(started.attributes or {}) == {"plaudit.parent": 1, "plaudit.run": outcome["run"]}
    assert gate.parent is not None
    assert (gate.parent.span_id, gate.context.trace_id) == (started.context.span_id, started.context.trace_id)
    assert dict(gate.attributes or {}) == {
        "plaudit.run": outcome["run"],
        "plaudit.verdict": "promote",
        "plaudit.version": 2,
    }
    says = world.registry.manifest(2).data["traceparent"]
    assert says.startswith(f"00-{gate.context.trace_id:032x}-{gate.context.span_id:016x}-")


def test_what_is_not_traced_says_nothing_of_traces(make_world: MakeWorld) -> None:
    world = tuning_world(make_world, candidate_that_prefers("cat"))
    drive(world, world.learner())
    assert "traceparent" not in world.registry.manifest(2).data


def test_a_candidate_that_one_user_group_pays_for_never_serves(make_world: MakeWorld) -> None:
    """Nothing but the label tells the fifth who hate fish from the others."""
    world = tuning_world(make_world, candidate_that_prefers("fish"), max_events=600)
    learner = world.learner()
    while not (outcomes := learner.report()["finetune"]["outcomes"]):
        for turn in range(40):
            hates_fish = turn % 5 == 0
            decision = world.decide(seed=turn % 20, user_group="de-DE" if hates_fish else "en-US")
            world.log.append([decision, world.say(decision, world.thumb(likes_fish(decision) != hates_fish))])
        world.settle(learner)
        for _ in range(3):
            learner.step()
    gate = world.registry.manifest(2).gate
    assert (outcomes[0]["outcome"], world.registry.rollout().live) in (("reject", 1), ("insufficient", 1))
    assert gate["e_value_gain"] >= 20  # over all it is proven to be better
    (part,) = [each for each in gate["slices"] if each["name"] == "user group de-DE"]
    assert part["suspected"] or part["e_value_harm"] >= part["threshold"]


def test_a_candidate_that_is_the_same_is_given_up_for_lack_of_evidence(make_world: MakeWorld) -> None:
    world = tuning_world(make_world, lambda run_dir: None, max_events=120)

    def same_as_live(run_dir: Path) -> None:
        task = read_job_spec(run_dir)
        made = tiny_bundle(run_dir / CANDIDATE, seed=0, kind="finetuned", parent=1, data=task.data)
        (run_dir / STATE).write_bytes(empty_state(task.plan.head_builder.space(made)).to_bytes())
        write_json(run_dir / RESULT, {})

    world.jobs = InlineJobs(same_as_live)
    outcome = drive(world, world.learner())
    assert outcome["outcome"] == "insufficient"
    assert world.registry.rollout().live == 1
    assert world.registry.manifest(2).gate["verdict"] == "insufficient"


def test_only_experiences_after_the_snapshot_are_evidence(make_world: MakeWorld) -> None:
    """However long the log is already, a candidate starts with none, and is judged on what came since."""
    world = tuning_world(make_world, candidate_that_prefers("fish"), min_events=10_000, max_events=10**6)
    learner = world.learner()
    world.traffic(200, likes_fish)
    world.settle(learner)
    for _ in range(3):
        learner.step()
    finetune = learner.report()["finetune"]
    assert (finetune["phase"], finetune["snapshot"], finetune["gate"]["n"]) == ("gating", 200, 0)
    world.traffic(30, likes_fish)
    world.settle(learner)
    learner.step()
    assert learner.report()["finetune"]["gate"]["n"] == 30


def set_finetune(world: World, **changes: Any) -> None:
    """Change settings of the section ``finetune`` for the learners that the world starts from now on."""
    world.settings = {**world.settings, "finetune": {**world.settings["finetune"], **changes}}


def finetune_kl(world: World) -> float | None:
    return world.metric("plaudit_learner_finetune_kl_nats", model=SPEC.name)


def test_how_far_a_job_moved_is_shown_until_the_next_one_begins(make_world: MakeWorld) -> None:
    """While it is at the gate, after the verdict, and after a restart in either case; no job, no series."""

    class Running(InlineJobs):
        def launch(self, run_dir: Path) -> None:
            pass

        def status(self, run_dir: Path) -> JobStatus:
            return JobStatus(JobState.RUNNING)

    world = tuning_world(make_world, candidate_that_prefers("cat", kl_nats=0.25))
    learner = world.learner()
    assert finetune_kl(world) is None
    world.traffic(60, likes_fish)
    world.settle(learner)
    for _ in range(3):
        learner.step()
    assert (learner.report()["finetune"]["phase"], finetune_kl(world)) == ("gating", 0.25)
    learner.close()
    set_finetune(world, every=100_000)
    learner = world.learner()
    assert finetune_kl(world) == 0.25
    drive(world, learner)
    assert (learner.report()["finetune"]["phase"], finetune_kl(world)) == ("idle", 0.25)
    learner.close()
    learner = world.learner()
    assert finetune_kl(world) == 0.25
    learner.close()
    set_finetune(world, every=50)
    world.jobs = Running(lambda run_dir: None)
    learner = world.learner()
    learner.step()
    assert (learner.report()["finetune"]["phase"], finetune_kl(world)) == ("training", None)


def test_a_candidate_that_does_not_say_how_far_it_moved_shows_nothing(make_world: MakeWorld) -> None:
    world = tuning_world(make_world, candidate_that_prefers("fish"))
    drive(world, world.learner())
    assert finetune_kl(world) is None


def test_a_job_that_fails_is_recorded_and_the_loop_goes_on(make_world: MakeWorld) -> None:
    def diverges(run_dir: Path) -> None:
        raise FloatingPointError("the loss is nan")

    world = tuning_world(make_world, diverges)
    learner = world.learner()
    outcome = drive(world, learner)
    assert outcome["outcome"] == "failed"
    assert "the loss is nan" in outcome["why"]
    before = learner.state.progress.experiences
    world.traffic(10, likes_fish)
    world.settle(learner)
    assert learner.state.progress.experiences == before + 10
    assert world.registry.versions() == [1]


def test_a_job_that_is_killed_is_recorded_and_the_next_one_starts_anew(make_world: MakeWorld) -> None:
    """Kill -9 of its process, as the kernel does when memory runs out."""
    jobs = SubprocessJobs([sys.executable, "-c", "import signal; signal.pause()"])
    world = tuning_world(make_world, candidate_that_prefers("fish"), jobs=jobs)
    learner = world.learner()
    world.traffic(50, likes_fish)
    world.settle(learner)
    run_dir = world.folder / "work" / "runs" / learner.report()["finetune"]["run"]
    assert learner.report()["finetune"]["phase"] == "training"
    os.kill(int((run_dir / "job.pid").read_text(encoding="ascii")), signal.SIGKILL)
    while jobs.status(run_dir).state == JobState.RUNNING:
        os.sched_yield()
    world.jobs = InlineJobs(world.run_job)
    outcome = drive(world, world.learner())
    assert outcome["outcome"] == "failed"
    assert "it was killed" in outcome["why"]
    fresh = world.learner()
    for _ in range(40):
        world.traffic(25, likes_fish)
        world.settle(fresh)
    assert [each["outcome"] for each in fresh.report()["finetune"]["outcomes"]][:2] == ["failed", "promote"]


def test_a_job_that_is_killed_after_a_checkpoint_goes_on_from_it_as_long_as_it_gets_further(
    make_world: MakeWorld,
) -> None:
    """It dies at step 100, at 300, and at 300 again, which is no progress: then it has failed."""
    steps = [100, 300, 300]
    launched: list[Path] = []

    class Dies(InlineJobs):
        """Ends without a word, having left a checkpoint."""

        def launch(self, run_dir: Path) -> None:
            step = steps[len(launched)]
            launched.append(run_dir)
            save_file({"weight/0": np.zeros(1)}, run_dir / CHECKPOINT, metadata={"step": str(step)})

    world = tuning_world(make_world, lambda run_dir: None, jobs=Dies(lambda run_dir: None))
    outcome = drive(world, world.learner())
    assert outcome["outcome"] == "failed"
    assert "it was killed" in outcome["why"]
    assert [run_dir.name for run_dir in launched] == [outcome["run"]] * 3
    assert not (launched[0] / CHECKPOINT).exists()


def test_a_restarted_learner_lets_a_killed_job_go_on(make_world: MakeWorld) -> None:
    class DiesOnce(InlineJobs):
        """Killed together with the first learner."""

        launched = 0
        alive = True

        def launch(self, run_dir: Path) -> None:
            self.launched += 1
            if self.launched > 1:
                super().launch(run_dir)
            else:
                save_file({"weight/0": np.zeros(1)}, run_dir / CHECKPOINT, metadata={"step": "100"})

        def status(self, run_dir: Path) -> JobStatus:
            return JobStatus(JobState.RUNNING) if self.alive else super().status(run_dir)

    jobs = DiesOnce(candidate_that_prefers("fish"))
    world = tuning_world(make_world, lambda run_dir: None, jobs=jobs)
    first = world.learner()
    world.traffic(60, likes_fish)
    world.settle(first)
    assert (jobs.launched, first.report()["finetune"]["phase"]) == (1, "training")
    run = first.report()["finetune"]["run"]
    first.close()
    jobs.alive = False
    outcome = drive(world, world.learner())
    assert (outcome["outcome"], outcome["run"]) == ("promote", run)


def test_after_a_failure_the_next_job_waits_for_as_many_new_experiences(make_world: MakeWorld) -> None:
    launched: list[Path] = []

    def fails(run_dir: Path) -> None:
        launched.append(run_dir)
        raise RuntimeError("no")

    world = tuning_world(make_world, fails)
    learner = world.learner()
    for experiences, jobs in ((49, 0), (1, 1), (49, 1), (1, 2)):
        world.traffic(experiences, likes_fish)
        world.settle(learner)
        while len(learner.report()["finetune"]["outcomes"]) < jobs:
            learner.step()
        assert len(launched) == jobs


def test_a_candidate_that_is_damaged_is_recorded_as_failed(make_world: MakeWorld) -> None:
    def damaged(run_dir: Path) -> None:
        candidate_that_prefers("fish")(run_dir)
        (run_dir / CANDIDATE / "head.onnx").write_bytes(b"not a graph")

    world = tuning_world(make_world, damaged)
    outcome = drive(world, world.learner())
    assert outcome["outcome"] == "failed"
    assert "head.onnx" in outcome["why"]


def test_a_restarted_learner_finds_the_job_again(make_world: MakeWorld) -> None:
    """The job runs while the first learner ends; the second one sees it end and judges its candidate."""

    class Slow(InlineJobs):
        """Runs until it is told to end."""

        running = True

        def status(self, run_dir: Path) -> JobStatus:
            return JobStatus(JobState.RUNNING) if self.running else super().status(run_dir)

    world = tuning_world(make_world, lambda run_dir: None)
    world.jobs = slow = Slow(candidate_that_prefers("fish"))
    first = world.learner()
    world.traffic(60, likes_fish)
    world.settle(first)
    first.step()
    assert first.report()["finetune"]["phase"] == "training"
    first.close()
    second = world.learner()
    assert second.report()["finetune"]["phase"] == "training"
    slow.running = False
    assert drive(world, second)["outcome"] == "promote"


def test_a_learner_that_dies_between_publishing_and_noting_it_publishes_once(make_world: MakeWorld) -> None:
    """Every save that ends a run fails, as if the process had died there; the next learner does the rest."""
    world = tuning_world(make_world, candidate_that_prefers("fish"))
    learner = world.learner()
    save = world.store.save

    def dies_at_the_end(commit: LeaderCommit) -> None:
        tuning = commit.state.get("tuning")
        if tuning is not None and b'"promote"' in tuning:
            raise StoreUnavailable("killed here")
        save(commit)

    world.store.save = dies_at_the_end  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        drive(world, learner)
    assert world.registry.versions() == [1, 2]
    learner.close()
    again = world.learner()
    outcome = drive(world, again)
    assert (outcome["outcome"], outcome["version"]) == ("promote", 2)
    assert 3 not in world.registry.versions() or world.registry.manifest(3).data["run"] != outcome["run"]
    assert [rollout.live for rollout in world.registry.ledger()].count(2) == 1


def test_a_candidate_that_passes_while_a_version_is_pinned_is_not_made_live(make_world: MakeWorld) -> None:
    world = tuning_world(make_world, candidate_that_prefers("fish"))
    learner = world.learner()
    world.registry.set_rollout(pin(world.registry.rollout(), 1, Change("ada", NOW_S, "an audit")))
    outcome = drive(world, learner)
    assert outcome["outcome"] == "promote"
    assert "pinned" in outcome["why"]
    assert world.registry.rollout().live == 1


def test_all_that_was_learned_is_there_on_the_promoted_trunk(make_world: MakeWorld) -> None:
    world = tuning_world(make_world, candidate_that_prefers("fish"))
    learner = world.learner()
    drive(world, learner)
    learner.step()
    state = reward_state(learner)
    assert state is not None
    learner.close()
    fresh = world.learner()
    fresh.step()
    assert_same_sums(reward_state(fresh), state)
    features = world.store.features(
        [e.decision.prediction_id for e in world.store.experiences()], state.space.trunk_digest
    )
    assert len(features) == fresh.state.progress.experiences


# --- the canary ------------------------------------------------------------------------------------------------------


def test_what_the_gate_cannot_tell_users_can(make_world: MakeWorld) -> None:
    """The gate gives up after its first look; half of the users try the candidate, like it, and it goes live."""
    world = tuning_world(make_world, candidate_that_prefers("fish"), {"share": 0.5}, max_events=1)
    learner = world.learner()
    outcome = drive(world, learner)
    assert (outcome["outcome"], outcome["version"]) == ("promote", 2)
    assert "users satisfied" in outcome["why"]
    rollout = world.registry.rollout()
    assert (rollout.live, rollout.gated, rollout.candidate) == (2, 2, None)
    assert "passed the canary" in rollout.reason
    assert any(each.candidate == 2 and each.candidate_share == 0.5 for each in world.registry.ledger())
    learner.step()
    assert reward_state(learner).weight.sum() == pytest.approx(learner.state.progress.experiences)


def test_an_experiment_does_not_keep_the_learner_from_waiting(make_world: MakeWorld) -> None:
    """The gate gave up with experiences left; nothing is left to do in the experiment until there are new ones."""
    world = tuning_world(make_world, candidate_that_prefers("fish"), {"share": 0.5}, max_events=1, alpha=1e-9)
    learner = world.learner()
    keep_asking(world, learner, 70)
    assert learner.report()["finetune"]["phase"] == "canary"
    assert not learner.busy


def test_a_candidate_that_users_like_less_is_withdrawn(make_world: MakeWorld) -> None:
    world = tuning_world(make_world, candidate_that_prefers("cat"), {"share": 0.5}, max_events=1)
    outcome = drive(world, world.learner())
    assert (outcome["outcome"], outcome["version"]) == ("reject", 2)
    assert (world.registry.rollout().live, world.registry.rollout().candidate) == (1, None)


def test_an_experiment_without_proof_ends(make_world: MakeWorld) -> None:
    world = tuning_world(
        make_world, candidate_that_prefers("fish"), {"share": 0.5, "max_events": 30}, max_events=1, alpha=1e-9
    )
    outcome = drive(world, world.learner())
    assert outcome["outcome"] == "insufficient"
    assert (world.registry.rollout().live, world.registry.rollout().candidate) == (1, None)


def test_an_experiment_goes_on_after_the_learner_was_started_again(make_world: MakeWorld) -> None:
    world = tuning_world(make_world, candidate_that_prefers("fish"), {"share": 0.5}, max_events=1, alpha=1e-9)
    learner = world.learner()
    keep_asking(world, learner)
    before = learner.report()["finetune"]
    assert (before["phase"], before["canary"]["version"]) == ("canary", 2)
    assert before["canary"]["n"] > 0
    assert world.learner().report()["finetune"]["canary"] == before["canary"]


def test_an_operator_ends_an_experiment(make_world: MakeWorld) -> None:
    world = tuning_world(make_world, candidate_that_prefers("fish"), {"share": 0.5}, max_events=1, alpha=1e-9)
    learner = world.learner()
    keep_asking(world, learner)
    world.registry.set_rollout(pin(world.registry.rollout(), 1, Change("ada", NOW_S, "enough")))
    learner.step()
    outcome = learner.report()["finetune"]["outcomes"][0]
    assert (outcome["outcome"], outcome["version"]) == ("insufficient", 2)
    assert "ada ended the experiment: enough" in outcome["why"]
