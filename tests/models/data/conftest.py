"""Real data sets beside the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.programs import CANNOT_BE_HAD


@pytest.fixture
def real_data() -> Path:
    """Folder ``shared/data``; skips where it is not there."""
    for parent in Path(__file__).resolve().parents:
        if (found := parent / "shared/data").is_dir():
            return found
    pytest.skip(f"{CANNOT_BE_HAD}shared/data beside the repository")
