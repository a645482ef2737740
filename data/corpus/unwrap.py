r"""Texts inside other texts: what a program looks like in JSON, in a string, behind line numbers.

A problem's text may stand in a document as data. `views` undoes what was done to it: escapes
(`\n`, `\"`, `\u003c`, several levels deep), HTML entities and tags, percent encoding,
quoted-printable, and what stands before every line: numbers, prompts, marks of a diff. A view is
searched as well as the text itself, so that a wrong guess costs time and finds nothing.

Line breaks that a view brings in are vertical tabs: lines keep the numbers that they have in the
text.
"""

from __future__ import annotations

import html
import itertools
import re
import urllib.parse
from collections.abc import Iterator, Sequence

NUMBERED_ROWS = 4  # with numbers at equal distances, before lines are taken for numbered
FEWEST_ESCAPES = 3  # in a text, before they are undone
LEVELS = 3  # of escapes within escapes
BREAK = "\v"  # a line break that the text spells out

_ESCAPES = re.compile(r"\\(?:[nrtx\"'_*#<>\[\]]|u[0-9A-Fa-f]{4})")
_LINE_OF_STRING = re.compile(r"\\(?:[nr\"_*<\[(]|u[0-9A-Fa-f]{4})")
_ESCAPE = re.compile(
    r"\\(?:u([0-9A-Fa-f]{4})|x([0-9A-Fa-f]{2})|([nrtfv0])|([^0-9A-Za-z\s])|(\n))", re.DOTALL
)
_NAMED = {"n": BREAK, "r": BREAK, "t": "\t", "f": BREAK, "v": BREAK, "0": " "}
_ENTITY = re.compile(r"&(?:lt|gt|amp|quot|apos|nbsp|#\d{1,6}|#[xX][0-9A-Fa-f]{1,6});")
_TAG = re.compile(
    r"(?P<row><br\s*/?>|</?(?:p|div|li|tr|pre)\b[^<>]*>)|(?P<cell></?t[dh]\b[^<>]*>)"
    r"|</?[A-Za-z][^<>]{0,400}>"
)
_PERCENT = re.compile(r"%(?:0[ADad]|20|28|3[ADad])")
_QUOTED_PRINTABLE = re.compile(r"=(?:\n|\r\n|20|3D)")
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_ODD_SPACE = re.compile(
    "[\u00a0\u00ad\u2000-\u200f\u2018-\u201f\u2028-\u202f\u205f\u2060\u3000\ufeff]"
)
_ODD = {
    **dict.fromkeys([0xA0, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000], " "),
    **dict.fromkeys([0xAD, *range(0x200B, 0x2010), 0x2060, 0xFEFF], ""),
    **dict.fromkeys([0x2028, 0x2029], BREAK),
    **dict.fromkeys(range(0x2018, 0x201C), "'"),
    **dict.fromkeys(range(0x201C, 0x2020), '"'),
}
# What may stand before a line besides its own text: marks of a diff, a quotation or a table, then a
# number or a prompt. No quantifier gives back what it took: lines of a thousand dashes are usual.
_BEFORE = r"(?:^|(?<=[\n\v]))[ \t>|+*#/;%!-]*+"
_NUMBERED = re.compile(
    _BEFORE + r"(?:[^\s:()\[\]{}\"'=]{1,200}+:)?(?:L|line |[\[(])?(\d{1,6}+)"
    r"(?:[ \t]*+[:|.)\]>\u2502\u2192#-]++(?:[ \t]*+[|+-](?=[ \t]))?|(?=[ \t\n\v]|$))"
)
_PROMPT = re.compile(_BEFORE + r"(?:\.{3,}+:?|In \[[ \d*]*\]:|Out\[[ \d]*\]:)?(?=[ \n\v]|$)")
# Three lines in a row that begin with numbers, or places in files: what is cheap to look for.
_ROW = r"\n[ \n\t>|+*#/;%!\[(-]*+(?:L|line )?\d"
_MAY_BE_NUMBERED = re.compile(rf"{_ROW}[^\n]*+{_ROW}[^\n]*+{_ROW}")
_PLACE = re.compile(r"\n[^\s:()\[\]{}\"'=]{1,200}+:\d")
# Four lines in a row that are printed: echo '...', print("..."), out.println("...").
_PRINTED = re.compile(r"\n([ \t]*[A-Za-z_][\w.:]*[ \t(<]*+[\"'`])(?:[^\n]*\n\1){3}")
_LINE = re.compile(r"[^\n\v]*[\n\v]?")


