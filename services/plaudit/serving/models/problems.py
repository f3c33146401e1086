"""Problems that come up again and again while models are followed: told once, counted each time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from plaudit.core.errors import PlauditError
from plaudit.serving.telemetry.metrics import ServingMetrics

logger = structlog.get_logger(__name__)


class Problems:
    """Problems by what they are about, as long as they last. For one thread."""

    def __init__(self, metrics: ServingMetrics) -> None:
        self._metrics = metrics
        self._last: dict[str, str] = {}

    @contextmanager
    def of(self, subject: str) -> Iterator[None]:
        """Errors inside are counted, and logged unless the last one of the subject was the same; none is raised.

        One that was not raised on purpose is logged with its traceback.
        """
        try:
            yield
        except Exception as error:
            self._metrics.follow_failures.inc()
            problem = f"{type(error).__name__}: {error}"
            if self._last.get(subject) != problem:
                self._last[subject] = problem
                unforeseen = None if isinstance(error, PlauditError) else error
                logger.error("not_followed", subject=subject, problem=str(error), exc_info=unforeseen)
        else:
            self._last.pop(subject, None)
