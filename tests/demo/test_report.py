"""The demo's numbers, against numbers worked by hand."""

from __future__ import annotations

import io
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from plaudit.core.rollout import Rollout
from plaudit.demo.plot import draw
from plaudit.demo.report import (
    Answer,
    Failure,
    Observations,
    RefreshedHead,
    Satisfaction,
    expected_satisfaction,
    first_answers,
    freshness_s,
    mismatched,
    moving_satisfaction,
    percentile,
    reached_after,
    summarise,
    thumbs_at,
    timeline,
    traffic_satisfaction,
    version_after,
    worst_drop,
)
from plaudit.demo.task import Kind
from plaudit.demo.view import (
    TrafficState,
    finetuning_text,
    line,
    outcome_text,
    recent_satisfaction,
    render,
    results,
    trend,
)


def an_answer(number: int, version: int, *, kind: Kind = "add", liked: bool = True) -> Answer:
    """Request ``number`` is sent at 10·number seconds, answered 1 s later, its thumb durable 2 s later."""
    return Answer(
        number=number,
        kind=kind,
        action="3",
        liked=liked,
        thumb_up=liked,
        version=version,
        version_digest=f"digest {version}",
        feedback_id=f"f{number}",
        asked_s=10.0 * number,
        answered_s=10.0 * number + 1,
        acknowledged_s=10.0 * number + 2,
    )


ANSWERS = [an_answer(number, version) for number, version in enumerate([1, 1, 2, 4, 4, 1])]
"""Answered at 1, 11, 21, 31, 41, 51 s by versions 1, 1, 2, 4, 4, 1 (a revert); durable one second later."""


def held_out(**kinds: float) -> Satisfaction:
    return {"hear": 0.9, "see": 0.9, "larger": 0.9, "add": 0.5, "smaller": 0.2} | kinds  # type: ignore[return-value]


def test_expected_satisfaction_is_the_probability_of_what_is_liked() -> None:
    """add: example 0 likes action 1 (0.6), example 2 likes actions 0 and 2 (0.1 + 0.2): (0.6 + 0.3) / 2 = 0.45.
    hear: example 1 likes action 0 (0.7)."""
    probabilities = np.array([[0.3, 0.6, 0.1], [0.7, 0.2, 0.1], [0.1, 0.7, 0.2]])
    likes = np.array([[False, True, False], [True, False, False], [True, False, True]])
    found = expected_satisfaction(probabilities, likes, ["add", "hear", "add"])
    assert found == pytest.approx({"add": 0.45, "hear": 0.7})


def test_thumbs_at() -> None:
    assert [thumbs_at(ANSWERS, t) for t in (1.9, 2.0, 31.0, 100.0)] == [0, 1, 3, 6]


def test_first_answers_come_in_order() -> None:
    assert list(first_answers(ANSWERS).items()) == [(1, 1.0), (2, 21.0), (4, 31.0)]


def test_version_after() -> None:
    """Three thumbs are durable at 22 s, when version 2 had answered last. More than there are is the end."""
    assert [version_after(ANSWERS, n) for n in (1, 3, 4, 100)] == [1, 2, 4, 1]


def test_reached_after_counts_thumbs_before_the_first_answer() -> None:
    """Version 4 is the first at 0.75; it first answers at 31 s, when the thumbs of 2, 12 and 22 s are durable."""
    satisfaction = {1: held_out(add=0.5), 2: held_out(add=0.7), 4: held_out(add=0.75)}
    assert reached_after(ANSWERS, satisfaction, "add", 0.75) == 3
    assert reached_after(ANSWERS, satisfaction, "add", 0.76) is None
    assert reached_after(ANSWERS, satisfaction, "add", 0.5) == 0


def test_worst_drop_is_over_versions_and_unchanged_kinds() -> None:
    """hear falls by 1 point in version 2, see by 4 in version 3; add and smaller do not count, however they fall."""
    satisfaction = {1: held_out(), 2: held_out(hear=0.89, add=0.1), 3: held_out(see=0.86, smaller=0.0)}
    points, version, kind = worst_drop(satisfaction, 1)
    assert points == pytest.approx(4.0)
    assert (version, kind) == (3, "see")


def test_no_drop_is_zero() -> None:
    assert worst_drop({1: held_out(), 2: held_out(hear=0.95, see=0.95, larger=0.95)}, 1)[0] == 0.0


