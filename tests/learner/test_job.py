"""The fine-tuning job itself: real training of a tiny policy, in this process and as a process of its own."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from plaudit.adapters.jobs.subprocess import SubprocessJobs
from plaudit.adapters.registry.directory import DirectoryRegistry
from plaudit.adapters.runtime.onnx import OnnxRuntime
from plaudit.adapters.store.engine import sqlite_url
from plaudit.adapters.store.sql import SqlStore
from plaudit.compose.learner import training_plan
from plaudit.core.events import Content, Correction, DynamicAction, Feedback, Preference, TextContent, Thumb
from plaudit.core.experience import Experience, header_of
from plaudit.core.job_run import CANDIDATE, JOB, PROGRESS, RESULT, last_progress, read_json, was_killed
from plaudit.core.ports.jobs import JobState
from plaudit.core.ports.store import IngestBatch, LabelUpdate
from plaudit.core.settings import FinetuneSettings, Settings
from plaudit.learner.features.action_heads import evidence_of
from plaudit.learner.features.content import decode_contents
from plaudit.learner.features.context import Context, LabelledContext
from plaudit.learner.finetuning.job import run_job
from plaudit.learner.finetuning.job_spec import (
    FEATURES,
    STATE,
    JobSpec,
    checkpoint_step,
    prepare_run,
    read_features,
    read_job_spec,
)
from plaudit.learner.finetuning.pretraining import pretrain_and_publish
from plaudit.learner.finetuning.training_data import decode_training_data, select_training_data
from plaudit.learner.ingest.join import join
from plaudit.learner.progress import Progress
from plaudit_models.bandit.dynamic_actions import dynamic_action_head_from_bytes
from plaudit_models.bandit.reward_model import empty_state, state_from_bytes
from plaudit_models.bundle import (
    DYNAMIC_HEAD,
    DYNAMIC_HEAD_GOLDEN,
    MANIFEST,
    TEXT_SCORER_GOLDEN,
    TOKENIZER,
    WEIGHTS,
    verify,
)
from plaudit_models.limits import Limits
from plaudit_models.preprocess import assemble, read_tokenizer, train_tokenizer
from plaudit_models.spec import EMBEDDING, ModelSpec, TextModality
from plaudit_models.training.checkpoint import Checkpoint
from plaudit_models.training.config import PretrainConfig
from support.builders import NOW_S, a_decision, some_feedback

SPEC = ModelSpec(name="pets", modalities={"text": TextModality(max_tokens=4)}, actions=("cat", "dog"), embedding_size=8)
SNAPSHOT = 40


class Workplace:
    """A pre-trained version in a registry, and a store with 60 experiences, of which a job may look at 40.

    Users say that what buzzes is a dog, which no label ever told; where not ``content``, that nothing is right.
    """

    def __init__(self, folder: Path, *, content: bool = True, spec: ModelSpec = SPEC) -> None:
        self.folder = folder
        self._content = content
        labelled = folder / "labelled"
        labelled.mkdir()
        rows = [
            f"{split},{a},it says {s}" for split in ("train", "val") for a, s in [("cat", "meow"), ("dog", "woof")] * 8
        ]
        (labelled / "manifest.csv").write_text("\n".join(["split,action,text", *rows, "train,cat,it says buzz"]) + "\n")
        self.registry = DirectoryRegistry(folder / "registry", SPEC.name)
        pretrain_and_publish(
            labelled,
            spec,
            self.registry,
            now_s=NOW_S,
            floor=0.02,
            config=PretrainConfig(max_duration_s=60.0, max_epochs=2, batch=16),
            threads=1,
        )
        self.url = sqlite_url(folder / "learner.db").render_as_string()
        self.store = SqlStore(self.url)
        self.store.lead()
        self.judge(range(1, 61))

    def judge(self, numbers: range) -> None:
        decisions, judged = [], []
        for number in numbers:
            content: dict[str, Content] = {"text": TextContent("it says buzz")}
            action = SPEC.actions[number % 2]
            decision = a_decision(
                f"p{number}", model=SPEC.name, action=action, content=content, features=None, version=1 - number % 2
            )
            said: Feedback = some_feedback(f"p{number}", Thumb(up=self._content and action == "dog"))
            if self._content and number % 10 == 0:
                said = some_feedback(f"p{number}", Correction("dog"))
            elif self._content and number % 10 == 5:
                said = some_feedback(f"p{number}", Preference("dog", "cat"))
            decisions.append(decision)
            judged.append(LabelUpdate(decision.prediction_id, join(header_of(decision), [said], SPEC.actions)))
        self.store.save_batch(IngestBatch(decisions=decisions, labels=judged))

    def judge_lists(self, numbers: range) -> None:
        """Decisions between two or three texts, of which users like the dog's."""
        decisions, judged = [], []
        for number in numbers:
            texts = ["it says meow", "it says woof", "it says moo"][: 2 + number % 2]
            actions = tuple(DynamicAction(f"x{i}", text) for i, text in enumerate(texts))
            picked = number % len(texts)
            content: dict[str, Content] = {"text": TextContent("it says buzz")}
            decision = a_decision(
                f"l{number}",
                model=SPEC.name,
                action=f"x{picked}",
                content=content,
                features=None,
                version=1,
                dynamic_actions=actions,
            )
            said = some_feedback(f"l{number}", Correction("x1") if number % 10 == 0 else Thumb(up=picked == 1))
            decisions.append(decision)
            judged.append(LabelUpdate(decision.prediction_id, join(header_of(decision), [said], SPEC.actions)))
        self.store.save_batch(IngestBatch(decisions=decisions, labels=judged))

    def run_dir(self, name: str = "run", snapshot: int = SNAPSHOT, **finetune: Any) -> Path:
        finetune = {"max_duration_s": 60.0, "steps_per_event": 40.0, **finetune}
        settings = Settings(finetune=FinetuneSettings(**finetune))
        return prepare_run(
            self.folder / name,
            self.registry,
            self.registry.manifest(1),
            Progress(last_number=snapshot, experiences=snapshot),
            training_plan(settings),
            NOW_S,
            "a test wants it",
        )


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def run_dir(workplace: Workplace) -> Path:
    run_dir = workplace.run_dir()
    run_job(run_dir, workplace.store, OnnxRuntime("cpu"))
    return run_dir


