"""What the learner remembers of trials in its store, by which keys: others read it there to show it."""

from __future__ import annotations

from typing import Final

PRESENT: Final = "trial"
"""The trial under way, as the learner needs it."""
PAST: Final = "trials"
"""Reports of those that have ended, oldest first, as JSON."""
SHOWN: Final = "trial-report"
"""The report of the one under way, as JSON."""
CURSORS: Final = "trial-cursors"
"""Where reading the reports of inference services goes on with the next one, as JSON."""
