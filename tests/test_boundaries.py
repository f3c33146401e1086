"""Who may import whom, read from the source: imports inside functions and under ``if TYPE_CHECKING`` count as well."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Sequence
from itertools import chain

import pytest

from tools.house import ROOT, Module, cycles, imported, imports, modules, ports, within, within_any

MODULES = modules()
GRAPH = imports(MODULES)

COMPOSITION_ROOTS = ("plaudit.compose", "plaudit.cli", "plaudit.demo", "plaudit.__main__")
"""The only places that put services together."""
PROCESS_OF_ITS_OWN = "plaudit.learner.finetuning.job"
"""A fine-tuning job, told by its run folder alone what to do: it chooses its adapters in its own ``main``."""

SERVING_LAYERS = [["server"], ["grpc"], ["use_cases"], ["models"], ["engine"], ["telemetry"]]
LEARNER_LAYERS = [
    ["loop"],
    ["online", "finetuning"],
    ["state"],
    ["evaluation"],
    ["ingest", "tuning_state", "state_blocks"],
    ["features", "progress"],
    ["metrics", "tracing", "status"],
]
TRAINING_LAYERS = [
    ["pretrain", "finetune", "reward", "export"],
    ["replay"],
    ["objectives", "texts", "checkpoint", "schedule"],
    ["losses", "data"],
    ["networks", "config"],
    ["encoders"],
]
"""Rooms from the top floor down. A room imports from floors below its own."""

PORT_METHODS = 7
"""The most methods of one port."""

OLD_WORDS = re.compile(
    "(?:^|_)(?:fates?|kept|standing|heed(?:ed)?|obey|stand_on|seats?|trials?|poison|foreign|at_hand|by_hand|pseudonym"
    "|lessons|chances|opinions|orders|candidates_of|halves|bets|let_go|anybody|nobody)(?:$|_)"
)
"""Words of the project's own that the field has other names for (see the glossary)."""

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
    ("plaudit.compose", ["plaudit.demo", "plaudit.cli"]),
]


def _modules(package: str) -> list[Module]:
    return [module for name, module in MODULES.items() if within(name, package)]


def _violations(package: str, forbidden: Sequence[str]) -> list[str]:
    return [
        f"{module.name} imports {name}"
        for module in _modules(package)
        for name in sorted(set(imported(module.tree)))
        if within_any(name, forbidden)
    ]


@pytest.mark.parametrize(("package", "forbidden"), FORBIDDEN)
def test_imports_point_inward(package: str, forbidden: list[str]) -> None:
    assert _modules(package), f"{package} has no modules"
    assert _violations(package, forbidden) == []


@pytest.mark.parametrize(
    ("package", "layers"),
    [
        ("plaudit.serving", SERVING_LAYERS),
        ("plaudit.learner", LEARNER_LAYERS),
        ("plaudit_models.training", TRAINING_LAYERS),
    ],
)
def test_rooms_import_from_floors_below(package: str, layers: list[list[str]]) -> None:
    floors = {room: floor for floor, rooms in enumerate(layers) for room in rooms}

    def room(name: str) -> str:
        return name.removeprefix(package).lstrip(".").partition(".")[0]

    assert {room(name) for name in MODULES if within(name, package)} - {""} == floors.keys()
    up = [
        f"{name} imports {other}"
        for name, others in GRAPH.items()
        for other in sorted(others)
        if within(name, package) and within(other, package) and room(name) != room(other)
        if floors[room(other)] <= floors[room(name)]
    ]
    assert up == []


def test_the_online_learner_takes_the_join_alone_from_ingest() -> None:
    taken = {other for name, others in GRAPH.items() if within(name, "plaudit.learner.online") for other in others}
    assert {name for name in taken if within(name, "plaudit.learner.ingest")} <= {"plaudit.learner.ingest.join"}


def test_no_import_cycle() -> None:
    assert cycles(GRAPH) == []


