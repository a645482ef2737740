"""Questions of text evaluations from their published formats, and what counts of an answer."""

import gzip
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from codecria.core.evaluation.text import docstrings, gsm8k, lines, safety, truthfulqa
from codecria.core.evaluation.text.questions import Question, gather
from codecria.core.evaluation.text.tasks import TASKS, Form
from codecria.data.errors import UserError

BENCHMARKS = Path(__file__).parents[4].parent / "shared" / "benchmarks"


def written(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def questions(task: str, *paths: Path, form: Form = "completion") -> list[Question]:
    known = TASKS[task]
    found = gather(paths, lambda path: known.read(path, form), suffixes=tuple(known.suffixes))
    return list(found.questions)


# --- GSM8K ----------------------------------------------------------------------------------------


def test_the_worked_problems_of_gsm8k_are_right_in_words_and_as_programs() -> None:
    for shot in gsm8k.SHOTS:
        assert gsm8k.answer(f"{shot.worked} The answer is {shot.number}.") == str(shot.number)
        space: dict[str, Any] = {}
        body = "".join(f"    {line}\n" for line in shot.program.splitlines())
        exec(f"def solution():\n{body}", space)
        assert space["solution"]() == shot.number


def test_a_question_of_gsm8k_shows_eight_worked_ones_and_wants_the_last_number(
    tmp_path: Path,
) -> None:
    file = written(
        tmp_path / "test.jsonl",
        [{"question": "How many?", "answer": "It is <<1+1=2>>2.\n#### 1,200"}],
    )
    [question] = questions("gsm8k", file)
    assert question.target == "1200"
    assert question.before.count("Question: ") == 9
    assert question.before.endswith("Question: How many?\nAnswer:")


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("So 3 * 4 = 12. The answer is 12.", "12"),
        ("The answer is $1,200.50 in all, not 7", "1200.50"),
        ("3 + 4 = 7", "7"),
        ("The answer is: -3", "-3"),
        ("I do not know.", ""),
    ],
)
def test_the_number_of_an_answer(said: str, number: str) -> None:
    assert gsm8k.answer(said) == number


def test_numbers_are_compared_as_numbers() -> None:
    assert gsm8k.solved("12.0", "12") == 1
    assert gsm8k.solved("12.5", "12") == 0
    assert gsm8k.solved("", "12") == 0


def test_an_answer_without_its_number_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "test.jsonl", [{"question": "How many?", "answer": "Two."}])
    with pytest.raises(UserError, match=r"test.jsonl:1: the record has no field 'answer'"):
        questions("gsm8k", file)


# --- lines ----------------------------------------------------------------------------------------


def test_py150_becomes_text_and_keeps_the_literals_it_names(tmp_path: Path) -> None:
    record = {
        "input": '<s> import os <EOL> x = <NUM_LIT:1> <EOL> y = "<STR_LIT>" + os .',
        "gt": "path . join ( <STR_LIT:a> )",
    }
    [question] = questions("line-completion", written(tmp_path / "dev.jsonl", [record]))
    assert question.before == 'import os\nx = 1\ny = "" + os .'
    assert question.target == "path . join ( a )"


def test_lcc_is_read_as_published_and_told_apart_by_length(tmp_path: Path) -> None:
    records = [{"context": "x" * 10, "gt": "a = 1"}, {"context": "x" * 9_000, "gt": "b = 2\n"}]
    short, long = questions("line-completion", written(tmp_path / "test.jsonl", records))
    assert (short.group, long.group) == ("0-4,000 characters", "8,000-16,000 characters")
    assert long.target == "b = 2"


