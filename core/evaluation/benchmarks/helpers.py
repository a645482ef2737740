"""Helpers of a prompt that tests call: they run with the tests.

    prompt        def poly(xs, x): ...          HumanEval/32
                  def find_zero(xs): ...        the function that is tested
    tests         assert abs(poly(coeffs, candidate(coeffs))) < 1e-4

A completion may define `poly` anew, honestly or not. The tests mean the prompt's.
"""

from __future__ import annotations

import ast

from codecria.data.formats.blocks import parse
from codecria.data.formats.code_names import BUILTINS, bound_by, used_by


def helpers_for(tests: str, before: str, reference: str, after: str, entry_point: str) -> str:
    """Source of what tests use of a prompt besides the function that is tested; often empty.

    Args:
        tests: Python code.
        before, after: the prompt, around the completion.
        reference: a completion that makes it whole.
        entry_point: the function that is tested.
    """
    whole = before + reference + after
    tree, checks = parse(whole), parse(tests)
    if tree is None or checks is None:
        return ""
    lines = whole.split("\n")
    own = _statements_of_prompt(tree, before, reference)
    by_name = {name: one for one in own for name in bound_by([one]) if name != entry_point}
    left = (used_by(tests) - bound_by(checks.body)) & by_name.keys()
    taken: dict[int, str] = {}
    while left:
        statement = by_name[left.pop()]
        if statement.lineno in taken:
            continue
        source = "\n".join(lines[_first(statement) - 1 : statement.end_lineno])
        taken[statement.lineno] = source
        left |= (used_by(source) - BUILTINS) & by_name.keys()
    return "".join(f"{source}\n\n\n" for _, source in sorted(taken.items()))


def _statements_of_prompt(tree: ast.Module, before: str, reference: str) -> list[ast.stmt]:
    """The statements of a program that lie wholly in the prompt, none of them in the completion."""
    begins = before.count("\n") + 1
    ends = (before + reference.rstrip("\n")).count("\n") + 1
    return [one for one in tree.body if (one.end_lineno or 0) < begins or _first(one) > ends]


def _first(statement: ast.stmt) -> int:
    """The first line of a statement, decorators included."""
    decorators: list[ast.expr] = getattr(statement, "decorator_list", [])
    return min([statement.lineno, *(one.lineno for one in decorators)])
