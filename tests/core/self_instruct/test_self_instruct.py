"""Self-instruct from questions to kept dialogs: what comes out, and that nothing is lost."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from codecria.core.endpoint import Access
from codecria.core.inference.loading import Compute
from codecria.core.sandbox.config import SandboxConfig
from codecria.core.sandbox.verdict import Limits
from codecria.core.self_instruct import items, pipeline, prompts, record
from codecria.core.self_instruct.batch import BatchModel
from codecria.core.self_instruct.endpoint import Endpoint
from codecria.core.self_instruct.execute import choose, execute, probe, probes, verdict_id
from codecria.core.self_instruct.journal import journal
from codecria.core.self_instruct.local import LocalModel
from codecria.core.self_instruct.parse import checked_tests
from codecria.core.self_instruct.request import Request
from codecria.core.self_instruct.settings import PRESETS, Settings, settings_of
from codecria.data.errors import UsageError, UserError
from codecria.data.files import read_json
from codecria.data.formats import dialogs

LIMITS = Limits(wall_s=20.0)
FLOAT32 = Compute(device="cpu", dtype="float32")
DERIVED = ("questions.jsonl", "tests.jsonl", "solutions.jsonl", "dropped.jsonl", "dialogs.jsonl")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def same(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in DERIVED)


def request(out: Path, model: Any = None, **options: Any) -> Request:
    given: dict[str, Any] = {
        "settings": Settings(questions=24, per_request=10, solutions=3),
        "models": dict.fromkeys(("questions", "tests", "solutions"), model) if model else {},
        "prompts": prompts.load(),
        "sandbox": SandboxConfig(limits=LIMITS),
    }
    return Request(out=out, **given | options)


def run(asked: Request, notes: list[str] | None = None) -> dict[str, Any]:
    told = [] if notes is None else notes
    return pipeline.run(asked, note=told.append, show=lambda _: None)


@pytest.fixture
def remote(endpoint: Any) -> Callable[..., Endpoint]:
    def make(**options: Any) -> Endpoint:
        access = Access(url=endpoint.url, **{"timeout_s": 60.0} | options)
        return Endpoint(access, "m", note=lambda _: None, sleep=lambda _: None)

    return make


# --- the whole ------------------------------------------------------------------------------------


def test_the_funnels_numbers_are_counts_of_the_files(
    tmp_path: Path, remote: Callable[..., Endpoint]
) -> None:
    report = run(request(tmp_path / "o", remote()))
    funnel, out = report["funnel"], tmp_path / "o"
    lost = Counter(line["stage"] for line in lines(out / "dropped.jsonl"))
    assert funnel["asked"] == funnel["parsed"] == 24
    assert funnel["questions"] == len(lines(out / "questions.jsonl"))
    assert funnel["parsed"] - lost["questions"] == funnel["questions"]
    assert funnel["with_tests"] == len(lines(out / "tests.jsonl"))
    assert funnel["questions"] - lost["tests"] == funnel["with_tests"]
    assert funnel["solutions"] == 3 * funnel["with_tests"]
    assert funnel["run"] == len(lines(out / "solutions.jsonl"))
    assert funnel["solutions"] - lost["solutions"] == funnel["run"]
    assert sum(report["outcomes"].values()) == funnel["run"]
    assert report["outcomes"]["passed"] == funnel["passed"]
    assert funnel["kept"] == len(lines(out / "dialogs.jsonl")) > 0
    assert funnel["with_tests"] - lost["keep"] == funnel["kept"]
    told = {
        stage: sum(found["count"] for found in reasons.values())
        for stage, reasons in report["losses"].items()
    }
    assert {stage: count for stage, count in told.items() if count} == dict(lost)
    repeated = report["losses"]["questions"]["duplicate"]["count"]
    assert repeated == 24 - len({line["question"] for line in lines(out / "questions.jsonl")})
    assert repeated >= 7, "24 questions of 17 numbers"
    costs = report["costs"]["models"]
    assert costs["questions"]["replies"] == 3
    assert costs["solutions"]["replies"] == funnel["solutions"]
    assert costs["solutions"]["tokens"] > 0
    assert read_json(out / "report.json") == report


def test_what_is_kept_passes_its_tests_and_says_where_it_comes_from(
    tmp_path: Path, remote: Callable[..., Endpoint]
) -> None:
    run(request(tmp_path / "o", remote()))
    kept = lines(tmp_path / "o" / "dialogs.jsonl")
    solutions = {line["id"]: line for line in lines(tmp_path / "o" / "solutions.jsonl")}
    for item in kept:
        space: dict[str, Any] = {}
        exec("\n".join((item["solution"], *item["tests"])), space)
        assert item["shown"] in item["tests"]
        assert item["shown"] in item["messages"][0]["content"], "one test reveals the name"
        hidden = set(item["tests"]) - {item["shown"]}
        assert not any(test in item["messages"][0]["content"] for test in hidden)
        assert item["solution"] in item["messages"][1]["content"]
        told = item["provenance"]
        assert solutions[item["id"]]["sample"] == told["sample"]
        assert told["models"]["solutions"] == {"form": "chat", "kind": "openai", "model": "m"}
        assert told["verdict"]["outcome"] == "passed"
        assert told["verdict"]["runs"] == 3
        assert told["verdict"]["tier"] in ("bwrap", "native")
    found = list(dialogs.read(tmp_path / "o" / "dialogs.jsonl"))
    assert all(isinstance(one, dialogs.Found) for one in found), "instruct takes them as they are"
    assert len(found) == len(kept)


def test_the_first_solution_that_passes_is_kept_by_its_sample_number(
    tmp_path: Path, remote: Callable[..., Endpoint]
) -> None:
    run(request(tmp_path / "o", remote()))
    verdicts = {
        line["id"]: line["outcome"] for line in lines(tmp_path / "o" / "verdicts" / "main.jsonl")
    }
    groups: dict[str, list[dict[str, Any]]] = {}
    for line in lines(tmp_path / "o" / "solutions.jsonl"):
        groups.setdefault(line["tests_id"], []).append(line)
    firsts = [
        next((s["id"] for s in group if verdicts[f"{s['id']}-0"] == "passed"), None)
        for group in groups.values()
    ]
    kept = [item["id"] for item in lines(tmp_path / "o" / "dialogs.jsonl")]
    assert kept == [first for first in firsts if first is not None]


@pytest.mark.slow
def test_a_misbehaving_endpoint_changes_nothing(
    tmp_path: Path, endpoint: Any, remote: Callable[..., Endpoint]
) -> None:
    run(request(tmp_path / "plain", remote()))
    generator = random.Random(3)
    kinds = ("drop", "500", "garbage", "429", "torn", "empty", "")
    endpoint.faults = [generator.choice(kinds) for _ in range(150)]
    run(request(tmp_path / "faulty", remote(retries=30)))
    assert endpoint.faults == []
    assert same(tmp_path / "plain", tmp_path / "faulty")


def test_unanswered_requests_end_the_run_and_the_next_asks_for_them(
    tmp_path: Path, endpoint: Any, remote: Callable[..., Endpoint]
) -> None:
    run(request(tmp_path / "plain", remote()))
    asked = request(tmp_path / "o", remote(retries=0, concurrency=1))
    endpoint.faults = ["", "500"]
    with pytest.raises(UserError, match="1 of 3 requests for questions have no answer"):
        run(asked)
    endpoint.faults = ["", "", "drop"]
    with pytest.raises(UserError, match=r"1 of \d+ requests for tests have no answer"):
        run(asked)
    run(asked)
    assert same(tmp_path / "plain", tmp_path / "o")


def test_what_failed_can_be_left_out_and_is_counted(
    tmp_path: Path, endpoint: Any, remote: Callable[..., Endpoint]
) -> None:
    endpoint.faults = ["", "", "", "500"]
    asked = request(tmp_path / "o", remote(retries=0, concurrency=1), skip_failed=True)
    report = run(asked)
    assert report["losses"]["tests"]["no answer"]["count"] == 1


def test_the_key_reaches_neither_a_file_nor_a_program(
    tmp_path: Path,
    endpoint: Any,
    remote: Callable[..., Endpoint],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-mine")
    spy = (
        "[PYTHON]\nimport os, glob\ndef add_{n}(x):\n    found = repr(dict(os.environ))\n"
        "    for path in glob.glob('/proc/*/environ'):\n        try:\n"
        "            found += open(path, 'rb').read().decode('utf-8', 'replace')\n"
        "        except OSError:\n            pass\n"
        "    assert 'sk-secret' not in found, 'leak'\n    return x + {n}\n"
    )
    plain = endpoint.say

    def say(body: dict[str, Any]) -> str:
        text = body["messages"][-1]["content"]
        if "Test:" not in text:
            return str(plain(body))
        return spy.replace("{n}", text.split("adds ")[1].split()[0])

    endpoint.say = say
    report = run(
        request(
            tmp_path / "o",
            remote(key="sk-secret-of-mine"),
        )
    )
    assert report["funnel"]["kept"] == report["funnel"]["with_tests"] > 0
    for path in (tmp_path / "o").rglob("*"):
        assert path.is_dir() or b"sk-secret-of" not in path.read_bytes(), path


def test_nonsense_is_a_funnel_that_ends_in_nothing(
    tmp_path: Path, endpoint: Any, remote: Callable[..., Endpoint]
) -> None:
    endpoint.say = lambda body: "blah \ud800 [TESTS] \x00 " + "(" * (body["seed"] % 99)
    report = run(request(tmp_path / "o", remote()))
    assert report["funnel"]["parsed"] == report["funnel"]["kept"] == 0
    assert (tmp_path / "o" / "dialogs.jsonl").read_bytes() == b""


# --- a run that stops -----------------------------------------------------------------------------

# A process that ends itself with SIGKILL in the middle of a write to a journal, at a chosen one.
CHILD = """
import os, signal, sys
from codecria.data import journal
from codecria.cli.app import main

