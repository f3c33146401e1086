"""Labels of experiences, as both writers make and change them, and the revisions that tell the leader of changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, bindparam

from plaudit.adapters.store.database import Database
from plaudit.adapters.store.rows import label_values
from plaudit.adapters.store.schema import EXPERIENCES, LABEL_COLUMNS, NOBODY, REVISIONS
from plaudit.core.ports.store import LabelRevision, LabelUpdate

_FRESH: Final = ("number", "prediction_id", *LABEL_COLUMNS, "excluded", "slice", "outdated", "refused")


class LabelWriter:
    """Writes labels within a transaction of ``database.locked``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def _label(self, connection: Connection, last_number: int, updates: Sequence[LabelUpdate]) -> int:
        """Make and change experiences; returns the number of the last one."""
        fresh = [each for each in updates if each.before is None]
        rows = [
            (number, each.prediction_id, *label_values(each.label), False, "", False, NOBODY)
            for number, each in enumerate(fresh, last_number + 1)
        ]
        self._database.insert(connection, EXPERIENCES, _FRESH, rows)
        changed = [(each.before, each.label) for each in updates if each.before is not None]
        if changed:
            known = self._database.insertion(REVISIONS).on_conflict_do_update(
                index_elements=["number"], set_={"times": REVISIONS.c.times + 1}
            )
            names = ("number", "times", *LABEL_COLUMNS)
            former = [
                dict(zip(names, (before.number, 1, *label_values(before.label)), strict=True)) for before, _ in changed
            ]
            connection.execute(known, former)
            new = [(*label_values(label), before.number) for before, label in changed]
            self._database.set_values(connection, EXPERIENCES, LABEL_COLUMNS, new)
        return last_number + len(fresh)

    def _resolve(self, connection: Connection, resolved: Sequence[LabelRevision]) -> None:
        """Remove the revisions. One that changed again since it was read stays, with the label that is learned now."""
        if resolved:
            unchanged = (REVISIONS.c.number == bindparam("n")) & (REVISIONS.c.times == bindparam("t"))
            read = [{"n": each.experience.number, "t": each.times} for each in resolved]
            connection.execute(REVISIONS.delete().where(unchanged), read)
            learned = [(*label_values(each.label), each.experience.number) for each in resolved]
            self._database.set_values(connection, REVISIONS, LABEL_COLUMNS, learned)