def test_own_modules_are_imported_inside_functions_in_compose_and_cli_alone() -> None:
    inside = {
        f"{module.name} imports {name}"
        for module in MODULES.values()
        if not within_any(module.name, (*COMPOSITION_ROOTS, PROCESS_OF_ITS_OWN))
        for function in ast.walk(module.tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for name in imported(function)
        if within_any(name, ("plaudit", "plaudit_models"))
    }
    assert inside == set()


def test_ports_are_narrow() -> None:
    assert ports(MODULES)
    assert {name: n for name, n in ports(MODULES).items() if n > PORT_METHODS} == {}


def test_what_arguments_are_handed_on_has_types() -> None:
    """No ``*args: Any`` and no ``**kwargs: Any``, but for the attributes of ONNX nodes, which onnx itself types so."""
    untyped = [
        f"{module.name}:{function.lineno} {function.name}"
        for module in MODULES.values()
        if module.name != "plaudit_models.bandit.head"
        for function in ast.walk(module.tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for argument in (function.args.vararg, function.args.kwarg)
        if argument is not None and argument.annotation is not None and ast.unparse(argument.annotation) == "Any"
    ]
    assert untyped == []


def test_identifiers_are_the_fields_words() -> None:
    old = [
        f"{module.name}:{node.lineno} {node.name}"
        for module in MODULES.values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if OLD_WORDS.search(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", node.name).lower())
    ]
    assert old == []


def test_only_composition_roots_choose_adapters() -> None:
    places = (*COMPOSITION_ROOTS, PROCESS_OF_ITS_OWN, "plaudit.adapters")
    others = [each for each in _violations("plaudit", ["plaudit.adapters"]) if not within_any(each.split()[0], places)]
    assert others == []


def test_torch_lives_in_training_alone() -> None:
    others = [
        each
        for each in _violations("plaudit_models", ["torch"])
        if not within(each.split()[0], "plaudit_models.training")
    ]
    assert others == []


def test_only_composition_reads_the_environment() -> None:
    """The command itself sets what numpy reads when it is loaded, which is before any settings are."""
    readers = [
        module.name
        for module in MODULES.values()
        if module.name
        not in ("plaudit.core.settings", "plaudit.compose.settings", "plaudit.compose.tracing", "plaudit.cli")
        and {"os.environ", "os.getenv"} & {*_attributes(module.tree), *imported(module.tree)}
    ]
    assert readers == []


def _attributes(tree: ast.Module) -> set[str]:
    """Dotted attribute names used in a module, such as ``os.environ``."""
    return {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def test_source_roots_are_not_packages() -> None:
    """``services.plaudit`` would be a second copy of every module."""
    python = chain.from_iterable(ROOT.glob(f"{top}/**/*.py") for top in ("services", "models", "tests", "benchmarks"))
    spelled = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in python
        for name in imported(ast.parse(path.read_text(encoding="utf-8")))
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
        ("import plaudit.serving.server", ["torch", "onnx", "pydantic", "plaudit.learner"]),
        ("import plaudit.learner.loop", ["torch", "pydantic", "plaudit.serving"]),
        ("import plaudit.compose.learner", ["torch", "onnxscript", "plaudit.serving"]),
        ("import plaudit.adapters.runtime.importer", ["torch", "onnxscript"]),  # the extra serve has neither
        ("import plaudit.console.app", ["torch", "onnxruntime", "sqlalchemy", "plaudit.serving", "plaudit.learner"]),
        ("import plaudit.client", ["numpy", "pydantic", "typer", "rich", "plaudit.core.settings"]),
        ("import plaudit.cli.app", ["torch", "onnxruntime", "numpy", "sqlalchemy"]),
    ],
)
def test_what_an_import_does_not_load(statement: str, unwanted: list[str]) -> None:
    assert _loaded_by(statement, unwanted) == []


def test_the_probe_sees_what_is_loaded() -> None:
    assert _loaded_by("import numpy", ["numpy", "torch"]) == ["numpy"]
