"""Errors and statuses: every class has one, and no internal detail reaches the client."""

from __future__ import annotations

import inspect

import grpc
import pytest
import structlog

from plaudit.core import errors
from plaudit.serving.grpc.interceptors import STATUSES, status_of


def every_error() -> list[type[errors.PlauditError]]:
    def below(cls: type[errors.PlauditError]) -> list[type[errors.PlauditError]]:
        return [cls, *(deeper for sub in cls.__subclasses__() for deeper in below(sub))]

    return [cls for cls in below(errors.PlauditError) if cls is not errors.PlauditError]


def made(cls: type[errors.PlauditError]) -> errors.PlauditError:
    """An instance, whatever its constructor takes."""
    by_type = {"str": "x", "int": 1, "float": 1.0, "list[str]": ["x"], "list[int]": [1], "int | None": None}
    parameters = inspect.signature(cls.__init__).parameters.values()
    return cls(*(by_type[p.annotation] for p in parameters if p.name != "self" and p.annotation in by_type))


@pytest.mark.parametrize("cls", every_error())
def test_every_error_has_a_status(cls: type[errors.PlauditError]) -> None:
    code, text = status_of(made(cls), "PredictionService/Predict")
    assert code not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.OK)
    assert text == made(cls).for_clients


@pytest.mark.parametrize(
    ("cls", "code"),
    [
        (errors.InvalidPredictionId, grpc.StatusCode.INVALID_ARGUMENT),
        (errors.UnknownVersion, grpc.StatusCode.NOT_FOUND),
        (errors.ExpiredPredictionId, grpc.StatusCode.FAILED_PRECONDITION),
        (errors.RolloutMoved, grpc.StatusCode.ABORTED),
        (errors.VersionPinned, grpc.StatusCode.FAILED_PRECONDITION),
        (errors.Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.Expired, grpc.StatusCode.DEADLINE_EXCEEDED),
        (errors.NoLiveModel, grpc.StatusCode.UNAVAILABLE),
        (errors.Draining, grpc.StatusCode.UNAVAILABLE),
        (errors.Unauthorized, grpc.StatusCode.UNAUTHENTICATED),
        (errors.WrongToken, grpc.StatusCode.PERMISSION_DENIED),
        (errors.UnprovenVersion, grpc.StatusCode.FAILED_PRECONDITION),
    ],
)
def test_the_statuses_that_the_contract_names(cls: type[errors.PlauditError], code: grpc.StatusCode) -> None:
    assert status_of(made(cls), "")[0] is code


def test_the_table_names_no_class_twice_for_nothing() -> None:
    """A subclass has an entry of its own only where its status differs from its parent's."""
    for cls, code in STATUSES.items():
        parents = [STATUSES[parent] for parent in cls.__mro__[1:] if parent in STATUSES]
        assert not parents or parents[0] is not code


def test_what_was_not_meant_for_the_caller_stays_here() -> None:
    with structlog.testing.capture_logs() as logged:
        code, text = status_of(KeyError("/etc/secret"), "PredictionService/Predict")
    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in text
    assert logged[0]["reference"] == text.rsplit(" ", 1)[1]
    assert "/etc/secret" in str(logged[0]["exc_info"])
