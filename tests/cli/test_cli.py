"""The command line as shells and Makefiles see it: bytes, exit statuses, precedence, help."""

import errno
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pexpect
import pytest
import typer

from codecria.cli import app as cli
from codecria.data.errors import ExitStatus, Interrupted, UserError
from codecria.data.tokenizer.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "help.txt"
REGENERATE = "CODECRIA_REGENERATE_GOLDEN"  # set to anything, the test writes the file anew
HEAVY = (
    "torch",
    "numpy",
    "pyarrow",
    "sentencepiece",
    "rich",
    "transformers",
    "xformers",
    "pydantic",
)


@dataclass(frozen=True, slots=True)
class Told:
    """What one call of the command line left behind."""

    status: int
    out: bytes
    err: str


Call = Callable[..., Told]


@pytest.fixture
def codecria(monkeypatch: pytest.MonkeyPatch, capfdbinary: Any) -> Call:
    """Call the command line within this process, as the console script does."""

    def call(*arguments: object, stdin: bytes | None = b"") -> Told:
        monkeypatch.setattr(sys, "argv", ["codecria", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin or b"")))
        capfdbinary.readouterr()
        status = cli.run()
        sys.stdout.flush()
        out, err = capfdbinary.readouterr()
        return Told(int(status), out, err.decode())

    return call


