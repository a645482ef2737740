"""Gaps in files, and patches that `patch` and `git apply` turn the old file into the new with."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from codecria.data.errors import UsageError
from codecria.data.formats import cursor

# Everything that Python's splitlines takes for a line's end and the programs do not, and a BOM.
ODD = [
    "\n",
    "\r",
    "\r\n",
    "\f",
    "\v",
    "\x1c",
    "\x85",
    "\u2028",
    "\u2029",
    "\ufeff",
    "\0",
    "\t",
    " ",
]
texts = st.lists(st.sampled_from([*ODD, "a", "é", "-", "+", "@@", "\\", "--- a/x\n"]), max_size=24)
names = st.sampled_from(
    ["a.py", "src/a b.py", 'q"uote.py', "back\\slash", "é/ü.py", "tab\there", "deep/er/x.txt"]
)
PROGRAMS = {
    "patch": ["patch", "-p1", "--quiet", "--no-backup-if-mismatch"],
    "git": ["git", "apply", "--whitespace=nowarn"],
}


def applied(program: str, folder: Path, name: str, old: str, patch: str) -> bytes:
    """A file after a program has applied a patch to it."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(old.encode())
    done = subprocess.run(
        PROGRAMS[program],
        input=patch.encode(),
        cwd=folder,
        capture_output=True,
        check=False,
        # A folder of its own, whatever repository it lies in.
        env={"PATH": "/usr/bin:/bin", "GIT_CEILING_DIRECTORIES": str(folder.parent)},
    )
    assert done.returncode == 0, (done.stdout, done.stderr, patch)
    return path.read_bytes()


@pytest.mark.parametrize("program", ["patch", "git"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(before=texts, after=texts, middle=texts, name=names)
@example(before=["a", "\f", "b", "\n"], after=["\u2028", "c"], middle=["x"], name="a.py")
@example(before=["\ufeff", "a", "\r\n"], after=["\r\n"], middle=["b", "\n"], name="a.py")
@example(before=[], after=[], middle=["new"], name="a.py")
def test_a_patch_turns_the_old_file_into_the_new(
    program: str, before: list[str], after: list[str], middle: list[str], name: str, tmp_path: Path
) -> None:
    old, text = "".join(before + after), "".join(middle)
    gap = cursor.between("".join(before), "".join(after))
    new, patch = gap.filled(text), gap.diff(text, name)
    if new == old:
        assert patch == ""
        return
    assert applied(program, tmp_path, name, old, patch) == new.encode()


def test_the_patch_of_a_marked_file_takes_the_marker_away(tmp_path: Path) -> None:
    old = "def f():\n    <FILL_ME>\n\n\nx = 1\ny = 2\nz = 3\nlast"
    gap = cursor.at_marker(old)
    for program in PROGRAMS:
        after = applied(program, tmp_path, "a.py", old, gap.diff("return 1", "a.py"))
        assert after.decode() == old.replace("<FILL_ME>", "return 1")


@given(before=texts, after=texts)
def test_filling_nothing_leaves_every_byte(before: list[str], after: list[str]) -> None:
    text = "".join(before) + "".join(after)
    assert cursor.between("".join(before), "".join(after)).filled("") == text


def test_a_patch_reads_as_diff_writes_it() -> None:
    text = "one\ntwo\nthree\nfour\nfive\nsix\nseven\neight\n"
    gap = cursor.at_place(text, 5, 5)
    assert gap.diff("!\nmore", "src/a.txt") == (
        "--- a/src/a.txt\n+++ b/src/a.txt\n@@ -2,7 +2,8 @@\n"
        " two\n three\n four\n-five\n+five!\n+more\n six\n seven\n eight\n"
    )


@given(st.text(alphabet="ab é\n", max_size=30), st.data())
def test_a_gap_is_where_it_was_said_and_filling_nothing_changes_nothing(
    text: str, data: st.DataObject
) -> None:
    for ends in ("\n", "\r\n"):
        written = text.replace("\n", ends)
        lines = text.split("\n")
        line = data.draw(st.integers(1, len(lines)))
        column = data.draw(st.integers(1, len(lines[line - 1]) + 1))
        gap = cursor.at_place(written, line, column)
        assert gap.prefix + gap.suffix == text
        assert gap.prefix.count("\n") == line - 1
        assert len(gap.prefix.rpartition("\n")[2]) == column - 1
        assert gap.filled("") == written
        assert gap.filled("x\ny") == (gap.prefix + "x\ny" + gap.suffix).replace(
            "\n", ends if gap.carriage else "\n"
        )


def test_marks_and_mixed_line_ends_stay_as_they_are() -> None:
    gap = cursor.at_place("\ufeffa\r\nb", 2, 1)
    assert (gap.prefix, gap.suffix, gap.filled("x\n")) == ("a\n", "b", "\ufeffa\r\nx\r\nb")
    mixed = cursor.at_marker("a\r\n<FILL_ME>\nb")
    assert mixed.filled("x") == "a\r\nx\nb"


@pytest.mark.parametrize("place", ["", "3", "0:1", "1:0", "a:b", "1:2:3", "-1:2"])
def test_what_is_no_place_is_refused(place: str) -> None:
    with pytest.raises(UsageError, match="is not LINE:COL"):
        cursor.parse_place(place)


def test_places_and_markers_that_are_not_there_are_named() -> None:
    with pytest.raises(UsageError, match="no line 3"):
        cursor.at_place("a\nb", 3, 1)
    with pytest.raises(UsageError, match="no column 3"):
        cursor.at_place("a\nb", 1, 3)
    with pytest.raises(UsageError, match="at 2 places"):
        cursor.at_marker("<FILL_ME><FILL_ME>")
