"""The whole loop over dynamic actions with their own text: what is said of some is known of others, and mixes with
nothing.

Texts come with the request; hardly any is listed twice.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plaudit.adapters.runtime.onnx import OnnxRuntime
from plaudit.compose.learner import head_builder
from plaudit.compose.settings import settings_from
from plaudit.core.events import Correction, Decision, DynamicAction, Feedback, Preference, Retract, Thumb
from plaudit.core.experience import FeedbackState
from plaudit.core.job_run import CANDIDATE as CANDIDATE_FOLDER
from plaudit.core.job_run import RESULT, write_json
from plaudit.learner.evaluation.propensities import propensities_of
from plaudit.learner.features.policies import PolicyCache
from plaudit.learner.finetuning.job_spec import STATE, read_job_spec
from plaudit.learner.loop import Learner
from plaudit_models.bandit.dynamic_actions import (
    ActionList,
    DynamicActionState,
    dynamic_action_head_from_bytes,
    empty_dynamic_action_state,
    evidence_of_list,
    expected_rewards,
)
from plaudit_models.bandit.reward_model import empty_state
from plaudit_models.bundle import DYNAMIC_HEAD, FORMER_NAMES, TEXT_SCORER
from plaudit_models.evaluation.gate import GateRules, differences
from plaudit_models.evaluation.ope import LoggedRounds
from plaudit_models.limits import Limits
from support.builders import tiny_spec, with_former_names
from support.loop_dynamic_actions import (
    SPEC,
    DynamicActionWorld,
    candidate_about_lists,
    finetuned_candidate,
    picked_text,
    scored,
    some_dynamic_actions,
)
from support.loop_world import assert_same_sums, dynamic_state, reward_state

Rewards = dict[str, float]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[DynamicActionWorld]:
    world = DynamicActionWorld(
        tmp_path, settings={"learner": {"batch": 1, "max_wait_s": 0.001}, "finetune": {"enabled": False}}
    )
    world.first_version()
    yield world
    world.close()


def likes_loud(seed: int, text: str) -> bool:
    return "loud" in text


def recounted(
    world: DynamicActionWorld, learner: Learner, said: Sequence[tuple[Decision, Rewards]], version: int = 1
) -> DynamicActionState:
    """The sums over these labels as a version sees them, with none of the learner's bookkeeping."""
    space = dynamic_state(learner).space
    state = empty_dynamic_action_state(space)
    for decision, rewards in said:
        seed = int(decision.request_id)
        _, features = world.over(version, decision.dynamic_actions, seed)
        vectors = world.loaded[version].action_vectors([each.text for each in decision.dynamic_actions])
        state = state.add(
            [
                evidence_of_list(
                    space,
                    ActionList(features.embedding, vectors, features.base_logits),
                    np.array([rewards.get(each.id, 0.0) for each in decision.dynamic_actions]),
                    np.array([each.id in rewards for each in decision.dynamic_actions]),
                )
            ]
        )
    return state


def assert_same(state: DynamicActionState | None, expected: DynamicActionState) -> None:
    assert state is not None
    assert state.space == expected.space
    np.testing.assert_allclose(state.gram, expected.gram, atol=1e-5)  # float32 vectors of one text differ by batch
    np.testing.assert_allclose(state.target, expected.target, atol=1e-5)
    assert state.weight == pytest.approx(expected.weight)


def some_decisions(world: DynamicActionWorld, n: int, **fields: Any) -> list[Decision]:
    """Each with the seed of its content as its request id."""
    return [
        world.decide_between(some_dynamic_actions(world.rng, 3 + seed % 4), seed, request_id=str(seed), **fields)
        for seed in range(n)
    ]


def thumbs(decisions: Sequence[Decision], up: bool = True) -> list[tuple[Decision, Rewards]]:
    return [(decision, {decision.action: float(up)}) for decision in decisions]


# --- learning --------------------------------------------------------------------------------------------------------


