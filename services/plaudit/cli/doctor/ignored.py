"""Check of the doctor on what stands in the registry and is no model and no version."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from plaudit.cli.doctor.findings import Finding, State
from plaudit.compose.paths import data_dir
from plaudit.compose.registry import model_catalog
from plaudit.core.errors import PlauditError
from plaudit.core.limits import MAX_IGNORED_ENTRIES
from plaudit.core.settings import Settings

_SHOWN: Final = 5


def examine_ignored(settings: Settings) -> Iterator[Finding]:
    """A note with the first entries, each with the reason why it is not used."""
    try:
        ignored = model_catalog(settings).ignored()
    except PlauditError as error:
        yield Finding("registry entries", State.ERROR, str(error), "give this user the right to read it")
        return
    if not ignored:
        return
    listed = "; ".join(f"{entry.name}: {entry.problem}" for entry in ignored[:_SHOWN])
    count = f"{len(ignored)}" if len(ignored) < MAX_IGNORED_ENTRIES else f"{MAX_IGNORED_ENTRIES} or more"
    more = f"; and others, {count} in all" if len(ignored) > _SHOWN else ""
    fix = (
        f"nothing need be done; what should be a model or version belongs elsewhere than {data_dir(settings)}/registry"
    )
    yield Finding("registry entries", State.NOTE, f"ignored: {listed}{more}", fix)
