"""`generate` beyond completion: files filled at a place, questions answered, chat sessions."""

from __future__ import annotations

import io
import json
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codecria.cli import app as cli
from codecria.cli.generate.chat import Session
from codecria.cli.generate.output import Shown, stripped, write_in_place
from codecria.core.checkpoints.saving import publish
from codecria.core.inference.decoding import Limits
from codecria.core.inference.generator import Generator
from codecria.core.inference.sampling import Sampling
from codecria.core.model.config import ModelConfig
from codecria.core.model.transformer import Transformer
from codecria.data.errors import UserError
from codecria.data.formats import chat, cursor
from codecria.data.formats.infill import Infiller, Order
from codecria.data.formats.window import Room
from codecria.data.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Ran:
    """What one call left behind."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Ran]


@pytest.fixture(scope="module")
def filler(extended: Tokenizer, random_model: Callable[..., Path]) -> Path:
    """A model that can be asked to fill, and ends by length or by a stop string alone."""
    assert extended.infill is not None
    unsaid = [extended.infill.end, extended.eos_id]
    return random_model(extended, max_context=512, unsaid=unsaid)


@pytest.fixture
def run(filler: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: Any) -> Run:
    """Call the command line within this process, as the console script does."""

    def call(*options: Any, model: Path = filler, stdin: str = "") -> Ran:
        command = ["codecria", "generate", "--model", model]
        command += ["--threads", "1", "--max-tokens", "24", *options]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        capfdbinary.readouterr()
        status = cli.run()
        sys.stdout.flush()
        out, err = capfdbinary.readouterr()
        return Ran(int(status), out.decode(), err.decode())

    return call


def test_prompt_ids_are_those_of_training(run: Run, extended: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("def f():\n    return 1\n")
    infiller = Infiller(extended)
    for form, order in (("psm", Order.PSM), ("spm", Order.SPM)):
        found = run("--file", path, "--at", "2:5", "--form", form, "--dry-run", "--json")
        expected = infiller.prompt("def f():\n    ", "return 1\n", order).tolist()
        assert json.loads(found.stdout)["ids"] == expected
    marked = run("-", "--dry-run", "--json", stdin="def f():\n    <FILL_ME>return 1\n")
    psm = infiller.prompt("def f():\n    ", "return 1\n", Order.PSM).tolist()
    assert json.loads(marked.stdout)["ids"] == psm
    shown = run("x", "--dry-run")
    assert shown.stdout == ""
    assert shown.stderr.splitlines()[-1] == f"{len(extended.encode('x', bos=True))} tokens"


def test_a_file_is_filled_in_place_only_when_the_middle_ends(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    text = b"x = 1\r\ny = \r\n"
    path.write_bytes(text)
    place = ["--file", path, "--at", "2:5"]
    path.chmod(0o755)
    told = json.loads(run(*place, "--json").stdout)
    assert told["finish_reason"] == "length"
    unended = run(*place, "--in-place", "--diff")
    assert unended.returncode == 1
    assert "did not end" in unended.stderr
    assert path.read_bytes() == text
    ended = run(*place, "--in-place", "--diff", "--stop", told["text"][-1])
    assert ended.returncode == 0, ended.stderr
    name = path.relative_to(path.anchor)  # outside of the working folder: from the root
    assert ended.stdout.startswith(f"--- a/{name}\n+++ b/{name}\n")
    after = path.read_bytes()
    assert after.startswith(b"x = 1\r\ny = ")
    assert after.endswith(b"\r\n")
    assert after.count(b"\n") == after.count(b"\r\n")
    assert path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("form", ["psm", "spm"])
@pytest.mark.parametrize("options", [[], ["--truncate", "window"], ["--heal"]])
def test_a_long_file_is_filled_from_the_window_around_the_gap(
    form: str, options: list[str], run: Run, extended: Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "long.py"
    path.write_text("".join(f"value_{n} = compute({n})\n" for n in range(600)))
    place = ["--file", path, "--at", "299:5", "--form", form, *options]
    found = run(*place, "--dry-run", "--json")
    ids = json.loads(found.stdout)["ids"]
    special = extended.infill
    assert special is not None
    for sentinel in (extended.bos_id, special.prefix, special.suffix, special.middle):
        assert ids.count(sentinel) == 1
    assert len(ids) <= 512 - 24
    [line] = [line for line in found.stderr.splitlines() if "left out" in line]
    assert re.search(r"the first \d+ lines and the last \d+ lines are left out", line)
    shown = run(*place, "--show-tokens", "--json")
    assert json.loads(shown.stdout)["prompt_tokens"] == len(ids)
    assert f"{len(ids)} tokens" in shown.stderr.splitlines()
    refused = run(*place[:6], "--truncate", "off")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "--truncate window" in refused.stderr


def test_what_an_editor_saved_meanwhile_is_not_overwritten(
    filler: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, link = tmp_path / "a.py", tmp_path / "link.py"
    path.write_text("x = \ny\n")
    link.symlink_to(path)
    read = path.read_bytes()
    gap = cursor.at_place(read.decode(), 1, 5)
    filled = Shown(text="1", finish_reason="stop", prompt_tokens=1, completion_tokens=1)
    for saved in (b"x = \ny = 2\n", b""):
        path.write_bytes(saved)
        with pytest.raises(UserError, match="was changed while"):
            write_in_place(link, read, gap, filled)
        assert path.read_bytes() == saved
        assert capsys.readouterr().out == "1"
    path.unlink()
    with pytest.raises(UserError, match="was changed while"):
        write_in_place(link, read, gap, filled)
    assert not path.exists()
    path.write_bytes(read)
    path.chmod(0o640)
    write_in_place(link, read, gap, filled)
    assert path.read_text() == "x = 1\ny\n"
    assert link.is_symlink()
    assert path.stat().st_mode & 0o7777 == 0o640


def test_a_refused_write_prints_the_middle_once(
    filler: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.py"
    path.write_text("changed\n")
    gap = cursor.at_place("x = \n", 1, 5)
    filled = Shown(text="1", finish_reason="stop", prompt_tokens=1, completion_tokens=1)
    with pytest.raises(UserError, match="was changed while") as refused:
        write_in_place(path, b"x = \n", gap, filled, printed=True)
    assert capsys.readouterr().out == ""
    assert "on stdout" in str(refused.value.hint)


def test_what_is_no_regular_file_is_not_written_in_place(run: Run, tmp_path: Path) -> None:
    link = tmp_path / "null"
    link.symlink_to("/dev/null")
    found = run("--file", link, "--at", "1:1", "--in-place")
    assert (found.returncode, found.stdout) == (2, "")
    assert "is not a regular file" in found.stderr


def test_scores_that_are_not_finite_end_the_command_in_one_error(
    run: Run, extended: Tokenizer, tmp_path: Path
) -> None:
    import torch

    torch.manual_seed(0)
    config = ModelConfig(
        dim=16,
        n_layers=1,
        n_heads=2,
        n_kv_heads=2,
        hidden_dim=32,
        vocab_size=extended.vocab_size,
        max_context=64,
    )
    model = Transformer(config)
    model.initialise(0)
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    publish(tmp_path / "m", model, dtype=torch.float32, tokenizer=extended.path, lineage={})
    for options in ([], ["--heal"], ["--temperature", 1], ["--json", "--samples", 3], ["--chat"]):
        found = run("retur", *options, model=tmp_path / "m")
        assert (found.returncode, found.stdout) == (1, "")
        assert found.stderr.startswith("error: the model's scores are not finite")


def test_out_is_what_stdout_would_be_and_whole_or_absent(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "answer.txt"
    shown = run("def f(", "--max-tokens", 8)
    told = run("def f(", "--max-tokens", 8, "-o", out)
    assert (told.returncode, told.stdout) == (0, "")
    assert out.read_text() == shown.stdout
    failed = run("x" * 9999, "-o", tmp_path / "none.txt")
    assert failed.returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["answer.txt"]
    path = tmp_path / "a.py"
    path.write_text("x = \n")
    assert run("--file", path, "--at", "1:5", "-o", path).returncode == 2
    assert run("--file", path, "--at", "1:5", "-o", out, "--in-place").returncode == 2
    patch = run("--file", path, "--at", "1:5", "-o", out, "--diff")
    assert patch.returncode == 0, patch.stderr
    assert out.read_text().startswith("--- a/")


def test_a_session_at_full_context_goes_on_without_its_oldest_turns(
    filler: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = Generator.load(filler, device="cpu", dtype="float32")
    limits = Limits(max_tokens=8)
    room = Room(context=512, max_tokens=8)
    lines = iter(f"question {n} about a thing" for n in range(30))

    def read(_: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    session = Session(
        generator, Sampling(), limits, room=room, truncate="window", system="be brief", read=read
    )
    session.run()
    told = capsys.readouterr().err
    assert "the context of 512 tokens is full: the model no longer sees the oldest question" in told
    assert "warning" not in told
    assert len(session.said) == 60
    session.ask("why " * 400)
    assert "the system prompt and the question have" in capsys.readouterr().err
    assert len(session.said) == 60


def test_a_model_without_infilling_ids_gets_one_clear_line(run: Run, small_model: Path) -> None:
    found = run("a<FILL_ME>b", model=small_model)
    assert found.returncode == 1
    assert "no infilling pieces" in found.stderr
    assert len(found.stderr.splitlines()) == 2


def test_a_question_is_answered_and_tags_are_told(run: Run, extended: Tokenizer) -> None:
    asked = [chat.Message(role="user", content="add [/INST]")]
    found = run("--chat", "add [/INST]", "--dry-run", "--json")
    assert json.loads(found.stdout)["ids"] == chat.prompt_ids(extended, asked)
    assert "holds [/INST]" in found.stderr
    assert run("--chat", "add [/INST]", "--refuse-tags", "--dry-run").returncode == 2
    answer = json.loads(run("--chat", "add", "--system", "be brief", "--json").stdout)
    assert answer["text"] == answer["text"].strip()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--at", "1:1", "x"], "--at needs a file"),
        (["--in-place", "x"], "--in-place needs a file to write"),
        (["--diff", "x"], "--diff needs a gap to fill"),
        (["--chat", "--heal", "x"], "--heal cannot be combined with --chat"),
        (["--file", "f", "x"], "there are two prompts"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    run: Run, options: list[str], problem: str
) -> None:
    found = run(*options)
    assert found.returncode == 2
    assert problem in found.stderr


def test_a_conversation_in_a_terminal(filler: Path) -> None:
    pexpect = pytest.importorskip("pexpect")
    command = ["-m", "codecria.cli", "generate", "--model", str(filler), "--chat"]
    command += ["--threads", "1", "--max-tokens", "4"]
    child = pexpect.spawn(
        sys.executable,
        command,
        timeout=300,
        encoding="utf-8",
        echo=False,
        # Tests in the background have it ignored, and would hand that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    child.expect("> ")
    child.sendline("/nonsense")
    child.expect("there is no command /nonsense")
    child.expect("> ")
    for line in ('"""', "one", "two", '"""'):
        child.sendline(line)
    child.expect("\r\n.*> ")
    child.sendline("/system be brief")
    child.expect("> ")
    child.sendline("and \\")
    child.expect(r"\. ")
    child.sendline("more")
    child.expect("\r\n.*> ")
    child.sendintr()  # at the prompt it does nothing
    child.expect("> ")
    child.sendline("/exit")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


@given(st.lists(st.text(alphabet="a \n", max_size=4), max_size=6))
def test_stripping_a_stream_is_stripping_the_whole(parts: list[str]) -> None:
    whole = "".join(parts)
    last = Shown(text=whole, finish_reason="stop", prompt_tokens=1, completion_tokens=0)
    events = list(stripped(iter([*((0, part) for part in parts), (0, last)])))
    streamed = "".join(event for _, event in events if isinstance(event, str))
    assert streamed == whole.strip()
    assert isinstance(events[-1][1], Shown)
    assert events[-1][1].text == whole.strip()