def verbs() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every verb and the parts of those that have parts, with its parsed command."""

    def visit(words: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
        yield words, command
        for name, inner in getattr(command, "commands", {}).items():
            yield from visit((*words, name), inner)

    yield from visit((), typer.main.get_command(cli.app))


VERBS = [words for words, _ in verbs()]


def process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "codecria.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False, timeout=300, **options)


# --- help ------------------------------------------------------------------------------------


def frozen_help() -> str:
    """Each verb with the names of its arguments and options, a line each."""
    lines = []
    for words, command in verbs():
        lines.append(" ".join(["codecria", *words]))
        for parameter in command.params:
            names = ", ".join([*parameter.opts, *parameter.secondary_opts])
            kind = "argument " if parameter.param_type_name == "argument" else ""
            lines.append(f"    {kind}{names}{' (required)' if parameter.required else ''}")
    return "\n".join(lines) + "\n"


def test_verbs_and_options_are_those_that_were_frozen() -> None:
    found = frozen_help()
    if REGENERATE in os.environ:
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(found, encoding="utf-8")
    assert GOLDEN.read_text(encoding="utf-8") == found, (
        f"if the change is meant: {REGENERATE}=1 pytest tests/cli/test_cli.py; CHANGELOG too"
    )


@pytest.mark.parametrize("words", VERBS, ids=lambda words: " ".join(words) or "codecria")
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_goes_to_stdout_and_names_every_option(
    words: tuple[str, ...], flag: str, codecria: Call
) -> None:
    told = codecria(*words, flag)
    assert (told.status, told.err) == (0, "")
    shown = told.out.decode()
    command = dict(verbs())[words]
    for parameter in command.params:
        if parameter.param_type_name == "option":
            assert max(parameter.opts, key=len) in shown


@pytest.mark.parametrize("words", VERBS, ids=lambda words: " ".join(words) or "codecria")
def test_help_of_every_verb_is_for_strangers(words: tuple[str, ...]) -> None:
    command = dict(verbs())[words]
    assert command.help
    for parameter in command.params:
        assert parameter.help, f"{words}: {parameter.name} has no help"


def test_help_imports_nothing_heavy() -> None:
    # One process for all verbs: what none of them imports, each of them does not import.
    program = (
        "import sys\n"
        "from codecria.cli import app\n"
        f"for words in {VERBS!r}:\n"
        "    sys.argv = ['codecria', *words, '--help']\n"
        "    assert app.run() == 0\n"
    )
    told = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in told.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & set(HEAVY)


def test_no_arguments_show_the_help_as_a_usage_error(codecria: Call) -> None:
    told = codecria()
    assert told.status == ExitStatus.USAGE
    assert "Usage: codecria" in told.err + told.out.decode()


def test_version_is_the_installed_one(codecria: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import version

    monkeypatch.setenv("CODECRIA_VERSION", "not a flag")  # a likely name in a Makefile
    told = codecria("--version")
    assert (told.status, told.out.decode(), told.err) == (
        0,
        f"codecria {version('codecria')}\n",
        "",
    )


def test_the_verbose_version_is_what_a_report_of_a_bug_should_name(
    codecria: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.metadata import version

    monkeypatch.setenv("CODECRIA_VERBOSE", "1")
    assert len(codecria("--version").out.splitlines()) == 1
    for arguments in (["--version", "-v"], ["--verbose", "--version"]):
        told = codecria(*arguments)
        assert (told.status, told.err) == (0, "")
        first, *others = told.out.decode().splitlines()
        assert first == f"codecria {version('codecria')}"
        named = dict(line.split(" ", 1) for line in others)
        assert named["python"] == sys.version.split()[0]
        assert named["torch"] == version("torch")
        assert {"xformers", "sentencepiece", "device"} <= set(named)


# --- errors and exit statuses ----------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-verb"],
        ["--debug"],
        ["--verbose"],
        ["--verbose", "recipes", "list"],
        ["genrate"],
        ["generate"],
        ["generate", "--model", "x", "--no-such-option"],
        ["generate", "--model", "x", "--max-tokens", "many", "p"],
        ["generate", "--model", "x", "--threads", "0", "p"],
        ["generate", "--model", "x", "--temperature", "-1", "p"],
        ["generate", "--model", "x", "--top-p", "0", "p"],
        ["generate", "--model", "x", "--samples", "0", "p"],
        ["generate", "--model", "x", "--stop", "", "p"],
        ["generate", "--model", "x", "p", "--prompt-file", "f"],
        ["pretrain", "--out", "x", "--set", "peak_lr"],
        ["inspect"],
        ["recipes", "show"],
        ["recipes", "nothing"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_ends_with_status_2(arguments: list[str], codecria: Call) -> None:
    told = codecria(*arguments, stdin=b"p")
    assert (told.status, told.out) == (ExitStatus.USAGE, b"")
    assert "Traceback" not in told.err or "--debug" in arguments
    lines = [line for line in told.err.lower().splitlines() if line.startswith("error: ")]
    assert len(lines) == 1


def test_a_misspelt_verb_is_answered_with_the_right_one(codecria: Call) -> None:
    assert "did you mean `codecria generate`?" in codecria("genrate").err


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "--model", "nowhere", "p"],
        ["inspect", "nowhere"],
        ["--config", "nowhere.toml", "doctor"],
        ["pretrain", "--data", "nowhere", "--size", "1m", "--steps", "1", "--out", "run"],
    ],
    ids=" ".join,
)
def test_what_is_not_there_is_named_in_at_most_two_lines(
    arguments: list[str], codecria: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = codecria(*arguments)
    assert (told.status, told.out) == (ExitStatus.FAILED, b"")
    lines = told.err.splitlines()
    assert lines[0].startswith("error: ")
    assert "nowhere" in lines[0]
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("hint: "))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--config", "nowhere", "doctor"], ExitStatus.FAILED),
        (["pretrain", "--set", "peak_lr", "--out", "x"], ExitStatus.USAGE),
    ],
    ids=["failed", "usage"],
)
def test_debug_adds_the_traceback_and_changes_nothing_else(
    arguments: list[str], status: int, codecria: Call
) -> None:
    plain, debugged = codecria(*arguments), codecria("--debug", *arguments)
    assert plain.status == debugged.status == status
    assert "Traceback" not in plain.err
    assert debugged.err.startswith("Traceback")
    assert debugged.err.endswith(plain.err)


class OutOfMemoryError(RuntimeError):
    """Named as PyTorch's, which only a GPU raises."""


TORCH_SAYS = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."


def test_pytorch_says_on_a_cpu_what_the_boundary_looks_for() -> None:
    import torch

    with pytest.raises(RuntimeError, match=TORCH_SAYS.split(":")[0]):
        torch.empty(1 << 60, dtype=torch.uint8)
    assert torch.OutOfMemoryError.__name__ == OutOfMemoryError.__name__