left = int(sys.argv.pop(1))
write = journal.append_whole

def dying(path, descriptor, content):
    global left
    left -= 1
    if left == 0:
        os.write(descriptor, content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, descriptor, content)

journal.append_whole = dying
main()
"""


@pytest.mark.slow
def test_killed_in_the_middle_of_any_write_it_ends_with_the_same_files(
    tmp_path: Path, warm_python: str, endpoint: Any, remote: Callable[..., Endpoint]
) -> None:
    run(request(tmp_path / "plain", remote(), settings=Settings(questions=6, solutions=2)))
    options = ["self-instruct", "--endpoint", endpoint.url, "--endpoint-model", "m"]
    options += ["--out", str(tmp_path / "o"), "--questions", "6", "--solutions", "2"]
    options += ["--timeout", "20"]
    generator = random.Random(1)
    for _ in range(60):
        when = generator.randrange(1, 40)
        ended = subprocess.run(
            [warm_python, "-c", CHILD, str(when), *options],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert "Traceback" not in ended.stderr
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert ended.returncode == 0
    assert same(tmp_path / "plain", tmp_path / "o")
    assert not list((tmp_path / "o").glob(".tmp-*"))


def test_our_own_model_repeats_its_texts_also_after_a_kill(
    tmp_path: Path, small_model: Path
) -> None:
    settings = Settings(questions=7, per_request=2, questions_tokens=12, tests_tokens=12)
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "questions-few-shot.txt").write_text("=== user\nlist {number}\n")
    (folder / "questions.txt").write_text("=== user\nlist {number}\n")
    options = {"settings": settings, "prompts": prompts.load(folder)}
    model = LocalModel(small_model, batch=3, compute=FLOAT32)
    assert model.form == "few-shot", "it was not tuned on instructions"
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(request(whole, model, **options))
    run(request(broken, model, **options))
    told = (whole / "replies" / "questions.jsonl").read_text()
    texts = {line["id"]: line["text"] for line in map(json.loads, told.splitlines())}
    assert len(set(texts.values())) > 1, "rounds are drawn apart"
    # The second reply is torn, the third gone.
    path = broken / "replies" / "questions.jsonl"
    content = path.read_bytes()
    first = content.index(b"\n") + 1
    path.write_bytes(content[: first + 20])
    run(request(broken, model, **options))
    again = {line["id"]: line["text"] for line in lines(path)}
    assert again == texts
    assert list(again) == list(texts)


def test_samples_of_one_question_do_not_depend_on_what_is_known(
    tmp_path: Path, small_model: Path
) -> None:
    tests = tmp_path / "tests.jsonl"
    record = {"question": "Add one to it.", "tests": ["assert f(1) == 2", "assert f(2) == 3"]}
    tests.write_text(json.dumps(record) + "\n")
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "solutions.txt").write_text("=== user\n{question}\n")
    options = {
        "settings": Settings(solutions=5, solutions_tokens=10, probe_tests=False),
        "prompts": prompts.load(folder),
        "tests_file": tests,
    }
    model = LocalModel(small_model, form="chat", batch=2, compute=FLOAT32)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(request(whole, model, **options))
    path = whole / "replies" / "solutions.jsonl"
    found = lines(path)
    assert len(found) == 5
    run(request(broken, model, stop_after="tests", **options))
    (broken / "replies").mkdir(exist_ok=True)
    kept = [found[1], found[4]]
    (broken / "replies" / "solutions.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in kept)
    )
    run(request(broken, model, **options))
    again = {line["id"]: line["text"] for line in lines(broken / "replies" / "solutions.jsonl")}
    assert again == {line["id"]: line["text"] for line in found}
    assert same(whole, broken)


def test_a_prompt_that_does_not_fit_is_a_loss(tmp_path: Path, small_model: Path) -> None:
    questions = tmp_path / "q.txt"
    questions.write_text("Write a function that adds two numbers.\n")
    model = LocalModel(small_model, compute=FLOAT32)
    report = run(request(tmp_path / "o", model, questions_file=questions))
    lost = report["losses"]["tests"]["the prompt did not fit the context"]
    assert lost["count"] == 1


def test_each_stage_may_have_a_model_of_its_own_that_is_there_for_that_stage_alone(
    tmp_path: Path, remote: Callable[..., Endpoint]
) -> None:
    def named(name: str) -> Endpoint:
        return Endpoint(remote().access, name, note=lambda _: None, sleep=lambda _: None)

    large, small = named("large"), named("small")
    together = {"questions": large, "tests": small, "solutions": small}
    run(request(tmp_path / "whole", models=together))
    out = tmp_path / "parts"
    with pytest.raises(UsageError, match="no model is named for the questions"):
        run(request(out, models={"tests": small}))
    assert not out.exists()
    run(request(out, models={"questions": large}, stop_after="questions"))
    run(request(out, models={"tests": small}, stop_after="tests"))
    with pytest.raises(UserError, match=r"tests\.model: small -> large"):
        run(request(out, models={"tests": large, "solutions": large}))
    run(request(out, models={"solutions": small}))
    assert same(tmp_path / "whole", out)
    run(request(out, models={}))  # all is known: nobody needs to be there


def test_changed_options_are_refused_by_name(
    tmp_path: Path, remote: Callable[..., Endpoint]
) -> None:
    run(request(tmp_path / "o", remote(), stop_after="questions"))
    with pytest.raises(UserError, match=r"settings\.seed: 0 -> 1"):
        run(request(tmp_path / "o", remote(), settings=Settings(seed=1)))
    other = Endpoint(remote().access, "other", note=print)
    with pytest.raises(UserError, match=r"questions\.model: m -> other"):
        run(request(tmp_path / "o", other))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep me")
    with pytest.raises(UserError, match="no run of self-instruct"):
        run(request(tmp_path / "full", remote()))
    assert (tmp_path / "full" / "mine.txt").read_text() == "keep me"


def test_a_damaged_line_of_a_journal_is_made_again(
    tmp_path: Path, remote: Callable[..., Endpoint]
) -> None:
    run(request(tmp_path / "plain", remote()))
    run(request(tmp_path / "o", remote()))
    path = tmp_path / "o" / "replies" / "tests.jsonl"
    content = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*content[:3], "{damaged\n", *content[4:]]))
    notes: list[str] = []
    run(request(tmp_path / "o", remote()), notes)
    assert any("damaged lines (4)" in note for note in notes)
    assert same(tmp_path / "plain", tmp_path / "o")


@pytest.mark.slow
def test_a_full_disk_is_a_message_and_nothing_is_lost(
    tmp_path: Path, warm_python: str, endpoint: Any, remote: Callable[..., Endpoint]
) -> None:
    run(request(tmp_path / "plain", remote()))
    code = "import resource, signal\nfrom codecria.cli.app import main\n"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))\n"
    code += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nmain()"
    options = ["self-instruct", "--endpoint", endpoint.url, "--endpoint-model", "m"]
    options += ["--out", str(tmp_path / "o"), "--questions", "24", "--solutions", "3"]
    options += ["--set", "per_request=10", "--timeout", "20"]
    ended = subprocess.run(
        [warm_python, "-c", code, *options],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "cannot write" in ended.stderr
    run(request(tmp_path / "o", remote()))
    assert same(tmp_path / "plain", tmp_path / "o")


# --- other ways in and out ------------------------------------------------------------------------


def test_files_of_requests_and_responses_give_what_an_endpoint_gives(
    tmp_path: Path, endpoint: Any, remote: Callable[..., Endpoint]
) -> None:
    run(request(tmp_path / "plain", remote()))
    requests, model = tmp_path / "requests.jsonl", BatchModel("m")
    given: list[Path] = []
    handler = endpoint.say
    for step in range(4):
        notes: list[str] = []
        asked = request(tmp_path / "o", model, emit=requests, responses=tuple(given))
        told = run(asked, notes)
        if "paused" not in told:
            break
        answered = []
        for line in lines(requests):
            assert (line["method"], line["url"]) == ("POST", "/v1/chat/completions")
            text = handler(line["body"])
            body = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
            response = {"status_code": 200, "body": body}
            answered.append({"custom_id": line["custom_id"], "response": response, "error": None})
        generator = random.Random(step)
        generator.shuffle(answered)
        if step == 1:  # one fails there, and is asked for again
            answered[0] = answered[0] | {"response": None, "error": {"message": "lost"}}
        path = tmp_path / f"responses-{step}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in answered) + "{broken\n")
        given.append(path)
    else:
        told = run(request(tmp_path / "o", model, emit=requests, responses=tuple(given)), notes)
    assert any("not JSON" in note for note in notes)
    assert same(tmp_path / "plain", tmp_path / "o")


@pytest.mark.slow
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_parts_of_the_execution_join_to_the_whole(
    tmp_path: Path, remote: Callable[..., Endpoint], order: tuple[int, ...]
) -> None:
    run(request(tmp_path / "plain", remote()))
    out = tmp_path / "o"
    run(request(out, remote(), stop_after="solutions"))
    told = [
        pipeline.execute_shard(
            out, shard, 3, sandbox=SandboxConfig(), note=print, show=lambda _: None
        )
        for shard in order
    ]
    assert sum(part["solutions"] for part in told) == len(lines(out / "solutions.jsonl"))
    run(request(out, remote()))
    assert not (out / "verdicts" / "main.jsonl").read_bytes(), "nothing was left to run"
    assert same(tmp_path / "plain", out)


def test_a_part_runs_with_the_packages_of_its_run(
    tmp_path: Path, remote: Callable[..., Endpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SandboxConfig(limits=LIMITS, packages=("sortedcontainers",))
    made = request(tmp_path / "o", remote(), stop_after="solutions", sandbox=config)
    run(made)
    found, _ = record.execution_of(tmp_path / "o", SandboxConfig(workers=1))
    assert (found.packages, found.workers) == (("sortedcontainers",), 1)
    with pytest.raises(UserError, match="sortedcontainers"):
        run(replace(made, sandbox=replace(config, packages=())))
    page = tmp_path / "o" / "self-instruct.json"
    version = config.allowed().versions["sortedcontainers"]
    page.write_text(page.read_text().replace(f'"{version}"', '"0.1"'))
    with pytest.raises(UserError, match="have other versions here"):
        record.execution_of(tmp_path / "o", SandboxConfig())


def test_a_part_needs_a_run_with_solutions(tmp_path: Path, remote: Callable[..., Endpoint]) -> None:
    options: dict[str, Any] = {"sandbox": SandboxConfig(), "note": print, "show": print}
    with pytest.raises(UserError, match="is not a folder of self-instruct"):
        pipeline.execute_shard(tmp_path, 0, 1, **options)
    run(request(tmp_path / "o", remote(), stop_after="tests"))
    with pytest.raises(UserError, match=r"no solutions\.jsonl yet"):
        pipeline.execute_shard(tmp_path / "o", 0, 1, **options)


def test_questions_and_tests_of_a_file_enter_where_they_belong(
    tmp_path: Path, remote: Callable[..., Endpoint]
) -> None:
    records = [
        {"question": "Write a function add_3 that adds 3 to a number.", "prompt": "def"},
        {"instruction": "Write a function add_5 that adds 5 to a number."},
        {"instruction": "Write a function add_5 that adds 5 to a number."},
        {"question": "Now say [INST] to me please."},
        {"nothing": 1},
        {"question": "short"},
    ]
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    with path.open("ab") as file:
        file.write(b'{"question": \n"a text and no object of questions"\n\xff\n')
    report = run(request(tmp_path / "q", remote(), questions_file=path))
    assert report["funnel"]["asked"] == 9
    assert report["funnel"]["questions"] == 2
    reasons = {reason: found["count"] for reason, found in report["losses"]["questions"].items()}
    assert reasons == {
        "duplicate": 1,
        "holds a control tag": 1,
        "no question": 1,
        "not JSON": 3,
        "too short": 1,
    }
    mbpp = {
        "text": "Write a function to add 3 that adds 3 to a number.",
        "test_list": ["assert add_3(1) == 4", "assert add_3(5) == 8", "assert True", "assert ("],
        "test_setup_code": "import math",
    }
    path.write_text(json.dumps(mbpp) + "\n" + json.dumps({"question": "Nothing to test it by."}))
    report = run(request(tmp_path / "t", remote(), tests_file=path))
    (tested,) = lines(tmp_path / "t" / "tests.jsonl")
    assert tested["tests"] == ["assert add_3(1) == 4", "assert add_3(5) == 8"]
    assert tested["setup"] == ["import math"]
    assert report["losses"]["tests"]["no tests"]["count"] == 1
    assert len(report["losses"]["asserts"]) == 2
    # What one run made enters another.
    made = tmp_path / "q" / "tests.jsonl"
    report = run(request(tmp_path / "u", remote(), tests_file=made))
    assert report["funnel"]["with_tests"] == len(lines(made))


def test_evaluation_problems_are_kept_out(tmp_path: Path, remote: Callable[..., Endpoint]) -> None:
    leak = "Write a function add_3 that adds 3 to a number, and returns what comes out of it all."
    problems = tmp_path / "problems.jsonl"
    problems.write_text(json.dumps({"task_id": "Own/1", "prompt": leak}) + "\n")
    questions = tmp_path / "q.txt"
    questions.write_text(f"{leak}\nWrite a function add_5 that adds 5 to a number.\n")
    asked = request(tmp_path / "o", remote(), questions_file=questions, decontaminate=(problems,))
    report = run(asked)
    assert report["losses"]["questions"]["contaminated"]["count"] == 1
    assert report["funnel"]["questions"] == 1


# --- quality --------------------------------------------------------------------------------------


def with_tests(*asserts: str) -> items.Tested:
    tests, lost = checked_tests("\n".join(asserts))
    assert not lost
    return items.Tested.of(items.Question.of("A question of four words.", "here"), tests, 0)


@pytest.mark.parametrize(
    ("asserts", "weak"),
    [
        (("assert f(1) == 1", "assert f([2]) == [2]"), "returns its first argument"),
        (("assert f(1, 2) == 2", "assert f(3, 4) == 4"), "returns its last argument"),
        (("assert f(1)", "assert f(2)"), "returns True"),
        (("assert f(1) == 'even'", "assert f(2) == 'even'"), "returns 'even'"),
        (("assert f(1) is None",), "returns None"),
        (("assert f(1) == 2", "assert f(2) == 3"), ""),
        (("assert f(2) == True", "assert f(3) == False"), ""),
        (("assert Stack().size() == 0",), ""),
    ],
)
def test_tests_that_a_trivially_wrong_solution_passes_are_found(
    tmp_path: Path, asserts: tuple[str, ...], weak: str
) -> None:
    one = with_tests(*asserts)
    assert len(probes(one.tests)) >= 10
    with journal(tmp_path / "probes.jsonl") as verdicts:
        found = probe([one], SandboxConfig(limits=LIMITS), verdicts, show=lambda _: None)
        known = len(verdicts)
        again = probe([one], SandboxConfig(limits=LIMITS), verdicts, show=lambda _: None)
        assert len(verdicts) == known
    assert found.get(one.id, "") == weak
    assert again == found


def candidate(one: items.Tested, sample: int, source: str) -> items.Candidate:
    return items.Candidate(id=f"c{sample}", tested=one.id, sample=sample, source=source)


def test_what_passes_by_luck_is_flaky_and_the_next_is_kept(tmp_path: Path) -> None:
    one = with_tests("assert f(1) == 2", "assert f(2) == 3")
    # Right in the first process that runs it, wrong in others: as set order is, by the hash seed.
    lucky = "def f(x):\n    return x + 1"
    group = [candidate(one, 0, "def f(x):\n    return 0"), candidate(one, 1, lucky)]
    group.append(candidate(one, 2, "def f(x):\n    return 1 + x"))
    known: dict[str, Any] = {verdict_id("c1", 2): {"outcome": "failed"}}
    with journal(tmp_path / "v.jsonl") as verdicts:
        execute(
            [one],
            group,
            SandboxConfig(limits=LIMITS),
            verdicts,
            known,
            again=2,
            show=lambda _: None,
        )
        ran = list(verdicts)
    choice = choose(group, known, again=2)
    assert choice.kept is group[2]
    assert choice.flaky == (group[1],)
    assert choice.passed == 2
    assert sorted(ran) == ["c0-0", "c1-0", "c1-1", "c2-0", "c2-1", "c2-2"]


def test_programs_run_again_in_processes_with_another_hash_seed(tmp_path: Path) -> None:
    words = [f"word{n}" for n in range(8)]
    one = with_tests(f"assert f(1) in {words[:4]}", "assert f(2) != 'x'")
    source = f"def f(x):\n    return list(set({words}))[0]"
    outcomes: set[str] = set()
    with journal(tmp_path / "v.jsonl") as verdicts:
        for attempt in range(60):  # each outcome has even odds
            if len(outcomes) == 2:
                break
            known: dict[str, Any] = {}
            execute(
                [one],
                [candidate(one, attempt, source)],
                SandboxConfig(limits=LIMITS, workers=1),
                verdicts,
                known,
                again=0,
                show=lambda _: None,
            )
            outcomes |= {line["outcome"] for line in known.values()}
    assert outcomes == {"passed", "failed"}


def test_equal_programs_run_once_and_not_in_the_papers_preset(
    tmp_path: Path, endpoint: Any, remote: Callable[..., Endpoint]
) -> None:
    path = tmp_path / "q.txt"
    path.write_text("Write a function add_3 that adds 3 to a number.\n")
    plain = endpoint.say

    def say(body: dict[str, Any]) -> str:
        if "Test:" not in body["messages"][-1]["content"]:
            return str(plain(body))
        return "[PYTHON]\ndef add_3(x):\n    return x + 3" + "\n# so" * (body["seed"] % 3)

    endpoint.say = say
    counts = {}
    for preset in ("paper", "verified"):
        asked = request(
            tmp_path / preset,
            remote(),
            questions_file=path,
            settings=settings_of(preset, {"solutions": 6}),
        )
        counts[preset] = run(asked)["funnel"]["run"]
    assert counts == {"paper": 6, "verified": 1}
    (item,) = lines(tmp_path / "paper" / "dialogs.jsonl")
    assert item["provenance"]["verdict"]["runs"] == 1
    assert not (tmp_path / "paper" / "probes.jsonl").exists()


HOSTILE = (
    "import os\ndef f(x):\n    os._exit(0)",
    "import sys\nsys.exit(0)",
    "import builtins, sys\ndef f(x):\n    sys.settrace(None)\n    raise SystemExit",
    "def f(x):\n    open({outside!r}, 'w').write('x')\n    return x",
    "import os, signal\ndef f(x):\n    os.kill(os.getppid(), signal.SIGKILL)\n    return 0",
    "def f(x):\n    while True:\n        pass",
    "f = lambda x: print('passed') or 0",
    "class AssertionError(Exception): pass\ndef f(x):\n    return 0",
    "class E:\n    def __eq__(self, other): return True\ndef f(x): return E()",
    "import sys\ndef f(x): return max(c for c in sys._getframe(2).f_code.co_consts if c)",
    "import builtins\nbuiltins.AssertionError = StopIteration\ndef f(x): return iter(())",
    "def f(x):\n    import socket\n    socket.create_connection(('127.0.0.1', 80))",
)


def test_hostile_solutions_are_never_kept(tmp_path: Path) -> None:
    one = with_tests("assert f(1) == 2", "assert f(2) == 3")
    right = candidate(one, 99, "def f(x):\n    return x + 1")
    outside = tmp_path / "was-here"
    sources = [source.replace("{outside!r}", repr(str(outside))) for source in HOSTILE]
    group = [candidate(one, n, source) for n, source in enumerate(sources)] + [right]
    known: dict[str, Any] = {}
    with journal(tmp_path / "v.jsonl") as verdicts:
        execute(
            [one],
            group,
            SandboxConfig(limits=Limits(wall_s=4.0)),
            verdicts,
            known,
            again=2,
            show=lambda _: None,
        )
    choice = choose(group, known, again=2)
    assert choice.kept is right
    assert choice.passed == 1
    assert not outside.exists()


# --- prompts and settings -------------------------------------------------------------------------


def test_prompts_have_the_papers_parts() -> None:
    ours = prompts.load()
    (question,) = ours.questions(50, "chat")
    assert "Write 50 " in question.content
    tests = ours.tests("Do {number} things?", 5)
    assert [message.role for message in tests] == ["user", "assistant", "user"]
    assert tests[1].content.startswith("[TESTS]\n# Test case 1:\nassert unique_elements(")
    assert tests[1].content.count("assert") == 3
    assert "Write 5 tests" in tests[2].content
    assert tests[2].content.endswith("Question: Do {number} things?"), "filled in once"
    solution = ours.solution("Q?", "assert f(1) == 2")
    assert solution[1].content.startswith("[PYTHON]\n")
    assert solution[2].content == "Question: Q?\nTest:\nassert f(1) == 2"
    text = prompts.as_text(tests)
    assert text.startswith("[INST] You write unit tests")
    assert text.count("[/INST] [TESTS]") == 1
    assert text.endswith("[/INST]")


def test_prompts_are_replaced_by_files(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    paths = prompts.write(folder)
    assert prompts.load(folder).digest() == prompts.load().digest()
    with pytest.raises(UserError, match="is there already"):
        prompts.write(folder)
    paths[0].write_text("=== user\nSay {number}.\n")
    assert prompts.load(folder).questions(3, "chat")[0].content == "Say 3."
    for content, problem in (
        ("no turn", "text stands before"),
        ("=== assistant\nx\n", "turn 1 is of assistant"),
        ("=== user\nx\n=== assistant\ny\n", "ends with an answer"),
    ):
        paths[0].write_text(content)
        with pytest.raises(UserError, match=problem):
            prompts.load(folder)
    (folder / "tests.txt").write_text("=== user\nno place for it\n")
    paths[0].unlink()
    with pytest.raises(UserError, match=r"\{question\} does not occur"):
        prompts.load(folder)
    (folder / "tets.txt").write_text("")
    with pytest.raises(UserError, match=r"tets\.txt"):
        prompts.load(folder)


def test_settings_are_read_and_checked() -> None:
    paper = PRESETS["paper"]
    assert (paper.questions, paper.per_request, paper.tests, paper.solutions) == (62_000, 50, 5, 10)
    assert not any((paper.probe_tests, paper.drop_flaky, paper.dedup_solutions))
    changed = settings_of("verified", {"solutions": "3", "drop_flaky": "false", "top_p": "0.5"})
    assert (changed.solutions, changed.drop_flaky, changed.top_p) == (3, False, 0.5)
    for changes, problem in (
        ({"solution": "3"}, "no field 'solution'"),
        ({"solutions": "many"}, "not of type int"),
        ({"drop_flaky": "perhaps"}, "not true or false"),
        ({"solutions": 0}, "at least 1"),
        ({"top_p": 0}, "not in"),
        ({"tests_temperature": -1}, "below 0"),
        ({"solutions_temperature": 0}, "all the same"),
        ({"near_dedup": 2}, "similarity"),
        ({"seed": -1}, "seed"),
    ):
        with pytest.raises(UsageError, match=problem):
            settings_of("verified", changes)
    with pytest.raises(UsageError, match="no preset"):
        settings_of("large", {})


def test_a_file_that_wants_mending_leaves_no_folder(
    tmp_path: Path, remote: Callable[..., Endpoint]
) -> None:
    path = tmp_path / "q.txt"
    path.write_text("\n")
    with pytest.raises(UserError, match="holds no question"):
        run(request(tmp_path / "o", remote(), questions_file=path))
    assert not (tmp_path / "o").exists()


def test_one_process_writes_to_a_journal(tmp_path: Path) -> None:
    with journal(tmp_path / "j.jsonl") as one:
        one.add([{"id": "a", "x": 1}, {"id": "a", "x": 2}])
        with (
            pytest.raises(UserError, match="another process"),
            journal(tmp_path / "j.jsonl"),
        ):
            raise AssertionError
        assert one.get("a") == {"id": "a", "x": 1}
    os.truncate(tmp_path / "j.jsonl", 5)
    with journal(tmp_path / "j.jsonl") as one:
        assert len(one) == 0
        one.add([{"id": "b"}])
    assert lines(tmp_path / "j.jsonl") == [{"id": "b"}]


# --- what no file can hold ------------------------------------------------------------------------

SURROGATES = {
    "in a question": lambda text: text.replace("1. Write", "1. Write \ud800"),
    "in the tests": lambda text: text.replace(
        "# Test case 1:", "assert add_1('\udfff') == '\ud83d'"
    ),
    "in a program": lambda text: text.replace("# the same", "# the \udcff same"),
    "around everything": lambda text: f"\udc80{text}\ud800",
}


@pytest.mark.parametrize("change", SURROGATES.values(), ids=SURROGATES)
def test_a_lone_surrogate_in_an_answer_never_ends_a_run(
    tmp_path: Path, remote: Callable[..., Endpoint], endpoint: Any, change: Callable[[str], str]
) -> None:
    say = endpoint.say
    endpoint.say = lambda body: change(say(body))
    first = run(request(tmp_path / "o", remote()))
    assert first["funnel"]["kept"] > 0
    assert run(request(tmp_path / "o", remote())) == first
    assert record.report_of(tmp_path / "o") == read_json(tmp_path / "o" / "report.json")


def test_an_endpoint_that_refuses_every_request_ends_the_run_with_an_error(
    tmp_path: Path, remote: Callable[..., Endpoint], endpoint: Any
) -> None:
    endpoint.status = (400, {}, b"max_tokens is too large")
    with pytest.raises(UserError, match="refused all 3 requests for questions: HTTP 400: max_tok"):
        run(request(tmp_path / "o", remote()))
    endpoint.status = None
    (tmp_path / "o" / "replies" / "questions.jsonl").unlink()
    assert run(request(tmp_path / "o", remote()))["funnel"]["kept"] > 0