def test_the_candidate_is_a_sealed_version_with_another_trunk(workplace: Workplace, run_dir: Path) -> None:
    manifest = verify(run_dir / CANDIDATE)
    assert (manifest.kind, manifest.parent, manifest.floor) == ("finetuned", 1, 0.01)
    assert manifest.trunk_digest != workplace.registry.manifest(1).trunk_digest
    assert manifest.data["run"] == "run"
    assert manifest.data["last_experience"] == SNAPSHOT
    assert "a test wants it" in manifest.reason
    assert (run_dir / CANDIDATE / "card.md").is_file()


def says_dog(folder: Path) -> float:
    """P(dog | buzz) of the trunk alone, without what the head adds."""
    model = OnnxRuntime("cpu").load(folder)
    tokens = np.zeros((1, 4), np.int64)
    assert model.tokenizer is not None
    ids = model.tokenizer.encode("it says buzz", add_special_tokens=False).ids[:4]
    tokens[0, : len(ids)] = ids
    _, logits, _ = model.trunk({"text": tokens, "present": np.ones((1, 1), np.float32)})
    return float(np.exp(logits[0, 1]) / np.exp(logits[0]).sum())


def test_it_has_learned_what_users_said(workplace: Workplace, run_dir: Path) -> None:
    assert says_dog(run_dir / CANDIDATE) > says_dog(workplace.registry.folder(1)) + 0.1


def test_nothing_after_the_snapshot_was_looked_at(run_dir: Path) -> None:
    assert read_json(run_dir / RESULT)["trained_on"] == SNAPSHOT
    features = read_features(run_dir / FEATURES, verify(run_dir / CANDIDATE).trunk_digest)
    assert features.keys() == {f"p{number}" for number in range(1, SNAPSHOT + 1)}


