"""What the page shows of the loop, from a real registry."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from plaudit.adapters.registry.directory import DirectoryRegistry
from plaudit.console.families import families
from plaudit.console.loop import changes, view, went_live_s
from plaudit.console.ports import LearnerView
from plaudit.console.satisfaction import LabelledAnswer
from plaudit.core.rollout import Change, Rollout, end_canary, pin, promote, refresh, revert, start_canary
from support.builders import NOW_S, tiny_bundle, tiny_head_refresh, tiny_spec


class Latest:
    """Labelled answers, as many as were given."""

    def __init__(self, *answers: LabelledAnswer) -> None:
        self.answers = answers

    def latest(self) -> list[LabelledAnswer]:
        return list(self.answers)


NOBODY = LearnerView(lambda: None, Latest())  # type: ignore[arg-type]


def _change(time_s: float) -> Change:
    return Change("ada", time_s, f"at {time_s:g}")


@pytest.fixture
def registry(tmp_path: Path) -> DirectoryRegistry:
    """Version 1, its refresh 2, and 3 on a trunk of its own; 2 is live, 3 in an experiment."""
    registry = DirectoryRegistry(tmp_path / "registry", tiny_spec().name)
    tiny_bundle(tmp_path / "a")
    registry.publish(tmp_path / "a")
    tiny_head_refresh(tmp_path / "b", registry.folder(1), prefer="cat", data={"experiences": 64})
    registry.publish(tmp_path / "b")
    tiny_bundle(tmp_path / "c", seed=1, kind="finetuned", parent=2)
    registry.publish(tmp_path / "c")
    registry.set_rollout(promote(registry.rollout(), 1, _change(NOW_S)))
    registry.set_rollout(refresh(registry.rollout(), 2, _change(NOW_S + 1)))
    registry.set_rollout(start_canary(registry.rollout(), 3, 0.25, _change(NOW_S + 2)))
    return registry


def test_versions_stand_newest_first_with_their_parts_and_what_users_say(registry: DirectoryRegistry) -> None:
    latest = Latest(
        LabelledAnswer(1, NOW_S, 1.0), LabelledAnswer(2, NOW_S + 1.5, 1.0), LabelledAnswer(2, NOW_S + 1.6, 0.0)
    )
    seen = view(registry, LearnerView(lambda: {"pending": 3}, latest), now_s=NOW_S + 9)  # type: ignore[arg-type]
    json.dumps(seen)

    third, second, first = seen["versions"]
    assert [each["version"] for each in (third, second, first)] == [3, 2, 1]
    assert (third["roles"], second["roles"], first["roles"]) == (["candidate"], ["live"], ["gated", "previous"])
    assert (second["parent"], second["kind"], second["family"], third["family"]) == (1, "head", 1, 3)
    assert (first["live_since_s"], second["live_since_s"], third["live_since_s"]) == (NOW_S, NOW_S + 1, None)
    assert (second["satisfaction"]["n"], second["satisfaction"]["mean"]) == (2, 0.5)
    assert third["satisfaction"] is None
    assert seen["lately"]["n"] == seen["labelled"] == 3
    assert seen["learner"] == {"pending": 3}
    assert [(curve["family"], curve["points"][0]["n"]) for curve in seen["satisfaction"]] == [(1, 3)]


def test_changes_stand_newest_first_where_they_came_among_the_labelled_answers(registry: DirectoryRegistry) -> None:
    latest = Latest(LabelledAnswer(1, NOW_S + 0.5, 1.0), LabelledAnswer(2, NOW_S + 3, 1.0))
    seen = view(registry, LearnerView(lambda: None, latest), now_s=NOW_S)  # type: ignore[arg-type]
    assert [(change["candidate"], change["place"]) for change in seen["changes"]] == [(3, 1), (None, 0)]


def test_a_model_without_a_learner_shows_its_versions(registry: DirectoryRegistry) -> None:
    seen = view(registry, NOBODY, now_s=NOW_S)
    assert (seen["learner"], seen["satisfaction"], seen["lately"], len(seen["versions"])) == (None, [], None, 3)


def test_of_many_head_refreshes_the_latest_and_those_in_use_are_shown(
    registry: DirectoryRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plaudit.console.loop.HEADS_SHOWN", 1)
    for number in (4, 5):
        tiny_head_refresh(tmp_path / str(number), registry.folder(1), prefer="dog")
        registry.publish(tmp_path / str(number))
    assert [each["version"] for each in view(registry, NOBODY, now_s=NOW_S)["versions"]] == [5, 3, 2, 1]


def test_a_damaged_version_is_left_out(registry: DirectoryRegistry) -> None:
    manifest = registry.folder(3) / "manifest.json"
    manifest.write_text("{}")
    fresh = DirectoryRegistry(registry.folder(1).parents[2], "tiny")
    assert [each["version"] for each in view(fresh, NOBODY, now_s=NOW_S)["versions"]] == [2, 1]


def test_a_plain_refresh_is_no_change_and_a_revert_is_one() -> None:
    first = promote(Rollout("tiny"), 1, _change(1.0))
    second = refresh(first, 2, _change(2.0))
    third = refresh(second, 3, _change(3.0))
    back = revert(third, _change(4.0))
    pinned = pin(back, 1, _change(5.0))
    experiment = start_canary(replace(pinned, pinned=False), 4, 0.1, _change(6.0))
    over = end_canary(experiment, _change(7.0))
    ledger = [first, second, third, back, pinned, experiment, over]
    assert changes(ledger) == [first, back, pinned, experiment, over]
    assert went_live_s(ledger) == {1: 4.0, 2: 2.0, 3: 3.0}


def test_a_version_that_was_removed_belongs_where_it_came_from(registry: DirectoryRegistry) -> None:
    manifests = {1: registry.manifest(1), 3: registry.manifest(3)}
    ledger = list(registry.ledger())
    removed = refresh(promote(ledger[-1], 3, _change(8.0)), 4, _change(9.0))
    assert families(manifests, [*ledger, removed]) == {1: 1, 2: 1, 3: 3, 4: 3}
