"""The contract of ExperienceStore, for every adapter. An adapter joins by joining ``ADAPTERS``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from builders import NOW_S, a_decision, some_feedback, tiny_content
from plaudit.adapters.sql_store import SqlStore, sqlite_url
from plaudit.core.errors import StoreMoved, StoreUnavailable
from plaudit.core.events import EncodedContent, Features
from plaudit.core.experience import Experience, FeedbackState, Judgement, served
from plaudit.core.ports import Changes, ExperienceStore, History, Kept

ADAPTERS: dict[str, Callable[[Path], ExperienceStore]] = {
    "sqlite": lambda folder: SqlStore(sqlite_url(folder / "learner.db"))
}
TRUNK = "f1" * 32


@pytest.fixture(params=sorted(ADAPTERS))
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], ExperienceStore]]:
    """Opens another store on the same data, as another process would."""
    opened: list[ExperienceStore] = []

    def open_another() -> ExperienceStore:
        opened.append(ADAPTERS[request.param](tmp_path))
        return opened[-1]

    yield open_another
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Callable[[], ExperienceStore]) -> ExperienceStore:
    return open_store()


def an_experience(number: int, **fields: object) -> Experience:
    decision = served(a_decision(f"p{number}"))
    return Experience(number, decision, Judgement({"cat": 1.0}, 1.0), (0.1, 0.2, 0.3, 0.4), **fields)  # type: ignore[arg-type]


def test_a_fresh_store_knows_nothing(store: ExperienceStore) -> None:
    assert store.cursor() == ""
    assert store.recall("anything") is None
    assert store.histories(["p"]) == {"p": History(None, [], None)}
    assert store.experiences() == []


def test_everything_saved_is_there_after_reopening(
    store: ExperienceStore, open_store: Callable[[], ExperienceStore]
) -> None:
    decision = a_decision("p1", allowed_actions=("cat", "dog"), greedy=True, content=tiny_content())
    kept = Kept(some_feedback("p1", feedback_id="f1"), FeedbackState.DISCARDED, "no reason")
    experience = Experience(1, served(decision), Judgement({"cat": 0.5}, 0.25, "dog"), (0.1, 0.9, 0.0, 0.0))
    store.save(
        Changes(
            cursor="7", decisions=[decision], feedback=[kept], experiences=[experience], memory={"a": b"1", "b": b"2"}
        )
    )
    other = open_store()
    assert other.cursor() == "7"
    assert other.recall("a") == b"1"
    assert other.histories(["p1", "p2"]) == {
        "p1": History(served(decision), [kept], experience),
        "p2": History(None, [], None),
    }
    assert other.feedback(["f1", "f2"]) == {"f1": kept}
    assert other.experiences() == [experience]


def test_content_comes_back_as_it_was_sent(store: ExperienceStore) -> None:
    content = tiny_content(3)
    store.save(Changes(decisions=[a_decision("p1", content=content), a_decision("p2", content={})]))
    found = store.contents(["p1", "p2", "p3"])
    assert found.keys() == {"p1", "p2"}
    assert found["p2"] == {}
    assert found["p1"]["image"] == content["image"]
    assert isinstance(found["p1"]["audio"], EncodedContent)
    np.testing.assert_array_equal(found["p1"]["sensor"].array, content["sensor"].array)  # type: ignore[union-attr]


def test_features_are_kept_per_trunk(store: ExperienceStore) -> None:
    """Those of the decision under the trunk that served, others under theirs."""
    decision = a_decision("p1")
    other = Features("aa" * 32, np.ones(3, np.float32), np.zeros(2, np.float32))
    store.save(Changes(decisions=[decision], features={"p1": other}))
    assert decision.features is not None
    np.testing.assert_array_equal(store.features(["p1"], TRUNK)["p1"].embedding, decision.features.embedding)
    np.testing.assert_array_equal(store.features(["p1"], TRUNK)["p1"].base_logits, decision.features.base_logits)
    np.testing.assert_array_equal(store.features(["p1"], "aa" * 32)["p1"].embedding, other.embedding)
    assert store.features(["p1", "p2"], "bb" * 32) == {}


def test_a_decision_without_features_has_none(store: ExperienceStore) -> None:
    store.save(Changes(decisions=[a_decision("p1", features=None)]))
    assert store.features(["p1"], TRUNK) == {}


def test_saving_again_changes_feedback_and_experiences(store: ExperienceStore) -> None:
    decision = a_decision("p1")
    waiting = Kept(some_feedback("p1", feedback_id="f1"), FeedbackState.WAITING)
    store.save(Changes(feedback=[waiting]))
    assert store.histories(["p1"]) == {"p1": History(None, [waiting], None)}
    joined = Kept(waiting.feedback, FeedbackState.JOINED)
    experience = Experience(1, served(decision), Judgement({"cat": 1.0}, 1.0))
    store.save(Changes(decisions=[decision], feedback=[joined], experiences=[experience]))
    taken_back = Experience(1, served(decision), None)
    store.save(Changes(experiences=[taken_back]))
    assert store.histories(["p1"]) == {"p1": History(served(decision), [joined], taken_back)}


def test_experiences_come_in_order_and_in_ranges(store: ExperienceStore) -> None:
    experiences = [an_experience(number) for number in (3, 1, 2, 4)]
    store.save(Changes(decisions=[a_decision(f"p{n}") for n in (1, 2, 3, 4)], experiences=experiences))
    assert [e.number for e in store.experiences()] == [1, 2, 3, 4]
    assert [e.number for e in store.experiences(after=1, up_to=3)] == [2, 3]
    assert [e.number for e in store.experiences(after=1, limit=1)] == [2]


def test_experiences_after_a_number_are_set_aside(store: ExperienceStore) -> None:
    experiences = [an_experience(number) for number in (1, 2, 3)]
    store.save(Changes(decisions=[a_decision(f"p{n}") for n in (1, 2, 3)], experiences=experiences))
    store.save(Changes(set_aside_after=1))
    assert [e.set_aside for e in store.experiences()] == [False, True, True]


def test_orphans_are_the_feedback_that_waits_oldest_first(store: ExperienceStore) -> None:
    def kept(name: str, time_s: float, state: FeedbackState) -> Kept:
        return Kept(some_feedback(name, feedback_id=name, time_s=time_s), state)

    store.save(
        Changes(
            feedback=[
                kept("late", NOW_S + 2, FeedbackState.WAITING),
                kept("early", NOW_S + 1, FeedbackState.WAITING),
                kept("joined", NOW_S, FeedbackState.JOINED),
            ]
        )
    )
    assert [feedback.feedback_id for feedback in store.orphans(10)] == ["early", "late"]
    assert len(store.orphans(1)) == 1


def test_silent_lists_decisions_up_to_the_first_that_is_too_young(store: ExperienceStore) -> None:
    times = {"p1": NOW_S, "p2": NOW_S + 1, "p3": NOW_S + 9, "p4": NOW_S + 2}
    store.save(Changes(decisions=[a_decision(id_, time_s=time_s) for id_, time_s in times.items()]))
    found = store.silent(0, NOW_S + 5, 10)
    assert [decision.prediction_id for _, decision in found] == ["p1", "p2"]
    assert [decision.prediction_id for _, decision in store.silent(found[0][0], NOW_S + 5, 10)] == ["p2"]
    assert len(store.silent(0, NOW_S + 5, 1)) == 1


def test_memory_can_be_replaced_and_forgotten(store: ExperienceStore) -> None:
    store.save(Changes(memory={"a": b"1", "b": b"2"}))
    store.save(Changes(memory={"a": b"3", "b": None}))
    assert (store.recall("a"), store.recall("b")) == (b"3", None)


def test_a_cursor_of_none_leaves_it_where_it_is(store: ExperienceStore) -> None:
    store.save(Changes(cursor="7"))
    store.save(Changes(memory={"a": b"1"}))
    assert store.cursor() == "7"


def test_a_save_that_fails_changes_nothing(store: ExperienceStore) -> None:
    """The second decision of that id cannot be saved, so nothing that came with it is."""
    store.save(Changes(cursor="1", decisions=[a_decision("p1")]))
    with pytest.raises(StoreUnavailable):
        store.save(Changes(cursor="2", decisions=[a_decision("p2"), a_decision("p1")], memory={"a": b"1"}))
    assert store.cursor() == "1"
    assert store.recall("a") is None
    assert store.histories(["p2"])["p2"].served is None
    store.save(Changes(cursor="2", decisions=[a_decision("p2")]))
    assert store.cursor() == "2"


def test_two_learners_on_one_store_are_found_out(
    store: ExperienceStore, open_store: Callable[[], ExperienceStore]
) -> None:
    other = open_store()
    assert (store.cursor(), other.cursor()) == ("", "")
    store.save(Changes(cursor="1"))
    with pytest.raises(StoreMoved):
        other.save(Changes(cursor="2", memory={"a": b"1"}))
    assert store.recall("a") is None
    other.cursor()
    other.save(Changes(cursor="2"))
    with pytest.raises(StoreMoved):
        store.save(Changes(cursor="3"))


def test_more_ids_than_one_query_takes(store: ExperienceStore) -> None:
    ids = [f"p{n}" for n in range(1_203)]
    store.save(Changes(decisions=[a_decision(id_, content={}) for id_ in ids]))
    assert all(history.served is not None for history in store.histories(ids).values())
    assert len(store.features(ids, TRUNK)) == len(ids)


def test_a_store_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        SqlStore(sqlite_url(tmp_path / "no" / "such" / "folder.db"))