def test_the_head_stands_on_the_experiences_as_the_new_trunk_sees_them(workplace: Workplace, run_dir: Path) -> None:
    manifest = verify(run_dir / CANDIDATE)
    features = read_features(run_dir / FEATURES, manifest.trunk_digest)
    state = state_from_bytes((run_dir / STATE).read_bytes())
    experiences = workplace.store.experiences(up_to=SNAPSHOT)
    labelled = [
        LabelledContext(Context(features[e.decision.prediction_id], ("cat", "dog")), e.label)
        for e in experiences
        if e.label is not None
    ]
    expected = empty_state(state.space).add(evidence_of(state.space, labelled))
    np.testing.assert_allclose(state.gram, expected.gram, atol=1e-4)
    assert state.space.trunk_digest == manifest.trunk_digest


def test_progress_was_reported(run_dir: Path) -> None:
    assert (run_dir / PROGRESS).is_file()
    assert last_progress(run_dir)["fraction"] == 1.0


def test_equal_content_is_decoded_and_kept_once(workplace: Workplace, run_dir: Path) -> None:
    tokenizer = read_tokenizer(workplace.registry.folder(1) / TOKENIZER)
    learned = workplace.store.experiences(up_to=SNAPSHOT)
    made = decode_training_data(learned, workplace.store, SPEC, tokenizer, read_job_spec(run_dir).plan)
    data = made.experiences
    assert len(data) == len(made.used) == len(made.feedback_targets) == SNAPSHOT
    assert len(data.pools["text"]) == 1
    assert data.reward[:2].tolist() == [1.0, 0.0]
    assert (data.correction >= 0).sum() == SNAPSHOT // 10


def test_content_that_cannot_be_decoded_is_left_out(workplace: Workplace, run_dir: Path) -> None:
    tokenizer = read_tokenizer(workplace.registry.folder(1) / TOKENIZER)
    learned = workplace.store.experiences(up_to=SNAPSHOT)
    narrow = replace(read_job_spec(run_dir).plan, limits=Limits(max_text_bytes=3))
    made = decode_training_data(learned, workplace.store, SPEC, tokenizer, narrow)
    assert (len(made.experiences), made.used) == (0, [])


def test_the_manifest_says_what_it_learned_from_and_how_stale_that_is(run_dir: Path) -> None:
    """Of 40: four corrections, four preferences. Odd ones were served by version 0, one behind the parent."""
    data = verify(run_dir / CANDIDATE).data
    assert (data["trained_on"], data["corrections"], data["preferences"], data["thumbs_and_ratings"]) == (40, 4, 4, 32)
    assert (data["first_experience"], data["served_by_versions"], data["too_stale"]) == (1, 2, 0)
    assert (data["versions_behind_mean"], data["versions_behind_max"]) == (0.5, 1)
    assert data["oldest_time_s"] == NOW_S
    card = (run_dir / CANDIDATE / "card.md").read_text(encoding="utf-8")
    assert "- versions behind, at most: 1" in card
    assert "- preferences among them: 4" in card


def test_what_is_too_stale_is_left_out(workplace: Workplace) -> None:
    run_dir = workplace.run_dir("stale", max_versions_behind=1)
    tokenizer = read_tokenizer(workplace.registry.folder(1) / TOKENIZER)
    task = read_job_spec(run_dir)
    made = select_training_data(workplace.store, SPEC, tokenizer, task, version=2)
    assert (made.facts["trained_on"], made.facts["too_stale"], made.facts["versions_behind_max"]) == (20, 20, 1)
    assert {experience.decision.version for experience in made.used} == {1}
    with pytest.raises(
        ValueError, match=r"finetune.max_versions_behind: 1 leaves out all of 40.*was served 9 versions"
    ):
        select_training_data(workplace.store, SPEC, tokenizer, task, version=10)


