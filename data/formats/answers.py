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
from functools import lru_cache
from typing import Literal, get_args

from .code_names import BUILTINS, bound_by, used_by

Rule = Literal["best", "simple"]
RULES: tuple[str, ...] = get_args(Rule)
TAG, END_TAG = "[PYTHON]", "[/PYTHON]"
MOST_CHARACTERS = 200_000  # of an answer that is looked into; a longer one is taken by `simple`
MOST_CLOSERS = 8  # lines that may close a fence which are tried: code may hold fences itself
MOST_LINES = 400  # of one statement between prose
MOST_PARSED = 2_000_000  # characters given to the parser in search of such statements
PYTHON_NAMES = frozenset({"", "python", "py", "python3", "py3", "ipython", "pycon", "code"})

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
class _Block:
    """Text that may be the code.

    Attributes:
        texts: what it may hold, the likeliest first: a fence may end at several lines.
        label: where it stands, for the record.
        is_python: whether its fence names Python, or no language.
    """

    texts: tuple[str, ...]
    label: str
    is_python: bool = True


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
    text = _normal(answer)
    if len(text) > MOST_CHARACTERS:
        return Extracted(code=simple(text), chosen="simple rule: the answer is too long")
    for part, note in _without_thinking(text):
        found = _program(part, wanted, head)
        if found is not None:
            return Extracted(code=found.code, chosen=found.chosen + note, is_body=found.is_body)
    rest = next(_without_thinking(text))[0]
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
    text = next(_without_thinking(_normal(answer)))[0]
    if tag in text or end in text:
        inside = "\n".join(_tagged(text, tag, end))
        text = inside if "assert" in inside else text
    fences = [block.texts[0] for block in _fences(text) if "assert" in block.texts[0]]
    return "\n".join(map(levelled, fences)) if fences else levelled(text)


# --- text to blocks -------------------------------------------------------------------------------


def _normal(answer: str) -> str:
    """An answer with Python's line ends, without marks that no editor shows."""
    text = answer.replace("\r\n", "\n").replace("\r", "\n")
    return text.translate({0xFEFF: None, 0x200B: None, 0xA0: " ", 0x2028: "\n", 0x2029: "\n"})


_THINKING = re.compile(
    r"^[ \t]*<(think|thinking|thought|reasoning)>.*?</\1>[ \t]*\n?", re.DOTALL | re.MULTILINE
)
_THOUGHT_END = re.compile(r"^.*</(?:think|thinking|thought|reasoning)>[ \t]*", re.DOTALL)
_THOUGHT_OPEN = re.compile(r"^[ \t]*<(?:think|thinking|thought|reasoning)>.*", re.DOTALL | re.M)


def _without_thinking(text: str) -> Iterator[tuple[str, str]]:
    """(text, note) an answer after its thinking, then as it is: code may name such tags itself."""
    rest = _THINKING.sub("", text)
    rest = _THOUGHT_END.sub("", rest)  # the chat form may have opened it in the prompt
    rest = _THOUGHT_OPEN.sub("", rest)  # cut while it thought
    if rest != text and rest.strip():
        yield rest, "; thinking dropped"
    yield text, ""


def blocks_of(text: str) -> Iterator[_Block]:
    """The blocks of an answer, of two alike the better one last: in fences, then between tags."""
    fences = list(_fences(text))
    # A fence of another language is looked at first, so that any later one is preferred.
    yield from sorted(fences, key=lambda block: block.is_python)
    if TAG in text or END_TAG in text:
        for number, part in enumerate(_tagged(text), start=1):
            yield _Block((part,), f"tags {number}")
            for block in _fences(part):
                yield _Block(block.texts, f"tags {number}, {block.label}", block.is_python)
    elif not fences:
        yield _Block((text,), "the whole answer")


def _tagged(text: str, tag: str = TAG, end: str = END_TAG) -> Iterator[str]:
    """What stands between the tags; one of them may be missing."""
    if tag not in text:
        yield text.split(end, 1)[0]
        return
    for part in text.split(tag)[1:]:
        yield part.split(end, 1)[0]