def test_freshness() -> None:
    """Version 2 learned from thumb f0, durable at 2 s; its first answer came at 21 s: 19 s.
    Version 3 learned from f1 (12 s) and never answered, but version 4, which knows more, did at 31 s: 19 s.
    Version 4 learned from f2 (22 s) and answered at 31 s: 9 s.
    Version 5 learned from f4 and nothing that knows as much ever answered: left out."""
    learned = [
        RefreshedHead(2, 1, "f0"),
        RefreshedHead(3, 2, "f1"),
        RefreshedHead(4, 3, "f2"),
        RefreshedHead(5, 5, "f4"),
    ]
    assert freshness_s(ANSWERS, learned) == pytest.approx([19.0, 19.0, 9.0])


def test_timeline_keeps_what_changed_the_live_version() -> None:
    """A revert counts; confirming the live version (generation 3) and what came after the traffic (60 s) do not."""
    ledger = [
        Rollout("m", generation, live=live, changed_at_s=10.0 * generation)
        for generation, live in enumerate([None, 1, 2, 2, 1, 5, 6])
    ]
    assert timeline(ledger, until_s=55.0) == [(10.0, 1), (20.0, 2), (40.0, 1), (50.0, 5)]


def test_mismatched_versions_are_found() -> None:
    wrong = replace(ANSWERS[3], version_digest="digest 2")
    unknown = replace(ANSWERS[4], version=9)
    digests = {v: f"digest {v}" for v in (1, 2, 4)}
    assert mismatched(ANSWERS, digests) == []
    assert mismatched([*ANSWERS[:3], wrong, unknown], digests) == [wrong, unknown]


def test_moving_satisfaction() -> None:
    """Window 4 begins with its first answer (a quarter). add at thumbs 1, 2, 4, 5, 6: liked 1, 0, 1, 1, 1; the last
    mean is over 0, 1, 1, 1."""
    kinds: list[Kind] = ["add", "add", "see", "add", "add", "add"]
    answers = [
        an_answer(n, 1, kind=kind, liked=liked)
        for n, (kind, liked) in enumerate(zip(kinds, [True, False, False, True, True, True], strict=True))
    ]
    thumbs, shares = moving_satisfaction(answers, "add", window=4)
    assert thumbs == [1, 2, 4, 5, 6]
    assert shares == pytest.approx([1, 1 / 2, 2 / 3, 3 / 4, 3 / 4])
    assert traffic_satisfaction(answers, "add", window=2) == (0.5, 1.0)


def test_percentile() -> None:
    assert percentile([1.0, 2.0, 3.0], 50) == 2.0
    assert percentile([], 50) is None


def observed() -> Observations:
    return Observations(
        answers=[*ANSWERS, an_answer(6, 1, kind="smaller", liked=False)],
        failures=[Failure(7, "Predict", "UNAVAILABLE: gone"), Failure(8, "SendFeedback", "UNAVAILABLE: gone")],
        satisfaction={1: held_out(), 2: held_out(add=0.8, hear=0.88), 4: held_out(smaller=0.6)},
        baseline=1,
        digests={v: f"digest {v}" for v in (1, 2, 3, 4)},
        kinds={1: "pretrained", 2: "head", 3: "head", 4: "finetuned"},
        refreshed_heads=[RefreshedHead(2, 1, "f0"), RefreshedHead(3, 2, "f1"), RefreshedHead(4, 3, "f2")],
        verdicts=["reject", "promote"],
        accuracy={"hear": 0.97},
        without={"image": {"hear": 0.96}},
        cut_short=[4],
        timeline=[(-5.0, 1), (20.0, 2), (30.0, 4), (50.0, 1)],
        duration_s=12.5,
    )


def test_summary() -> None:
    """7 answers are 14 calls; a failed Predict is 1 call; a failed SendFeedback is 2, its Predict succeeded."""
    summary = summarise(observed())
    assert summary["pretrain"] == {"accuracy": {"hear": 0.97}, "without": {"image": {"hear": 0.96}}}
    assert (summary["shift"]["before"], summary["shift"]["after"], summary["shift"]["thumbs"]) == (0.5, 0.5, 7)
    assert summary["shift"]["reached_after_thumbs"] == 2
    assert summary["new_kind"]["reached_after_thumbs"] is None
    assert (summary["new_kind"]["traffic_before"], summary["shift"]["traffic_after"]) == (0.0, 1.0)
    assert summary["unchanged"] == {"worst_drop_points": pytest.approx(2.0), "version": 2, "kind": "hear"}
    assert summary["requests"] == {"total": 17, "failed": 2, "problems": ["UNAVAILABLE: gone"]}
    assert summary["answers_of_unknown_version"] == 0
    assert summary["versions_served"] == {"pretrained": 1, "head": 1, "finetuned": 1}
    assert summary["gate"] == {"reject": 1, "promote": 1}
    assert summary["freshness_s"]["p50"] == pytest.approx(19.0)
    assert summary["latency_s"]["p50"] == pytest.approx(1.0)
    assert summary["trainings_cut_short"] == [4]
    assert (summary["swaps"], summary["thumbs"], summary["duration_s"]) == (3, 7, 12.5)


