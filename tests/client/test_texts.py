"""Strings that no message can hold are refused before anything is sent, with the field and the place."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest

from plaudit.client import ClientError, calls, feedback

LONE = "caf\udce9"  # "café" in Latin-1, as an argument of a command line

CASES: dict[str, Callable[[], object]] = {
    'content["note"]': lambda: calls.predict({"note": LONE}),
    'content["caf\\udce9"]': lambda: calls.predict({LONE: "x"}),
    "user_id": lambda: calls.predict({"note": "x"}, user_id=LONE),
    "request_id": lambda: calls.predict({"note": "x"}, request_id=LONE),
    "model": lambda: calls.predict({"note": "x"}, model=LONE),
    "user_group": lambda: calls.predict({"note": "x"}, user_group=LONE),
    "allowed_actions[1]": lambda: calls.predict({"note": "x"}, allowed_actions=["a", LONE]),
    "dynamic_actions[0].id": lambda: calls.predict({"note": "x"}, dynamic_actions={LONE: "x"}),
    "dynamic_actions[0].text": lambda: calls.predict({"note": "x"}, dynamic_actions={"a": LONE}),
    "prediction_id": lambda: feedback.thumbs_up(LONE),
    "feedback_id": lambda: feedback.thumbs_up("p", feedback_id=LONE),
    "correction": lambda: feedback.correct("p", LONE),
    "preference.rejected": lambda: feedback.prefer("p", "a", LONE),
    "retract.feedback_id": lambda: feedback.retract("p", LONE),
    "reason": lambda: calls.rollback(reason=LONE),
    "actor": lambda: calls.rollback(actor=LONE),
}


@pytest.mark.parametrize("field", CASES)
def test_a_lone_surrogate_is_refused_with_its_field_and_place(field: str) -> None:
    """A traceback elsewhere: https://github.com/liblouis/liblouis/issues/819."""
    with pytest.raises(ClientError) as refused:
        CASES[field]()
    assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.message == f"{field}: is not UTF-8: it has the lone surrogate U+DCE9 at place 3"
    str(refused.value).encode()


def test_any_text_of_any_script_can_be_sent() -> None:
    assert calls.predict({"note": "naïve 👩‍🔬 ﷺ"}, user_id="ада").request is not None
