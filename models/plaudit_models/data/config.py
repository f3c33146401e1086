"""Names of the columns of a data set, and bounds on what is read. Imports nothing: who starts a job needs it too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

TargetKind = Literal["action", "actions", "number", "ranking"]

ANY_COLUMN: Final = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Columns of a data set; every default fits a manifest whose columns have the names of modalities.

    Attributes:
        manifest: path of the manifest within the folder; None: it is found.
        columns: source of each modality: a column, a template such as ``images.zip#{file}``, or for a tensor several
            columns of numbers.
        target: column of the target; None: ``action``, or else ``label``.
        target_kind: ``action`` is one; ``actions`` are several right ones; ``number`` lies on the scale of actions that
            are numbers; ``ranking`` has the best action first.
        labels: values of the target → actions.
        split, group, slice, weight, user: names of these columns, which need not be there.
        ignore: columns that are not used; ``*``: all that are named nowhere.
        val_share, test_share: shares of the groups that become these splits where there are none.
        exclude: path of a list of rows that are left out, within the folder.
        workers: threads that read and decode.
        cache_bytes: memory for decoded items; what does not fit is decoded again.
        max_item_bytes: size of the largest file or member.
    """

    manifest: str | None = None
    columns: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    target: str | None = None
    target_kind: TargetKind = "action"
    labels: Mapping[str, str] = field(default_factory=dict)
    split: str = "split"
    group: str = "group"
    slice: str = "slice"
    weight: str = "weight"
    user: str = "user"
    ignore: Sequence[str] = ()
    exclude: str | None = None
    val_share: float = 0.1
    test_share: float = 0.1
    workers: int = 2
    cache_bytes: int = 2 * 2**30
    max_item_bytes: int = 64 * 2**20
    max_image_pixels: int = 32_000_000
    max_audio_duration_s: float = 60.0


DEFAULT_DATA: Final = DataConfig()
