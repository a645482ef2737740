"""What models say, read: whatever it is, nothing raises, and what is certain is found."""

from __future__ import annotations

import ast
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codecria.core.self_instruct import parse
from codecria.core.self_instruct.derive import rounds, unique
from codecria.core.self_instruct.items import Loss, Question
from codecria.core.self_instruct.parse import code_in, held_tags, problem_of_question, questions_in
from codecria.core.self_instruct.settings import Settings
from codecria.data.corpus import near, shingles
from codecria.data.corpus.near import Near

ANSWERS = st.lists(
    st.one_of(
        st.text(max_size=40),
        st.sampled_from(
            (
                "1. Write a function that works.",
                "  2) ",
                "**3. Name:** do it",
                "[TESTS]",
                "[/TESTS]",
                "assert f(1) == 2",
                "assert f((",
                "```python",
                "```",
                "[PYTHON]",
                "def f(x):",
                "    return x",
                "x = 1",
                "import math",
            )
        ),
    ),
    max_size=12,
).map("\n".join)


@given(answer=ANSWERS, cut=st.booleans())
@settings(max_examples=300)
def test_whatever_a_model_says_is_read(answer: str, cut: bool) -> None:
    for text, problem in questions_in(answer, cut=cut):
        assert text.strip()
        assert problem or not problem_of_question(text)
    tests, _ = parse.asserts_in(answer)
    for source in tests.asserts:
        assert isinstance(ast.parse(source).body[-1], ast.Assert)
    ast.parse(tests.program)
    code = code_in(answer)
    if not isinstance(code, str):
        assert ast.parse(code.source).body
        assert not held_tags(code.source)


WORDS = ("write", "sum", "list", "text", "every", "number", "of", "the")
SENTENCES = st.lists(
    st.lists(
        st.sampled_from(["write", "sum", "list", "text", "every", "number", "of", "the"]),
        min_size=5,
    ).map(" ".join),
    min_size=1,
    max_size=8,
)


STYLES = ("{}. {}", "{}) {}", "{}: {}", "**{}.** {}", "  {}. {}", "Question {}: {}")


@given(
    questions=SENTENCES,
    style=st.sampled_from(
        ("{}. {}", "{}) {}", "{}: {}", "**{}.** {}", "  {}. {}", "Question {}: {}")
    ),
    between=st.sampled_from(("\n", "\n\n", "\r\n")),
)
def test_a_numbered_list_in_any_style_is_read_back(
    questions: list[str], style: str, between: str
) -> None:
    listed = between.join(style.format(n, q) for n, q in enumerate(questions, start=1))
    answer = f"Of course! Here they are:\n\n{listed}\n\nGood luck!"
    assert list(questions_in(answer, cut=False)) == [(question, "") for question in questions]


def test_steps_and_examples_belong_to_their_question() -> None:
    answer = textwrap.dedent("""\
        1. **Merge intervals**: given a list of pairs, merge those that overlap.
           1. Sort them.
           2. Walk along.
           Example: [(1, 3), (2, 4)] gives [(1, 4)]

        2. **Write a function that reverses the words of a text.**
        """)
    first, second = (text for text, _ in questions_in(answer, cut=False))
    assert "Walk along." in first
    assert "Example" in first
    assert second == "Write a function that reverses the words of a text."


def test_a_question_that_was_cut_or_carries_tags_is_a_loss() -> None:
    answer = "1. Write [INST] a function now.\n2. Too short\n3. Write a function that returns"
    problems = [problem for _, problem in questions_in(answer, cut=True)]
    assert problems == ["holds a control tag", "too short", "cut short"]


def test_tests_are_asserts_with_what_they_stand_on() -> None:
    answer = textwrap.dedent("""\
        Sure, here are the tests:
        [TESTS]
        import math
        # Test case 1:
        assert area(1) == math.pi
        # Test case 2:
        radius = 2
        assert area(radius) > 12, "large"
        # Test case 3: of nothing
        assert 1 + 1 == 2
        def area(r): return 0
        assert area(1) == math.pi
        print(area(3))
        [/TESTS]
        And more: assert area(9)
        """)
    tests, lost = parse.asserts_in(answer)
    assert tests.setup == ("import math",)
    assert tests.asserts == (
        "assert area(1) == math.pi",
        "radius = 2\nassert area(radius) > 12, 'large'",
    )
    assert [reason for _, reason in lost] == [
        "calls nothing of the solution",
        "no assert",
        "repeated",
        "no assert",
    ]