def test_thumbs_make_the_answers_better_among_dynamic_actions_that_were_never_listed(world: DynamicActionWorld) -> None:
    """What users like depends on content and text: with some contents one word, with the others another."""
    topic = {seed: bool(world.over(1, [DynamicAction("a", "it")], seed)[1].embedding[0] > 0) for seed in range(20)}
    assert 4 <= sum(topic.values()) <= 16

    def likes(seed: int, text: str) -> bool:
        return ("loud" if topic[seed] else "small") in text

    learner = world.learner()
    before = world.satisfaction_between(1, likes)
    for _ in range(6):
        world.traffic_between(64, likes)
        world.settle(learner)
    live = world.registry.rollout().live
    assert live is not None
    assert world.satisfaction_between(live, likes) > before + 0.3
    manifest = world.registry.manifest(live)
    assert manifest.kind == "head"
    assert {TEXT_SCORER, DYNAMIC_HEAD} <= manifest.files.keys()
    assert manifest.data["dynamic_experiences"] == manifest.data["experiences"] == 384
    assert learner.report()["dynamic_experiences"] == 384
    assert world.metric("plaudit_learner_dynamic_experiences") == 384
    assert learner.state.running.comparison.tally.seen > 0


def test_a_version_from_before_0_1_0_is_refreshed_under_the_present_names(world: DynamicActionWorld) -> None:
    """Its text scorer is shared, and the evidence of its dynamic head goes on."""
    learner = world.learner()
    world.traffic_between(8, likes_loud)
    world.settle(learner)
    refreshed = world.registry.rollout().live
    assert refreshed is not None
    shutil.copytree(world.registry.folder(refreshed), world.folder / "former")
    with_former_names(world.folder / "former")
    former = world.promote(world.registry.publish(world.folder / "former").version)
    world.traffic_between(8, likes_loud)
    world.settle(learner)
    live = former + 1
    manifest = world.registry.manifest(live)
    assert (manifest.kind, manifest.parent) == ("head", former)
    assert {TEXT_SCORER, DYNAMIC_HEAD} <= manifest.files.keys()
    assert not manifest.files.keys() & set(FORMER_NAMES.values())
    assert manifest.sha256(TEXT_SCORER) == world.registry.manifest(former).sha256(TEXT_SCORER)
    head = dynamic_action_head_from_bytes((world.registry.folder(live) / DYNAMIC_HEAD).read_bytes())
    assert head.state.weight > 8.0


def test_dynamic_and_fixed_actions_are_learned_apart(world: DynamicActionWorld) -> None:
    learner = world.learner()
    world.traffic_between(20, likes_loud)
    world.settle(learner)
    assert_same_sums(reward_state(learner), empty_state(reward_state(learner).space))
    dynamic_actions = dynamic_state(learner)
    world.traffic(20, lambda decision: decision.action == "fish")
    world.settle(learner)
    assert reward_state(learner).weight.sum() == 20
    assert dynamic_state(learner) is dynamic_actions
    assert learner.state.progress.experiences == 40
    assert learner.state.progress.dynamic_experiences == 20


def test_sums_equal_a_recount_after_changed_feedback_and_retractions(world: DynamicActionWorld) -> None:
    learner = world.learner()
    decisions = some_decisions(world, 12)
    world.log.append([event for d in decisions for event in (d, world.say(d, Thumb(up=True)))])
    world.settle(learner)
    world.log.append([world.say(d, Thumb(up=False)) for d in decisions[:4]])
    world.log.append([world.say(d, Retract()) for d in decisions[8:]])
    world.settle(learner)
    assert_same(
        dynamic_state(learner),
        recounted(world, learner, thumbs(decisions[:4], up=False) + thumbs(decisions[4:8])),
    )
    assert learner.state.progress.dynamic_experiences == 8
    world.log.append([world.say(d, Retract()) for d in decisions[:8]])
    world.settle(learner)
    assert_same(dynamic_state(learner), recounted(world, learner, []))


