"""Progress and JSON as a terminal, a file and a pipe receive them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from codecria.cli.render import duration

PROGRAM = """
from codecria.cli import render
with render.training_progress(20) as show:
    for step in range(1, 21):
        record = {"step": step, "tokens": step * 2048, "loss": 3 - step / 20, "lr": 1e-3,
                  "tokens_per_s": 2345.0, "mfu": 0.123, "infill_loss": float("nan")}
        show(record)
        render.emit_json_line(record)
        if step % 10 == 0:
            show({"step": step, "validation_loss": 2.25})
"""


def on_terminal(term: str, tmp_path: Path, columns: int = 80) -> tuple[str, list[str]]:
    """What stderr, a terminal, shows, and the lines of stdout, a file."""
    out = tmp_path / "out.jsonl"
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    child = pexpect.spawn(
        "sh",
        ["-c", f"exec {shlex.join([sys.executable, str(script)])} > {shlex.quote(str(out))}"],
        env={**os.environ, "TERM": term},
        dimensions=(24, columns),
        encoding="utf-8",
    )
    child.expect(pexpect.EOF, timeout=300)
    return str(child.before), out.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
def test_json_goes_to_a_file_while_the_terminal_shows_progress(term: str, tmp_path: Path) -> None:
    shown, lines = on_terminal(term, tmp_path)
    records = [json.loads(line) for line in lines]
    assert [record["step"] for record in records] == list(range(1, 21))
    assert records[0]["infill_loss"] is None
    assert "20/20" in shown
    assert "validation 2.2500" in shown


@pytest.mark.parametrize("columns", [80, 60, 120])
def test_bar_and_step_count_stay_at_any_width(columns: int, tmp_path: Path) -> None:
    shown, _ = on_terminal("xterm-256color", tmp_path, columns)
    assert "20/20" in shown
    assert "━" in shown


def test_a_dumb_terminal_gets_lines_while_training_runs(tmp_path: Path) -> None:
    shown, _ = on_terminal("dumb", tmp_path)
    assert "\x1b" not in shown
    assert shown.splitlines()[0].startswith("step 1/20")


def test_a_log_repeats_no_figure_of_an_earlier_record(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    told = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=300
    )
    lines = told.stderr.splitlines()
    assert len(lines) == len(set(lines))
    assert [
        line.count("loss 2.") + line.count("loss 3.") for line in lines if "validation" in line
    ] == [0, 0]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (3_599, "59 min 59 s"),
        (86_399, "23 h 59 min"),
        (31_535_999, "364 d 23 h"),
        (37_846_656_000, "1,200 y 40 d"),
    ],
)
def test_a_duration_has_two_units_that_suit_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text
