"""The program in a chat answer: one rule for evaluation and for self-instruct.

    thinking ... </think>            dropped
    [PYTHON] ... [/PYTHON]           a block
    ```python title="a.py" ... ```   a block; ~~~ too, indented, quoted, or never closed
    prose, code, prose               a block: the statements between the prose

Of the blocks that parse, the one that defines the most of the wanted names is chosen, of several
the last. Definitions that it uses and other blocks hold are put before it. Where no block defines
one, the answer may be the body of a function whose head the prompt has.

`simple` is the rule that the paper's preset keeps: between the tags, else the first code fence,
else all of it.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from .blocks import (
    END_TAG,
    TAG,
    Block,
    blocks_of,
    fences_of,
    levelled,
    normal,
    parse,
    tagged,
    variant,
    without_thinking,
)
from .code_names import BUILTINS, bound_by, used_by

Rule = Literal["best", "simple"]
RULES: tuple[str, ...] = get_args(Rule)
MOST_CHARACTERS = 200_000  # of an answer that is looked into; a longer one is taken by `simple`
MOST_LINES = 400  # of one statement between prose
MOST_PARSED = 2_000_000  # characters given to the parser in search of such statements

# --- the simple rule ------------------------------------------------------------------------------

_SIMPLE_FENCE = re.compile(r"```[ \t]*[\w+#.-]*[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)
_BLANK = re.compile(r"\A[ \t]+(?=\S)")


def simple(answer: str, tag: str = TAG, end: str = END_TAG) -> str:
    """The code between the tags, else in the first fence, else the whole answer.

    >>> simple("Sure.\\n[PYTHON]\\nx = 1\\n[/PYTHON] Done.")
    'x = 1\\n'
    >>> simple("Here:\\n```python\\nx = 1\\n```\\nIt assigns.")
    'x = 1'
    """
    if tag in answer or end in answer:
        inside = answer.split(tag, 1)[-1].split(end, 1)[0]
        fenced = _SIMPLE_FENCE.search(inside)
        # On the tag's own line code stands behind a space, which is no indentation.
        return fenced[1] if fenced else _BLANK.sub("", inside, count=1).lstrip("\n")
    fenced = _SIMPLE_FENCE.search(answer)
    return fenced[1] if fenced else answer


# --- the result -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Extracted:
    """The code of an answer.

    Attributes:
        code: a program, or where `is_body` the body of the function whose head was given.
        chosen: what was chosen and what was changed, for the record.
        is_body: which of the two.
    """

    code: str
    chosen: str
    is_body: bool = False


@dataclass(frozen=True, slots=True)
class _Parsed:
    """A block that parses."""

    code: str
    tree: ast.Module
    label: str

    @property
    def names(self) -> set[str]:
        return bound_by(self.tree.body)


def extract(answer: str, *, wanted: Sequence[str] = (), head: str = "") -> Extracted:
    """The program in an answer.

    Args:
        answer: what the model said.
        wanted: names that the program is to define: the function that tests call.
        head: of the function that the model was asked to complete, where it was; ends where the
            body begins.

    Returns:
        the code; where nothing better is found, what `simple` finds.
    """
    text = normal(answer)
    if len(text) > MOST_CHARACTERS:
        return Extracted(code=simple(text), chosen="simple rule: the answer is too long")
    for part, note in without_thinking(text):
        found = _program(part, wanted, head)
        if found is not None:
            return Extracted(code=found.code, chosen=found.chosen + note, is_body=found.is_body)
    rest = next(without_thinking(text))[0]
    return Extracted(code=levelled(simple(rest)), chosen="simple rule: no block parses")


def _program(text: str, wanted: Sequence[str], head: str) -> Extracted | None:
    """The best program in text without thinking; None where nothing parses that could be one."""
    blocks = list(blocks_of(text))
    parsed = [found for block in blocks for found in _first_parsed(block)]
    chosen = _best(parsed, wanted)
    if chosen is None or (wanted and not set(wanted) & _offered(chosen, wanted)):
        prose = _between_prose(text)
        if prose is not None and _is_better(prose, chosen, wanted):
            parsed, chosen = [*parsed, prose], prose
    defines = chosen is not None and (not wanted or bool(set(wanted) & _offered(chosen, wanted)))
    if head and not defines:
        body = _body(text, blocks, head)
        if body is not None:
            return body
    return None if chosen is None else _assembled(chosen, parsed, wanted)


def _best(parsed: Sequence[_Parsed], wanted: Sequence[str]) -> _Parsed | None:
    """The last of the blocks that define the most of the wanted names, or anything at all."""
    best: _Parsed | None = None
    for one in parsed:
        if _is_better(one, best, wanted):
            best = one
    return best


def _is_better(one: _Parsed, best: _Parsed | None, wanted: Sequence[str]) -> bool:
    return best is None or _rank(one, wanted) >= _rank(best, wanted)


def _rank(one: _Parsed, wanted: Sequence[str]) -> tuple[int, bool]:
    return len(set(wanted) & _offered(one, wanted)), bool(_definitions(one.tree))


def _offered(one: _Parsed, wanted: Sequence[str]) -> set[str]:
    """The names that a block defines, methods of its classes among the wanted ones too."""
    return one.names | {name for name in wanted if _class_with(one.tree, name)}


def _definitions(tree: ast.Module) -> list[ast.stmt]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    return [statement for statement in tree.body if isinstance(statement, kinds)]


def _assembled(chosen: _Parsed, parsed: Sequence[_Parsed], wanted: Sequence[str]) -> Extracted:
    """A block with what it needs of the others, and with functions in place of methods."""
    notes = [chosen.label]
    code = chosen.code
    missing = (_used(chosen.code) | set(wanted)) - _offered(chosen, wanted) - BUILTINS
    others = [one for one in parsed if one is not chosen]
    borrowed = _borrowed(missing, others)
    if borrowed:
        notes.append("with definitions of other blocks: " + ", ".join(sorted(borrowed)))
        code = _joined([*borrowed.values(), code])
    for name in wanted:
        owner = None if name in chosen.names else _class_with(chosen.tree, name)
        if owner is not None:
            notes.append(f"{name} is a method of {owner}")
            code = f"{code.rstrip()}\n\n\n{name} = {owner}().{name}\n"
    return Extracted(code=code, chosen="; ".join(notes))


def _borrowed(missing: set[str], others: Sequence[_Parsed]) -> dict[str, str]:
    """Sources of the definitions of missing names in other blocks, and of what these need.

    Of a name that several define the last counts. In an order in which they can run: what others
    stand on comes first.
    """
    found: dict[str, tuple[int, str]] = {}
    left = set(missing)
    while left:
        name = left.pop()
        if name in found:
            continue
        for place in range(len(others) - 1, -1, -1):
            statement = next(
                (s for s in reversed(others[place].tree.body) if name in bound_by([s])), None
            )
            if statement is None or not isinstance(statement, _BORROWED):
                continue
            order = place * 100_000 + statement.lineno
            found[name] = (order, _source(others[place].code, statement))
            left |= _used(found[name][1]) - BUILTINS - found.keys()
            break
    ordered = sorted(found.items(), key=lambda item: item[1][0])
    return {name: source for name, (_, source) in ordered}


def _used(code: str) -> set[str]:
    """The names that code takes from around it; none where the compiler refuses it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return used_by(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return set()


_BORROWED = (
    ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign,
    ast.Import, ast.ImportFrom,
)  # fmt: skip


def _source(code: str, statement: ast.stmt) -> str:
    """The lines of a statement, decorators included."""
    decorators = getattr(statement, "decorator_list", [])
    first = min([statement.lineno, *(one.lineno for one in decorators)])
    lines = code.split("\n")[first - 1 : statement.end_lineno]
    return "\n".join(lines)


def _joined(parts: Sequence[str]) -> str:
    """Sources as one program: imports from __future__ stand first."""
    futures, rest = [], []
    for part in dict.fromkeys(parts):
        future, other = split_future(part)
        futures.append(future)
        rest.append(other)
    return "".join(futures) + "\n\n".join(part.strip("\n") for part in rest) + "\n"


def split_future(code: str) -> tuple[str, str]:
    """A program's imports from __future__, and the rest with its lines in their places.

    >>> split_future("from __future__ import annotations\\nx = 1\\n")
    ('from __future__ import annotations\\n', '\\nx = 1\\n')
    """
    tree = parse(code)
    if tree is None:
        return "", code
    lines = code.split("\n")
    futures = []
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
            futures.append(ast.unparse(statement) + "\n")
            for number in range(statement.lineno, (statement.end_lineno or 0) + 1):
                lines[number - 1] = ""
    return "".join(futures), "\n".join(lines)


def _class_with(tree: ast.Module, name: str) -> str | None:
    """The class, made without arguments, that has a method of this name: `Solution`, if any."""
    owners = [
        statement.name
        for statement in tree.body
        if isinstance(statement, ast.ClassDef)
        and any(
            isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) and part.name == name
            for part in statement.body
        )
        and _made_without_arguments(statement)
    ]
    return "Solution" if "Solution" in owners else owners[-1] if owners else None