def test_answers_picked_from_dynamic_actions_are_left_out_and_counted_where_the_model_scores_no_text(
    tmp_path: Path,
) -> None:
    """Even where their ids are those of actions."""
    store = SqlStore(sqlite_url(tmp_path / "learner.db"))
    dynamic_actions = (DynamicAction("cat", "a cat"), DynamicAction("dog", "a dog"))
    content: dict[str, Content] = {"text": TextContent("it says buzz")}
    decisions = [
        a_decision(
            f"p{i}", action="dog", content=content, features=None, dynamic_actions=dynamic_actions if i < 3 else ()
        )
        for i in range(5)
    ]
    judged = [
        LabelUpdate(d.prediction_id, join(header_of(d), [some_feedback(d.prediction_id)], SPEC.actions))
        for d in decisions
    ]
    store.save_batch(IngestBatch(decisions=decisions, labels=judged))
    settings = Settings()
    task = JobSpec(
        snapshot=5,
        created_at_s=NOW_S,
        reason="a test wants it",
        plan=training_plan(settings),
    )
    tokenizer = train_tokenizer(["it says buzz"], vocabulary_size=300)
    made = select_training_data(store, SPEC, tokenizer, task, version=1)
    assert [e.decision.prediction_id for e in made.used] == ["p3", "p4"]
    assert (made.facts["trained_on"], made.facts["with_dynamic_actions"], made.facts["unusable"]) == (2, 0, 3)
    assert made.listed is None
    with pytest.raises(ValueError, match="nor those of dynamic actions where the model scores no text"):
        select_training_data(store, SPEC, tokenizer, replace(task, snapshot=3), version=1)
    store.close()


def test_what_was_said_of_other_answers_than_the_one_served_is_learned_too(workplace: Workplace, run_dir: Path) -> None:
    """Of three actions, a preference between the two that were not served: nothing for the likelihood of the answer,
    but a comparison for the reward model. Of an answer that is gone there is nothing left to learn."""
    tokenizer = read_tokenizer(workplace.registry.folder(1) / TOKENIZER)
    spec = replace(SPEC, actions=("cat", "dog", "cow"))
    decision = a_decision("p1", model=SPEC.name, action="cow", content={"text": TextContent("it says buzz")})
    decision = replace(decision, allowed_actions=("cow", "dog"))
    label = join(header_of(decision), [some_feedback("p1", Preference("dog", "cat"))], spec.actions)
    experience = Experience(number=1, decision=header_of(decision), label=label)
    made = decode_training_data([experience], workplace.store, spec, tokenizer, read_job_spec(run_dir).plan)
    assert (made.experiences.weight.tolist(), made.feedback_targets.preferred.tolist()) == ([0.0], [1])
    assert made.feedback_targets.rejected.tolist() == [0]
    assert made.experiences.allowed_mask is not None
    assert made.experiences.allowed_mask.tolist() == [[False, True, True]]
    assert decode_training_data([experience], workplace.store, SPEC, tokenizer, read_job_spec(run_dir).plan).used == []


# --- dynamic actions -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """60 experiences of fixed actions, then 40 of dynamic ones."""
    workplace = Workplace(tmp_path_factory.mktemp("lists"), spec=replace(SPEC, scores_text=True))
    workplace.judge_lists(range(1, 41))
    return workplace


def says_woof(folder: Path, *, by_head: bool) -> float:
    """P(it says woof | buzz) among two texts, by trunk and text scorer alone or as it is served."""
    model = OnnxRuntime("cpu").load(folder)
    content = decode_contents(model.manifest.spec, model.tokenizer, {"text": TextContent("it says buzz")}, Limits())
    assert content is not None
    embedding = model.trunk(assemble(model.manifest.spec, [content])).embedding[0]
    vectors = model.action_vectors(["it says meow", "it says woof"])
    base_logits = vectors @ embedding
    scores = model.dynamic_scores(embedding, vectors, base_logits) if by_head else base_logits
    return float(np.exp(scores[1]) / np.exp(scores).sum())


