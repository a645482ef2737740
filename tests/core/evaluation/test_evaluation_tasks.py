"""Problems in each published format, what models are shown of them, and what they are taken to say.

The problems are made up here in the shape of the real files, which are read only where they are.
"""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("codecria.core.sandbox.sandbox")

from codecria.core.evaluation.benchmarks import humaneval, mbpp
from codecria.core.evaluation.benchmarks.problems import Problem, ProblemSet
from codecria.core.evaluation.benchmarks.protocol import Changes, Form, Protocol, freeze
from codecria.core.evaluation.benchmarks.registry import TASKS
from codecria.core.evaluation.benchmarks.sampling import generate
from codecria.core.evaluation.benchmarks.tasks import (
    Asker,
    Choice,
    answer_to,
    known_id,
    load,
    select,
)
from codecria.core.inference.generator import Generator
from codecria.core.seed import seed_of
from codecria.data.errors import UserError
from codecria.data.formats.infill import Infiller, Order
from codecria.data.tokenizer.tokenizer import Tokenizer

BENCHMARKS = Path(__file__).parents[3].parent / "shared" / "benchmarks"

ADD = {
    "task_id": "Own/0",
    "prompt": 'def add(a, b):\n    """The sum."""\n',
    "entry_point": "add",
    "canonical_solution": "    return a + b\n",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
}
FILL = {
    **ADD,
    "task_id": "SingleLineInfilling/Own/0/L0",
    "suffix": "    return c\n",
    "canonical_solution": "    c = a + b\n",
}
DOUBLE = {
    "task_id": 12,
    "text": "Write a function that doubles.",
    "code": "def double(x):\r\n  return 2 * x",
    "test_setup_code": "",
    "test_list": ["assert double(2) == 4"],
    "challenge_test_list": [],
}
SANITIZED = {
    "task_id": 12,
    "prompt": "Write a function that doubles.",
    "code": "def double(x):\n  return 2 * x",
    "test_imports": ["import math"],
    "test_list": ["assert double(math.e) > 5"],
    "source_file": "one.ipynb",
}
CPP = {
    "task_id": "CPP/0",
    "prompt": "int twice(int x){\n",
    "canonical_solution": "    return 2 * x;\n}\n",
    "test": "int main(){ return twice(2) == 4 ? 0 : 1; }\n",
    "declaration": "int twice(int x){\n",
    "example_test": "",
}
BASH = {
    "name": "HumanEval_0_twice",
    "language": "sh",
    "prompt": "twice() {\n",
    "tests": "}\n[[ $(twice 2) = 4 ]]",
    "stop_tokens": ["\n}"],
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def make(*records: dict[str, Any], name: str = "problems.jsonl") -> Path:
        path = tmp_path / name
        text = "".join(json.dumps(record) + "\n" for record in records).encode()
        path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
        return path

    return make


def protocol(task: str, form: Form, **changes: object) -> Protocol:
    return freeze(
        task,
        form,
        "paper-greedy",
        Changes(**changes),  # type: ignore[arg-type]
        eos_ends=task != "infilling",
        shots=(),
        labels=(),
        source="",
    )


# --- problems -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "record", "source", "tests"),
    [
        (
            "humaneval",
            ADD,
            'def add(a, b):\n    """The sum."""\n    return a + b\n',
            f"{ADD['test']}\ncheck(add)",
        ),
        (
            "infilling",
            FILL,
            'def add(a, b):\n    """The sum."""\n    c = a + b\n    return c\n',
            f"{FILL['test']}\ncheck(add)",
        ),
        ("mbpp", DOUBLE, "def double(x):\n  return 2 * x", "assert double(2) == 4"),
        (
            "mbpp",
            SANITIZED,
            "def double(x):\n  return 2 * x",
            "import math\nassert double(math.e) > 5",
        ),
    ],
)
def test_a_reference_makes_the_published_program(
    write: Callable[..., Path], task: str, record: dict[str, Any], source: str, tests: str
) -> None:
    [problem] = load(TASKS[task], write(record, name="problems.jsonl.gz")).problems
    assert problem.reference is not None
    assert problem.source(problem.reference) == source
    assert problem.tests == tests
    exec(compile(f"{source}\n{tests}", "program", "exec"), {})


def test_other_languages_are_told_by_id_or_field(write: Callable[..., Path]) -> None:
    [cpp] = load(TASKS["humaneval-x"], write(CPP)).problems
    assert cpp.language == "cpp"
    assert cpp.source(cpp.reference or "").endswith("int twice(int x){\n    return 2 * x;\n}\n")
    assert cpp.source("").startswith("#include<")
    [bash] = load(TASKS["multipl-e"], write(BASH)).problems
    assert (bash.language, bash.reference, bash.stops) == ("bash", None, ("\n}",))


