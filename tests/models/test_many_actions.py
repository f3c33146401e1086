"""Many actions: shared sums with own rows say what one dense sum per action says; cost follows what was said."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from plaudit_models.bandit import posterior as posteriors
from plaudit_models.bandit.features import FeatureSpace, Float64, Floats, action_codes, features, regressors
from plaudit_models.bandit.head import build_head
from plaudit_models.bandit.improvement import HeadSettings, bounded_step, head_scores
from plaudit_models.bandit.own_evidence import GramRows, Grams, OwnEvidence, leading_rows, no_own_evidence
from plaudit_models.bandit.posterior import MAX_VALUES, FullVariance, SharedVariance, posterior
from plaudit_models.bandit.reward_model import (
    Evidence,
    RewardPrior,
    RewardState,
    empty_state,
    evidence_of_actions,
    half_of,
    state_from_bytes,
)

PRIOR = RewardPrior()
EXAMPLES = [0, 1, 2, 3, 4, 5, 100, 255, 256, 280, 299]
"""Actions that are compared one by one."""
SMALL = FeatureSpace("trunk", n_actions=6, embedding_size=5, embedding_features=8, exclusivity=0.1)
CODED = FeatureSpace("trunk", n_actions=300, embedding_size=5, embedding_features=8, exclusivity=0.1)


def contexts(space: FeatureSpace, n: int, seed: int) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, space.embedding_size)).astype(np.float32), rng.normal(
        size=(n, space.n_actions), scale=2.0
    ).astype(np.float32)


def examples_of(space: FeatureSpace) -> list[int]:
    return [k for k in EXAMPLES if k < space.n_actions]


def thumbs(space: FeatureSpace, n: int, seed: int) -> Evidence:
    rng = np.random.default_rng(seed)
    phi = features(space, *contexts(space, n, seed))
    return evidence_of_actions(space, phi, rng.integers(0, space.n_actions, n), rng.integers(0, 2, n).astype(float))


def by_hand(space: FeatureSpace, evidence: Evidence, phi: Float64) -> tuple[Float64, Float64]:
    """q and σ² by a dense matrix per action, from the definition."""
    x, codes = regressors(space, evidence.features), action_codes(space.n_actions)
    code = codes if space.coded else np.eye(space.n_actions)
    at, weights = regressors(space, phi), evidence.action_weights()
    q, variance = phi[:, : space.n_actions].copy(), np.zeros((len(phi), space.n_actions))
    for k in examples_of(space):
        precision = np.diag(posteriors.precisions(space, PRIOR))
        own = np.zeros(space.n_regressors)
        own[: space.n_base_regressors] = code[k]
        precision += (PRIOR.own_precision - PRIOR.precision) * np.outer(own, own)
        covariance = np.linalg.inv(precision + (weights[:, k, None] * x).T @ x)
        residual = np.where(evidence.known_mask[:, k], evidence.rewards[:, k], 0.0) - evidence.features[:, k]
        q[:, k] += at @ covariance @ ((weights[:, k] * residual) @ x)
        variance[:, k] = ((at @ covariance) * at).sum(axis=1)
    return q[:, examples_of(space)], variance[:, examples_of(space)]


def assert_same(one: RewardState, other: RewardState) -> None:
    np.testing.assert_allclose(one.shared, other.shared, rtol=0, atol=1e-9)
    np.testing.assert_allclose(one.target, other.target, rtol=0, atol=1e-9)
    np.testing.assert_allclose(one.weight, other.weight, rtol=0, atol=1e-9)
    none = no_own_evidence(one.space.n_regressors)
    for k in one.own.keys() | other.own.keys():
        gram, wanted = one.own.get(k, none).gram, other.own.get(k, none).gram
        np.testing.assert_allclose(gram, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("space", [SMALL, CODED], ids=["their probabilities", "codes of them"])
@pytest.mark.parametrize("n", [1, 7, 400])
def test_shared_sums_say_what_dense_ones_say(space: FeatureSpace, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posteriors, "MAX_VALUES", 10**9)
    evidence, phi = thumbs(space, n, seed=1), features(space, *contexts(space, 9, seed=2))
    belief = posteriors._shared_posterior(empty_state(space).add(evidence), PRIOR)
    wanted_q, wanted_variance = by_hand(space, evidence, phi)
    q, variance = (each[:, examples_of(space)] for each in belief.predict(phi))
    np.testing.assert_allclose(q, wanted_q, rtol=0, atol=1e-9)
    np.testing.assert_allclose(variance, wanted_variance, rtol=0, atol=1e-6)  # as float32 constants hold it
    for k, each in zip(examples_of(space), wanted_variance.T, strict=True):
        wanted = 1.0 - each / belief.prior_variance(phi)[:, k]
        np.testing.assert_allclose(belief.known(phi, np.full(len(phi), k)), np.clip(wanted, 0.0, 1.0), atol=1e-5)


def test_few_actions_have_a_triangle_each_and_many_share() -> None:
    assert isinstance(posterior(empty_state(SMALL), PRIOR).variance, FullVariance)
    assert isinstance(posterior(empty_state(CODED), PRIOR).variance, FullVariance | SharedVariance)
    many = FeatureSpace("trunk", n_actions=1_000, embedding_size=5, embedding_features=192)
    assert isinstance(posterior(empty_state(many), PRIOR).variance, SharedVariance)


def test_prior_variance_is_that_of_no_evidence() -> None:
    phi = features(CODED, *contexts(CODED, 9, seed=2))
    belief = posteriors._shared_posterior(empty_state(CODED), PRIOR)
    np.testing.assert_allclose(belief.predict(phi)[1], belief.prior_variance(phi), atol=1e-6)
    np.testing.assert_array_equal(belief.predict(phi)[0], phi[:, : CODED.n_actions])


def test_codes_of_256_successive_actions_are_orthogonal_and_others_nearly() -> None:
    codes = action_codes(1_000)
    np.testing.assert_allclose(codes[256:512] @ codes[256:512].T, np.eye(256), atol=1e-12)
    assert np.abs(codes[:256] @ codes[256:512].T).mean() < 1.0 / 16.0
    np.testing.assert_array_equal(action_codes(300), codes[:300])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)), min_size=1, max_size=8), st.data())
def test_what_is_taken_back_was_never_there(said: list[tuple[int, int]], data: st.DataObject) -> None:
    """Batches in any order, some of them taken back: the state of those that are left, to 1e-9."""
    batches = [thumbs(SMALL, n, seed) for seed, n in said]
    gone = data.draw(st.lists(st.integers(0, len(batches) - 1), unique=True))
    state = empty_state(SMALL)
    for batch in batches:
        state = state.add(batch)
    for i in gone:
        state = state.subtract(batches[i])
    expected = empty_state(SMALL)
    for i in set(range(len(batches))) - set(gone):
        expected = expected.add(batches[i])
    assert_same(state, expected)


def test_rows_become_a_sum_once_they_are_many_and_can_still_be_taken_back() -> None:
    g = SMALL.n_regressors
    phi = features(SMALL, *contexts(SMALL, 3 * g, seed=4))
    of_one = evidence_of_actions(SMALL, phi, np.zeros(3 * g, np.int64), np.zeros(3 * g))
    first = evidence_of_actions(SMALL, phi[:4], np.zeros(4, np.int64), np.zeros(4))
    rest = evidence_of_actions(SMALL, phi[4:], np.zeros(3 * g - 4, np.int64), np.zeros(3 * g - 4))
    state = empty_state(SMALL).add(of_one)
    assert state.own[0].total is not None
    assert_same(state.subtract(rest), empty_state(SMALL).add(first))


def test_a_context_that_comes_again_takes_no_more_memory() -> None:
    evidence, state = thumbs(SMALL, 3, seed=1), empty_state(SMALL)
    for _ in range(50):
        state = state.add(evidence)
    assert sum(own.rank for own in state.own.values()) <= 3


def test_evidence_follows_what_was_said_not_the_number_of_actions() -> None:
    state = empty_state(CODED).add(thumbs(CODED, 20, seed=1))
    assert sum(own.rank for own in state.own.values()) == 20
    assert len(state.own) <= 20


@pytest.mark.parametrize("rank", [1, 3, 50])
def test_leading_rows_never_say_more_than_all_rows(rank: int) -> None:
    rng = np.random.default_rng(0)
    rows, scale = rng.normal(size=(2, 20, 12)), rng.random(12) + 0.5
    gram = rows.transpose(0, 2, 1) @ rows
    for found in (leading_rows(GramRows(rows), rank, scale), leading_rows(Grams(gram), rank, scale)):
        left = gram - found.transpose(0, 2, 1) @ found
        assert np.linalg.eigvalsh(left).min() > -1e-9
        if rank >= 12:
            np.testing.assert_allclose(left, 0.0, atol=1e-9)


def test_a_head_of_limited_size_is_never_too_sure(monkeypatch: pytest.MonkeyPatch) -> None:
    state, phi = empty_state(SMALL).add(thumbs(SMALL, 400, seed=1)), features(SMALL, *contexts(SMALL, 9, seed=2))
    sure = posteriors._shared_posterior(state, PRIOR)
    monkeypatch.setattr(posteriors, "MAX_VALUES", 6 * 3 * SMALL.n_regressors)
    limited = posteriors._shared_posterior(state, PRIOR)
    assert isinstance(limited.variance, SharedVariance)
    assert len(limited.variance.rows) == 6 * 3
    np.testing.assert_allclose(limited.mean, sure.mean, atol=1e-9)
    assert (limited.predict(phi)[1] >= sure.predict(phi)[1] - 1e-6).all()


@pytest.mark.parametrize("n_events", [0, 40, 2_000])
def test_graph_of_many_actions_agrees_with_numpy(n_events: int) -> None:
    space = FeatureSpace("trunk", n_actions=400, embedding_size=24, embedding_features=64, exclusivity=0.1)
    assert space.n_actions * space.n_regressors**2 > MAX_VALUES
    state = empty_state(space)
    if n_events:
        state = state.add(thumbs(space, n_events, seed=3))
    embedding, base_logits = contexts(space, 16, seed=4)
    graph = build_head(HeadSettings(), state).SerializeToString()
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (scores,) = session.run(["scores"], {"embedding": embedding, "base_logits": base_logits})
    expected = head_scores(HeadSettings(), state, embedding, base_logits)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=2e-4)
    assert len(graph) < 10e6


def test_a_step_goes_as_far_as_it_may() -> None:
    served, latest = empty_state(CODED), empty_state(CODED).add(thumbs(CODED, 200, seed=5))
    recent = contexts(CODED, 16, seed=6)
    step = bounded_step(HeadSettings(), served, latest, *recent, floor=0.01, max_kl=0.02)
    assert 0.0 < step.share < 1.0
    assert 0.75 * 0.02 <= step.kl <= 0.02


@pytest.mark.parametrize("space", [SMALL, CODED], ids=["their probabilities", "codes of them"])
def test_bytes_bring_rows_and_sums_back(space: FeatureSpace) -> None:
    state = empty_state(space).add(thumbs(space, 150, seed=1))
    total = OwnEvidence(np.zeros((0, space.n_regressors)), np.zeros(0), np.eye(space.n_regressors))
    state = RewardState(space, state.shared, dict(state.own) | {2: total}, state.target, state.weight)
    back = state_from_bytes(state.to_bytes())
    assert back.space == space
    assert_same(back, state)


def as_before(space: FeatureSpace, evidence: Evidence) -> bytes:
    """The state of the version before: a sum per action."""
    phi, weights = evidence.features, evidence.action_weights()
    gram = np.einsum("nk,nf,ng->kfg", weights, phi, phi)
    rewards = np.where(evidence.known_mask, evidence.rewards, 0.0)
    said = evidence.weights @ evidence.known_mask
    return saved_before(space, half_of(gram), (weights * rewards).T @ phi, said)


def saved_before(space: FeatureSpace, gram: Float64, target: Float64, weight: Float64) -> bytes:
    tensors = {"gram": gram, "target": target, "weight": weight}
    text = (
        f'{{"trunk_digest": "trunk", "n_actions": {space.n_actions}, "embedding_size": 5, "embedding_features": 8, '
        f'"exclusivity": 0.1}}'
    )
    return bytes(save(tensors, metadata={"space": text}))


def test_a_state_of_the_version_before_means_the_same() -> None:
    evidence, phi = thumbs(SMALL, 60, seed=1), features(SMALL, *contexts(SMALL, 9, seed=2))
    former, ours = state_from_bytes(as_before(SMALL, evidence)), empty_state(SMALL).add(evidence)
    for one, other in zip(posterior(former, PRIOR).predict(phi), posterior(ours, PRIOR).predict(phi), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)
    np.testing.assert_allclose(former.subtract(evidence).gram, 0.0, atol=1e-9)


def test_a_state_of_the_version_before_with_many_actions_is_learned_anew() -> None:
    small = FeatureSpace("trunk", n_actions=257, embedding_size=5, embedding_features=8, exclusivity=0.1)
    sums = np.zeros((257, 266 * 267 // 2)), np.zeros((257, 266)), np.ones(257)
    former = state_from_bytes(saved_before(small, *sums))
    assert former.space != small
    assert not former.weight.any()
