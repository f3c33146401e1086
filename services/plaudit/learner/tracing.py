"""The learner's spans: feedback is joined, the head is refreshed, a version comes of it.

A refresh links to the feedback that this process has read since the last one, the latest of it if it is much; what
other learners have read is linked to from their own joins alone. Knows nothing about how any of this is done.
"""

from __future__ import annotations

from collections import deque
from contextlib import AbstractContextManager
from typing import Final

from plaudit.core.tracing import MOST_LINKS, TRACEPARENT, NoTracing, Tracing
from plaudit.learner.intake import Read

NO_TRACING: Final[Tracing] = NoTracing()


class LearnerTrace:
    """Args:
    tracing: makes the spans.
    """

    def __init__(self, tracing: Tracing = NO_TRACING) -> None:
        self._tracing = tracing
        self._unlearned: deque[str] = deque(maxlen=MOST_LINKS)

    def joined(self, batch: Read, began_ns: int) -> None:
        """A batch was joined and saved; ``began_ns`` on the clock of ``time.time_ns``."""
        said = [feedback.traceparent for feedback in batch.feedback.values() if feedback.traceparent]
        decided = [decision.traceparent for decision in batch.decisions.values()]
        self._unlearned.extend(said)
        attributes = {"plaudit.feedback": len(batch.feedback), "plaudit.decisions": len(batch.decisions)}
        self._tracing.record("join", began_ns, links=[*said, *decided], attributes=attributes)

    def refreshing(self, live: int) -> AbstractContextManager[object]:
        """Around a head refresh that starts from the version ``live``."""
        return self._tracing.span("refresh", links=list(self._unlearned), attributes={"plaudit.parent": live})

    def published(self, version: int) -> None:
        """The refresh has made a version."""
        self._unlearned.clear()
        self._tracing.note({"plaudit.version": version})

    def data(self) -> dict[str, str]:
        """What a manifest says about the span that its version is made in."""
        present = self._tracing.present()
        return {TRACEPARENT: present} if present else {}
