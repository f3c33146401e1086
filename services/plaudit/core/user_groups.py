"""Labels of user groups, such as ``premium`` or ``de-DE``: what clients may call the group that a user belongs to.

A label is opaque. It is kept short and plain because it stands in reports and in the state of tests. Knows nothing
about what is done with it.
"""

from __future__ import annotations

import re
from typing import Final

from plaudit.core.errors import InvalidInput

_LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_SHOWN: Final = 40


def group_problem(label: str) -> str:
    """What is wrong with a label, in one sentence; "" for one that is right, and for none at all."""
    if not label or _LABEL.fullmatch(label):
        return ""
    return (
        f"{label[:_SHOWN]!r} is no group; send a letter or digit and up to 31 letters, digits, dots, dashes or "
        f"underscores, such as 'premium' or 'de-DE', or leave it out"
    )


def check_group(label: str, field: str = "user_group") -> str:
    """The label. Raises InvalidInput naming ``field``."""
    problem = group_problem(label)
    if problem:
        raise InvalidInput(field, problem)
    return label
