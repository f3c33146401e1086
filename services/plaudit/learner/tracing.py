"""The learner's spans: feedback is joined, the head is refreshed or a job tunes the weights, a version comes of it.

A refresh links to the feedback that this process has read since the last one, the latest of it if it is much; what
other learners have read is linked to from their own joins alone. A job takes long, perhaps longer than this learner:
the span that starts it links to such feedback and to the refresh that made its parent, and is remembered with the job,
so that the gate's span is below it and the version says where it comes from. Knows nothing about how any of this is
done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager

from plaudit.core.events import Decision, Feedback
from plaudit.core.tracing import MOST_LINKS, NO_TRACING, TRACEPARENT, Attributes, Tracing
from plaudit_models.bundle import Manifest


class LearnerTrace:
    """Args:
    tracing: makes the spans.
    """

    def __init__(self, tracing: Tracing = NO_TRACING) -> None:
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
        """Around a head refresh that starts from the version ``live``."""
        return self._tracing.span("refresh", links=list(self._unlearned), attributes={"plaudit.parent": live})

    def published(self, version: int) -> None:
        """The refresh has made a version."""
        self._unlearned.clear()
        self._tracing.note({"plaudit.version": version})

    @contextmanager
    def tuning(self, live: Manifest, run: str) -> Iterator[str]:
        """Around the start of a job from ``live``; gives the traceparent to remember it by, "" if it is not traced."""
        links = [str(live.data.get(TRACEPARENT, "")), *self._untuned]
        attributes: Attributes = {"plaudit.parent": live.version, "plaudit.run": run}
        with self._tracing.span("start fine-tuning", links=links, attributes=attributes):
            yield self._tracing.present()
        self._untuned.clear()

    def judged(self, started: str, run: str, verdict: str) -> AbstractContextManager[object]:
        """Around what follows from a verdict on a job's candidate; ``started`` is what :meth:`tuning` gave."""
        return self._tracing.span("gate", parent=started, attributes={"plaudit.run": run, "plaudit.verdict": verdict})

    def tuned(self, version: int) -> None:
        """The candidate has been published as this version."""
        self._tracing.note({"plaudit.version": version})

    def data(self) -> dict[str, str]:
        """What a manifest says about the span that its version is made in."""
        present = self._tracing.present()
        return {TRACEPARENT: present} if present else {}