def _made_without_arguments(kind: ast.ClassDef) -> bool:
    for part in kind.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            given = part.args
            positional = len(given.posonlyargs) + len(given.args) - 1 - len(given.defaults)
            keyword = [default for default in given.kw_defaults if default is None]
            return positional <= 0 and not keyword
    return True


def asserts_of(answer: str, tag: str, end: str) -> str:
    """The text of an answer that holds its tests: between tags, in fences, or all of it.

    Of several fences those with an assert are taken together.
    """
    text = next(without_thinking(normal(answer)))[0]
    if tag in text or end in text:
        inside = "\n".join(tagged(text, tag, end))
        text = inside if "assert" in inside else text
    fences = [block.texts[0] for block in fences_of(text) if "assert" in block.texts[0]]
    return "\n".join(map(levelled, fences)) if fences else levelled(text)


# --- blocks to programs ---------------------------------------------------------------------------


def _first_parsed(block: Block) -> Iterator[_Parsed]:
    """The program of a block, if it has one; of a cut one its whole statements."""
    for text in block.texts:
        code = variant(text)
        if code is not None:
            tree = parse(code)
            assert tree is not None, "a variant that parses"
            if tree.body:
                yield _Parsed(code, tree, block.label)
            return
    if block.label != "the whole answer":
        found = _between_prose(block.texts[0])
        if found is not None:
            yield _Parsed(found.code, found.tree, f"{block.label}, its whole statements")


