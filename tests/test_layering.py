"""The rules of the house that a syntax tree can show: who imports whom, and what never appears."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("cli", "core", "data")
BELOW = {"cli": {"cli", "core", "data"}, "core": {"core", "data"}, "data": {"data"}}
# What makes `--help` slow: in cli these are imported by the functions that need them.
HEAVY = ("torch", "numpy", "pyarrow", "sentencepiece", "safetensors", "codecria.core")
MODULES = sorted(path for part in PARTS for path in (ROOT / part).rglob("*.py"))


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module: its dotted name, and whether only type checkers see it early."""

    name: str
    line: int
    deferred: bool


@cache
def parsed(path: Path) -> ast.Module:
    """A module's syntax tree, read once."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> tuple[Import, ...]:
    """Every import of a module, relative ones made absolute."""
    package = ["codecria", *path.relative_to(ROOT).parent.parts]

    def visit(node: ast.AST, deferred: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, deferred)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(f"{stem}.{alias.name}", node.lineno, deferred)
        else:
            for field, value in ast.iter_fields(node):
                inner = deferred or (
                    isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and field == "body"
                )
                if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                    inner = inner or field == "body"
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.AST):
                        yield from visit(child, inner)

    return tuple(visit(parsed(path), False))


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def everywhere(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_part_was_found() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(PARTS)


@pytest.mark.parametrize("path", MODULES, ids=everywhere)
def test_imports_go_from_cli_to_core_to_data_and_never_back(path: Path) -> None:
    part = path.relative_to(ROOT).parts[0]
    back = [
        f"line {found.line}: {found.name}"
        for found in imports(path)
        if within(found.name, "codecria") and found.name.split(".")[1] not in BELOW[part]
    ]
    assert not back


@pytest.mark.parametrize("path", MODULES, ids=everywhere)
def test_the_parts_are_never_imported_by_their_bare_names(path: Path) -> None:
    bare = [
        f"line {found.line}: {found.name}"
        for found in imports(path)
        if any(within(found.name, part) for part in PARTS)
    ]
    assert not bare


@pytest.mark.parametrize(
    ("library", "parts", "only"),
    [
        ("torch", ("data",), None),
        ("rich", PARTS, "cli/render.py"),
        ("xformers", PARTS, "core/model/spans.py"),
        ("typer", ("core", "data"), None),
        ("transformers", PARTS, None),
    ],
)
def test_a_library_stays_where_it_belongs(
    library: str, parts: tuple[str, ...], only: str | None
) -> None:
    astray = [
        f"{everywhere(path)}:{found.line}"
        for path in MODULES
        if path.relative_to(ROOT).parts[0] in parts and everywhere(path) != only
        for found in imports(path)
        if within(found.name, library)
    ]
    assert not astray


PROCESSES = tuple(
    f"core/sandbox/{name}.py"
    for name in ("worker", "programs", "steps", "child", "bridge", "namespaces", "forker")
)


@pytest.mark.parametrize("part", ["core", "data"])
def test_libraries_never_print_or_exit(part: str) -> None:
    calls = [
        f"{everywhere(path)}:{node.lineno} {name}"
        for path in MODULES
        if path.relative_to(ROOT).parts[0] == part
        # Programs of their own, whose children end as the programs they run.
        and everywhere(path) not in PROCESSES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call)
        and (name := ast.unparse(node.func))
        in {"print", "exit", "quit", "sys.exit", "os._exit", "sys.stdout.write", "sys.stderr.write"}
    ]
    assert not calls


def test_cli_imports_heavy_libraries_inside_functions_alone() -> None:
    early = [
        f"{everywhere(path)}:{found.line} {found.name}"
        for path in MODULES
        if path.relative_to(ROOT).parts[0] == "cli"
        for found in imports(path)
        if not found.deferred and any(within(found.name, heavy) for heavy in HEAVY)
    ]
    assert not early


# What `generate` imports before it knows which engine it takes.
QUICK = (
    "codecria.cli.app",
    "codecria.core.checkpoints.checkpoint",
    "codecria.core.checkpoints.formats.chat_template",
    "codecria.core.inference.engine",
    "codecria.core.inference.generator",
    "codecria.core.inference.healing",
    "codecria.data.formats.cursor",
    "codecria.data.formats.window",
)
SLOW = ("torch", "pyarrow", "transformers", "numba", "pydantic", "pandas", "rich", "numpy.random")


def test_generate_imports_no_slow_library_before_it_needs_one() -> None:
    # The reason for imports within functions in these modules: torch alone takes over a second.
    program = f"import sys, {', '.join(QUICK)}; print([m for m in {SLOW} if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def undocumented(tree: ast.Module) -> Iterator[str]:
    """Public functions and classes without a docstring, and modules without one."""
    if not ast.get_docstring(tree):
        yield "the module"

    def visit(body: list[ast.stmt], prefix: str) -> Iterator[str]:
        for node in body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            dunder = node.name.startswith("__") and node.name.endswith("__")
            if node.name.startswith("_") and not dunder:
                continue
            # A special method with nothing to add means what Python says it means.
            if not dunder and not ast.get_docstring(node):
                yield prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield from visit(node.body, f"{prefix}{node.name}.")

    yield from visit(tree.body, "")


@pytest.mark.parametrize("path", MODULES, ids=everywhere)
def test_everything_public_has_a_docstring(path: Path) -> None:
    assert list(undocumented(parsed(path))) == []


# Beside the boundary, the loader: its thread hands what went wrong to whoever asks for the batch.
# And the sandbox's processes, where the program that raises is not ours.
# And the server's engine thread, which tells every client that waits.
BROAD = ("cli/boundary.py", "data/rows/loader.py", "core/serving/worker.py", *PROCESSES)


@pytest.mark.parametrize("path", MODULES, ids=everywhere)
def test_nothing_catches_every_exception_outside_the_error_boundary(path: Path) -> None:
    if everywhere(path) in BROAD:
        return
    broad = [
        node.lineno
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"})
    ]
    assert not broad


def tracked() -> list[Path]:
    """The project's own text files; without git's list, those in its known folders."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    names = [name for name in listed.stdout.split("\0") if name]
    if not names:
        folders = (*PARTS, "tests", "docs", "completions")
        names = [str(p.relative_to(ROOT)) for f in folders for p in (ROOT / f).rglob("*.*")]
    return [path for name in names if (path := ROOT / name).is_file() and "\0" not in _text(path)]


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", errors="replace")


def test_no_file_names_a_path_of_one_machine() -> None:
    # Pieced together, so that this file does not name one either.
    homes = "|".join(["ro" + "ot", "ho" + "me", "Us" + "ers", "wo" + "rk", "tm" + "p", "mn" + "t"])
    pattern = re.compile(rf"(?<![\w./*~$}}>-])/(?:{homes})/[\w.]")
    named = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in tracked()
        for number, line in enumerate(_text(path).splitlines(), 1)
        if pattern.search(line)
    ]
    assert not named, "\n".join(named)
