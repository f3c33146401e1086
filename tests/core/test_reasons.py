"""Reasons of libraries as they may be told: one line, no paths of this machine, bounded."""

from __future__ import annotations

import pytest

from plaudit.core.errors import LogDamaged, LogUnavailable, PlauditError, StoreDamaged, StoreUnavailable
from plaudit.core.limits import MAX_TOLD_REASON_CHARACTERS
from plaudit.core.text.reasons import told_reason


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Non-zero status code returned while running Gather node. "
            "Name:'/bert/Gather' Status Message: indices element out of data bounds, idx=30522 must be within the "
            "inclusive range [-50,49]",
            "Non-zero status code returned while running Gather node. Name:'/bert/Gather' Status Message: indices "
            "element out of data bounds, idx=30522 must be within the inclusive range [-50,49]",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Load model from /srv/my models/trunk.onnx failed:/onnxruntime_src/"
            "onnxruntime/core/graph/model.cc:256 onnxruntime::Model::Model(onnx::ModelProto&&, const onnxruntime::"
            "PathString&) Unsupported model IR version: 15",
            "Unsupported model IR version: 15",
        ),
        ("[Errno 2] No such file or directory: '/srv/data/x'", "[Errno 2] No such file or directory: '…'"),
        ("cannot read C:\\Users\\ada\\x.onnx now", "cannot read … now"),
        ("two\nlines and\x1b[2J an escape", "two lines and[2J an escape"),
        ("a ratio of 3/4 and/or x", "a ratio of 3/4 and/or x"),
    ],
)
def test_what_is_told(given: str, told: str) -> None:
    assert told_reason(given) == told


def test_it_is_bounded_and_never_empty() -> None:
    assert len(told_reason("x" * 10_000)) == MAX_TOLD_REASON_CHARACTERS
    assert told_reason(ValueError()) == "ValueError"


@pytest.mark.parametrize("cls", [LogUnavailable, LogDamaged, StoreUnavailable, StoreDamaged])
def test_clients_are_told_what_is_wrong_with_a_log_or_store_but_not_where_it_is(cls: type[PlauditError]) -> None:
    error = cls("/srv/plaudit data/log.sqlite: database or disk is full; make room on the disk")
    assert "/srv/plaudit data/log.sqlite" in str(error)
    assert "srv" not in error.for_clients
    assert "database or disk is full; make room on the disk" in error.for_clients
