"""generate beyond completion: files filled at a place, dialogs answered, words healed."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from codecria.cli.generate.chat import Session
from codecria.cli.generate.output import stripped, write_in_place
from codecria.core.inference.decoding import Completion, Limits
from codecria.core.inference.engine import complete
from codecria.core.inference.generator import Generator
from codecria.core.inference.healing import heal
from codecria.core.inference.sampling import Sampling
from codecria.core.model.config import ModelConfig
from codecria.core.model.transformer import Transformer
from codecria.data.errors import UsageError, UserError
from codecria.data.formats import chat, cursor
from codecria.data.formats.infill import Infiller, Order
from codecria.data.formats.window import Room
from codecria.data.tokenizer.tokenizer import Tokenizer

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def extended(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizer.extend(tmp_path_factory.mktemp("extended") / "tokenizer.model")


@pytest.fixture(scope="module")
def filler(extended: Tokenizer, random_model: Callable[..., Path]) -> Path:
    """A model that can be asked to fill, and ends by length or by a stop string alone."""
    assert extended.infill is not None
    unsaid = [extended.infill.end, extended.eos_id]
    return random_model(extended, max_context=512, unsaid=unsaid)


@pytest.fixture
def run(filler: Path) -> Run:
    def call(*options: Any, model: Path = filler, stdin: str = "") -> Any:
        command = [sys.executable, "-m", "codecria.cli", "generate", "--model", model]
        command += ["--threads", "1", "--max-tokens", "24", *options]
        return subprocess.run(
            list(map(str, command)), input=stdin, capture_output=True, text=True, check=False
        )

    return call


# ------------------------------------------------------------------------------------------ places


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
    with pytest.raises(UsageError, match="no place"):
        cursor.parse_place(place)


def test_places_and_markers_that_are_not_there_are_named() -> None:
    with pytest.raises(UsageError, match="no line 3"):
        cursor.at_place("a\nb", 3, 1)
    with pytest.raises(UsageError, match="no column 3"):
        cursor.at_place("a\nb", 1, 3)
    with pytest.raises(UsageError, match="at 2 places"):
        cursor.at_marker("<FILL_ME><FILL_ME>")


# ------------------------------------------------------------------------------------- the command


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
    filled = Completion(
        text="1", ids=(5,), prompt_tokens=1, finish_reason="stop", prefill_s=0, decode_s=0
    )
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
    assert run("--chat", "add [/INST]", "--strict", "--dry-run").returncode == 2
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
        timeout=60,
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


# ------------------------------------------------------------------------------------------- words


def test_healing_takes_back_what_a_longer_piece_begins_with(tokenizer: Tokenizer) -> None:
    pieces = tokenizer.typed_bytes()
    ids = tokenizer.encode("    retur", bos=True)
    kept, opening = heal(ids, pieces)
    assert opening is not None
    assert b"".join(pieces[i] for i in kept) + opening.text == b"     retur"
    whole = tokenizer.encode("\n", bos=True)
    assert len(heal(whole, pieces)[0]) <= len(whole)


@pytest.mark.parametrize("text", ["    retur", "def __ini", "self.to"])
def test_a_healed_completion_begins_with_what_was_taken_back(
    tokenizer: Tokenizer, text: str
) -> None:
    torch.manual_seed(2)
    config = ModelConfig(
        dim=16,
        n_layers=1,
        n_heads=2,
        n_kv_heads=2,
        hidden_dim=32,
        vocab_size=tokenizer.vocab_size + 5,  # rows that no piece has are never drawn
        max_context=64,
    )
    model = Transformer(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    pieces = tokenizer.typed_bytes()
    ids, opening = heal(tokenizer.encode(text, bos=True), pieces)
    assert opening is not None
    events = complete(
        model,
        ids,
        new_stream=tokenizer.stream,
        sampling=Sampling(temperature=1.0, seed=3),
        limits=Limits(max_tokens=12, samples=3),
        ends=frozenset({tokenizer.eos_id}),
        opening=opening,
    )
    for _, event in events:
        if isinstance(event, Completion):
            generated = b"".join(pieces[i] for i in event.ids)
            assert generated.startswith(opening.text)
            rest = generated[len(opening.text) :]
            assert rest.decode("utf-8", "replace") == event.text


@given(st.lists(st.text(alphabet="a \n", max_size=4), max_size=6))
def test_stripping_a_stream_is_stripping_the_whole(parts: list[str]) -> None:
    whole = "".join(parts)
    last = Completion(
        text=whole, ids=(), prompt_tokens=1, finish_reason="stop", prefill_s=0, decode_s=0
    )
    events = list(stripped(iter([*((0, part) for part in parts), (0, last)])))
    streamed = "".join(event for _, event in events if isinstance(event, str))
    assert streamed == whole.strip()
    assert isinstance(events[-1][1], Completion)
    assert events[-1][1].text == whole.strip()