def test_corrections_and_preferences_name_dynamic_actions(world: DynamicActionWorld) -> None:
    learner = world.learner()
    right, better = some_decisions(world, 2)
    ids = [each.id for each in right.dynamic_actions]
    world.log.append([right, world.say(right, Correction(ids[2])), better, world.say(better, Preference("c0", "c1"))])
    world.settle(learner)
    corrected = {id_: float(id_ == ids[2]) for id_ in ids}
    assert_same(
        dynamic_state(learner), recounted(world, learner, [(right, corrected), (better, {"c0": 0.75, "c1": 0.25})])
    )


def test_an_action_of_the_model_is_no_dynamic_action(world: DynamicActionWorld) -> None:
    learner = world.learner()
    (decision,) = some_decisions(world, 1)
    wrong = world.say(decision, Correction("cat"))
    world.log.append([decision, wrong])
    world.settle(learner)
    kept = world.store.feedback([wrong.feedback_id])[wrong.feedback_id]
    assert kept.state == FeedbackState.DISCARDED
    assert kept.reason == "correction: 'cat' is not one of the 3 dynamic actions of the request"


def test_what_a_user_in_quarantine_said_is_forgotten(world: DynamicActionWorld) -> None:
    learner = world.learner()
    mine, others = some_decisions(world, 4, user_id="troll"), some_decisions(world, 4, user_id="ada")
    world.log.append([event for d in mine + others for event in (d, world.say(d, Thumb(up=True)))])
    world.settle(learner)
    world.store.put_command("troll", "quarantined")
    world.settle(learner)
    assert_same(dynamic_state(learner), recounted(world, learner, thumbs(others)))
    assert learner.state.progress.dynamic_experiences == 4


# --- versions --------------------------------------------------------------------------------------------------------


def test_a_refresh_of_fixed_actions_carries_the_dynamic_head_over(world: DynamicActionWorld) -> None:
    """Also where the learner was started anew since, and remembers no list."""
    learner = world.learner()
    world.traffic_between(20, likes_loud)
    world.settle(learner)
    first = world.registry.rollout().live
    assert first is not None
    world.traffic(300, lambda decision: decision.action == "fish")
    again = world.learner()
    world.settle(again)
    live = world.registry.rollout().live
    assert live is not None
    assert live > first
    heads = [
        dynamic_action_head_from_bytes((world.registry.folder(version) / DYNAMIC_HEAD).read_bytes())
        for version in (first, live)
    ]
    assert_same(heads[1].state, heads[0].state)


def test_one_refresh_moves_answers_between_dynamic_actions_no_further_than_allowed(tmp_path: Path) -> None:
    world = DynamicActionWorld(
        tmp_path,
        settings={
            "learner": {"batch": 1, "max_wait_s": 0.001},
            "finetune": {"enabled": False},
            "policy": {"max_kl": 0.05},
        },
    )
    world.first_version()
    learner = world.learner()
    world.traffic_between(64, likes_loud)
    learner.step()
    first = world.registry.manifest(2).metrics
    assert first["kl_nats"] <= 0.05
    assert first["share_of_step"] < 1.0
    before = world.satisfaction_between(2, likes_loud)
    while learner.state.progress.pending:
        learner.step()
    live = world.registry.rollout().live
    assert live is not None
    assert live > 2
    assert world.satisfaction_between(live, likes_loud) > before
    world.close()


def test_on_another_trunk_texts_are_scored_anew(world: DynamicActionWorld) -> None:
    learner = world.learner()
    decisions = some_decisions(world, 6)
    world.log.append([event for d in decisions for event in (d, world.say(d, Thumb(up=True)))])
    world.settle(learner)
    other = world.promote(world.publish(seed=9))
    world.settle(learner)
    expected = recounted(world, learner, thumbs(decisions), version=other)
    assert expected.space.trunk_digest == world.registry.manifest(other).trunk_digest
    assert_same(dynamic_state(learner), expected)
    world.log.append([world.say(d, Retract()) for d in decisions])
    world.settle(learner)
    assert_same(dynamic_state(learner), recounted(world, learner, [], version=other))


