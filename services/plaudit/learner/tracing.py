"""Spans of the learner: a batch is joined, the head refreshed, a fine-tuning job started and its version gated.

A refresh links to the feedback that this process has read since the last one, to the latest where that is more than a
span may link to; feedback that other learners read is linked from their own joins alone. A job may outlive this
learner: its span links to such feedback and to the refresh that made its parent, and is saved with the job, so that the
gate's span is its child and the version says where it comes from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager

from plaudit.core.events import Decision, Feedback
from plaudit.core.tracing import MOST_LINKS, TRACEPARENT, Attributes, Tracing
from plaudit_models.bundle import Manifest


class LearnerTrace:
    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._unlearned: deque[str] = deque(maxlen=MOST_LINKS)
        self._untuned: deque[str] = deque(maxlen=MOST_LINKS - 1)

    def joined(self, feedback: Collection[Feedback], decisions: Collection[Decision], began_ns: int) -> None:
        """A batch was joined and saved; ``began_ns`` on the clock of ``time.time_ns``."""
        said = [each.traceparent for each in feedback if each.traceparent]
        decided = [decision.traceparent for decision in decisions]
        self._unlearned.extend(said)
        self._untuned.extend(said)
        attributes = {"plaudit.feedback": len(feedback), "plaudit.decisions": len(decisions)}
        self._tracing.record("join", began_ns, links=[*said, *decided], attributes=attributes)

    def refreshing(self, live: int) -> AbstractContextManager[object]:
        """Span of a head refresh that starts from the version ``live``."""
        return self._tracing.span("refresh", links=list(self._unlearned), attributes={"plaudit.parent": live})

    def published(self, version: int) -> None:
        """The refresh has made a version."""
        self._unlearned.clear()
        self._tracing.note({"plaudit.version": version})

    @contextmanager
    def tuning(self, live: Manifest, run: str) -> Iterator[str]:
        """Span of the start of a job from ``live``; yields its traceparent, "" if it is not traced."""
        links = [str(live.data.get(TRACEPARENT, "")), *self._untuned]
        attributes: Attributes = {"plaudit.parent": live.version, "plaudit.run": run}
        with self._tracing.span("start fine-tuning", links=links, attributes=attributes):
            yield self._tracing.present()
        self._untuned.clear()

    def concluding(self, started: str, run: str, verdict: str) -> AbstractContextManager[object]:
        """Span of what follows from a verdict on a job's candidate; ``started`` is what :meth:`tuning` yielded."""
        return self._tracing.span("gate", parent=started, attributes={"plaudit.run": run, "plaudit.verdict": verdict})

    def tuned(self, version: int) -> None:
        """The candidate has been published as this version."""
        self._tracing.note({"plaudit.version": version})

    def data(self) -> dict[str, str]:
        """Traceparent of the present span, for the manifest of the version that is made in it."""
        present = self._tracing.present()
        return {TRACEPARENT: present} if present else {}
