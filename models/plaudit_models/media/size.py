"""Number of bytes of encoded content."""

from __future__ import annotations

from plaudit_models.errors import InvalidContent


def check_size(data: bytes, limit_bytes: int, what: str, name: str) -> None:
    """Raises InvalidContent: no bytes, or more than ``limit_bytes``."""
    if not data:
        raise InvalidContent(name, f"0 {what}; leave the modality out to say it is missing")
    if len(data) > limit_bytes:
        raise InvalidContent(name, f"{len(data)} {what} are more than the limit of {limit_bytes}; send less")
