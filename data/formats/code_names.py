"""Which names Python code binds at its top level, and which it takes from around it."""

from __future__ import annotations

import ast
import builtins
import symtable
import sys
from collections.abc import Sequence

BUILTINS = frozenset(dir(builtins))


def bound_by(statements: Sequence[ast.stmt]) -> set[str]:
    """The names that top-level statements bind: definitions, imports, assignments.

    >>> sorted(bound_by(ast.parse("import a.b as c\\nx, y = 1, 2\\ndef f(z): w = 1").body))
    ['c', 'f', 'x', 'y']
    """
    found: set[str] = set()
    for statement in statements:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(statement.name)
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            found |= {(one.asname or one.name).split(".")[0] for one in statement.names}
        else:
            found |= {
                node.id
                for node in _walk_here(statement)
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            }
            found |= _defined_within(statement)
    return found


def _defined_within(statement: ast.stmt) -> set[str]:
    """What a compound statement, such as `if` or `try`, defines or imports."""
    found: set[str] = set()
    for node in _walk_here(statement):
        if node is not statement and isinstance(
            node,
            ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom,
        ):
            found |= bound_by([node])
    return found


def _walk_here(node: ast.AST) -> list[ast.AST]:
    """A node and those in it, without the insides of functions, classes and comprehensions."""
    found, left = [], [node]
    inner = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    while left:
        one = left.pop()
        found.append(one)
        if one is node or not isinstance(one, inner):
            left += ast.iter_child_nodes(one)
    return found


def used_by(code: str) -> set[str]:
    """The names that code takes from around it: read at its top level or globally, bound nowhere.

    Args:
        code: that parses.

    >>> sorted(used_by("def f(x):\\n    return g(x) + y"))
    ['g', 'y']
    """
    top = symtable.symtable(code, "<code>", "exec")
    bound = {one.get_name() for one in top.get_symbols() if one.is_assigned() or one.is_imported()}
    read: set[str] = set()
    left = [top]
    while left:
        table = left.pop()
        left += table.get_children()
        for one in table.get_symbols():
            # What a function assigns under `global` is bound once that runs.
            if table is not top and one.is_declared_global() and one.is_assigned():
                bound.add(one.get_name())
            if one.is_referenced() and (table is top or one.is_global()):
                read.add(one.get_name())
    return read - bound


def called_by(
    statements: Sequence[ast.stmt], known: set[str] | frozenset[str] = BUILTINS
) -> set[str]:
    """The names that statements call and do not make themselves: a solution's, if they are tests.

    Args:
        statements: of tests.
        known: names that are no solution's.
    """
    nodes = [node for statement in statements for node in ast.walk(statement)]
    called = {n.func.id for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    # A class's static method: Counter.of(...), where Counter is nobody else's.
    called |= {
        n.func.value.id
        for n in nodes
        if isinstance(n, ast.Call)
        and isinstance(n.func, ast.Attribute)
        and isinstance(n.func.value, ast.Name)
    }
    made = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    made |= {n.arg for n in nodes if isinstance(n, ast.arg)}
    return called - made - known


def wanted_by(tests: str) -> tuple[str, ...]:
    """The names that a solution must define for tests to call, sorted.

    >>> wanted_by("import math\nassert math.isclose(area(1), abs(-3.14))")
    ('area',)
    """
    try:
        body = ast.parse(tests).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ()
    known = BUILTINS | sys.stdlib_module_names | bound_by(body)
    return tuple(sorted(called_by(body, known)))