def ending(error: BaseException, codecria: Call, monkeypatch: pytest.MonkeyPatch) -> Told:
    """Call a command line whose one verb ends with `error`."""
    broken = typer.Typer(pretty_exceptions_enable=False)

    @broken.callback()
    def root() -> None:
        """No options."""

    @broken.command()
    def verb() -> None:
        """Only raises."""
        raise error

    monkeypatch.setattr(cli, "app", broken)
    return codecria("verb")


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("wrong", hint="mend it"), 1, "error: wrong\nhint: mend it\n"),
        (MemoryError(), 1, "error: out of memory\n"),
        (OutOfMemoryError("CUDA out of memory"), 1, "error: out of memory\n"),
        (RuntimeError(TORCH_SAYS), 1, "error: out of memory\n"),
        (
            OSError(errno.EMFILE, "Too many open files", "x.py"),
            1,
            "error: x.py: Too many open files\nhint: raise the limit on open files (ulimit -n)\n",
        ),
        (OSError(errno.ENOENT, "No such file", "x"), 1, "error: internal error: FileNotFound"),
        (RuntimeError("shapes"), 1, "error: internal error: RuntimeError: shapes\n"),
        (ZeroDivisionError("x / 0"), 1, "error: internal error: ZeroDivisionError: x / 0\n"),
        (Interrupted(ExitStatus.INTERRUPTED, "saved at step 3"), 130, "saved at step 3\n"),
        (Interrupted(ExitStatus.TERMINATED, "saved at step 3"), 143, "saved at step 3\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_each_way_to_end_has_its_status(
    error: BaseException,
    status: int,
    said: str,
    codecria: Call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = ending(error, codecria, monkeypatch)
    assert told.status == status
    assert told.err.startswith(said)
    assert told.out == b""
    assert "Traceback" not in told.err


@pytest.mark.parametrize(
    "arguments",
    [["recipes", "list", "--json"], ["recipes", "list"], ["--help"]],
    ids=["json", "table", "help"],
)
def test_a_reader_that_goes_away_ends_the_work_quietly(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as gone:
        told = subprocess.run(
            [sys.executable, "-m", "codecria.cli", *arguments],
            stdout=gone,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (told.returncode, told.stderr) == (128 + signal.SIGPIPE, b"")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_the_shell_closed_are_as_good_as_empty(closed: str) -> None:
    told = subprocess.run(
        ["sh", "-c", f'"$0" -m codecria.cli recipes list --json {closed}', sys.executable],
        capture_output=True,
        check=False,
    )
    assert (told.returncode, told.stderr) == (0, b"")
    assert told.stdout == b"" if ">&-" in closed.split() else json.loads(told.stdout)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_behind_stdout_is_a_failure() -> None:
    with Path("/dev/full").open("wb") as full:
        told = subprocess.run(
            [sys.executable, "-m", "codecria.cli", "recipes", "list"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert told.returncode == ExitStatus.FAILED
    assert "No space left" in told.stderr.splitlines()[0]
    assert "Traceback" not in told.stderr


def test_stdout_is_utf8_in_every_locale_and_json_stays_json() -> None:
    # The name of a file that is not UTF-8, as Python reads it from the disk.
    path = os.fsdecode("müsli".encode() + b"\xff")
    program = (
        "from codecria.cli import app, render\n"
        f"app.asked_for = lambda: lambda **_: render.emit_json({{'path': {path!r}}})\n"
        "app.run()"
    )
    told = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=True,
        env=os.environ | {"PYTHONIOENCODING": "latin-1"},
    )
    assert json.loads(told.stdout.decode("utf-8")) == {"path": path}


# --- precedence: command line > environment > config file > default --------------------------


def steps_of(told: Told) -> int:
    assert told.status == 0, told.err
    found = json.loads(told.out)["steps"]
    assert isinstance(found, int)
    return found


@pytest.mark.usefixtures("unmeasured")
def test_options_win_over_the_environment_that_over_the_file_that_over_defaults(
    codecria: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = ["pretrain", "--size", "7b", "--dry-run", "--json", "--out", tmp_path / "run"]
    default = steps_of(codecria(*plan))
    config = tmp_path / "c.toml"
    config.write_text("[pretrain]\nsteps = 11\n")
    assert default > 11
    assert steps_of(codecria("--config", config, *plan)) == 11
    monkeypatch.setenv("CODECRIA_PRETRAIN_STEPS", "12")
    assert steps_of(codecria("--config", config, *plan)) == 12
    assert steps_of(codecria("--config", config, *plan, "--steps", "13")) == 13
    monkeypatch.setenv("CODECRIA_CONFIG", str(config))
    monkeypatch.delenv("CODECRIA_PRETRAIN_STEPS")
    assert steps_of(codecria(*plan)) == 11


@pytest.mark.usefixtures("unmeasured")
def test_the_command_line_plans_every_stage_for_devices_that_are_not_at_hand(
    codecria: Call,
) -> None:
    devices = ("--devices", "64", "--device-memory", "80GB")
    for verb in ("pretrain", "fim", "lcft", "instruct"):
        size = "34b" if verb == "instruct" else "7b"
        told = codecria(verb, "--size", size, "--dry-run", "--json", *devices)
        assert told.status == 0, told.err
        assert json.loads(told.out)["spread"]["devices"] == 64
    told = codecria("pretrain", "--size", "7b", "--dry-run", *devices)
    assert b"fits 80 GB: yes" in told.out
    assert b"at 40% of 989 TFLOP/s on each device" in told.out
    for here in (b"time here", b"on one device", b"--recompute off"):
        assert here not in told.out, "of this machine, which is not asked about"
    told = codecria("pretrain", "--size", "7b", "--dry-run", *devices, "--mesh", "tp=8", "--json")
    assert json.loads(told.out)["spread"]["mesh"] == {"dp": 8, "cp": 1, "tp": 8}
    refused = codecria("pretrain", "--size", "7b", "--out", "run", "--devices", "2")
    assert refused.status == 2
    assert "--devices and --device-memory are for plans" in refused.err


def test_a_config_file_reaches_the_parts_of_a_verb(codecria: Call, tmp_path: Path) -> None:
    config, fields = tmp_path / "c.toml", tmp_path / "fields.toml"
    config.write_text("[recipes.validate]\njson = true\nsize = '13b'\n")
    fields.write_text("peak_lr = 1e-4\n")
    told = codecria("--config", config, "recipes", "validate", fields)
    assert told.status == 0, told.err
    assert json.loads(told.out)["size"] == "13b"
    # A verb that has options of its own beside its parts.
    made = tmp_path / "made"
    config.write_text(f"[self-instruct]\nout = '{made}'\n[self-instruct.execute]\nshard = '9/2'\n")
    assert "no model is named" in codecria("--config", config, "self-instruct").err
    told = codecria("--config", config, "self-instruct", "execute", made)
    assert "--shard 9/2 is not I/N" in told.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[generat]\nseed = 1", "did you mean [generate]?"),
        ("[generate]\nmax-token = 1", "did you mean 'max_tokens'?"),
        ("[recipes.shaw]\nsize = '7b'", "did you mean [recipes.show]?"),
        ("seed = 1", "[seed] is not a verb"),
        ("[self-instruct]\nquestion = 1", "did you mean 'questions'?"),
        ("[self-instruct.exec]\nshard = '1/2'", "did you mean [self-instruct.execute]?"),
        ("[recipes]\nsize = '7b'", "[recipes.size] is not a verb"),
        ("[generate]\nzzz = 1", "codecria generate --help"),
        ("[generate", "not valid TOML"),
        ("[pretrain]\nsteps = 'many'", "--steps"),
        ("[pretrain]\nsteps = [1]", "[1] is not a string or a number"),
        ("[pretrain]\nsteps = 1.5", "--steps"),
        ("[pretrain]\nsteps = true", "steps = True is not a string or a number"),
        ("[pretrain]\nsize = {a = 1}", "is not a string or a number"),
        ("[pretrain]\nsize = ['7b']", "is not a string or a number"),
        ("[pretrain]\nsize = 2024-01-01", "is not a string or a number"),
        ("[pretrain]\njson = 'yes'", "'yes' is not true or false"),
        ("[pretrain]\njson = 1", "1 is not true or false"),
        ("[pretrain]\nset = 'peak_lr=1'", "is not a list"),
        ("[pretrain]\nset = [['peak_lr=1']]", "is not a list"),
    ],
    ids=lambda value: value.splitlines()[-1],
)
def test_a_wrong_config_file_is_refused(
    text: str, said: str, codecria: Call, tmp_path: Path
) -> None:
    config = tmp_path / "c.toml"
    config.write_text(text)
    told = codecria(
        "--config", config, "pretrain", "--size", "7b", "--dry-run", "--out", tmp_path / "run"
    )
    assert told.status == ExitStatus.USAGE
    assert said in told.err
    assert told.out == b""


def test_a_config_file_that_is_no_text_is_refused(codecria: Call, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_bytes(b"\xff\xfe")
    told = codecria("--config", config, "doctor")
    assert (told.status, "Traceback" in told.err) == (ExitStatus.USAGE, False)


# --- generate: the payload and nothing else --------------------------------------------------


@pytest.fixture
def complete(codecria: Call, small_model: Path) -> Call:
    def call(*arguments: object, stdin: bytes | None = b"") -> Told:
        told = codecria(
            "generate", "--model", small_model, "--threads", 1, "--dtype", "float32",
            *arguments, stdin=stdin,
        )  # fmt: skip
        assert "Traceback" not in told.err
        return told

    return call


def lines(told: Told) -> list[dict[str, Any]]:
    assert told.status == 0, told.err
    return [json.loads(line) for line in told.out.splitlines()]


def test_generate_prints_the_completion_alone(complete: Call) -> None:
    (described,) = lines(complete("def f(", "--max-tokens", 8, "--json"))
    told = complete("def f(", "--max-tokens", 8)
    assert (told.status, told.err) == (0, "")
    assert told.out.decode() == described["text"]


def test_json_tells_what_was_asked_for(complete: Call) -> None:
    (told,) = lines(complete("def f(", "--max-tokens", 8, "--json"))
    kinds = {key: type(value).__name__ for key, value in told.items()}
    assert kinds == {
        "sample": "int",
        "text": "str",
        "prompt_tokens": "int",
        "completion_tokens": "int",
        "finish_reason": "str",
        "prefill_s": "float",
        "decode_s": "float",
        "tokens_per_s": "float",
        "cached_tokens": "int",
        "drafted_tokens": "int",
        "accepted_tokens": "int",
    }
    assert told["finish_reason"] in ("stop", "length")
    assert 0 < told["completion_tokens"] <= 8


@pytest.mark.parametrize("text", ["a\r\nb\r\n", "a\n", "a", "", "\n", "\té\U0001f600 \n\n"])
def test_standard_input_is_taken_to_the_byte(complete: Call, tmp_path: Path, text: str) -> None:
    """A file, a pipe, `-` and (where shells allow) the argument are the same prompt."""
    raw = text.encode()
    (tmp_path / "prompt").write_bytes(raw)
    few = ("--max-tokens", 3, "--json")
    asked = [
        complete(*few, stdin=raw),
        complete("-", *few, stdin=raw),
        complete("--prompt-file", tmp_path / "prompt", *few),
        complete(text, *few, stdin=b"not this"),
    ]
    answers = {(a["prompt_tokens"], a["text"]) for told in asked for a in lines(told)}
    assert len(answers) == 1


def test_line_ends_and_a_last_line_break_count(complete: Call, small_model: Path) -> None:
    from codecria.data.tokenizer.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(small_model)
    for text in ("a\r\nb", "a\nb", "a\nb\n"):
        (told,) = lines(complete("--max-tokens", 1, "--json", stdin=text.encode()))
        assert told["prompt_tokens"] == len(tokenizer.encode(text, bos=True))


@pytest.mark.parametrize("where", ["stdin", "file", "argument"])
def test_a_prompt_that_is_not_utf8_is_refused(complete: Call, tmp_path: Path, where: str) -> None:
    raw = b"ok\xff"
    (tmp_path / "prompt").write_bytes(raw)
    told = {
        "stdin": lambda: complete("-", stdin=raw),
        "file": lambda: complete("--prompt-file", tmp_path / "prompt"),
        "argument": lambda: complete(os.fsdecode(raw)),
    }[where]()
    assert (told.status, told.out) == (ExitStatus.USAGE, b"")
    assert "byte 2 is 0xff" in told.err


def test_a_seed_repeats_its_samples_and_another_gives_others(complete: Call) -> None:
    def drawn(seed: int) -> bytes:
        told = complete(
            "x = ", "--temperature", 1, "--seed", seed, "--samples", 3, "--max-tokens", 8
        )
        assert told.status == 0, told.err
        return told.out

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_samples_are_printed_in_their_order(complete: Call) -> None:
    wanted = ("x = ", "--temperature", 1.5, "--samples", 4, "--max-tokens", 12)
    described = {told["sample"]: told["text"] for told in lines(complete(*wanted, "--json"))}
    assert sorted(described) == [0, 1, 2, 3]
    printed = complete(*wanted).out.decode()
    assert printed == "".join(described[n] + "\n" for n in range(4))


def test_a_stop_string_ends_before_itself(complete: Call) -> None:
    wanted = ("x = ", "--max-tokens", 12)
    whole = complete(*wanted).out.decode()
    stop = whole[3:5]
    (told,) = lines(complete(*wanted, "--stop", stop, "--json"))
    assert told["finish_reason"] == "stop"
    assert told["text"] == whole[: whole.index(stop)]
    assert complete(*wanted, "--stop", stop).out.decode() == told["text"]


def test_a_prompt_that_is_too_long_is_refused_or_cut(complete: Call) -> None:
    told = complete("x = 1\n" * 200, "--max-tokens", 4)
    assert told.status == ExitStatus.FAILED
    assert "--truncate left" in told.err
    (cut,) = lines(complete("x = 1\n" * 200, "--max-tokens", 4, "--truncate", "left", "--json"))
    assert cut["completion_tokens"] == 4


# --- other verbs -----------------------------------------------------------------------------


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize(
    "arguments",
    [
        ["recipes", "list"],
        ["recipes", "show", "pretrain", "7b"],
        ["pretrain", "--size", "70b", "--dry-run", "--out", "run"],
    ],
    ids=" ".join,
)
def test_json_is_one_document_and_the_table_says_the_same_elsewhere(
    arguments: list[str], codecria: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = codecria(*arguments, "--json")
    assert (told.status, told.err) == (0, "")
    assert json.loads(told.out)
    shown = codecria(*arguments)
    assert (shown.status, shown.err) == (0, "")
    assert b"\x1b" not in shown.out, "colour in a pipe"
    assert b" \n" not in shown.out, "lines filled up with spaces in a pipe"
    assert list(tmp_path.iterdir()) == [], "a plan writes nothing"


def test_training_reports_on_stderr_and_metrics_alone_on_stdout(
    codecria: Call, shards: Path, tmp_path: Path
) -> None:
    train = [
        "pretrain", "--data", shards, "--size", "1m", "--steps", 2, "--out", tmp_path / "run",
        "--set", "context=32", "--set", "batch_tokens=64", "--compile", "off", "--dtype", "float32",
        "--eval-rows", 1, "--log-every", 1, "--json",
    ]  # fmt: skip
    told = codecria(*train)
    assert told.status == 0, told.err
    records = [json.loads(line) for line in told.out.splitlines()]
    assert {record["step"] for record in records} >= {1, 2}
    assert "step 2/2" in told.err
    assert "\x1b" not in told.err, "a bar where there is no terminal"
    again = codecria(*train)
    assert (again.status, again.out) == (0, b"")
    assert "nothing to do" in again.err


# --- a terminal ------------------------------------------------------------------------------


def in_terminal(arguments: list[object], **environment: str) -> tuple[str, int]:
    """Run in a pseudo-terminal: what it showed, and its exit status."""
    shown, status = pexpect.run(
        shlex.join([sys.executable, "-m", "codecria.cli", *map(str, arguments)]),
        withexitstatus=True,
        timeout=300,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "120"} | environment,
    )
    return shown.decode(), status


def training(shards: Path, out: Path, steps: int) -> list[object]:
    return [
        "pretrain", "--data", shards, "--size", "1m", "--steps", steps, "--out", out,
        "--set", "context=32", "--set", "batch_tokens=64", "--compile", "off", "--dtype", "float32",
        "--eval-rows", 1, "--threads", 1,
    ]  # fmt: skip


def test_a_terminal_gets_a_bar_and_no_colour_where_none_is_wanted(
    shards: Path, tmp_path: Path
) -> None:
    shown, status = in_terminal(training(shards, tmp_path / "run", 2), NO_COLOR="1")
    assert status == 0, shown
    assert "2/2" in shown
    assert "\x1b[" in shown  # the bar moves the cursor
    assert not re.search(r"\x1b\[[0-9;]*[34][0-7]m", shown), "colour despite NO_COLOR"


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, ExitStatus.INTERRUPTED), (signal.SIGTERM, ExitStatus.TERMINATED)],
)
def test_a_signal_saves_the_run_and_says_how_to_go_on(
    number: signal.Signals, status: ExitStatus, warm_python: str, shards: Path, tmp_path: Path
) -> None:
    command = [*training(shards, tmp_path / "run", 100_000), "--log-every", 1, "--json"]
    with subprocess.Popen(
        [warm_python, "-m", "codecria.cli", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline(), running.stderr.read()
        running.send_signal(number)
        told = running.stderr.read()
        running.stdout.read()
    assert running.returncode == status, told
    assert "stopped and saved at step" in told
    assert "Traceback" not in told
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))


# --- infilling -------------------------------------------------------------------------------


def test_examples_of_infilling_are_shown_as_text_and_ids(
    codecria: Call, shards: Path, tokenizer: Tokenizer
) -> None:
    call = ["fim", "--size", "1m", "--data", shards, "--show", 2]
    told = codecria(*call)
    assert (told.status, told.err) == (0, "")
    text = told.out.decode()
    assert re.match(r"--- 1: (PSM|SPM), row \d+, \d+ tokens\n\[BOS\]\[PRE\]", text)
    assert text.count("[EOT][EOS]\nids 1 ") == 2
    shown = codecria(*call, "--json")
    first, second = (json.loads(line) for line in shown.out.splitlines())
    assert " ".join(map(str, first["ids"])) in text
    assert second["ids"][1] == tokenizer.vocab_size + 7
    few = codecria(*call[:-1], 1, "--steps", 1, "--set", "infill_rate=0.000001")
    assert (few.status, few.out) == (0, b"")
    assert "the run holds 0 examples" in few.err


@pytest.mark.usefixtures("unmeasured")
def test_a_plan_of_infilling_tells_the_effective_rate(codecria: Call, shards: Path) -> None:
    call = ["fim", "--size", "1m", "--data", shards, "--dry-run"]
    assert "effective rate   90.0% of tokens" in codecria(*call).out.decode()
    told = json.loads(codecria(*call, "--json").out)["infill"]
    assert told["effective_rate"] == pytest.approx(0.9)
    paper = json.loads(codecria("fim", "--size", "7b", "--dry-run", "--json").out)["infill"]
    assert (paper["rate"], paper["scope"], paper["effective_rate"]) == (0.9, "document", None)


def test_infilling_fresh_weights_is_refused_unless_meant(
    codecria: Call, shards: Path, tmp_path: Path
) -> None:
    told = codecria("fim", "--size", "1m", "--data", shards, "--out", tmp_path / "run")
    assert told.status == ExitStatus.FAILED
    assert "starts from a checkpoint of pretrain, not from fresh weights" in told.err
    assert "--any-init" in told.err
    assert not (tmp_path / "run").exists()


def test_under_torchrun_the_first_process_alone_does_what_is_not_shared() -> None:
    # Kills: two processes that write one --out.
    launched = os.environ | {"WORLD_SIZE": "2"}
    said = [
        process("recipes", "list", "--json", env=launched | {"RANK": rank}) for rank in ("0", "1")
    ]
    assert [done.returncode for done in said] == [0, 0]
    assert said[0].stdout
    assert (said[1].stdout, said[1].stderr) == (b"", b"")
