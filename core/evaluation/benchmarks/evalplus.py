"""HumanEval+ and MBPP+ (Liu et al. 2023): many more inputs, answered by the reference itself.

Read from the release's files (`base_input`, `plus_input`, `canonical_solution`, `atol`), or from
the data sets' rows, whose `test` is a program that needs NumPy (`--packages numpy`). What is
expected is what the reference returns, computed beside the tests. As in EvalPlus: floats agree
within 1e-06 where no tolerance is given, and some problems have a rule of their own.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from . import humaneval, mbpp
from .cases import runner
from .problems import Problem, Record, text

# Rules of EvalPlus 0.3 for functions whose right answers differ from the reference's.
_AS_SETS = (
    *("similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly"),
    *("larg_nnum", "intersection_array", "find_dissimilar", "Diff"),
)
_WHETHER = ("check_str", "text_match_three", "text_starta_endb")  # None or something
_OR_ALWAYS = {"are_equivalent": "True", "sum_div": "0"}  # a constant is right as well
STOPS = ('\n"""', "\nassert", "\nif __name__", "\nprint", "\n#", "\n```")

_TESTS = """\
{runner}

import copy as _copy

_names = {{}}
exec(compile({reference!r}, "<reference>", "exec", dont_inherit=True), _names)
_reference = _names[{name!r}]
INPUTS = {inputs}
_call = {name}
_equal, _constant = True, {constant}
for _number, _given in enumerate(INPUTS, start=1):
    _set = "base" if _number <= {base} else "plus"
    _wanted = _reference(*_copy.deepcopy(_given))
    _found = _call(*_copy.deepcopy(_given))
    if not ({rule}):
        raise AssertionError(
            f"{{_set}} input {{_number}}: expected {{_short(_wanted)}}, got {{_short(_found)}}"
        )
"""
_RULE = "close(_found, _wanted, {tolerance!r})"


def parse_humaneval(record: Record) -> Problem:
    """A problem of HumanEval+."""
    if "base_input" not in record:
        return humaneval.parse(record)
    prompt = text(record, "prompt")
    return _problem(record, before=prompt, reference=prompt + text(record, "canonical_solution"))


def parse_mbpp(record: Record) -> Problem:
    """A problem of MBPP+: a docstring with a test, behind which a function is written."""
    if "base_input" in record:
        return _problem(
            record, before=text(record, "prompt"), reference=text(record, "canonical_solution")
        )
    number = record.get("task_id")
    if not isinstance(number, int):
        raise KeyError("task_id")
    plain = mbpp.parse({**record, "test_setup_code": ""})
    head = f'"""\n{plain.question}\n{plain.shown[0]}\n"""\n'
    return Problem(
        task_id=f"Mbpp/{number}",
        language="python",
        before=head,
        tests=text(record, "test"),
        reference=plain.reference,
        entry_point=_called(plain.shown[0]),
        question=plain.question,
        stops=STOPS,
    )


def _called(test: str) -> str:
    """The function that an assertion calls; nothing where it is not clear."""
    found = re.match(r"\s*assert\s+\(*(?:set|sorted|math\.isclose)?\(*([A-Za-z_]\w*)\s*\(", test)
    return found[1] if found else ""


def _problem(record: Record, *, before: str, reference: str) -> Problem:
    name = text(record, "entry_point")
    base, plus = record.get("base_input"), record.get("plus_input")
    if not isinstance(base, list) or not isinstance(plus, list):
        raise KeyError("base_input" if not isinstance(base, list) else "plus_input")
    if not all(isinstance(given, list) for given in (*base, *plus)):
        raise ValueError("an input is no list of arguments")
    shaped = _shaper(record, name)
    inputs = [shaped(given) for given in (*base, *plus)]
    tolerance = record.get("atol") or 0
    rule = _RULE.format(tolerance=tolerance)
    if name == "find_zero":
        rule = f"abs(sum(c * _found**n for n, c in enumerate(_given[0]))) <= {tolerance or 1e-4!r}"
    elif name in _AS_SETS:
        rule = "set(_found) == set(_wanted)"
    elif name in _WHETHER:
        rule = "_found == _wanted if isinstance(_found, bool) else _wanted == (_found is not None)"
    elif name in _OR_ALWAYS:
        rule = (
            "(_equal := _equal and _found == _wanted)"
            " | (_constant := _constant and _found == " + _OR_ALWAYS[name] + ")"
        )
    code = text(record, "canonical_solution")
    return Problem(
        task_id=text(record, "task_id"),
        language="python",
        before=before,
        tests=_TESTS.format(
            runner=runner(), reference=reference, name=name, inputs=_literal(inputs),
            constant=name in _OR_ALWAYS, base=len(base), rule=rule,
        ),
        reference=code,
        entry_point=name,
        stops=STOPS if before.lstrip().startswith('"""') else humaneval.STOPS,
    )  # fmt: skip


def _literal(inputs: list[Any]) -> str:
    """Source of the inputs: JSON where that says all of it."""
    try:
        plain = json.loads(json.dumps(inputs)) == inputs
    except TypeError:
        plain = False
    return f"load({json.dumps(inputs)!r})" if plain else f"[{', '.join(map(_source, inputs))}]"


def _source(value: Any) -> str:
    return re.sub(r"\b(inf|nan)\b", r"float('\1')", repr(value)) if _odd(value) else repr(value)


def _odd(value: Any) -> bool:
    if isinstance(value, float):
        return value != value or value in (float("inf"), float("-inf"))
    parts = value.values() if isinstance(value, dict) else value
    return isinstance(value, list | tuple | set | dict) and any(map(_odd, parts))


# --- what JSON cannot say -------------------------------------------------------------------------


def _shaper(record: Record, name: str) -> Callable[[list[Any]], list[Any]]:
    """A function that gives arguments the types that the problem's assertions have.

    JSON has neither tuples nor sets nor complex numbers; the published assertions show them.
    """
    examples: list[list[Any]] = []
    for field in ("assertion", "prompt"):
        value = record.get(field)
        if isinstance(value, str):
            examples += _arguments(value, name)
    if not examples:
        return lambda given: given

    def shaped(given: list[Any]) -> list[Any]:
        return [
            _as(value, [one[n] for one in examples if n < len(one)])
            for n, value in enumerate(given)
        ]

    return shaped


def _arguments(source: str, name: str) -> Iterator[list[Any]]:
    """The arguments of calls in a text's assertions, as far as they are literals."""
    for line in source.splitlines():
        if "assert" not in line:
            continue
        try:
            tree = ast.parse(line.strip())
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == name:
                try:
                    yield [ast.literal_eval(part) for part in node.args]
                except ValueError:
                    continue


def _as(value: Any, examples: list[Any]) -> Any:
    """A value of JSON with the types of examples that stand in the same place."""
    if isinstance(value, list):
        inner = [part for one in examples if isinstance(one, list | tuple | set) for part in one]
        parts = [_as(part, inner) for part in value]
        kinds = {type(one) for one in examples}
        if tuple in kinds:
            return tuple(parts)
        if set in kinds:
            return set(parts) if parts else {}  # a dict, as EvalPlus has it
        return parts
    if isinstance(value, dict):
        held = [part for one in examples if isinstance(one, dict) for part in one.values()]
        return {key: _as(part, held) for key, part in value.items()}
    if isinstance(value, str) and any(isinstance(one, complex) for one in examples):
        return complex(value)
    if isinstance(value, str) and examples and all(isinstance(one, float) for one in examples):
        return float(value)
    return value
