"""Authorization of calls that change what serves: by the admin token, where one is set."""

from __future__ import annotations

import hmac
from typing import Any

from plaudit.core.errors import Unauthorized, WrongToken


def authorize(context: Any, admin_token: str | None) -> None:
    """Check a call's metadata for the admin token; None: no token is needed.

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