_BEGINS = re.compile(
    r"^[ \t]*(?:@[\w.]+|(?:async[ \t]+)?def[ \t]+\w+|class[ \t]+\w+|import[ \t]+\w"
    r"|from[ \t]+[\w.]+[ \t]+import\b|[A-Za-z_][\w.]*[ \t]*(?::[^=\n]+)?=(?!=))"
)


def _between_prose(text: str) -> _Parsed | None:
    """The definitions, imports and assignments that stand between prose."""
    lines = text.split("\n")
    parts: list[str] = []
    place, budget = 0, MOST_PARSED
    while place < len(lines) and budget > 0:
        taken = 0
        if _BEGINS.match(lines[place]):
            taken, source, spent = _statement_at(lines, place, budget)
            budget -= spent
            if taken:
                parts.append(source)
        place += taken or 1
    code = _joined(parts) if parts else ""
    tree = parse(code)
    return None if tree is None or not tree.body else _Parsed(code, tree, "code between prose")


def _statement_at(lines: Sequence[str], first: int, budget: int) -> tuple[int, str, int]:
    """(lines, source, characters parsed) of the longest statement from a line on; no lines if none.

    Args:
        lines: of the text.
        first: where it begins.
        budget: characters that may be parsed.
    """
    indent = len(lines[first]) - len(lines[first].lstrip())
    longest, source, spent = 0, "", 0
    for end in range(first + 1, min(len(lines), first + MOST_LINES) + 1):
        if end < len(lines) and not _may_end(lines[end], indent):
            continue  # the next line goes on with what stands before it
        code = levelled("\n".join(lines[first:end]))
        spent += len(code) + 100  # a call costs something too
        tree = parse(code)
        if tree is not None and len(tree.body) == 1 and isinstance(tree.body[0], _BORROWED):
            longest, source = end - first, code
        elif longest or spent > budget:
            break
    return longest, source, spent


def _may_end(line: str, indent: int) -> bool:
    """Whether a statement may end before this line: it is blank, or not deeper."""
    return not line.strip() or len(line) - len(line.lstrip()) <= indent


# --- a body ---------------------------------------------------------------------------------------


def _body(text: str, blocks: Sequence[Block], head: str) -> Extracted | None:
    """The body of the function that the head begins, in the last block that has one."""
    for block in reversed(blocks):
        for inside in block.texts:
            for code, note in _bodies(inside):
                if _completes(head, code):
                    label = block.label + (f"; {note}" if note else "")
                    return Extracted(code=code, chosen=f"{label}; a body", is_body=True)
    runs = re.findall(r"(?:^[ \t]+\S[^\n]*\n?|^[ \t]*\n)+", text, re.MULTILINE)
    for run in reversed(runs):
        for code, _ in _bodies(run.strip("\n")):
            if run.strip() and _completes(head, code):
                return Extracted(code=code, chosen="an indented body between prose", is_body=True)
    return None


def _bodies(text: str) -> Iterator[tuple[str, str]]:
    """(body, note) what a text may mean as the body of a function."""
    code = text.strip("\n") + "\n"
    even = textwrap.indent(textwrap.dedent(code), "    ")
    first, _, rest = code.partition("\n")
    depth = len(first) - len(first.lstrip())
    if depth:
        yield code, ""
    yield even, "indented"
    # The first line stands where the prompt ended, the others where the body does.
    yield f"    {first.lstrip()}\n{rest}", "its first line indented"


def _completes(head: str, body: str) -> bool:
    """Whether a body makes the function of a head whole, with statements of its own."""
    before, after = parse(f"{head}    pass\n"), parse(head + body)
    if before is None or after is None or len(after.body) != len(before.body):
        return False
    if not any(line.strip() and not line.lstrip().startswith("#") for line in body.split("\n")):
        return False
    statements = parse(textwrap.dedent(body))
    prose = statements is not None and all(
        isinstance(one, ast.Expr) and isinstance(one.value, ast.Name | ast.Constant)
        for one in statements.body
    )
    if prose:
        return False
    return _compiles(head + body)


def _compiles(code: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(code, "<answer>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
            return False
    return True
