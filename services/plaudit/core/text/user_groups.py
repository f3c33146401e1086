"""Labels of user groups, such as ``premium`` or ``de-DE``, that clients may send with a request.

A label is opaque, and short because it appears in reports and in the learner's state. Knows nothing about its use.
"""

from __future__ import annotations

import re
from typing import Final

from plaudit.core.errors import InvalidInput

_LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_SHOWN: Final = 40


def group_problem(label: str) -> str:
    """Problem with a label, in one sentence; "" for a valid label and for no label."""
    if not label or _LABEL.fullmatch(label):
        return ""
    return (
        f"{label[:_SHOWN]!r} is not a group label; send a letter or digit and up to 31 letters, digits, dots, dashes "
        "or underscores, such as 'premium' or 'de-DE', or leave it out"
    )


def check_group(label: str, field: str = "user_group") -> str:
    """``label`` unchanged. Raises InvalidInput naming ``field`` if it is not valid."""
    problem = group_problem(label)
    if problem:
        raise InvalidInput(field, problem)
    return label
