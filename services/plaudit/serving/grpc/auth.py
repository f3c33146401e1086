"""Who may change what serves: whoever presents the admin token, where one is set."""

from __future__ import annotations

import hmac
from typing import Any

from plaudit.core.errors import Unauthorized, WrongToken


def authorize(context: Any, admin_token: str | None) -> None:
    """Look at a call's metadata; a token of None leaves changes open.

    Raises:
        Unauthorized: there is no token.
        WrongToken: it is another one.
    """
    if admin_token is None:
        return
    given = [str(value) for key, value in context.invocation_metadata() or () if key == "authorization"]
    if not given:
        raise Unauthorized
    if not hmac.compare_digest(given[0].encode(), f"Bearer {admin_token}".encode()):
        raise WrongToken
