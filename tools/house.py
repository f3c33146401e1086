"""Figures of the source: rooms, imports and sizes, for judgement; the rules are in tests/test_boundaries.py.

    python tools/house.py            of this checkout
    python tools/house.py ROOT       of another one

A room is a folder of Python modules, or a module that stands beside such folders; an arrow is one room importing
another, however many of its modules do. Imports inside functions and under ``TYPE_CHECKING`` count.
"""

from __future__ import annotations

import argparse
import ast
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Final

ROOT: Final = Path(__file__).parents[1]
SOURCES: Final = {"plaudit": "services/plaudit", "plaudit_models": "models/plaudit_models"}
GENERATED: Final = ("plaudit.v1", "plaudit.inference")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Module:
    """One hand-written module.

    Attributes:
        name: dotted; a package goes by its own name.
        path: its file.
        tree: its syntax tree.
        n_lines: number of lines.
    """

    name: str
    path: Path
    tree: ast.Module
    n_lines: int

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"


def modules(root: Path = ROOT) -> dict[str, Module]:
    """Hand-written modules by dotted name."""
    found = {}
    for top, folder in SOURCES.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            name = ".".join((top, *(part for part in parts if part != "__init__")))
            if not within_any(name, GENERATED):
                text = path.read_text(encoding="utf-8")
                found[name] = Module(name, path, ast.parse(text), text.count("\n"))
    return found


def within(name: str, package: str) -> bool:
    """Whether a dotted name is a package or stands under it."""
    return name == package or name.startswith(package + ".")


def within_any(name: str, packages: Iterable[str]) -> bool:
    return any(within(name, package) for package in packages)


def imported(node: ast.AST) -> Iterator[str]:
    """Dotted names that the import statements under a node name; of ``from a import b`` both ``a`` and ``a.b``."""
    for each in ast.walk(node):
        if isinstance(each, ast.Import):
            yield from (alias.name for alias in each.names)
        elif isinstance(each, ast.ImportFrom):
            assert each.level == 0, f"line {each.lineno}: relative import; write the whole name"
            yield str(each.module)
            yield from (f"{each.module}.{alias.name}" for alias in each.names)


def imports(all_modules: Mapping[str, Module]) -> dict[str, set[str]]:
    """Modules that each module imports, among ``all_modules``.

    ``from package import module`` is an import of the module alone, and ``from module import name`` one of the module.
    """
    graph: dict[str, set[str]] = {}
    for name, module in all_modules.items():
        graph[name] = set()
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names if alias.name in all_modules}
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    target = f"{node.module}.{alias.name}"
                    target = target if target in all_modules else str(node.module)
                    if target in all_modules:
                        graph[name].add(target)
        graph[name].discard(name)
    return graph


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of two or more nodes that reach each other (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group: list[str] = []
            while not group or group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def room_of(name: str, package: str) -> str:
    """Room of a module of a package: the sub-package directly under it, or the module itself."""
    return name.removeprefix(package).lstrip(".").partition(".")[0]


def arrows(graph: Mapping[str, set[str]], package: str) -> set[tuple[str, str]]:
    """Imports between rooms of a package."""
    pairs = {
        (room_of(name, package), room_of(other, package))
        for name, others in graph.items()
        for other in others
        if within(name, package) and within(other, package)
    }
    return {(a, b) for a, b in pairs if a != b and a and b}


def class_names(all_modules: Mapping[str, Module]) -> dict[str, list[str]]:
    """Modules that define a class at their top level, by its name."""
    found = defaultdict(list)
    for name, module in all_modules.items():
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef):
                found[node.name].append(name)
    return dict(found)


def functions(tree: ast.Module) -> Iterator[Function]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def methods(node: ast.ClassDef) -> list[Function]:
    """Public methods that a class defines, properties left out."""
    return [
        each
        for each in node.body
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
        and not each.name.startswith("_")
        and not any(isinstance(d, ast.Name) and d.id == "property" for d in each.decorator_list)
    ]


def ports(all_modules: Mapping[str, Module]) -> dict[str, int]:
    """Number of methods of every Protocol of ``plaudit.core.ports``, by name."""
    return {
        node.name: len(methods(node))
        for name, module in all_modules.items()
        if within(name, "plaudit.core.ports")
        for node in module.tree.body
        if isinstance(node, ast.ClassDef) and any("Protocol" in ast.unparse(base) for base in node.bases)
    }


def _n_parameters(function: Function) -> int:
    arguments = function.args
    return len([a for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs) if a.arg != "self"])


def _n_fields(node: ast.ClassDef) -> int:
    """Number of parameters of a class's constructor, written out or made by ``dataclass``."""
    for each in node.body:
        if isinstance(each, ast.FunctionDef) and each.name == "__init__":
            return _n_parameters(each)
    fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
    return sum("ClassVar" not in ast.unparse(f.annotation) and "init=False" not in ast.unparse(f) for f in fields)


def _spread(values: list[int]) -> str:
    tenths = quantiles(values, n=10)
    return f"{tenths[4]:.0f} / {tenths[8]:.0f} / {max(values)}"


def report(root: Path) -> Iterator[str]:
    """The figures, a line each."""
    found = modules(root)
    graph = imports(found)
    readme = root / "README.md"
    yield f"README                           {readme.stat().st_size:,} bytes, {readme.read_text().count(chr(10))} lines"
    folders = Counter(module.path.parent for module in found.values() if not module.is_package)
    largest = ", ".join(f"{path.relative_to(root)} {n}" for path, n in folders.most_common(5))
    yield f"modules in one folder            {largest}"
    circles = cycles(graph)
    yield f"import cycles                    {len(circles)}" + "".join(f"\n    {', '.join(each)}" for each in circles)
    twice = {name: where for name, where in class_names(found).items() if len(where) > 1}
    yield f"class names that stand twice     {len(twice)}  {', '.join(sorted(twice))}"
    for package in ("plaudit.learner", "plaudit.serving"):
        between = arrows(graph, package)
        rooms: dict[str, set[str]] = defaultdict(set)
        for a, b in between:
            rooms[a].add(b)
        yield f"arrows in {package:22s} {len(between)}, circles of rooms {cycles(rooms)}"
    yield f"methods of a port, most          {sorted(ports(found).items(), key=lambda each: -each[1])[:5]}"
    n_lines = {module.name: module.n_lines for module in found.values() if not module.is_package}
    yield f"lines of source                  {sum(module.n_lines for module in found.values()):,} in {len(found)} files"
    yield f"lines a file, 50/90/most         {_spread(list(n_lines.values()))}"
    every = [f for module in found.values() for f in functions(module.tree)]
    yield f"lines a function, 50/90/most     {_spread([(f.end_lineno or f.lineno) - f.lineno + 1 for f in every])}"
    yield f"parameters a function            {_spread([_n_parameters(f) for f in every])}"
    makers = {
        f"{module.name}.{node.name}": _n_fields(node)
        for module in found.values()
        for node in module.tree.body
        if isinstance(node, ast.ClassDef) and methods(node)
    }
    yield f"fields of a class with methods   {sorted(makers.items(), key=lambda each: -each[1])[:4]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", nargs="?", type=Path, default=ROOT)
    for line in report(parser.parse_args().root):
        print(line)


if __name__ == "__main__":
    main()
