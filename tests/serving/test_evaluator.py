"""One batch: the right probabilities for the right question, sampling by its frequencies, failures that stay apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import pytest

from plaudit.adapters.registry.directory import DirectoryRegistry
from plaudit.core.errors import InvalidInput, RunStopped
from plaudit.core.ports.runtime import ModelRuntime, RunFailed, ServableModel
from plaudit.serving.engine.action_sets import FixedActionSet, all_allowed
from plaudit.serving.engine.decoding import decode_content
from plaudit.serving.engine.dynamic_actions import DynamicActionSet
from plaudit.serving.engine.evaluator import Evaluation, EvaluationRequest, Evaluator
from plaudit.serving.telemetry.metrics import ServingMetrics
from plaudit.serving.telemetry.statistics import Statistics
from plaudit_models.bandit.policy import probabilities
from plaudit_models.limits import Limits
from support.builders import tiny_bundle, tiny_content, tiny_head_refresh, tiny_spec

ALL = all_allowed(4)


@dataclass(eq=False)
class Altered:
    """A model with other parts; equal to itself alone."""

    manifest: Any
    tokenizer: Any
    trunk: Any
    head: Any


def altered(model: ServableModel, **parts: Any) -> Any:
    return Altered(**({name: getattr(model, name) for name in ("manifest", "tokenizer", "trunk", "head")} | parts))


def evaluator(metrics: ServingMetrics, seed: int | None = None) -> Evaluator:
    return Evaluator(metrics, Statistics(), 64, np.random.default_rng(seed))


def evaluations(evaluator: Evaluator, requests: Sequence[EvaluationRequest]) -> list[Evaluation]:
    """Answers of requests none of which fails."""
    answers = evaluator.run(requests)
    assert all(isinstance(answer, Evaluation) for answer in answers), answers
    return [answer for answer in answers if isinstance(answer, Evaluation)]


@pytest.fixture
def model(registry: DirectoryRegistry, runtime: ModelRuntime) -> ServableModel:
    return runtime.load(registry.folder(1))


def question(
    model: ServableModel,
    seed: int = 0,
    *,
    allowed: npt.NDArray[np.bool_] = ALL,
    greedy: bool = False,
    only: Collection[str] | None = None,
) -> EvaluationRequest:
    content = {name: part for name, part in tiny_content(seed).items() if only is None or name in only}
    actions = FixedActionSet(model.manifest.spec.actions, allowed)
    return EvaluationRequest(model, decode_content(content, model, Limits()), actions, greedy)


def test_each_answer_is_that_of_its_question_alone(model: ServableModel, metrics: ServingMetrics) -> None:
    """Batched or not, allowed or not, missing modalities or not: the probabilities are those of the formula."""
    some = np.array([True, False, True, False])
    questions = [
        question(model, 0),
        question(model, 1, allowed=some),
        question(model, 2, only={"question"}),
        question(model, 3, greedy=True),
    ]
    together = evaluations(evaluator(metrics, 1), questions)
    for asked, answer in zip(questions, together, strict=True):
        (alone,) = evaluations(evaluator(metrics, 1), [asked])
        np.testing.assert_allclose(answer.probabilities, alone.probabilities, rtol=1e-5)
        np.testing.assert_allclose(answer.embedding, alone.embedding, rtol=1e-5, atol=1e-6)
        expected = probabilities(answer.base_logits[None], asked.actions.allowed[None], 0.02)[0]  # the initial head
        np.testing.assert_allclose(answer.probabilities, expected, rtol=1e-6)
        assert asked.actions.allowed[answer.action]
    assert all(a.propensity == a.probabilities[a.action] for a in together[:3])
    assert together[3].action == int(together[3].probabilities.argmax())
    assert together[3].propensity == 1.0


def test_actions_are_picked_as_often_as_their_propensity_says(model: ServableModel, metrics: ServingMetrics) -> None:
    """4000 draws: the standard error of a frequency is at most 0.5/√4000 < 0.008; five of them are 0.04."""
    evaluating = evaluator(metrics, 5)
    answers = [answer for _ in range(100) for answer in evaluations(evaluating, [question(model)] * 40)]
    counts = Counter(answer.action for answer in answers)
    for action, probability in enumerate(answers[0].probabilities):
        assert counts[action] / 4000 == pytest.approx(probability, abs=0.04)


def test_the_same_seed_picks_the_same_actions(model: ServableModel, metrics: ServingMetrics) -> None:
    def picks(seed: int) -> list[int]:
        return [answer.action for answer in evaluations(evaluator(metrics, seed), [question(model)] * 50)]

    assert picks(3) == picks(3)
    assert picks(3) != picks(4)


def test_a_batch_across_a_swap_answers_each_with_its_own_version(
    model: ServableModel, registry: DirectoryRegistry, runtime: ModelRuntime, metrics: ServingMetrics, tmp_path: Path
) -> None:
    tiny_head_refresh(tmp_path / "sure", registry.folder(1), prefer="bird")
    other = runtime.load(tmp_path / "sure")
    first, second, third = evaluations(evaluator(metrics, 0), [question(model), question(other), question(model)])
    np.testing.assert_array_equal(first.probabilities, third.probabilities)
    assert second.probabilities[2] > first.probabilities[2] + 0.3


def test_a_version_that_fails_fails_its_own_questions_alone(model: ServableModel, metrics: ServingMetrics) -> None:
    def fail(*_: Any) -> NoReturn:
        raise MemoryError("no memory left")

    bad = question(altered(model, head=fail))
    first, second, third = evaluator(metrics, 0).run([question(model), bad, question(model, 1)])
    assert isinstance(second, MemoryError)
    assert isinstance(first, Evaluation)
    assert isinstance(third, Evaluation)
    assert [0 <= answer.action < 4 for answer in (first, third)] == [True, True]


def test_a_row_that_is_not_finite_fails_alone(model: ServableModel, metrics: ServingMetrics) -> None:
    def head(embedding: npt.NDArray[np.float32], base_logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        scores = base_logits.copy()
        scores[1, 2] = np.nan
        return scores

    sick = altered(model, head=head)
    first, second, third = evaluator(metrics, 0).run([question(sick, seed) for seed in range(3)])
    assert isinstance(second, FloatingPointError)
    assert isinstance(first, Evaluation)
    assert isinstance(third, Evaluation)
    np.testing.assert_allclose([first.probabilities.sum(), third.probabilities.sum()], 1.0)


class Picky:
    """A trunk that rejects batches with certain rows, as a graph does that finds a token outside its vocabulary.

    Attributes:
        batches: sizes of the batches it was asked for.
    """

    def __init__(self, model: ServableModel, *, rejects: Collection[float], broken: bool = False) -> None:
        self._model = model
        self._rejects = rejects
        self._broken = broken
        self.batches: list[int] = []

    def trunk(self, inputs: Any, outputs: Any = (), deadline_s: float = 0.0) -> Any:
        self.batches.append(len(inputs["sensor"]))
        if self._broken or any(row[0] in self._rejects for row in inputs["sensor"]):
            raise RunFailed("idx=7 is out of bounds")
        return self._model.trunk(inputs, outputs, deadline_s)

    def warm(self, batch_sizes: Sequence[int], again: bool = False) -> None:
        if self._broken:
            raise RuntimeError("it cannot run")


def of_sensor(model: Any, first: float) -> EvaluationRequest:
    asked = question(model)
    return replace(asked, inputs={**asked.inputs, "sensor": np.array([first, 0, 0, 0], np.float32)})


@pytest.mark.parametrize("culprits", [(3,), (0,), (7,), (2, 3), (0, 5, 7), tuple(range(8))], ids=str)
def test_requests_that_the_graph_rejects_fail_alone(
    model: ServableModel, metrics: ServingMetrics, culprits: tuple[int, ...]
) -> None:
    """One caller's token outside the vocabulary (https://github.com/microsoft/onnxruntime/issues/2080)."""
    picky = Picky(model, rejects=culprits)
    partly = altered(model, trunk=picky.trunk)
    partly.warm = picky.warm
    outcomes = evaluator(metrics, 0).run([of_sensor(partly, row) for row in range(8)])
    for row, outcome in enumerate(outcomes):
        if row in culprits:
            assert isinstance(outcome, InvalidInput)
            assert str(outcome) == "content: the model cannot compute this: idx=7 is out of bounds"
        else:
            assert isinstance(outcome, Evaluation)
            (alone,) = evaluations(evaluator(metrics, 0), [of_sensor(model, row)])
            np.testing.assert_allclose(outcome.probabilities, alone.probabilities, rtol=1e-5)
    assert sum(picky.batches) <= 8 * (1 + 3)  # b·(1 + log₂(b)) rows at most
    assert failures(metrics) == 0


