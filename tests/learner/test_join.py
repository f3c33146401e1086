"""The join's rules, by hand and by hypothesis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit.core.events import (
    Correction,
    Feedback,
    Implicit,
    ImplicitKind,
    Preference,
    Rating,
    Retract,
    Signal,
    Thumb,
)
from plaudit.core.experience import DecisionHeader, Label, RaterLabel, header_of
from plaudit.learner.ingest.join import IMPLICIT_REWARDS, IMPLICIT_WEIGHT, join, refusal, silence
from support.builders import a_decision, some_feedback

ACTIONS = ("cat", "dog", "bird", "fish")
BETWEEN = DecisionHeader(
    "p", 0.0, "ada", 1, "b", 0.5, (), greedy=False, modalities=(), dynamic_actions=("a", "b", "cat")
)
"""A decision between dynamic actions, of which one is called what an action is."""
DECISION = header_of(a_decision("p", action="cat"))


def said(*signals: tuple[str, Signal]) -> list[Feedback]:
    """Feedback in the order given, one second apart: (user, signal), with the ids f0, f1, …"""
    return [
        some_feedback("p", signal, feedback_id=f"f{i}", user_id=user, time_s=100.0 + i)
        for i, (user, signal) in enumerate(signals)
    ]


def joined(feedback: Sequence[Feedback], decision: DecisionHeader = DECISION) -> Label | None:
    """The label, without saying whose it is."""
    label = join(decision, feedback, ACTIONS)
    return None if label is None else replace(label, by_rater=())


@pytest.mark.parametrize(
    ("signal", "expected"),
    [
        (Thumb(up=True), Label({"cat": 1.0}, 1.0)),
        (Thumb(up=False), Label({"cat": 0.0}, 1.0)),
        (Rating(0.25), Label({"cat": 0.25}, 1.0)),
        (Correction("dog"), Label({"cat": 0.0, "dog": 1.0, "bird": 0.0, "fish": 0.0}, 1.0, "dog")),
        (Correction("cat"), Label({"cat": 1.0, "dog": 0.0, "bird": 0.0, "fish": 0.0}, 1.0, "cat")),
        (Preference("dog", "cat"), Label({"cat": 0.25, "dog": 0.75}, 1.0)),
        (
            Implicit(ImplicitKind.REPHRASED),
            Label({"cat": IMPLICIT_REWARDS[ImplicitKind.REPHRASED]}, IMPLICIT_WEIGHT),
        ),
    ],
)
def test_one_signal(signal: Signal, expected: Label) -> None:
    assert joined(said(("ada", signal))) == expected


def test_nothing_said_is_nothing_learned() -> None:
    assert join(DECISION, [], ACTIONS) is None


def test_silence_covers_the_served_action_and_weighs_little() -> None:
    label = silence(DECISION, 0.6)
    assert label.rewards == {"cat": 0.6}
    assert label.weight < IMPLICIT_WEIGHT


def test_the_last_word_of_a_user_counts() -> None:
    changed_mind = said(("ada", Thumb(up=False)), ("ada", Rating(0.5)), ("ada", Thumb(up=True)))
    assert joined(changed_mind) == Label({"cat": 1.0}, 1.0)


def test_what_a_user_says_outweighs_what_the_user_does_later() -> None:
    interrupted = said(("ada", Thumb(up=True)), ("ada", Implicit(ImplicitKind.INTERRUPTED)))
    assert joined(interrupted) == Label({"cat": 1.0}, 1.0)


def test_users_are_averaged() -> None:
    """Three thumbs up and one down: 3/4."""
    four = said(*((user, Thumb(up=user != "dan")) for user in ("ada", "bob", "cy", "dan")))
    assert joined(four) == Label({"cat": 0.75}, 1.0)


def test_a_label_says_what_each_rater_said_whoever_asked() -> None:
    """Ada asked, and says nothing."""
    label = join(DECISION, said(("bob", Thumb(up=True)), ("eve", Correction("dog")), ("bob", Rating(0.25))), ACTIONS)
    assert label is not None
    assert label.by_rater == (
        RaterLabel("bob", {"cat": 0.25}, 1.0),
        RaterLabel("eve", {"cat": 0.0, "dog": 1.0, "bird": 0.0, "fish": 0.0}, 1.0, "dog"),
    )


def test_users_are_averaged_per_action_and_by_weight() -> None:
    """Ada (weight 1): cat is 1. Bob corrects to dog (weight 1): cat 0, dog 1, bird 0, fish 0. Cy prefers dog to bird
    (weight 1): dog 3/4, bird 1/4. Dan does not object (weight 1/4): cat 0.9. So cat = (1 + 0 + 0.225)/2.25, dog =
    (1 + 3/4)/2, bird = (0 + 1/4)/2; mean weight = 3.25/4.
    """
    four = said(
        ("ada", Thumb(up=True)),
        ("bob", Correction("dog")),
        ("cy", Preference("dog", "bird")),
        ("dan", Implicit(ImplicitKind.ACCEPTED)),
    )
    label = join(DECISION, four, ACTIONS)
    assert label is not None
    assert label.rewards == pytest.approx({"cat": 1.225 / 2.25, "dog": 0.875, "bird": 0.125, "fish": 0.0})
    assert label.weight == pytest.approx(3.25 / 4)
    assert label.correction == "dog"


def test_users_who_correct_differently_agree_on_no_correction() -> None:
    label = joined(said(("ada", Correction("dog")), ("bob", Correction("bird"))))
    assert label == Label({"cat": 0.0, "dog": 0.5, "bird": 0.5, "fish": 0.0}, 1.0, None)


def test_a_retraction_takes_back_all_of_its_users_earlier_signals() -> None:
    assert join(DECISION, said(("ada", Thumb(up=True)), ("ada", Retract())), ACTIONS) is None
    assert join(DECISION, said(("ada", Thumb(up=True)), ("bob", Retract())), ACTIONS) is not None


def test_after_a_retraction_a_user_may_speak_again() -> None:
    again = said(("ada", Thumb(up=True)), ("ada", Retract()), ("ada", Thumb(up=False)))
    assert joined(again) == Label({"cat": 0.0}, 1.0)


def test_a_named_retraction_takes_back_exactly_that_signal() -> None:
    """Of two signals the later is retracted, so the earlier one stands."""
    two = said(("ada", Thumb(up=True)), ("ada", Thumb(up=False)), ("ada", Retract("f1")))
    assert joined(two) == Label({"cat": 1.0}, 1.0)


def test_a_user_cannot_retract_the_feedback_of_others() -> None:
    assert join(DECISION, said(("ada", Thumb(up=True)), ("eve", Retract("f0"))), ACTIONS) is not None


@pytest.mark.parametrize(
    ("signal", "problem"),
    [
        (Correction("cow"), "correction: 'cow' is not, or no longer, in the action set"),
        (Preference("cow", "cat"), "preference.preferred: 'cow' is not, or no longer, in the action set"),
        (Preference("cat", "cow"), "preference.rejected: 'cow' is not, or no longer, in the action set"),
        (Preference("cat", "cat"), "preference: 'cat' cannot be better than itself"),
    ],
)
def test_what_cannot_be_learned_from_is_refused_with_a_reason(signal: Signal, problem: str) -> None:
    assert refusal(DECISION, said(("ada", signal))[0], ACTIONS) == problem


def test_a_thumb_on_an_action_that_is_gone_is_refused() -> None:
    gone = header_of(a_decision("p", action="cow"))
    assert refusal(gone, said(("ada", Thumb(up=True)))[0], ACTIONS) is not None
    assert refusal(DECISION, said(("ada", Thumb(up=True)))[0], ACTIONS) is None


signals = st.one_of(
    st.builds(Thumb, st.booleans()),
    st.builds(Rating, st.floats(0.0, 1.0)),
    st.builds(Correction, st.sampled_from(ACTIONS)),
    st.builds(Implicit, st.sampled_from(list(ImplicitKind))),
    st.builds(Retract, st.sampled_from(["", "f0", "f1", "f2"])),
)


@given(
    st.lists(st.tuples(st.sampled_from(["ada", "bob"]), signals), max_size=6)
    .map(lambda s: said(*s))
    .flatmap(lambda feedback: st.tuples(st.just(feedback), st.permutations(feedback)))
)
def test_the_order_of_delivery_does_not_matter(both: tuple[Sequence[Feedback], Sequence[Feedback]]) -> None:
    feedback, delivered = both
    assert join(DECISION, delivered, ACTIONS) == join(DECISION, feedback, ACTIONS)


@given(st.lists(st.tuples(st.sampled_from(["ada", "bob", "cy"]), signals), max_size=8).map(lambda s: said(*s)))
def test_a_label_stays_in_bounds(feedback: Sequence[Feedback]) -> None:
    label = join(DECISION, feedback, ACTIONS)
    if label is not None:
        assert all(0.0 <= reward <= 1.0 for reward in label.rewards.values())
        assert 0.0 < label.weight <= 1.0
        assert label.rewards


# --- decisions between dynamic actions
# ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signal", "expected"),
    [
        (Thumb(up=True), Label({"b": 1.0}, 1.0)),
        (Rating(0.25), Label({"b": 0.25}, 1.0)),
        (Correction("cat"), Label({"a": 0.0, "b": 0.0, "cat": 1.0}, 1.0, "cat")),
        (Preference("a", "b"), Label({"a": 0.75, "b": 0.25}, 1.0)),
    ],
)
def test_feedback_on_dynamic_actions_is_about_these_alone(signal: Signal, expected: Label) -> None:
    assert joined(said(("ada", signal)), BETWEEN) == expected
    assert refusal(BETWEEN, said(("ada", signal))[0], ACTIONS) is None


def test_an_action_that_was_not_listed_is_refused() -> None:
    for signal, field in ((Correction("dog"), "correction"), (Preference("a", "dog"), "preference.rejected")):
        problem = refusal(BETWEEN, said(("ada", signal))[0], ACTIONS)
        assert problem == f"{field}: 'dog' is not one of the 3 dynamic actions of the request"


def test_silence_is_about_the_dynamic_action_that_was_picked() -> None:
    assert silence(BETWEEN, 0.5).rewards == {"b": 0.5}
