"""Dead letters: the records that could not be used, whether they can be used by now, and their replay.

A record that is replayed is read again like any other, and counts once even if its event has arrived meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from plaudit.core.events import DeadLetter, Decision, Feedback, Topic
from plaudit.core.ports.log import EventLog
from plaudit.core.wire import UnreadableEvent, decode_event
from plaudit.learner.ingest.batch import unusable

_GROUP: Final = "plaudit-dead-letters"
_LIMIT: Final = 1_000
_WAIT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class ExaminedLetter:
    """A dead letter as this release reads it.

    Attributes:
        event: the record's event; None if it cannot be read.
        problem: why the record cannot be used by this release; "" if it can.
    """

    letter: DeadLetter
    event: Decision | Feedback | None
    problem: str

    @property
    def place(self) -> str:
        """Topic and position of the record."""
        return f"{self.letter.source_topic}:{self.letter.source_position}"


def dead_letters(log: EventLog) -> Sequence[ExaminedLetter]:
    """Every dead letter, oldest first.

    Raises:
        LogUnavailable: the log cannot be read.
    """
    reader = log.reader(_GROUP, [Topic.DEAD_LETTER], start=dict)
    letters: list[DeadLetter] = []
    while reader.lag():
        for record in reader.poll(_LIMIT, _WAIT_S):
            if isinstance(record.event, DeadLetter):
                letters.append(record.event)
    reader.close()
    once = {(letter.source_topic, letter.source_position): letter for letter in letters}
    return [_examined(letter) for letter in sorted(once.values(), key=lambda letter: letter.time_s)]


def replay(log: EventLog, wanted: Sequence[ExaminedLetter]) -> Sequence[ExaminedLetter]:
    """Put those that can be used back into their topics; returns them.

    Raises:
        LogUnavailable: nothing, or not all, was put back; doing it again is safe.
    """
    usable = [each for each in wanted if not each.problem]
    log.replay([each.event for each in usable if each.event is not None])
    return usable


def _examined(letter: DeadLetter) -> ExaminedLetter:
    if letter.source_topic not in (Topic.DECISIONS, Topic.FEEDBACK):
        return ExaminedLetter(letter, None, f"{letter.source_topic} is not a topic that learners read")
    try:
        event = decode_event(Topic(letter.source_topic), letter.payload)
    except UnreadableEvent as error:
        return ExaminedLetter(letter, None, str(error))
    assert isinstance(event, Decision | Feedback)
    return ExaminedLetter(letter, event, unusable(event) or "")