def test_a_batch_that_succeeds_is_run_once(model: ServableModel, metrics: ServingMetrics) -> None:
    picky = Picky(model, rejects=())
    counted = altered(model, trunk=picky.trunk)
    evaluations(evaluator(metrics, 0), [of_sensor(counted, row) for row in range(8)])
    assert picky.batches == [8]


def test_a_version_that_cannot_run_is_at_fault_itself(model: ServableModel, metrics: ServingMetrics) -> None:
    picky = Picky(model, rejects=(), broken=True)
    broken = altered(model, trunk=picky.trunk)
    broken.warm = picky.warm
    outcomes = evaluator(metrics, 0).run([of_sensor(broken, row) for row in range(8)])
    assert all(isinstance(outcome, RunFailed) for outcome in outcomes)
    assert picky.batches == [8]  # nothing is found out by halves
    assert failures(metrics) == 8


def test_a_fault_of_our_own_is_nobodys_input(model: ServableModel, metrics: ServingMetrics) -> None:
    def trunk(*_: Any) -> NoReturn:
        raise TypeError("a bug")

    buggy = altered(model, trunk=trunk)
    buggy.warm = Picky(model, rejects=()).warm  # it runs on its recorded rows
    outcomes = evaluator(metrics, 0).run([of_sensor(buggy, row) for row in range(2)])
    assert all(isinstance(outcome, TypeError) for outcome in outcomes)
    assert failures(metrics) == 2


