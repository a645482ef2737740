"""What models say, read: questions of a numbered list, tests between tags, a program.

Models number otherwise than they were asked, fence code, go on talking, or stop in the middle. What
can be read with certainty is taken, the rest is a loss with a reason.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from codecria.data.files import digest_bytes
from codecria.data.formats import answers, blocks
from codecria.data.formats.chat import TAGS
from codecria.data.formats.code_names import BUILTINS, called_by

LEAST_WORDS, MOST_CHARACTERS = 4, 4_000  # of a question
MOST_CODE = 64_000  # characters of tests or of a program that are parsed
OUR_TAGS = ("[TESTS]", "[/TESTS]", "[PYTHON]", "[/PYTHON]")
SENTINELS = (
    "<PRE>",
    "<SUF>",
    "<MID>",
    "<EOT>",
    "<s>",
    "</s>",
    "<unk>",
    "=== user",
    "=== assistant",
)
_ITEM = re.compile(
    r"^(?P<indent>[ \t]*)(?:#+[ \t]*)?(?:\*\*|__)?(?:(?:Question|Problem|Q)[ \t]*#?[ \t]*)?"
    r"(?P<number>\d{1,4})[ \t]*(?:[.):]|-(?=[ \t]))(?!\d)[ \t]*(?P<text>.*)$",
    re.IGNORECASE,
)
_BULLET = re.compile(r"^[ \t]*[-*\u2022][ \t]+(?P<text>.*)$")


# --- questions ------------------------------------------------------------------------------------


def questions_in(answer: str, *, cut: bool) -> Iterator[tuple[str, str]]:
    """The items of a numbered list.

    Args:
        answer: what the model said.
        cut: whether it was stopped by its length, so that the last item is not whole.

    Yields:
        (question, "") for each, or (text, why it is none).

    >>> list(questions_in("Sure!\\n1. Write a function f.\\n2) Add two whole numbers.", cut=False))
    [('Write a function f.', ''), ('Add two whole numbers.', '')]
    """
    items = _items(answer)
    for place, item in enumerate(items):
        if cut and place == len(items) - 1:
            yield item, "cut short"
        else:
            yield item, problem_of_question(item)


def problem_of_question(text: str) -> str:
    """Why a text cannot be asked as a question; empty where it can."""
    if len(text.split()) < LEAST_WORDS:
        return "too short"
    if len(text) > MOST_CHARACTERS:
        return "too long"
    return held_tags(text)


def held_tags(text: str) -> str:
    """Why a text would break a prompt or a dialog; empty where it would not."""
    if any(tag in text for tag in (*TAGS, *OUR_TAGS, *SENTINELS)):
        return "holds a control tag"
    if any("\ud800" <= c <= "\udfff" for c in text) or "\x00" in text:
        return "is no text"
    return ""


def _items(answer: str) -> list[str]:
    """The items of the list in an answer: numbered lines, else bullets; each with its own lines."""
    lines = answer.replace("\r\n", "\n").split("\n")
    items: list[list[str]] = []
    last, indent, open_item = 0, 0, False
    for line in lines:
        found = _ITEM.match(line)
        if found and _begins(
            int(found["number"]), last, bool(items) and len(found["indent"]) > indent + 1
        ):
            if not items:
                indent = len(found["indent"])
            last, open_item = int(found["number"]), True
            items.append([found["text"]])
        elif not line.strip():
            open_item = open_item and bool(items and not items[-1][0].strip())
        elif items and (open_item or line[:1] in (" ", "\t")):
            items[-1].append(line)
            open_item = True
    if not items:
        items = [[found["text"]] for line in lines if (found := _BULLET.match(line))]
    return [text for item in items if (text := _plain("\n".join(item)))]


def _begins(number: int, last: int, deeper: bool) -> bool:
    """Whether a numbered line is a question of its own, and no step within one."""
    return not deeper and (number > last or number == 1)


def _plain(item: str) -> str:
    """An item without the marks around it."""
    text = item.strip()
    if text.count("**") % 2:  # the item's number stood inside the bold text
        text = text.replace("**", "", 1)
    if text.startswith("**") and text.endswith("**") and len(text) > 4:
        text = text[2:-2]
    return "\n".join(line.rstrip() for line in text.strip().split("\n")).strip()


# --- tests ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tests:
    """The tests of one question.

    Attributes:
        setup: imports that they stand on.
        asserts: each with the assignments before it.
    """

    setup: tuple[str, ...]
    asserts: tuple[str, ...]

    @property
    def program(self) -> str:
        """What runs behind a solution."""
        return "\n".join((*self.setup, *self.asserts))


def asserts_in(answer: str, rule: answers.Rule = "best") -> tuple[Tests, list[tuple[str, str]]]:
    """The asserts in an answer, and what is left out of it.

    Args:
        answer: with the tags around the tests, or without.
        rule: how they are looked for, see `Settings.extraction`.

    Returns:
        the tests, which may be none; (source, why not) of every other statement.
    """
    tags = ("[TESTS]", "[/TESTS]")
    if rule == "best":
        return checked_tests(answers.asserts_of(answer, *tags))
    return checked_tests(blocks.levelled(answers.simple(answer.replace("\r\n", "\n"), *tags)))


def checked_tests(code: str) -> tuple[Tests, list[tuple[str, str]]]:
    """As `asserts_in`, of code alone."""
    setup: list[str] = []
    asserts: list[str] = []
    lost: list[tuple[str, str]] = []
    pending: list[ast.stmt] = []
    known: set[str] = set(BUILTINS)
    if len(code) > MOST_CODE:
        return Tests((), ()), [(code, "too long")]
    for statement, source in _statements(code):
        if statement is None:
            lost.append((source, "syntax error"))
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            setup.append(ast.unparse(statement))
            known |= {(alias.asname or alias.name).split(".")[0] for alias in statement.names}
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            pending.append(statement)
        elif isinstance(statement, ast.Assert):
            group = [*pending, statement]
            pending = []
            text = "\n".join(ast.unparse(part) for part in group)
            if not called_by(group, known):
                lost.append((text, "calls nothing of the solution"))
            elif text in asserts:
                lost.append((text, "repeated"))
            elif why := held_tags(text):
                lost.append((text, why))
            else:
                asserts.append(text)
        elif not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
            lost.append((source, "no assert"))
    return Tests(tuple(setup), tuple(asserts)), lost


def _statements(code: str) -> Iterator[tuple[ast.stmt | None, str]]:
    """The statements of code, those that parse taken one by one where the whole does not."""
    tree = blocks.parse(code)
    if tree is not None:
        for statement in tree.body:
            yield statement, ast.get_source_segment(code, statement) or ""
        return
    for chunk in _chunks(code):
        tree = blocks.parse(chunk)
        if tree is None:
            yield None, chunk.strip()
            continue
        for statement in tree.body:
            yield statement, ast.get_source_segment(chunk, statement) or ""


def _chunks(code: str) -> Iterator[str]:
    """Runs of lines that each begin with an unindented statement."""
    lines: list[str] = []
    for line in code.split("\n"):
        begins = re.match(r"(assert|import|from|[A-Za-z_]\w*\s*=[^=])", line)
        if begins and lines:
            yield "\n".join(lines)
            lines = []
        if lines or line.strip():
            lines.append(line)
    if lines:
        yield "\n".join(lines)


# --- programs -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Code:
    """A program as parsed.

    Attributes:
        source: as the model wrote it.
        shape: digest of its syntax tree, the same for other layout and comments.
        chosen: what of the answer it is.
    """

    source: str
    shape: str
    chosen: str = ""


def code_in(answer: str, *, wanted: Sequence[str] = (), rule: answers.Rule = "best") -> Code | str:
    """The program in an answer, or why there is none.

    Args:
        answer: what the model said.
        wanted: names that tests call.
        rule: how it is looked for, see `Settings.extraction`.
    """
    if rule == "best":
        found = answers.extract(answer, wanted=wanted)
        source, chosen = found.code, found.chosen
    else:
        source = blocks.levelled(answers.simple(answer.replace("\r\n", "\n")))
        chosen = "simple rule"
    source = source.strip("\n").rstrip()
    if not source.strip():
        return "no code"
    if len(source) > MOST_CODE:
        return "too long"
    if why := held_tags(source):
        return why
    tree = blocks.parse(source)
    if tree is None:
        return "syntax error"
    defines = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign)
    if not any(isinstance(statement, defines) for statement in tree.body):
        return "defines nothing"
    try:
        shape = ast.dump(tree)
    except RecursionError:
        return "syntax error"
    return Code(source, digest_bytes(shape.encode("utf-8", "surrogatepass")), chosen)