def test_a_failed_console_assert_ends_a_javascript_program(write: Callable[..., Path]) -> None:
    record = {**CPP, "task_id": "JavaScript/0", "test": "console.assert(f(1) === 2)"}
    [problem] = load(TASKS["humaneval-x"], write(record)).problems
    # Behind the solution, so that no solution puts another in its place.
    assert problem.tests.startswith("console.assert = ")
    assert "throw" in problem.tests.splitlines()[0]


@pytest.mark.parametrize(
    ("task", "record", "named"),
    [
        ("humaneval", {k: v for k, v in ADD.items() if k != "test"}, "no field 'test'"),
        ("infilling", ADD, "no field 'suffix'"),
        ("mbpp", ADD, "no field 'task_id'"),
        ("humaneval-x", {**CPP, "task_id": "COBOL/0"}, "no field 'task_id'"),
        ("multipl-e", {**BASH, "stop_tokens": "}"}, "no field 'stop_tokens'"),
    ],
)
def test_a_record_of_another_suite_is_refused_by_its_line(
    write: Callable[..., Path], task: str, record: dict[str, Any], named: str
) -> None:
    with pytest.raises(UserError, match=rf"problems\.jsonl:1: .*{named}"):
        load(TASKS[task], write(record))


def test_an_id_comes_once(write: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r":2: Own/0 stands in line 1 too"):
        load(TASKS["humaneval"], write(ADD, ADD))


def test_the_digest_is_of_the_problems_and_not_of_the_file(write: Callable[..., Path]) -> None:
    plain = load(TASKS["humaneval"], write(ADD))
    packed = load(TASKS["humaneval"], write(ADD, name="other.jsonl.gz"))
    changed = load(TASKS["humaneval"], write({**ADD, "test": "def check(c): pass"}, name="c.jsonl"))
    assert plain.digest() == packed.digest() != changed.digest()


def test_mbpp_is_asked_by_its_split_and_ids_are_spelled_as_tools_spell_them() -> None:
    found = ProblemSet(
        Path("mbpp.jsonl"), tuple(mbpp.parse({**DOUBLE, "task_id": n}) for n in range(1, 975))
    )
    task = TASKS["mbpp"]
    assert [mbpp.number_of(p) for p in select(task, found)] == list(range(11, 511))
    assert len(select(task, found, Choice(split="all"))) == 974
    assert len(select(task, found, Choice(limit=3))) == 3
    by_id = found.by_id()
    assert {known_id(given, by_id) for given in (2, "2", "MBPP/2", "Mbpp/2")} == {"MBPP/2"}
    assert known_id(True, by_id) is known_id("MBPP/975", by_id) is known_id(None, by_id) is None
    assert [p.task_id for p in select(task, found, Choice(ids=("3", "Mbpp/2")))] == [
        "MBPP/2",
        "MBPP/3",
    ]
    with pytest.raises(UserError, match="no task 1000"):
        select(task, found, Choice(ids=("1000",)))


@pytest.mark.parametrize(
    ("task", "file", "count", "languages"),
    [
        ("humaneval", "humaneval/HumanEval.jsonl.gz", 164, {"python"}),
        ("mbpp", "mbpp/mbpp.jsonl", 974, {"python"}),
        ("mbpp", "mbpp/sanitized-mbpp.json", 427, {"python"}),
        (
            "infilling",
            "humaneval_infilling/HumanEval-SingleLineInfilling.jsonl.gz",
            1033,
            {"python"},
        ),
        (
            "infilling",
            "humaneval_infilling/HumanEval-RandomSpanInfillingLight.jsonl.gz",
            164,
            {"python"},
        ),
        ("humaneval-x", "humaneval_x/humaneval_cpp.jsonl.gz", 164, {"cpp"}),
        ("humaneval-x", "humaneval_x/humaneval_java.jsonl.gz", 164, {"java"}),
        ("humaneval-x", "humaneval_x/humaneval_js.jsonl.gz", 164, {"javascript"}),
        ("multipl-e", "multipl_e/humaneval-sh.jsonl", 158, {"bash"}),
        ("multipl-e", "multipl_e/humaneval-ts.jsonl", 159, {"typescript"}),
    ],
)
def test_the_real_files_are_read_whole(
    task: str, file: str, count: int, languages: set[str]
) -> None:
    if not (BENCHMARKS / file).is_file():
        pytest.skip("the published files are not here")
    found = load(TASKS[task], BENCHMARKS / file)
    assert len(found.problems) == count
    assert {problem.language for problem in found.problems} == languages