def test_a_batch_is_given_the_time_of_its_latest_request(model: ServableModel, metrics: ServingMetrics) -> None:
    given = []

    def trunk(inputs: Any, outputs: Any, deadline_s: float) -> Any:
        given.append(deadline_s)
        raise RunStopped(3.0)

    slow = altered(model, trunk=trunk)
    asked = [replace(question(slow), deadline_s=deadline_s) for deadline_s in (5.0, 9.0, 7.0)]
    outcomes = evaluator(metrics, 0).run(asked)
    assert given == [9.0]  # once: there is no time to look for a culprit
    assert all(isinstance(outcome, RunStopped) for outcome in outcomes)


def test_a_row_that_asks_for_infinity_is_at_fault_itself(model: ServableModel, metrics: ServingMetrics) -> None:
    def head(embedding: npt.NDArray[np.float32], base_logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.full_like(base_logits, np.nan)

    sick = altered(model, head=head)
    extreme, ordinary = evaluator(metrics, 0).run([of_sensor(sick, 3e38), of_sensor(sick, 3.0)])
    assert isinstance(extreme, InvalidInput)
    assert 'content["sensor"]: is so large' in str(extreme)
    assert isinstance(ordinary, FloatingPointError)
    assert failures(metrics) == 1


def failures(metrics: ServingMetrics) -> float:
    return sum(
        sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "plaudit_serving_prediction_failures_total"
    )


def test_requests_of_different_action_sets_share_a_batch(
    runtime: ModelRuntime, metrics: ServingMetrics, tmp_path: Path
) -> None:
    """Each is scored by its own set, as it is alone; a set whose scores are not finite fails its request alone."""
    tiny_bundle(tmp_path / "scorer", spec=tiny_spec(scores_text=True))
    model = runtime.load(tmp_path / "scorer")
    vectors = model.action_vectors(["which animal", "it is small", "zebra"])
    broken_vectors = vectors * np.float32(np.nan)
    fixed = question(model, 0)
    dynamic, other, sick = (
        EvaluationRequest(model, fixed.inputs, DynamicActionSet(ids, ids, some))
        for ids, some in (("abc", vectors), ("ab", vectors[:2]), ("abc", broken_vectors))
    )
    requests = [dynamic, fixed, sick, other, question(model, 1)]
    together = evaluator(metrics, 1).run(requests)
    assert isinstance(together.pop(2), FloatingPointError)
    requests.pop(2)
    for request, answer in zip(requests, together, strict=True):
        (alone,) = evaluator(metrics, 1).run([request])
        assert isinstance(answer, Evaluation)
        assert isinstance(alone, Evaluation)
        assert len(answer.probabilities) == len(request.actions.ids)
        np.testing.assert_allclose(answer.probabilities, alone.probabilities, rtol=1e-5)
        np.testing.assert_allclose(answer.base_logits, alone.base_logits, rtol=1e-4, atol=1e-6)
    first = together[0]
    assert isinstance(first, Evaluation)
    expected = probabilities((vectors @ first.embedding)[None], np.ones((1, 3), np.bool_), model.manifest.floor)[0]
    np.testing.assert_allclose(first.probabilities, expected, rtol=1e-5)
    assert (
        metrics.registry.get_sample_value(
            "plaudit_serving_prediction_failures_total", {"model": "tiny", "version": str(model.manifest.version)}
        )
        == 1
    )


def test_a_floor_of_all_the_mass_is_uniform(model: ServableModel, metrics: ServingMetrics) -> None:
    uniform = altered(model, manifest=replace(model.manifest, floor=1.0))
    asked = question(model)
    (answer,) = evaluations(evaluator(metrics), [EvaluationRequest(uniform, asked.inputs, asked.actions)])
    np.testing.assert_allclose(answer.probabilities, 0.25)