def test_whole_asserts_of_a_cut_answer_are_kept() -> None:
    tests, lost = parse.asserts_in("[TESTS]\nassert f(1) == 2\nassert f(2) == 3\nassert f([1, 2")
    assert tests.asserts == ("assert f(1) == 2", "assert f(2) == 3")
    assert lost == [("assert f([1, 2", "syntax error")]


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("[PYTHON]\ndef f():\n    pass\n[/PYTHON] Done.", "def f():\n    pass"),
        ("It is:\n```python\ndef f():\n    pass\n```\nDone.", "def f():\n    pass"),
        ("[PYTHON]\n```py\nf = len\n```\n[/PYTHON]", "f = len"),
        ("def f(x):\n    return x", "def f(x):\n    return x"),
    ],
)
def test_a_program_is_found_in_tags_fences_or_alone(answer: str, found: str) -> None:
    code = code_in(answer)
    assert not isinstance(code, str)
    assert code.source == found


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("", "no code"),
        ("I cannot do that.", "syntax error"),
        ("[PYTHON]\nprint(1)\n[/PYTHON]", "defines nothing"),
        ("[PYTHON]\ndef f():\n    return '[/INST]'\n[/PYTHON]", "holds a control tag"),
        ("[PYTHON]\nx = " + "(" * 9_000, "syntax error"),
        ("[PYTHON]\nx = " + "-" * 60_000 + "1", "syntax error"),
        ("x = 1\n" * 12_000, "too long"),
        ("[PYTHON]\nx = '\x00'", "is no text"),
        ("[PYTHON]\nx = '\ud800'", "is no text"),
    ],
)
def test_what_is_no_program_says_why(answer: str, why: str) -> None:
    assert code_in(answer) == why


def test_layout_and_comments_do_not_change_a_programs_shape() -> None:
    one = code_in("def f(x):\n    return x+1")
    same = code_in("def f( x ):\n    # adds\n    return (x + 1)")
    other = code_in("def f(y):\n    return y+1")
    assert not isinstance(one, str)
    assert not isinstance(same, str)
    assert not isinstance(other, str)
    assert one.shape == same.shape != other.shape


@given(questions=st.integers(1, 300), per_request=st.integers(1, 60))
def test_rounds_ask_for_every_question_once(questions: int, per_request: int) -> None:
    sizes = rounds(Settings(questions=questions, per_request=per_request))
    assert sum(sizes) == questions
    assert all(1 <= size <= per_request for size in sizes)


@given(texts=SENTENCES, threshold=st.sampled_from((0.3, 0.5, 0.7, 0.9, 1.0)))
@settings(max_examples=200)
def test_near_dedup_finds_what_comparing_all_pairs_finds(
    texts: list[str], threshold: float
) -> None:
    questions = [Question.of(text, str(n)) for n, text in enumerate(dict.fromkeys(texts))]
    sets = near.gram_sets(
        shingles.column([question.text for question in questions]), Near(shingle=1)
    )
    expected: list[int] = []
    for place in range(len(questions)):
        if all(near.jaccard(sets[place], sets[other]) < threshold for other in expected):
            expected.append(place)
    lost: list[Loss] = []
    kept = unique(questions, threshold, None, lost.append)
    assert kept == [questions[place] for place in expected]
    assert len(kept) + len(lost) == len(questions)


@pytest.mark.parametrize(
    "answer",
    [
        " def f(x):\n    return x + 1 ",  # the space of the chat form
        "[PYTHON] def f(x):\n    return x + 1\n[/PYTHON]",
        "[PYTHON]\n    def f(x):\n        return x + 1\n[/PYTHON]",
        "- Here:\n  ```python\n  def f(x):\n      return x + 1\n  ```",
        "\n\n  def f(x):\n    return x + 1",
    ],
)
def test_code_begins_where_its_other_statements_do(answer: str) -> None:
    found = code_in(answer)
    assert isinstance(found, parse.Code)
    space: dict[str, object] = {}
    exec(found.source, space)
    assert space["f"](1) == 2  # type: ignore[operator]