# --- prompts --------------------------------------------------------------------------------------


def test_the_few_shot_prompt_shows_solved_tasks_and_opens_the_next() -> None:
    shot = mbpp.parse(SANITIZED)
    assert mbpp.few_shot_prompt(mbpp.parse(DOUBLE), [shot]) == (
        "You are an expert Python programmer, and here is your task: Write a function that doubles."
        " Your code should pass these tests:\n\nassert double(math.e) > 5\n"
        "[BEGIN]\ndef double(x):\n  return 2 * x\n[DONE]\n\n"
        "You are an expert Python programmer, and here is your task: Write a function that doubles."
        " Your code should pass these tests:\n\nassert double(2) == 4\n[BEGIN]\n"
    )


def test_a_prompt_is_shown_as_published_unless_stripping_is_asked_for(
    release_tokenizer: Tokenizer, write: Callable[..., Path]
) -> None:
    [problem] = load(TASKS["humaneval"], write(ADD)).problems
    for strip, shown in ((False, problem.before), (True, problem.before.rstrip())):
        asker = Asker(
            protocol("humaneval", "completion", strip_prompt=strip),
            (),
            release_tokenizer,
            frozenset({release_tokenizer.eos_id}),
        )
        asked = asker.ask(problem)
        assert list(asked.ids) == release_tokenizer.encode(shown, bos=True)
        assert asked.ends == {release_tokenizer.eos_id}
        # What the model wrote in place of what was stripped is not written twice.
        said = "\n    return a + b" if strip else "    return a + b"
        assert asker.written(problem, asked, said, cut=False).text == "    return a + b"


@pytest.mark.parametrize(("form", "order"), [("psm", Order.PSM), ("spm", Order.SPM)])
def test_infilling_prompts_are_those_of_training_and_end_at_eot_alone(
    form: Form,
    order: Order,
    release_tokenizer: Tokenizer,
    write: Callable[..., Path],
    tmp_path: Path,
) -> None:
    extended = release_tokenizer.extend(tmp_path / "extended.model")
    [problem] = load(TASKS["infilling"], write(FILL)).problems
    asked = Asker(protocol("infilling", form), (), extended, frozenset({extended.eos_id})).ask(
        problem
    )
    infiller = Infiller(extended)
    assert list(asked.ids) == infiller.prompt(ADD["prompt"], FILL["suffix"], order).tolist()
    assert asked.ends == {infiller.special.end}
    assert asked.stops == ()


def test_a_model_without_infilling_pieces_is_told_so(release_tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="cannot fill in the middle"):
        Asker(
            protocol("infilling", "psm"),
            (),
            release_tokenizer,
            frozenset({release_tokenizer.eos_id}),
        )


@pytest.mark.parametrize(
    "answer",
    [
        "Sure!\n```python\ndef add(a, b):\n    return a + b\n```",
        "```python\nfrom math import *\n\ndef add(a, b) -> int:\n\treturn a + b\n```",
        "    return a + b",
    ],
)
@pytest.mark.parametrize("prompt", [ADD["prompt"], "def add(a, b):\n"])
def test_an_answer_becomes_a_completion_that_runs_behind_the_prompt(
    answer: str, prompt: str
) -> None:
    problem = humaneval.parse({**ADD, "prompt": prompt})
    program = problem.source(answer_to(problem, answer).text) + "\n" + problem.tests
    exec(compile(program, "program", "exec"), {})


def test_code_in_an_answer_is_not_moved_by_the_space_that_the_chat_form_puts_before_it(
    release_tokenizer: Tokenizer,
) -> None:
    problem = humaneval.parse(ADD)
    asker = Asker(
        protocol("humaneval", "chat"), (), release_tokenizer, frozenset({release_tokenizer.eos_id})
    )
    said = " def add(a, b):\n    return a + b "
    completion = asker.written(problem, asker.ask(problem), said, cut=False).text
    exec(compile(f"{problem.source(completion)}\n{problem.tests}", "program", "exec"), {})


def test_what_a_stop_string_took_of_a_brace_is_put_back(
    release_tokenizer: Tokenizer, write: Callable[..., Path]
) -> None:
    [problem] = load(TASKS["humaneval-x"], write(CPP)).problems
    asker = Asker(
        protocol("humaneval-x", "completion"),
        (),
        release_tokenizer,
        frozenset({release_tokenizer.eos_id}),
    )
    asked = asker.ask(problem)
    assert asker.written(problem, asked, "    return x;", cut=True).text == "    return x;\n}\n"
    assert asker.written(problem, asked, "    return x;\n}", cut=False).text == "    return x;\n}"