@pytest.mark.parametrize("objective", ["likelihood", "target", "sampled"])
def test_what_was_said_of_dynamic_actions_changes_the_weights_and_the_candidate_has_a_head_for_them(
    listing: Workplace, objective: str
) -> None:
    run_dir = listing.run_dir(f"lists-{objective}", snapshot=100, objective=objective)
    run_job(run_dir, listing.store, OnnxRuntime("cpu"))
    candidate, parent = run_dir / CANDIDATE, listing.registry.folder(1)
    manifest = verify(candidate)
    assert (manifest.data["trained_on"], manifest.data["with_dynamic_actions"]) == (100, 40)
    assert (manifest.data["corrections"], manifest.data["unusable"]) == (6 + 4, 0)
    assert {TEXT_SCORER_GOLDEN, DYNAMIC_HEAD, DYNAMIC_HEAD_GOLDEN} < manifest.files.keys()
    assert says_woof(candidate, by_head=False) > says_woof(parent, by_head=False) + 0.1
    assert says_woof(candidate, by_head=True) > says_woof(candidate, by_head=False)
    features = read_features(run_dir / FEATURES, manifest.trunk_digest)
    assert len(features) == 100
    assert {len(features[f"l{number}"].base_logits) for number in range(1, 41)} == {2, 3}
    assert features["p1"].base_logits.shape == (2,)
    head = dynamic_action_head_from_bytes((candidate / DYNAMIC_HEAD).read_bytes())
    assert head.state.weight == pytest.approx(36 + sum(2 + number % 2 for number in range(10, 41, 10)))
    assert "between dynamic actions among them: 40" in (candidate / "card.md").read_text(encoding="utf-8")


def test_a_job_on_dynamic_actions_alone(tmp_path: Path) -> None:
    workplace = Workplace(tmp_path, spec=replace(SPEC, scores_text=True))
    workplace.store.close()
    workplace.store = SqlStore(sqlite_url(tmp_path / "other.db"))
    workplace.store.lead()
    workplace.judge_lists(range(1, 31))
    run_dir = workplace.run_dir(snapshot=30, objective="target")
    run_job(run_dir, workplace.store, OnnxRuntime("cpu"))
    assert verify(run_dir / CANDIDATE).data["trained_on"] == 30
    assert says_woof(run_dir / CANDIDATE, by_head=True) > 0.5


def test_features_of_another_release_are_refused(tmp_path: Path) -> None:
    save_file({"prediction_ids": np.zeros(1, np.uint8), EMBEDDING: np.zeros((1, 8))}, tmp_path / FEATURES)
    with pytest.raises(ValueError, match=r"features.safetensors: was written by another release"):
        read_features(tmp_path / FEATURES, "t")


def test_low_rank_updates_are_merged_into_a_version_like_any_other(workplace: Workplace) -> None:
    run_dir = workplace.run_dir("lora", method="lora", lora_rank=4)
    run_job(run_dir, workplace.store, OnnxRuntime("cpu"))
    manifest = verify(run_dir / CANDIDATE)
    assert manifest.metrics["method"] == "lora"
    assert manifest.metrics["trained_weights"] < sum(
        tensor.size for tensor in load_file(run_dir / CANDIDATE / WEIGHTS).values()
    )
    before = load_file(workplace.registry.folder(1) / WEIGHTS)
    assert {n: t.shape for n, t in load_file(run_dir / CANDIDATE / WEIGHTS).items()} == {
        n: t.shape for n, t in before.items()
    }
    assert says_dog(run_dir / CANDIDATE) > says_dog(workplace.registry.folder(1)) + 0.1


@pytest.mark.parametrize("objective", ["sampled", "target"])
def test_a_reward_model_says_what_is_better_and_the_card_reports_it(workplace: Workplace, objective: str) -> None:
    run_dir = workplace.run_dir(objective, objective=objective)
    run_job(run_dir, workplace.store, OnnxRuntime("cpu"))
    metrics = verify(run_dir / CANDIDATE).metrics
    assert metrics["objective"] == objective
    assert metrics.get("sample_staleness_max_steps") == (3 if objective == "sampled" else None)
    judged = metrics["reward_model"]
    assert (judged["trained_on"], judged["held_out"]) == (34, 3)
    assert judged == read_json(run_dir / RESULT)["reward_model"]
    assert "## The reward model it was trained with" in (run_dir / CANDIDATE / "card.md").read_text(encoding="utf-8")
    assert says_dog(run_dir / CANDIDATE) > says_dog(workplace.registry.folder(1)) + 0.1


