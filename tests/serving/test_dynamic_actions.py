"""Requests that bring their own dynamic actions, over a real channel: how they are picked and logged, what is
refused.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest

from plaudit.adapters.log.sqlite import SqliteLog
from plaudit.adapters.registry.directory import DirectoryRegistry
from plaudit.core.events import DynamicAction, ExperimentReport, Thumb, Topic
from plaudit.core.ports.runtime import ModelRuntime
from plaudit.core.prediction_id import PredictionIds
from plaudit.core.rollout import start_canary
from plaudit.core.wire import contents_to_wire
from plaudit.serving.engine.dynamic_actions import TextVectors
from plaudit.serving.telemetry.metrics import ServingMetrics
from plaudit.v1 import feedback_pb2, prediction_pb2
from plaudit_models.bundle import TEXT_SCORER
from plaudit_models.preprocess import tokenize_all
from plaudit_models.spec import TOKENS, VECTORS
from support.builders import run_graph, tiny_bundle, tiny_content, tiny_head_refresh, tiny_spec, trunk_inputs
from support.serving_harness import (
    CHANGE,
    Running,
    Serve,
    a_thumb,
    decisions,
    events,
    feedback,
    go_live,
    refusal,
    until,
)

TEXTS = {"a": "which animal is loud", "b": "it is small", "c": "here or there", "never seen": "zebra"}


def listed(texts: dict[str, str] | None = None) -> list[prediction_pb2.DynamicAction]:
    return [prediction_pb2.DynamicAction(id=id_, text=text) for id_, text in (texts or TEXTS).items()]


@pytest.fixture
def registry(tmp_path: Path) -> DirectoryRegistry:
    """Version 1 scores text, and its floor is high; 2 has a head of its own beside the same trunk."""
    registry = DirectoryRegistry(tmp_path / "registry", tiny_spec().name)
    tiny_bundle(tmp_path / "one", spec=tiny_spec(scores_text=True), floor=0.2)
    registry.publish(tmp_path / "one")
    tiny_head_refresh(tmp_path / "two", registry.folder(1), prefer="dog")
    registry.publish(tmp_path / "two")
    go_live(registry, 1)
    return registry


async def only_decision(running: Running) -> Any:
    await asyncio.to_thread(running.server.stop)
    (decision,) = decisions(running.log)
    return decision


def policy(logits: npt.NDArray[np.floating], floor: float) -> npt.NDArray[np.float64]:
    """(1 − ε)·softmax + ε/k, from the definition."""
    weights: npt.NDArray[np.float64] = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray((1.0 - floor) * weights / weights.sum() + floor / len(logits))


async def test_dynamic_actions_are_scored_by_their_texts_and_logged_with_them(
    serve: Serve, registry: DirectoryRegistry, ids: PredictionIds
) -> None:
    running = await serve()
    answer = await running.predict(dynamic_actions=listed(), user_id="ada", request_id="r1")

    assert answer.action in TEXTS
    scores = {score.action: score.probability for score in answer.scores}
    assert set(scores) == set(TEXTS)
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    assert answer.propensity == scores[answer.action]
    signed = ids.check(answer.prediction_id, now_s=time.time())
    assert (signed.action, signed.propensity, signed.dynamic) == (answer.action, answer.propensity, True)

    decision = await only_decision(running)
    assert decision.dynamic_actions == tuple(DynamicAction(id_, text) for id_, text in TEXTS.items())
    assert (decision.action, decision.propensity, decision.allowed_actions) == (answer.action, answer.propensity, ())
    folder, spec = registry.folder(1), registry.manifest(1).spec
    tokenizer = running.server._models.pick("").live.serving().tokenizer
    assert tokenizer is not None
    tokens = tokenize_all(list(TEXTS.values()), spec.dynamic_action_modality[1], tokenizer)
    vectors = run_graph(folder / TEXT_SCORER, {TOKENS: tokens})[VECTORS]
    base_logits = vectors @ decision.features.embedding
    np.testing.assert_allclose(decision.features.base_logits, base_logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose([scores[id_] for id_ in TEXTS], policy(base_logits, 0.2), rtol=1e-4)


async def test_dynamic_actions_are_picked_as_often_as_their_propensity_says(serve: Serve) -> None:
    """χ² of 2000 picks with 3 degrees of freedom: above 16.3 with probability 0.001."""
    running = await serve()
    n = 2000
    answers: list[prediction_pb2.PredictResponse] = []
    while len(answers) < n:
        answers += await asyncio.gather(*(running.predict(dynamic_actions=listed()) for _ in range(20)))
    expected = {score.action: n * score.probability for score in answers[0].scores}
    counts = {id_: sum(answer.action == id_ for answer in answers) for id_ in TEXTS}
    assert min(expected.values()) > 20
    assert sum((counts[id_] - expected[id_]) ** 2 / expected[id_] for id_ in TEXTS) < 16.3
    assert all(answer.propensity == pytest.approx(expected[answer.action] / n, rel=1e-4) for answer in answers)


async def test_neither_order_nor_other_dynamic_actions_change_a_score(serve: Serve) -> None:
    running = await serve()
    one = await running.predict(dynamic_actions=listed())
    turned = await running.predict(dynamic_actions=listed()[::-1])
    alone = await asyncio.gather(
        *(running.predict(seed) for seed in range(5)), running.predict(dynamic_actions=listed())
    )
    expected = {score.action: score.probability for score in one.scores}
    for answer in (turned, alone[-1]):
        assert {score.action: score.probability for score in answer.scores} == pytest.approx(expected, rel=1e-4)
    assert all(set(score.action for score in answer.scores) == set(tiny_spec().actions) for answer in alone[:-1])


async def test_greedy_top_k_and_explanations(serve: Serve) -> None:
    running = await serve()
    answer = await running.predict(dynamic_actions=listed(), greedy=True, top_k=2, explain=True)
    assert (answer.action, answer.propensity) == (answer.scores[0].action, 1.0)
    assert len(answer.scores) == 2
    # Without any content the tiny trunk gives the embedding 0, so π is uniform over the dynamic actions.
    assert sum(answer.contributions.values()) == pytest.approx(answer.scores[0].probability - 0.25)
    single = await running.predict(dynamic_actions=listed({"only": "one"}))
    assert (single.action, single.propensity) == ("only", 1.0)


async def test_streams_and_their_previews_take_dynamic_actions(serve: Serve, log: SqliteLog) -> None:
    running = await serve()
    question = {"question": contents_to_wire(tiny_content())["question"]}
    request = prediction_pb2.PredictRequest(content=question, dynamic_actions=listed(), greedy=True)
    start = prediction_pb2.PredictStart(
        request=request,
        streamed={"audio": prediction_pb2.StreamedContent(pcm16_sample_rate_hz=8000)},
        interim_interval_ms=1,
    )
    call = running.predictions.PredictStream()
    await call.write(prediction_pb2.PredictStreamRequest(start=start))
    reading = asyncio.create_task(call.read())
    while not reading.done():
        chunk = prediction_pb2.ContentChunk(modality="audio", data=bytes(16))
        await call.write(prediction_pb2.PredictStreamRequest(chunk=chunk))
        await asyncio.sleep(0)
    interim = reading.result().interim
    assert {score.action for score in interim.scores} == set(TEXTS)
    assert interim.prediction_id == ""
    await call.write(prediction_pb2.PredictStreamRequest(end=prediction_pb2.PredictEnd()))
    await call.done_writing()
    answers = []
    while (answer := await call.read()) is not grpc.aio.EOF:
        answers.append(answer)
    assert answers[-1].final.action in TEXTS
    assert len((await only_decision(running)).dynamic_actions) == 4


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no id": (
        {"dynamic_actions": [("a", "x"), ("", "y")]},
        "dynamic_actions[1].id: is empty; give 1 to 128 characters",
    ),
    "a long id": (
        {"dynamic_actions": [("a" * 129, "x")]},
        "dynamic_actions[0].id: 'aaaaaaaaaaaaaaaaaaaa'… has 129 characters",
    ),
    "twice": ({"dynamic_actions": [("a", "x"), ("b", "y"), ("a", "z")]}, "dynamic_actions[2].id: 'a' is there twice"),
    "no text": (
        {"dynamic_actions": [("a", "x"), ("b", "y"), ("c", "z"), ("d", "")]},
        "dynamic_actions[3].text: '' is blank",
    ),
    "blank": ({"dynamic_actions": [("a", " \n")]}, "dynamic_actions[0].text: ' \\n' is blank; say what 'a' is"),
    "long text": (
        {"dynamic_actions": [("a", "ä" * 51)]},
        "dynamic_actions[0].text: 102 bytes of text are more than the limit",
    ),
    "too many": (
        {"dynamic_actions": [(str(i), "x") for i in range(257)]},
        "dynamic_actions: 257 are given; at most 256",
    ),
    "both": (
        {"dynamic_actions": [("a", "x")], "allowed_actions": ["cat"]},
        "dynamic_actions: are given together with allowed_actions; give one of the two",
    ),
}


async def test_wrong_dynamic_actions_are_named(serve: Serve, log: SqliteLog) -> None:
    running = await serve(max_text_bytes=100)
    for fields, complaint in WRONG.values():
        given = [prediction_pb2.DynamicAction(id=id_, text=text) for id_, text in fields["dynamic_actions"]]
        code, details = await refusal(running.predict(**(fields | {"dynamic_actions": given})))
        assert code is grpc.StatusCode.INVALID_ARGUMENT, details
        assert complaint in details
        assert len(details) < 500
    fits = [prediction_pb2.DynamicAction(id=str(i) + "ä" * 125, text="x") for i in range(256)]
    answer = await running.predict(dynamic_actions=fits)
    assert len(answer.scores) == 256
    assert len((await only_decision(running)).dynamic_actions) == 256


async def test_a_model_that_scores_no_text_says_what_would_make_it(serve: Serve, tmp_path: Path) -> None:
    plain = DirectoryRegistry(tmp_path / "plain", tiny_spec().name)
    tiny_bundle(tmp_path / "zero")
    plain.publish(tmp_path / "zero")
    go_live(plain, 1)
    running = await serve(registries=[plain])
    code, details = await refusal(running.predict(dynamic_actions=listed()))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith("dynamic_actions: are given, but 'tiny' scores no text; ")
    assert "scores_text = true under [model]" in details
    assert (await running.predict()).action in tiny_spec().actions


async def test_texts_are_embedded_once_for_all_versions_of_a_trunk(serve: Serve, registry: DirectoryRegistry) -> None:
    running = await serve()

    def texts(vectors: str) -> float:
        return running.metric("plaudit_serving_dynamic_action_texts_total", vectors=vectors)

    await running.predict(dynamic_actions=listed())
    assert (texts("computed"), texts("cached")) == (4, 0)
    go_live(registry, 2)
    await until(lambda: running.metric("plaudit_serving_live_version", model="tiny") == 2)
    answer = await running.predict(
        dynamic_actions=[*listed(), prediction_pb2.DynamicAction(id="new", text="another one")]
    )
    assert answer.version == 2
    assert (texts("computed"), texts("cached")) == (5, 4)


def test_the_cache_of_vectors_is_bounded(
    runtime: ModelRuntime, registry: DirectoryRegistry, metrics: ServingMetrics
) -> None:
    model = runtime.load(registry.folder(1))
    vectors = TextVectors(metrics, cached_texts=2)
    a, b, c = (DynamicAction(text, text) for text in "abc")

    def computed(*dynamic_actions: DynamicAction) -> float:
        counter = metrics.dynamic_action_texts.labels("computed")
        before = counter._value.get()
        found = vectors.of(dynamic_actions, model)
        np.testing.assert_allclose(found, model.action_vectors([each.text for each in dynamic_actions]), rtol=1e-6)
        return float(counter._value.get() - before)

    assert computed(a, b) == 2
    assert computed(a) == 0  # and is the latest now
    assert computed(c) == 1  # which is one too many
    assert computed(a, c) == 0
    assert computed(b) == 1
    assert computed(a, b, c) >= 1  # more at once than are kept
    assert computed(DynamicAction("one", "same"), DynamicAction("two", "same")) == 1


async def test_feedback_on_a_dynamic_action_may_name_any_id_and_is_checked_by_the_learner(
    serve: Serve, log: SqliteLog
) -> None:
    """Ids that are no actions, beside one that is: which were listed is known to the log alone."""
    running = await serve()
    texts = {"cat": "which animal is loud", "a new one": "zebra"}
    answers = [await running.predict(dynamic_actions=listed(texts)) for _ in range(30)]
    answer = next(answer for answer in answers if answer.action == "cat")
    of_actions = await running.predict()

    def send(piece: feedback_pb2.SendFeedbackRequest) -> Any:
        return running.feedback.SendFeedback(piece)

    prefer = feedback_pb2.Preference(preferred="a new one", rejected="cat")
    fine: Sequence[dict[str, Any]] = (
        {"thumb": feedback_pb2.THUMB_UP},
        {"rating": 0.5},
        {"correction": "a new one"},
        {"preference": prefer},
    )
    for number, signal in enumerate(fine):
        await send(a_thumb(answer.prediction_id, f"f{number}", **signal))
    for signal, complaint in (
        ({"correction": ""}, "correction: is empty; name one of the request's dynamic actions by its id"),
        ({"correction": "x" * 129}, "correction: 'xxxxxxxxxxxxxxxxxxxx'… has 129 characters"),
        (
            {"preference": feedback_pb2.Preference(preferred="cat", rejected="cat")},
            "preference: prefers 'cat' over itself",
        ),
    ):
        code, details = await refusal(send(a_thumb(answer.prediction_id, "wrong", **signal)))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert complaint in details
    _, details = await refusal(send(a_thumb(of_actions.prediction_id, "wrong", correction="a new one")))
    assert "correction: 'a new one' is not an action of 'tiny'" in details
    await asyncio.to_thread(running.server.stop)
    assert [each.feedback_id for each in feedback(log)] == ["f0", "f1", "f2", "f3"]
    assert feedback(log)[0].signal == Thumb(up=True)


async def test_in_the_shadow_a_version_is_asked_about_the_same_list_with_its_own_vectors(
    serve: Serve, registry: DirectoryRegistry, tmp_path: Path, runtime: ModelRuntime
) -> None:
    """Its answer, and the divergence over the list, are those of its own trunk and text scorer."""
    tiny_bundle(tmp_path / "other", spec=tiny_spec(scores_text=True), seed=9, floor=0.1)
    other = registry.publish(tmp_path / "other").version
    registry.set_rollout(start_canary(registry.rollout(), other, 1.0, CHANGE, shadow=True))
    running = await serve()
    await until(lambda: running.metric("plaudit_serving_candidate_version", model="tiny") == other)
    answers = []
    for seed in range(3):
        answers.append(await running.predict(seed, dynamic_actions=listed(), user_id="ada"))
        await shadowed(running, seed + 1)
    reported = await reports(running)
    shadows = [shadow for each in reported for shadow in each.shadows]
    assert len(shadows) + sum(each.dropped for each in reported) == 3
    assert shadows
    by_id = {answer.prediction_id: (seed, answer) for seed, answer in enumerate(answers)}
    model = runtime.load(registry.folder(other))
    vectors = model.action_vectors(list(TEXTS.values()))
    for shadow in shadows:
        assert not shadow.failure
        seed, answer = by_id[shadow.prediction_id]
        embedding = model.trunk(trunk_inputs(registry.folder(other), [tiny_content(seed)])).embedding[0]
        its = policy(vectors @ embedding, 0.1)
        lives = np.array([{s.action: s.probability for s in answer.scores}[id_] for id_ in TEXTS])
        assert shadow.action == list(TEXTS)[int(its.argmax())]
        assert shadow.agrees == (its.argmax() == lives.argmax())
        assert shadow.kl_nats == pytest.approx(float(np.sum(lives * np.log(lives / its))), rel=1e-3)


async def test_a_version_in_the_shadow_that_scores_no_text_is_counted_as_failing(
    serve: Serve, registry: DirectoryRegistry, tmp_path: Path
) -> None:
    tiny_bundle(tmp_path / "plain", seed=9)
    plain = registry.publish(tmp_path / "plain").version
    registry.set_rollout(start_canary(registry.rollout(), plain, 1.0, CHANGE, shadow=True))
    running = await serve()
    await until(lambda: running.metric("plaudit_serving_candidate_version", model="tiny") == plain)
    answer = await running.predict(dynamic_actions=listed(), user_id="ada")
    await shadowed(running, 1)
    (shadow,) = [shadow for each in await reports(running) for shadow in each.shadows]
    assert answer.version == 1
    assert shadow.failure == f"ValueError: version {plain} of 'tiny' scores no text"


async def shadowed(running: Running, n: int) -> None:
    """Wait until the shadow has come to n answers."""
    experiment = running.server._models.pick("").live.experiment
    assert experiment is not None
    await until(lambda: len(experiment._shadows) + experiment._dropped >= n)


async def reports(running: Running) -> list[ExperimentReport]:
    await asyncio.to_thread(running.server.stop)
    return [event for event in events(running.log, Topic.EXPERIMENTS) if isinstance(event, ExperimentReport)]


async def test_a_version_in_an_experiment_scores_dynamic_actions_for_its_users(
    serve: Serve, registry: DirectoryRegistry
) -> None:
    registry.set_rollout(start_canary(registry.rollout(), 2, 0.5, CHANGE))
    running = await serve()
    await until(lambda: running.metric("plaudit_serving_candidate_version", model="tiny") == 2)
    answers = [await running.predict(dynamic_actions=listed(), user_id=f"user {i}") for i in range(20)]
    assert {answer.version for answer in answers} == {1, 2}


async def test_scores_that_are_not_finite_fail_their_request_alone(serve: Serve, runtime: ModelRuntime) -> None:
    class Failing:
        def load(self, folder: Path) -> Any:
            model: Any = runtime.load(folder)
            model.dynamic_scores = lambda embedding, vectors, base_logits: base_logits * math.nan
            return model

    running = await serve(runtime=Failing())
    code, _ = await refusal(running.predict(dynamic_actions=listed()))
    assert code is grpc.StatusCode.INTERNAL
    assert running.metric("plaudit_serving_prediction_failures_total") == 1
    assert (await running.predict()).action in tiny_spec().actions