def test_a_version_that_scores_no_text_knows_nothing_of_dynamic_actions(world: DynamicActionWorld) -> None:
    """What is still said of dynamic actions meanwhile is kept, and learned when a version can score them again."""
    learner = world.learner()
    decisions = some_decisions(world, 6)
    world.log.append([event for d in decisions[:3] for event in (d, world.say(d, Thumb(up=True)))])
    world.settle(learner)
    world.promote(world.publish(seed=9, spec=tiny_spec()))
    world.log.append([event for d in decisions[3:] for event in (d, world.say(d, Thumb(up=False)))])
    world.log.append([world.say(decisions[0], Retract())])
    world.traffic(4, lambda decision: decision.action == "fish")
    world.settle(learner)
    assert learner.state.dynamic_actions is None
    live = world.registry.rollout().live
    assert live is not None
    assert DYNAMIC_HEAD not in world.registry.manifest(live).files
    world.promote(1)
    world.settle(learner)
    assert_same(
        dynamic_state(learner),
        recounted(world, learner, thumbs(decisions[1:3]) + thumbs(decisions[3:], up=False)),
    )


def test_another_learner_goes_on_from_what_was_saved(world: DynamicActionWorld) -> None:
    learner = world.learner()
    decisions = some_decisions(world, 8)
    said: list[Decision | Feedback] = [event for d in decisions for event in (d, world.say(d, Thumb(up=True)))]
    world.log.append(said[:8])
    world.settle(learner)
    world.log.append(said[8:])
    again = world.learner()
    world.settle(again)
    assert_same(dynamic_state(again), recounted(world, again, thumbs(decisions)))


def test_texts_are_what_is_learned_from_not_ids(world: DynamicActionWorld) -> None:
    """Ids mean nothing beyond their request: here they say the opposite of the texts."""
    learner = world.learner()
    for _ in range(4):
        world.traffic_between(64, likes_loud)
        world.settle(learner)
    live = world.registry.rollout().live
    assert live is not None
    dynamic_actions = [DynamicAction("loud", "small there"), DynamicAction("quiet", "loud there")]
    probs = np.mean([world.over(live, dynamic_actions, seed)[0] for seed in range(20)], axis=0)
    assert probs[1] > 0.7
    assert SPEC.scores_text
    assert picked_text(some_decisions(world, 1)[0])


# --- comparisons and experiments
# ------------------------------------------------------------------------------------------


def test_the_running_comparison_takes_refreshes_back_that_harm_answers_between_dynamic_actions(tmp_path: Path) -> None:
    """Users turn round, and no refresh follows: what the last one has learned to say, they like no more.

    It explores much, so that a few hundred thumbs are proof.
    """
    world = DynamicActionWorld(
        tmp_path,
        settings={
            "learner": {"batch": 100, "max_wait_s": 1e9, "user_cap": 1.0},
            "finetune": {"enabled": False},
            "gate": {"min_events": 20},
            "policy": {"floor": 0.3},
        },
    )
    world.first_version()
    learner = world.learner()
    world.traffic_between(100, likes_loud)
    world.settle(learner)
    assert world.registry.rollout().live == 2
    assert learner.state.running.comparison.n == 0  # of version 1 itself nothing is compared
    world.settings = {**world.settings, "learner": {"batch": 10_000, "max_wait_s": 1e9, "user_cap": 1.0}}
    learner = world.learner()
    for _ in range(30):
        world.traffic_between(20, lambda seed, text: not likes_loud(seed, text))
        world.settle(learner)
        if world.metric("plaudit_learner_reverts_total"):
            break
    assert world.metric("plaudit_learner_reverts_total") == 1, learner.state.running.comparison.report()
    assert world.registry.rollout().live == 1
    assert_same(dynamic_state(learner), recounted(world, learner, []))
    assert learner.state.progress.dynamic_experiences == learner.state.progress.experiences == 0
    world.close()