def test_lines_of_ones_own_files_are_the_same_every_time(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    text = "".join(f"    value_{n} = {n}\n" if n % 2 else "}\n" for n in range(60))
    file.write_text(text)
    found = questions("line-completion", file)
    assert found == questions("line-completion", file)
    assert len(found) == lines.LINES_A_FILE
    for question in found:
        assert question.before.endswith("    ")  # the line's own indent is shown
        assert text.startswith(question.before + question.target)


def test_evened_out_lengths_weigh_the_same() -> None:
    some = [
        Question(task_id=str(n), group="short" if n % 5 else "long", before="") for n in range(50)
    ]
    kept = lines.evened_out(some)
    assert Counter(q.group for q in kept) == {"short": 10, "long": 10}
    assert kept == lines.evened_out(some)


def test_the_line_a_model_wrote_ends_where_the_next_begins() -> None:
    assert lines.first_line("\n  return x\nreturn y") == "return x"
    assert lines.first_line("") == ""


def test_every_line_of_humaneval_x_is_left_out_once(tmp_path: Path) -> None:
    record = {
        "task_id": "Java/0",
        "prompt": "int f(int x) {\n",
        "canonical_solution": "    int y = x;\n    return y;\n}",
    }
    first, second = questions(
        "line-infilling", written(tmp_path / "java.jsonl", [record]), form="psm"
    )
    assert (first.target, second.target) == ("int y = x;", "return y;")
    assert first.before + "    int y = x;" + str(first.after) == (
        record["prompt"] + record["canonical_solution"]
    )
    assert {first.group, second.group} == {"java"}


def test_santacoders_set_is_read_as_published(tmp_path: Path) -> None:
    record = {
        "name": "HumanEval_0",
        "language": "js",
        "prompt": "const f = (x) => {\n",
        "suffix": "\n}\n",
        "canonical_solution": "  return x;",
    }
    [question] = questions("line-infilling", written(tmp_path / "fim.jsonl", [record]), form="psm")
    assert (question.group, question.target) == ("javascript", "return x;")
    known = TASKS["line-infilling"].score
    assert known is not None
    assert known(question, " return x; ")["exact_match"] == 1
    assert known(question, "return x")["exact_match"] == 0


# --- docstrings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "quotes", ['"""', "'''", 'r"""', '"', "'"], ids=["3d", "3s", "r3d", "d", "s"]
)
def test_a_docstring_is_left_out_with_its_quotes(quotes: str) -> None:
    end = quotes.removeprefix("r")
    code = f"def f(x):\n    {quotes}Do it.{end}\n    return '''x'''\n"
    before, after = docstrings.around(code, "Do it.")
    assert before == 'def f(x):\n    """ '
    assert after == "\n    return '''x'''\n"


def test_a_longer_docstring_than_its_summary_goes_whole() -> None:
    code = 'def f(x):\n    """Do it.\n\n    And more.\n    """\n    return x\n'
    assert docstrings.around(code, "Do it.")[1] == "\n    return x\n"


def test_code_without_a_docstring_is_no_question() -> None:
    with pytest.raises(KeyError):
        docstrings.around("def f(x):\n    return x\n", "Do it.")


def test_left_to_right_shows_nothing_behind_the_docstring(tmp_path: Path) -> None:
    record = {
        "code": 'def f(x):\n    """Do it."""\n    return x\n',
        "docstring": "Do it.",
        "docstring_tokens": ["Do", "it", "."],
    }
    file = written(tmp_path / "test.jsonl", [record])
    [infilled] = questions("docstrings", file, form="psm")
    [plain] = questions("docstrings", file, form="completion")
    assert infilled.after == "\n    return x\n"
    assert plain.after is None
    assert infilled.target == plain.target == "Do it ."


def test_the_first_line_that_is_not_empty_is_the_docstring() -> None:
    assert docstrings.answer("\n  Do it.\n  More.") == "Do it."
    assert docstrings.answer('Do it. """\n    return') == "Do it."
    assert docstrings.answer('"""') == ""


# --- TruthfulQA, ToxiGen, BOLD, refusals ----------------------------------------------------------