def views(text: str) -> Iterator[str]:
    """What a text may hold in another form, in order; nothing for most texts."""
    seen = {text}
    for plain in _unescaped(text):
        for form in _decoded(plain):
            for view in (form, _without_prefixes(form)):
                if view not in seen:
                    seen.add(view)
                    yield view


def _unescaped(text: str) -> Iterator[str]:
    """The text, then its escapes undone once, twice and so on; lines without any are left out."""
    yield text
    if "\\" not in text:
        return
    # In programs, few lines hold escapes. What lies between them is no part of a string.
    held = "\n".join(
        line if "\\" in line and _LINE_OF_STRING.search(line) else "" for line in text.split("\n")
    )
    for _ in range(LEVELS):
        if len(_ESCAPES.findall(held)) < FEWEST_ESCAPES:
            return
        held = _ESCAPE.sub(_character, held)
        yield held


def _character(escape: re.Match[str]) -> str:
    wide, byte, named, other, _ = escape.groups()
    if wide or byte:
        code = int(wide or byte, 16)
        if code in (10, 13):
            return BREAK
        return chr(code) if not 0xD800 <= code < 0xE000 else " "
    if named:
        return _NAMED[named]
    return other or ""


def _decoded(text: str) -> Iterator[str]:
    """The text, then what it is without the encodings of the web and of mail."""
    yield text
    plain = text
    if "\x1b" in plain:
        plain = _ANSI.sub("", plain)
    if "=" in plain and len(_QUOTED_PRINTABLE.findall(plain)) > 2 and "=3D" in plain:
        plain = re.sub(r"=\r?\n", "", plain)
        plain = re.sub(r"=([0-9A-F]{2})", lambda m: chr(int(m[1], 16)), plain)
    if "%" in plain and len(_PERCENT.findall(plain)) > 8:
        lines = plain.replace("+", " ").split("\n")
        plain = "\n".join(urllib.parse.unquote(line).replace("\n", BREAK) for line in lines)
    if "&" in plain and _ENTITY.search(plain):
        if "</" in plain:
            plain = _TAG.sub(_without_tag, plain)
        for _ in range(2):  # &amp;lt;
            lines = plain.split("\n")
            plain = "\n".join(html.unescape(line).replace("\n", BREAK) for line in lines)
    elif "</" in plain and plain.count("</") > 10:
        plain = _TAG.sub(_without_tag, plain)
    if not plain.isascii() and _ODD_SPACE.search(plain):
        plain = _ODD_SPACE.sub(lambda odd: _ODD.get(ord(odd[0]), ""), plain)
    if plain != text:
        yield plain


def _without_tag(tag: re.Match[str]) -> str:
    return BREAK if tag["row"] else " | " if tag["cell"] else ""


def _without_prefixes(text: str) -> str:
    """The lines behind numbers in a row, prompts or calls that print, without these.

    All other lines are empty, and the text itself comes back where there is no such line.
    """
    broken = "\n" + text.replace(BREAK, "\n")
    numbered = _MAY_BE_NUMBERED.search(broken) or len(_PLACE.findall(broken)) >= NUMBERED_ROWS
    prompted = ">>> " in text or "...: " in text
    printed = {found[1] for found in _PRINTED.finditer(broken)}
    if not numbered and not prompted and not printed:
        return text
    lines = _LINE.findall(text)
    kept = [""] * len(lines)
    if prompted:
        for i, line in enumerate(lines):
            if ">>>" in line or "..." in line or "In [" in line:
                kept[i] = _PROMPT.sub("", line)
    for prefix in printed:
        for i, line in enumerate(lines):
            if line.startswith(prefix):
                kept[i] = line[len(prefix) :]
    if numbered:
        filled = [i for i, line in enumerate(lines) if line.strip()]
        found = [_NUMBERED.match(lines[i]) for i in filled]
        rows = _rows([int(number[1]) if number else None for number in found])
        for place, (i, number) in enumerate(zip(filled, found, strict=True)):
            if number is not None and place in rows:
                kept[i] = lines[i][number.end() :]
    # The breaks stay where they are: a view has the lines of its text.
    return "".join(
        line or whole[-1:] * whole.endswith(("\n", BREAK))
        for line, whole in zip(kept, lines, strict=True)
    )


def _rows(numbers: Sequence[int | None]) -> set[int]:
    """The places of numbers at equal distances, four at least without a gap."""
    rows: set[int] = set()
    for i in range(len(numbers) - NUMBERED_ROWS + 1):
        some = [number for number in numbers[i : i + NUMBERED_ROWS] if number is not None]
        steps = {b - a for a, b in itertools.pairwise(some)}
        if len(some) == NUMBERED_ROWS and len(steps) == 1 and steps.pop() > 0:
            rows.update(range(i, i + NUMBERED_ROWS))
    return rows
