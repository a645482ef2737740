"""The journal of JSON lines: whole lines survive kills, full disks and second writers."""

from __future__ import annotations

import json
import resource
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codecria.data.errors import UserError
from codecria.data.journal import append_text, open_journal, read_journal

# Any text, lone surrogates too.
TEXTS = st.text(st.characters(exclude_categories=()), max_size=8)
LINES = st.lists(st.dictionaries(TEXTS, TEXTS | st.integers() | st.none(), max_size=3), max_size=5)


def values(path: Path) -> list[Any]:
    return [entry.value for entry in read_journal(path)]


@given(before=LINES, after=LINES, data=st.data())
def test_a_file_cut_at_any_byte_keeps_its_whole_lines_and_can_be_appended_to(
    before: list[dict[str, Any]], after: list[dict[str, Any]], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lines.jsonl"
        with open_journal(path) as journal:
            assert list(journal.entries()) == []
            starts = journal.append(before)
            assert [journal.value_at(start) for start in starts] == before
        content = path.read_bytes()
        assert content == b"".join(json.dumps(line).encode() + b"\n" for line in before)
        cut = data.draw(st.integers(0, len(content)))
        path.write_bytes(content[:cut])
        whole = before[: content[:cut].count(b"\n")]
        # A reader also counts a last line that lacks only its line end.
        assert values(path) in (whole, before[: len(whole) + 1])
        with open_journal(path) as journal:
            assert [entry.value for entry in journal.entries()] == whole
            starts = journal.append(after)
            assert [journal.value_at(start) for start in starts] == after
        assert values(path) == whole + after


def test_a_damaged_line_is_reported_by_its_number_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \n\xff\n \n' + b"[" * 100_000 + b'\n{"a": 2}\n{"a"')
    for entries in (list(read_journal(path)), _entries(path)):
        assert [entry.number for entry in entries if entry.error] == [2, 3, 4, 5]
        assert [entry.number for entry in entries if entry.blank] == [4]
        assert [e.value for e in entries if not e.error] == [{"a": 1}, {"a": 2}]


def _entries(path: Path) -> list[Any]:
    with open_journal(path) as journal:
        return list(journal.entries())


@pytest.fixture
def small_files() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("small_files")
def test_an_append_that_does_not_fit_is_undone_and_a_shorter_one_still_fits(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    with open_journal(path) as journal:
        assert list(journal.entries()) == []
        journal.append([{"a": "x" * 50}])
        with pytest.raises(UserError, match="cannot write") as refused:
            journal.append([{"b": "y" * 10}, {"c": "z" * 80}])
        assert "ulimit -f" in (refused.value.hint or "")
        [start] = journal.append([{"d": 4}])
        assert journal.value_at(start) == {"d": 4}
    with pytest.raises(UserError, match="cannot write"):
        append_text(path, "e" * 80)
    append_text(path, '{"f": 6}\n')
    assert values(path) == [{"a": "x" * 50}, {"d": 4}, {"f": 6}]


def test_a_second_writer_is_refused_and_a_reader_is_not(tmp_path: Path) -> None:
    path = tmp_path / "made" / "lines.jsonl"
    with open_journal(path) as journal:
        journal.append([{"a": 1}])
        with (
            pytest.raises(UserError, match="another process is writing") as refused,
            open_journal(path, hint="choose another --out"),
        ):
            pass
        assert refused.value.hint == "choose another --out"
        assert values(path) == [{"a": 1}]


def test_what_cannot_be_opened_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        values(tmp_path / "missing.jsonl")
    with pytest.raises(UserError, match="cannot write"), open_journal(tmp_path):
        pass
    with pytest.raises(UserError, match="cannot write"):
        append_text(tmp_path, "a line\n")