@pytest.mark.parametrize("objective", ["likelihood", "target", "sampled"])
def test_all_thumbs_down_are_evidence(tmp_path: Path, objective: str) -> None:
    """Neither answer is ever liked: all is finite, and neither one drives the other out."""
    workplace = Workplace(tmp_path, content=False)
    run_dir = workplace.run_dir(objective=objective)
    run_job(run_dir, workplace.store, OnnxRuntime("cpu"))
    result = read_json(run_dir / RESULT)
    assert math.isfinite(result["kl_to_parent_nats"])
    before, after = says_dog(workplace.registry.folder(1)), says_dog(run_dir / CANDIDATE)
    assert 0.0 < after < 1.0
    assert abs(after - before) < 0.5


def test_no_thumbs_are_nothing_to_train_on(workplace: Workplace) -> None:
    run_dir = workplace.run_dir("none")
    nothing = replace(read_job_spec(run_dir), snapshot=0)
    with pytest.raises(ValueError, match="none of 0 experiences can be trained on"):
        select_training_data(workplace.store, SPEC, None, nothing, version=1)


@pytest.mark.parametrize("how", [{"objective": "likelihood"}, {"objective": "sampled", "method": "lora"}])
def test_killed_at_a_checkpoint_it_goes_on_to_where_it_would_have_ended(
    workplace: Workplace, how: dict[str, Any]
) -> None:
    """The process dies right after its first checkpoint is written, at step 8 of 25; to the last bit."""
    whole, broken = (workplace.run_dir(name, checkpoint_steps=8, **how) for name in ("whole", "broken"))
    run_job(whole, workplace.store, OnnxRuntime("cpu"))

    class Killed(BaseException):
        pass

    def dies(self: Checkpoint, path: Path) -> None:
        save(self, path)
        raise Killed

    save = Checkpoint.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "save", dies)
        with pytest.raises(Killed):
            run_job(broken, workplace.store, OnnxRuntime("cpu"))
    assert was_killed(broken)
    assert checkpoint_step(broken) == 8
    run_job(broken, workplace.store, OnnxRuntime("cpu"))
    assert read_json(broken / RESULT)["steps"] == read_json(whole / RESULT)["steps"] == 25
    assert verify(broken / CANDIDATE).trunk_digest == verify(whole / CANDIDATE).trunk_digest


@pytest.mark.slow
def test_as_a_process_of_its_own(tmp_path: Path) -> None:
    workplace = Workplace(tmp_path)
    run_dir = workplace.run_dir()
    jobs = SubprocessJobs(secret=workplace.url)
    assert workplace.url not in (run_dir / JOB).read_text(encoding="utf-8")
    jobs.launch(run_dir)
    while (status := jobs.status(run_dir)).state == JobState.RUNNING:
        os.sched_yield()
    assert status.state == JobState.SUCCEEDED, status.error
    assert verify(run_dir / CANDIDATE).kind == "finetuned"


@pytest.mark.slow
def test_killed_while_it_trains_it_has_failed_and_can_be_started_anew(tmp_path: Path) -> None:
    workplace = Workplace(tmp_path)
    run_dir = workplace.run_dir()
    jobs = SubprocessJobs(secret=workplace.url)
    jobs.launch(run_dir)
    while not last_progress(run_dir):
        assert jobs.status(run_dir).state == JobState.RUNNING
    os.kill(int((run_dir / "job.pid").read_text(encoding="ascii")), signal.SIGKILL)
    while (status := jobs.status(run_dir)).state == JobState.RUNNING:
        os.sched_yield()
    assert status.state == JobState.FAILED
    assert "it was killed" in status.error
    assert not (run_dir / CANDIDATE / MANIFEST).exists()
    again = workplace.run_dir()
    jobs.launch(again)
    while (status := jobs.status(again)).state == JobState.RUNNING:
        os.sched_yield()
    assert status.state == JobState.SUCCEEDED, status.error
    assert verify(again / CANDIDATE).kind == "finetuned"
