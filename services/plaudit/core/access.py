"""Who calls, and what a caller may do. Knows no transport, no key and no file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from plaudit.core.errors import OtherUser


class CallerRole(StrEnum):
    """Part that a caller plays; each method needs one of them."""

    PREDICT = "predict"
    FEEDBACK = "feedback"
    ADMIN = "admin"


ALL_ROLES: Final = frozenset(CallerRole)


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller whose credentials were checked.

    Attributes:
        key_id: name of the credentials, for counting and for logs; "" where none were needed.
        user_id: user that the caller is; "" where it speaks for all.
        speaks_for_others: True: requests say whose they are, and are believed.
        calls_per_minute: calls that it may make in a minute; 0: any number.
    """

    key_id: str
    roles: frozenset[CallerRole]
    user_id: str = ""
    speaks_for_others: bool = False
    calls_per_minute: int = 0

    def without(self, *roles: CallerRole) -> Principal:
        """The caller with fewer roles."""
        return replace(self, roles=self.roles - set(roles))

    def user_of(self, claimed: str) -> str:
        """User whose request it is.

        Args:
            claimed: user id of the request; "" where it has none.

        Raises:
            OtherUser: the caller may not speak for that user.
        """
        if self.speaks_for_others or claimed == self.user_id:
            return claimed
        if not claimed:
            return self.user_id
        raise OtherUser(claimed, self.user_id)


EVERYBODY: Final = Principal("", ALL_ROLES, speaks_for_others=True)
"""Caller where no credentials are asked for."""