# --- samples --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generator(tokenizer: Tokenizer, random_model: Callable[..., Path]) -> Generator:
    return Generator.load(random_model(tokenizer, max_context=96), device="cpu", dtype="float32")


PROBLEMS = [
    Problem(task_id=f"Own/{n}", language="python", before=f"def f{n}(", tests="", reference=None)
    for n in range(2)
]


def drawn(generator: Generator, *, known: frozenset[tuple[str, int]], batch: int) -> dict[Any, str]:
    sampled = freeze(
        "humaneval",
        "completion",
        "paper-sampled",
        Changes(samples=5, max_tokens=8),
        eos_ends=True,
        shots=(),
        labels=(),
        source="",
    )
    asker = Asker(sampled, (), generator.tokenizer, generator.ends)
    return {
        (sample.task_id, sample.number): sample.text
        for made in generate(generator, asker, PROBLEMS, sampled, known=known, batch=batch)
        for sample in made
    }


def test_an_evaluation_that_goes_on_draws_the_same_samples(generator: Generator) -> None:
    whole = drawn(generator, known=frozenset(), batch=2)
    assert sorted(whole) == [(p.task_id, n) for p in PROBLEMS for n in range(5)]
    known = frozenset({("Own/0", 0), ("Own/0", 1), ("Own/0", 2), ("Own/1", 4)})
    rest = drawn(generator, known=known, batch=2)
    assert rest == {key: text for key, text in whole.items() if key not in known}


def test_samples_and_tasks_draw_each_from_their_own_source(generator: Generator) -> None:
    whole = drawn(generator, known=frozenset(), batch=5)
    assert len(set(whole.values())) == len(whole), "two samples are alike"
    assert seed_of(0, "Own/0") != seed_of(0, "Own/1") != seed_of(1, "Own/1")


def test_a_prompt_that_does_not_fit_is_a_sample_that_says_so(generator: Generator) -> None:
    long = Problem(
        task_id="Own/9", language="python", before="x = 1\n" * 200, tests="", reference=None
    )
    greedy = protocol("humaneval", "completion")
    asker = Asker(greedy, (), generator.tokenizer, generator.ends)
    [[sample]] = list(generate(generator, asker, [long], greedy))
    assert (sample.text, sample.finish_reason) == ("", "prompt_too_long")


ANSWERS = {
    "an example first": (
        "Usage:\n```python\nprint(add(1, 2))\n```\n```python\ndef add(a, b):\n    return a + b\n```"
    ),
    "from the future": (
        "```python\nfrom __future__ import annotations\n\n\ndef add(a: Never, b: Never) -> int:\n"
        "    return a + b\n```"
    ),
    "a class": "```python\nclass Solution:\n    def add(self, a, b):\n        return a + b\n```",
    "thinking": "<think>\n```python\ndef add(a, b): return a\n```\n</think>\nreturn a + b",
    "a body, undented": "```python\nreturn a + b\n```",
    "prose around": "Here:\n\ndef add(a, b):\n    return a + b\n\nIt adds.",
    "windows": "~~~python title='x'\r\ndef add(a, b):\r\n    return a + b\r\n~~~\r\n",
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize("prompt", [ADD["prompt"], "def add(a, b):\n"])
def test_any_shape_of_a_right_answer_is_right_behind_any_prompt(answer: str, prompt: str) -> None:
    problem = humaneval.parse({**ADD, "prompt": prompt})
    written = answer_to(problem, answer)
    program = problem.whole(written.text) if written.is_whole else problem.source(written.text)
    exec(compile(f"{program}\n{problem.tests}", "program", "exec", dont_inherit=True), {})
    assert written.extracted


def test_a_task_without_a_prompt_takes_the_block_that_its_tests_call() -> None:
    record = {
        "task_id": 11,
        "text": "Add two numbers.",
        "code": "def add(a, b): return a + b",
        "test_list": ["assert add(1, 2) == 3"],
        "test_setup_code": "",
    }
    problem = mbpp.parse(record)
    assert problem.wanted == ("add",)
    answer = (
        "```python\ndef add(a, b):\n    return plus(a, b)\n```\nwith\n"
        "```python\ndef plus(a, b):\n    return a + b\n```"
    )
    written = answer_to(problem, answer)
    exec(f"{written.text}\n{problem.tests}", {})
    assert written.extracted == "fence 1; with definitions of other blocks: plus"


def test_the_simple_rule_takes_the_first_block_and_says_so() -> None:
    problem = humaneval.parse(ADD)
    written = answer_to(problem, ANSWERS["an example first"], "simple")
    assert written.text.strip() == "print(add(1, 2))"
    assert written.extracted == "simple rule"