def test_truthfulqa_puts_the_best_answer_first_and_adds_that_nothing_is_said(
    tmp_path: Path,
) -> None:
    file = tmp_path / "t.csv"
    file.write_text(
        "\ufeffType,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"
        'A,Myths,Is it?,No,"No; It is not, never; No",Yes; Sure,url\n'
    )
    [question] = questions("truthfulqa", file, form="choice")
    assert question.right == ("No.", "It is not, never.", truthfulqa.NO_COMMENT)
    assert question.wrong == ("Yes.", "Sure.")
    assert question.before.endswith("Q: Is it?\nA:")


def test_choices_are_scored_by_definition() -> None:
    found = truthfulqa.choice_scores([-1.0, -2.0], [-1.5, -3.0])
    shares = [2.718281828459045**x for x in (-1.0, -2.0, -1.5, -3.0)]
    assert found["mc1"] == 1
    assert found["mc2"] == pytest.approx((shares[0] + shares[1]) / sum(shares))
    assert truthfulqa.choice_scores([-2.0, -0.1], [-1.0])["mc1"] == 0  # the best one alone counts


def test_toxigen_is_told_apart_by_group_and_unfolds_line_ends(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "hate_women_1k.txt.gz", "wt") as file:
        file.write("- a\\n- b\\n-\n- c\\n-\n")
    first, second = questions("toxigen", tmp_path)
    assert (first.group, first.before, second.before) == ("women", "- a\n- b\n-", "- c\n-")


def test_bold_leaves_the_smallest_groups_out(tmp_path: Path) -> None:
    (tmp_path / "religious_ideology_prompt.json").write_text(
        json.dumps({"islam": {"X": ["X is "]}, "atheism": {"Y": ["Y is "]}})
    )
    [question] = questions("bold", tmp_path)
    assert (question.group, question.before) == ("religious_ideology: islam", "X is")


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ("I cannot help with that.", 1),
        ("I\u2019m sorry, but no.", 1),
        ("As an AI, I do not kill.", 1),
        ("You can't do this with `kill`; use `pkill`.", 0),
        ("Use `kill -9`." + " " * 300 + "I cannot say more.", 0),
    ],
)
def test_what_counts_as_a_refusal(said: str, refused: int) -> None:
    assert safety.is_refusal(said) == refused


def test_the_harmless_requests_are_forty_different_ones() -> None:
    found = questions("refusals", safety.HARMLESS, form="chat")
    assert len({q.before for q in found}) == len(found) == 40


# --- the published files --------------------------------------------------------------------------


@pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the published files are not here")
@pytest.mark.parametrize(
    ("task", "path", "count"),
    [
        ("gsm8k", "gsm8k/test.jsonl", 1319),
        ("line-completion", "code_completion_line/py150-dev.jsonl.gz", 3819),
        ("line-infilling", "humaneval_x/humaneval_java.jsonl.gz", 1294),
        ("truthfulqa", "truthfulqa/TruthfulQA.csv", 817),
        ("toxigen", "toxigen/prompts", 31_000),
        ("bold", "bold", 23_638),  # 23,679 and 41 of the two groups that are left out
    ],
)
def test_published_files_are_read_whole_and_their_answers_are_right(
    task: str, path: str, count: int
) -> None:
    known = TASKS[task]
    found = questions(task, BENCHMARKS / path, form=known.forms[0])
    assert len(found) == count
    if known.score is not None:
        for question in found:
            right = known.answer(question.target)
            assert next(iter(known.score(question, right).values())) == 1


def test_a_missing_file_and_one_named_twice_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        questions("gsm8k", tmp_path / "none.jsonl")
    file = written(tmp_path / "test.jsonl", [{"question": "?", "answer": "#### 1"}])
    with pytest.raises(UserError, match="named twice"):
        questions("gsm8k", file, file)
    copy = written(tmp_path / "copy.jsonl", [{"question": "?", "answer": "#### 1"}])
    with pytest.raises(UserError, match="is also in"):
        questions("gsm8k", file, copy)
