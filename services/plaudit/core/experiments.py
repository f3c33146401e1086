"""What the learner remembers of experiments in its store, by which keys: others read it there to show it."""

from __future__ import annotations

from typing import Final

PRESENT: Final = "experiment"
"""The experiment under way, as the learner needs it."""
PAST: Final = "experiments"
"""Reports of those that have ended, oldest first, as JSON."""
SHOWN: Final = "experiment-report"
"""The report of the one under way, as JSON."""
CURSORS: Final = "experiment-cursors"
"""Where reading the reports of inference services goes on with the next one, as JSON."""