def test_each_answer_of_an_experiment_has_its_propensity_among_its_own_dynamic_actions(
    world: DynamicActionWorld,
) -> None:
    other, without = world.publish(seed=9), world.publish(seed=5, spec=tiny_spec())
    decisions = some_decisions(world, 5)
    plain = world.decide()
    world.log.append([event for d in [*decisions, plain] for event in (d, world.say(d, Thumb(up=True)))])
    world.settle(world.learner())
    rows = world.store.experiences(after=0)
    versions = PolicyCache(world.registry, OnnxRuntime("cpu"), Limits())
    found = propensities_of(rows, other, 1, world.store, versions)
    for i, decision in enumerate(decisions):
        probs, _ = world.over(other, decision.dynamic_actions, i)
        place = [each.id for each in decision.dynamic_actions].index(decision.action)
        np.testing.assert_allclose(found.candidate[i], probs[place], rtol=1e-4)
        assert found.live[i] == decision.propensity
    assert not np.isnan(found.candidate[5])
    cannot = propensities_of(rows, without, 1, world.store, versions)
    assert np.isnan(cannot.candidate[:5]).all()
    assert not np.isnan(cannot.candidate[5])


# --- the gate of fine-tuned versions ---------------------------------------------------------------------------------


@pytest.fixture
def make_gated(tmp_path: Path) -> Iterator[Callable[..., DynamicActionWorld]]:
    """Worlds in which a job is due after 20 experiences, and heads stand still."""
    worlds: list[DynamicActionWorld] = []

    def make(run_job: Callable[[Path], None], **gate: Any) -> DynamicActionWorld:
        world = DynamicActionWorld(
            tmp_path,
            settings={
                "learner": {"batch": 10_000, "max_wait_s": 1e9, "user_cap": 1.0},
                "finetune": {"enabled": True, "every": 20},
                "gate": {"min_events": 50, "max_events": 1_500} | gate,
                "policy": {"floor": 0.2, "embedding_features": 16},
            },
            run_job=run_job,
        )
        worlds.append(world)
        world.first_version(floor=0.2)
        return world

    yield make
    for world in worlds:
        world.close()


def gated(world: DynamicActionWorld, learner: Learner, *, fixed: int, listed: int) -> dict[str, Any]:
    """Outcome of the first candidate, after as much traffic as it takes: users like fish, and texts that are loud."""
    while not (outcomes := learner.report()["finetune"]["outcomes"]):
        world.traffic(fixed, lambda decision: decision.action == "fish")
        world.traffic_between(listed, likes_loud, k=3)
        world.settle(learner)
        for _ in range(3):
            learner.step()
    return dict(outcomes[0])


def test_a_candidate_that_is_better_at_fixed_actions_and_worse_at_dynamic_ones_does_not_pass(
    make_gated: Callable[..., DynamicActionWorld],
) -> None:
    """It has forgotten what live has learned of texts. By the fixed actions alone it would pass: that is proven."""
    world = make_gated(candidate_about_lists(None, prefer="fish"), min_events=100, max_events=400)
    tuned = world.settings
    world.settings = {**tuned, "finetune": {"enabled": False}, "learner": {**tuned["learner"], "batch": 50}}
    learner = world.learner()
    for _ in range(3):
        world.traffic_between(50, likes_loud, k=3)
        world.settle(learner)
    world.settings = {**tuned, "finetune": {"enabled": True, "every": 160}}
    live = world.registry.rollout().live
    outcome = gated(world, world.learner(), fixed=50, listed=50)
    assert outcome["outcome"] != "promote"
    assert world.registry.rollout().live == live
    slices = {part["name"]: part for part in world.registry.manifest(outcome["version"]).gate["slices"]}
    of_lists = slices.pop("audio+image+question+sensor: one of its dynamic actions")
    assert of_lists["gain"] < -0.1
    assert of_lists["suspected"] or of_lists["e_value_harm"] >= of_lists["threshold"]
    assert all(part["gain"] > 0.2 for part in slices.values())


