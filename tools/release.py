"""A release: check the tree, build, check the packages, tag. Pushes and uploads nothing.

    python tools/release.py VERSION

The version stands in services/plaudit/__init__.py and CITATION.cff, and has a dated section in CHANGELOG.md.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]


def problems(root: Path, version: str) -> list[str]:
    """What keeps ``version`` from being released, each with the way out."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        return [f"VERSION: {version!r} is no version; give three numbers, such as 0.2.0"]
    found = []
    package = _match(r'^__version__ = "(.+)"$', root / "services/plaudit/__init__.py")
    if package != version:
        found.append(f"services/plaudit/__init__.py: __version__ is {package!r}; set it to {version!r}")
    cited = _match(r"^version: (.+)$", root / "CITATION.cff")
    if cited != version:
        found.append(f"CITATION.cff: version is {cited!r}; set it to {version!r}")
    if _match(rf"^## \[?({re.escape(version)})\]? - \d{{4}}-\d\d-\d\d$", root / "CHANGELOG.md") is None:
        found.append(f"CHANGELOG.md: there is no section '## [{version}] - YYYY-MM-DD'; move what is unreleased there")
    if changed := _output(root, "git", "status", "--porcelain"):
        found.append(f"git: the tree has changes; commit or remove them:\n{changed}")
    if f"v{version}" in _output(root, "git", "tag", "--list").split():
        found.append(f"git: the tag v{version} exists; choose the next version")
    return found


def _match(pattern: str, path: Path) -> str | None:
    found = re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else None


def _output(root: Path, *command: str) -> str:
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.rstrip()


def build(root: Path) -> None:
    """Source distribution and wheel in ``dist/``, as ``twine check`` wants them."""
    shutil.rmtree(root / "dist", ignore_errors=True)
    binaries = Path(sys.executable).parent
    subprocess.run([binaries / "uv", "build", "--out-dir", "dist"], cwd=root, check=True)
    made = sorted(map(str, (root / "dist").glob("plaudit-*")))
    subprocess.run([binaries / "uv", "tool", "run", "twine", "check", "--strict", *made], cwd=root, check=True)


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        print("usage: make release VERSION=0.2.0", file=sys.stderr)
        return 2
    (version,) = arguments
    if found := problems(ROOT, version):
        print("\n".join(found), file=sys.stderr)
        return 1
    build(ROOT)
    subprocess.run(["git", "tag", "--annotate", f"v{version}", "--message", f"Plaudit {version}"], cwd=ROOT, check=True)
    print(f"tagged v{version}; now: git push origin v{version}, and twine upload dist/*")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
