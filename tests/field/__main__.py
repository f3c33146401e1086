"""Writes the corpus into a folder: a file for each case, and ``cases.json`` with what is right for each."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from field import images, sounds


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    cases = [
        *images.ordinary(images.SIZES),
        *images.oriented(),
        *images.animated(),
        *images.reported(),
        *images.refused(),
        *sounds.ordinary(sounds.RATES_HZ),
        *sounds.reported(),
        *sounds.refused(),
    ]
    told = {}
    for number, case in enumerate(cases):
        name = f"{number:04}-" + re.sub(r"[^A-Za-z0-9]+", "-", case.name).strip("-")[:80]
        (folder / name).write_bytes(case.data)
        told[name] = {"refused": case.refused, "report": case.report}
    (folder / "cases.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(f"{len(cases)} files in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