def test_a_candidate_that_is_better_at_dynamic_actions_passes_by_them_alone(
    make_gated: Callable[..., DynamicActionWorld],
) -> None:
    world = make_gated(candidate_about_lists(lambda text: "loud" in text))
    learner = world.learner()
    world.traffic(1, lambda decision: True)
    outcome = gated(world, learner, fixed=0, listed=50)
    assert (outcome["outcome"], world.registry.rollout().live) == ("promote", 2)
    assert world.metric("plaudit_learner_gate_left_out_total") == 0


def test_the_gate_compares_each_answer_over_its_own_list(make_gated: Callable[..., DynamicActionWorld]) -> None:
    """As each decision alone, from the graphs: the candidate's and the logged probabilities over its list."""
    world = make_gated(candidate_about_lists(lambda text: "loud" in text), min_events=10_000, max_events=10**6)
    learner = world.learner()
    world.traffic(21, lambda decision: True)
    world.settle(learner)
    for _ in range(3):
        learner.step()
    assert learner.report()["finetune"]["phase"] == "gating"
    decisions = some_decisions(world, 7)
    world.log.append([event for i, d in enumerate(decisions) for event in (d, world.say(d, Thumb(up=i % 2 == 0)))])
    world.settle(learner)
    candidate = world.runtime.load(world.folder / "work" / "runs" / "run-00000021" / CANDIDATE_FOLDER)
    prior = head_builder(settings_from(world.settings)).settings.prior
    alone = []
    for i, decision in enumerate(decisions):
        logged, _ = world.over(1, decision.dynamic_actions, i)
        probs, listed = scored(candidate, decision.dynamic_actions, i)
        head = dynamic_action_head_from_bytes(
            (world.folder / "work" / "runs" / "run-00000021" / CANDIDATE_FOLDER / DYNAMIC_HEAD).read_bytes()
        )
        q_hat, _ = expected_rewards(head.state, prior, listed)
        place = [each.id for each in decision.dynamic_actions].index(decision.action)
        log = LoggedRounds(np.array([float(i % 2 == 0)]), np.array([place]), np.array([decision.propensity]))
        seen = differences(
            log, probs[None], logged[None], q_hat[None], logging_probs=logged[None], rules=GateRules(user_cap=1.0)
        )
        alone.append(float(seen.low[0] + seen.high[0]) / 2.0)
    gate = learner.report()["finetune"]["gate"]
    assert gate["n"] == 7
    assert gate["gain"] == pytest.approx(np.mean(alone), rel=1e-3)


def test_a_candidate_that_scores_no_text_is_judged_on_the_rest_and_what_is_left_out_is_counted(
    make_gated: Callable[..., DynamicActionWorld],
) -> None:
    def without_text(run_dir: Path) -> None:
        task = read_job_spec(run_dir)
        made = finetuned_candidate(run_dir / CANDIDATE_FOLDER, spec=tiny_spec(), parent=1, data=task.data)
        (run_dir / STATE).write_bytes(empty_state(task.plan.head_builder.space(made)).to_bytes())
        write_json(run_dir / RESULT, {})

    world = make_gated(without_text, min_events=10_000, max_events=10**6)
    learner = world.learner()
    world.traffic(21, lambda decision: True)
    world.settle(learner)
    for _ in range(3):
        learner.step()
    world.traffic_between(7, likes_loud)
    world.traffic(5, lambda decision: True)
    world.settle(learner)
    assert learner.report()["finetune"]["gate"]["n"] == 5
    assert world.metric("plaudit_learner_gate_left_out_total") == 7


def test_a_job_is_started_for_dynamic_actions_alone_where_the_model_scores_text(
    make_gated: Callable[..., DynamicActionWorld],
) -> None:
    world = make_gated(candidate_about_lists(None))
    learner = world.learner()
    world.traffic_between(30, likes_loud)
    world.promote(world.publish(seed=5, spec=tiny_spec()))
    world.settle(learner)
    assert learner.report()["finetune"]["phase"] == "idle"
    world.promote(1)
    learner.step()
    assert learner.report()["finetune"]["phase"] != "idle"
