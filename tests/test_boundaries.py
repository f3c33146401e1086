"""Who may import whom. Read from the source, so that an import inside a function counts as well.

An import under ``if TYPE_CHECKING`` counts too: a type that may not be used at run time is no better known.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {"plaudit": ROOT / "services/plaudit", "plaudit_models": ROOT / "models/plaudit_models"}

COMPOSITION_ROOTS = ("plaudit.compose", "plaudit.cli", "plaudit.demo", "plaudit.__main__")
"""The only places that put services together."""
PROCESS_OF_ITS_OWN = "plaudit.learner.finetuning.job"
"""A fine-tuning job, told by its run folder alone what to do: it chooses its adapters in its own ``main``."""

GENERATED = ("plaudit.v1", "plaudit.inference")

FORBIDDEN = [
    ("plaudit_models", ["plaudit"]),
    ("plaudit.core", ["plaudit.adapters", "plaudit.serving", "plaudit.learner", "plaudit.client", *COMPOSITION_ROOTS]),
    ("plaudit.core", ["grpc", "torch", "onnxruntime", "sqlalchemy", "sqlite3"]),
    ("plaudit.adapters", ["plaudit.serving", "plaudit.learner", "plaudit.client", *COMPOSITION_ROOTS]),
    ("plaudit.serving", ["plaudit.learner", "plaudit.adapters", "plaudit.client", *COMPOSITION_ROOTS]),
    ("plaudit.serving", ["torch", "plaudit_models.training", "onnx", "sqlalchemy", "pydantic"]),
    ("plaudit.learner", ["plaudit.serving", "plaudit.client", *COMPOSITION_ROOTS]),
    ("plaudit.serving", ["plaudit.console"]),
    ("plaudit.learner", ["plaudit.console"]),
    ("plaudit.console", ["plaudit.serving", "plaudit.learner", "plaudit.adapters", "sqlalchemy", *COMPOSITION_ROOTS]),
    ("plaudit.client", ["plaudit.core", "plaudit.serving", "plaudit.learner", "plaudit.adapters", "plaudit_models"]),
    ("plaudit.client", ["pydantic", "typer", "rich", *COMPOSITION_ROOTS]),
]


def _modules(package: str) -> Iterator[tuple[str, Path]]:
    """Hand-written modules at or under ``package``, by dotted name."""
    top = package.partition(".")[0]
    for path in sorted(SOURCES[top].rglob("*.py")):
        parts = path.relative_to(SOURCES[top]).with_suffix("").parts
        name = ".".join((top, *(part for part in parts if part != "__init__")))
        if _within(name, package) and not any(_within(name, generated) for generated in GENERATED):
            yield name, path


def _imports(path: Path, package: str) -> set[str]:
    """Every dotted name imported; of ``from a import b`` both ``a`` and ``a.b``."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; spell {package} out"
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def _violations(package: str, forbidden: list[str]) -> list[str]:
    return [
        f"{module} imports {name}"
        for module, path in _modules(package)
        for name in sorted(_imports(path, module))
        if any(_within(name, other) for other in forbidden)
    ]


@pytest.mark.parametrize(("package", "forbidden"), FORBIDDEN)
def test_imports_point_inward(package: str, forbidden: list[str]) -> None:
    assert list(_modules(package)), f"{package} has no modules"
    assert _violations(package, forbidden) == []


def test_only_composition_roots_choose_adapters() -> None:
    places = (*COMPOSITION_ROOTS, PROCESS_OF_ITS_OWN, "plaudit.adapters")
    others = [
        violation
        for violation in _violations("plaudit", ["plaudit.adapters"])
        if not any(_within(violation.split()[0], place) for place in places)
    ]
    assert others == []


def test_torch_lives_in_training_alone() -> None:
    others = [
        violation
        for violation in _violations("plaudit_models", ["torch"])
        if not _within(violation.split()[0], "plaudit_models.training")
    ]
    assert others == []


def test_only_composition_reads_the_environment() -> None:
    """The command itself sets what numpy reads when it is loaded, which is before any settings are."""
    reads = [
        module
        for package in SOURCES
        for module, path in _modules(package)
        if module not in ("plaudit.compose.settings", "plaudit.compose.tracing", "plaudit.cli")
        and {"os.environ", "os.getenv"} & _names(path)
    ]
    assert reads == []


def _names(path: Path) -> set[str]:
    """Dotted attribute names used in a file, such as ``os.environ``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)} | _imports(path, "")


def test_source_roots_are_not_packages() -> None:
    """``services.plaudit`` would be a second copy of every module."""
    python = [*ROOT.glob("services/**/*.py"), *ROOT.glob("models/**/*.py"), *ROOT.glob("tests/**/*.py")]
    spelled = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in python
        for name in _imports(path, "")
        if name.startswith(("services.", "models.plaudit"))
    ]
    assert spelled == []
    assert not (ROOT / "services/__init__.py").exists()
    assert not (ROOT / "models/__init__.py").exists()


def _loaded_by(statement: str, modules: list[str]) -> list[str]:
    """Which of ``modules`` a fresh interpreter holds after ``statement``."""
    program = f"import sys\n{statement}\nprint(*[m for m in {modules!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import plaudit.serving.server", ["torch", "onnx", "plaudit.learner", "pydantic"]),
        ("import plaudit.learner.loop", ["torch", "plaudit.serving", "pydantic"]),
        ("import plaudit.compose.learner", ["torch", "plaudit.serving"]),
        ("import plaudit.console.app", ["torch", "onnxruntime", "sqlalchemy", "plaudit.serving", "plaudit.learner"]),
        ("import plaudit.client", ["numpy", "pydantic", "typer", "rich", "plaudit.core.settings"]),
        ("import plaudit.cli.app", ["torch", "onnxruntime", "numpy", "sqlalchemy"]),
    ],
)
def test_what_an_import_does_not_load(statement: str, unwanted: list[str]) -> None:
    assert _loaded_by(statement, unwanted) == []


def test_the_probe_sees_what_is_loaded() -> None:
    assert _loaded_by("import numpy", ["numpy", "torch"]) == ["numpy"]