# --- what is shown ---------------------------------------------------------------------------------------------------


def shown(renderable: object) -> str:
    file = io.StringIO()
    Console(file=file, width=140).print(renderable)
    return file.getvalue()


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    draw(tmp_path / "satisfaction.png", observed())
    with Image.open(tmp_path / "satisfaction.png") as picture:
        assert picture.width > 1000


def test_trend() -> None:
    """Two cells of two answers each: half liked is the fifth of eight levels, all liked the eighth."""
    assert trend([True, False, True, True], cells=2) == "▅█"
    assert trend([False], cells=30) == "▁"
    assert trend([]) == ""


@pytest.mark.parametrize("width", [80, 100, 140])
def test_a_line_of_the_live_view_is_a_line_of_the_terminal(width: int) -> None:
    shown_kinds: tuple[Kind, ...] = ("hear", "see", "larger", "add", "smaller")
    kinds = itertools.cycle(shown_kinds)
    answers = [an_answer(n, 1, kind=next(kinds)) for n in range(400)]
    state = TrafficState(total=8_000, started_s=0.0, answers=answers, live=123, paused_for="the learner")
    state.changes.append("  100 s  version 123 serves: " + "64 new or changed experiences since version 122 " * 3)
    file = io.StringIO()
    Console(file=file, width=width).print(render(state, 52.0, width))
    lines = file.getvalue().splitlines()
    assert len(lines) == len(shown(render(state, 52.0, 140)).splitlines())
    assert "never labelled" in file.getvalue()
    assert "users wait for the learner" in file.getvalue()


def test_recent_satisfaction_forgets() -> None:
    answers = [an_answer(n, 1, liked=n >= 100) for n in range(200)]
    assert recent_satisfaction(answers, "add") == 1.0
    assert recent_satisfaction(answers, "see") is None


def test_the_live_view_shows_what_happened() -> None:
    state = TrafficState(total=80, started_s=0.0, answers=list(ANSWERS), live=4, swaps=2, finetuning="step 12 of 40")
    state.changes.append("   31 s  version 4 serves: fine-tuned on 3 experiences")
    for text in (shown(render(state, now_s=52.0)), line(state, now_s=52.0)):
        assert "version 4" in text
        assert "2 swaps" in text
        assert "step 12 of 40" in text
    assert "fine-tuned on 3 experiences" in shown(render(state, now_s=52.0))


@pytest.mark.parametrize(
    ("report", "words"),
    [
        ({}, "none"),
        ({"phase": "idle", "outcomes": []}, "waiting"),
        ({"phase": "training", "snapshot": 900, "progress": {}}, "training on 900 experiences, 0%"),
        ({"phase": "training", "snapshot": 900, "progress": {"fraction": 0.25}}, "25%"),
        ({"phase": "gating", "gate": {"n": 120, "e_value_gain": 3.21}}, "120 experiences, evidence 3.21"),
    ],
)
def test_finetuning_in_words(report: dict[str, object], words: str) -> None:
    assert words in finetuning_text(report)


@pytest.mark.parametrize(
    ("outcome", "version", "words"),
    [
        ("promote", 7, "fine-tuned version 7 was promoted: why"),
        ("reject", 7, "fine-tuned version 7 was rejected: why"),
        ("insufficient", 7, "fine-tuned version 7 was not promoted for lack of evidence: why"),
        ("failed", None, "fine-tuned run-1 failed: why"),
    ],
)
def test_outcomes_in_words(outcome: str, version: int | None, words: str) -> None:
    assert outcome_text({"run": "run-1", "outcome": outcome, "version": version, "why": "why"}) == words


def test_the_final_table_shows_the_summary() -> None:
    text = shown(results(summarise(observed())))
    assert "97%" in text
    assert "of 17" in text
    assert "2.0 points" in text
    assert "75% reached after 2" in text
    assert "80% not reached" in text