_FENCE = re.compile(
    r"^(?P<prefix>[ \t>]*(?:(?:[-*+]|\d{1,3}[.)])[ \t]+)?)(?P<fence>`{3,}|~{3,})(?P<info>[^\n]*)$"
)
_INLINE = re.compile(r"`{3,}(?:python3?|py)?[ \t]+(?P<code>\S[^\n`]*)`{3,}")
_LANGUAGE = re.compile(r"^[ \t]*[{.]*[ \t]*\.?([\w+#-]*)")


def _fences(text: str) -> Iterator[_Block]:
    """The fenced blocks of a text, each with the several ends that it may have."""
    lines = text.split("\n")
    number, place = 0, 0
    while place < len(lines):
        opened = _FENCE.match(lines[place])
        inline = _INLINE.search(lines[place])
        if inline is not None:
            number += 1
            yield _Block((inline["code"],), f"fence {number}")
            place += 1
            continue
        if opened is None or "`" in opened["info"]:
            place += 1
            continue
        number += 1
        language = _LANGUAGE.match(opened["info"])
        named = language[1].lower() if language else ""
        ends = _closers(lines, place + 1, opened["fence"])
        quoted = ">" in opened["prefix"]
        texts = tuple(_inside(lines[place + 1 : end], quoted=quoted) for end in ends)
        label = f"fence {number}" + ("" if ends[0] < len(lines) else ", never closed")
        yield _Block(texts, label, named in PYTHON_NAMES)
        place = (_end_of_parsed(texts, ends) or ends[0]) + 1


def _closers(lines: Sequence[str], first: int, fence: str) -> list[int]:
    """Where a fence may end: lines that close it, and the end of the text."""
    mark = re.compile(rf"^[ \t>]*{re.escape(fence[0])}{{{len(fence)},}}[ \t]*$")
    found = [n for n in range(first, len(lines)) if mark.match(lines[n])][:MOST_CLOSERS]
    return [*found, len(lines)]


def _end_of_parsed(texts: Sequence[str], ends: Sequence[int]) -> int | None:
    for text, end in zip(texts, ends, strict=True):
        if _variant(text) is not None:
            return end
    return None


def _inside(lines: Sequence[str], *, quoted: bool) -> str:
    if quoted:
        lines = [re.sub(r"^[ \t]*>[ ]?", "", line) for line in lines]
    return "\n".join(lines)


# --- blocks to programs ---------------------------------------------------------------------------


def _first_parsed(block: _Block) -> Iterator[_Parsed]:
    """The program of a block, if it has one; of a cut one its whole statements."""
    for text in block.texts:
        code = _variant(text)
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


def _variant(text: str) -> str | None:
    """Code as it stands, or levelled, whichever parses first."""
    for code in dict.fromkeys((text, levelled(text), _unprompted(text))):
        if parse(code) is not None:
            return code.strip("\n") + "\n"
    return None


def levelled(code: str) -> str:
    """Code whose first line begins where its other statements do.

    A chat form puts a space before an answer, and lists indent the code of their items.
    """
    code = code.lstrip("\n")
    if code[:1] not in (" ", "\t"):
        return code
    even = textwrap.dedent(code)
    return code.lstrip(" \t") if even[:1] in (" ", "\t") or parse(even) is None else even


def _unprompted(code: str) -> str:
    """The input of an interactive session, without its prompts and output."""
    lines = code.split("\n")
    if not any(line.startswith(">>> ") for line in lines):
        return code
    return "\n".join(line[4:] for line in lines if line[:4] in (">>> ", "... ", "..."))


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


def _body(text: str, blocks: Sequence[_Block], head: str) -> Extracted | None:
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


@lru_cache(maxsize=256)
def parse(code: str) -> ast.Module | None:
    """The syntax tree of code; None where it has none, or one too deep to walk."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of invalid escapes, which are the model's
        try:
            tree = ast.parse(code)
            ast.unparse(tree)  # what follows walks it, and recurses as deep
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None
    return tree
