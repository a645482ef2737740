"""Key retrieval: the prompts, the two ways of judging an answer, and the grid."""

import ast
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codecria.core.evaluation.long_context.retrieval import (
    CHANCE,
    QUESTION,
    VALUES,
    Asked,
    Filler,
    Prompt,
    ask,
    encoded,
    filler_in,
    first_number,
    functions_in,
    grid,
    key_function,
    make_prompt,
    measured,
    shortest,
    wilson,
)
from codecria.core.inference.decoding import Limits
from codecria.core.inference.generator import Generator
from codecria.core.inference.sampling import Sampling
from codecria.core.model.attention import PackedAttention
from codecria.core.model.transformer import Transformer
from codecria.data.errors import UserError
from codecria.data.tokenizer.tokenizer import Tokenizer

SMALL = [f"def f{n}(x):\n    return x + {n}\n" for n in range(40)]


@pytest.fixture(scope="module")
def filler(tokenizer: Tokenizer) -> list[Filler]:
    return measured(SMALL, tokenizer)


@pytest.fixture(scope="module")
def whole_numbers(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer that joins a space and two digits into a piece, unlike Llama 2's and ours."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("whole")
    (folder / "text").write_text("\n".join(f"x == {n} y" for n in VALUES for _ in range(20)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        split_digits=False,
        character_coverage=1.0,
        minloglevel=2,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
    )
    return Tokenizer.load(folder / "tokenizer.model")


@pytest.fixture(scope="module")
def generator(small_model: Path) -> Generator:
    return Generator.load(small_model, engine="torch", device="cpu", dtype="float32")


GOLDEN = '''\
def one():
    return 1


def my_function() -> int:
    """Note that this function is used at the end"""
    return VALUE


def two():
    return 2


assert my_function() == '''


def test_a_small_prompt_reads_as_the_appendix_says(tokenizer: Tokenizer) -> None:
    functions = ["def one():\n    return 1\n", "def two():\n    return 2\n"]
    parts = measured(functions, tokenizer)
    made = [
        make_prompt(tokenizer, parts, length=100, position=0.5, seed=0, example=example)
        for example in range(6)
    ]
    found = {prompt.text.replace(f"return {prompt.value}", "return VALUE") for prompt in made}
    one, two = "def one():\n    return 1\n", "def two():\n    return 2\n"
    swapped = GOLDEN.replace(one, "-").replace(two, one).replace("-", two, 1)
    assert found == {GOLDEN, swapped}, "both orders of the filler come up in six draws"
    assert len({prompt.value for prompt in made}) > 1


@settings(max_examples=40)
@given(
    length=st.integers(120, 900),
    position=st.floats(0, 1),
    seed=st.integers(0, 5),
    example=st.integers(0, 5),
)
def test_prompts_fill_their_length_and_hold_the_key_once_where_it_was_asked_for(
    tokenizer: Tokenizer,
    filler: list[Filler],
    length: int,
    position: float,
    seed: int,
    example: int,
) -> None:
    prompt = make_prompt(
        tokenizer, filler, length=length, position=position, seed=seed, example=example
    )
    largest = max(part.tokens for part in filler)
    assert length - largest - 3 <= len(prompt.ids) <= length
    assert prompt.text.count(key_function(prompt.value)) == 1
    assert prompt.text.count("my_function") == 2, "the function and the question"
    assert prompt.text.endswith(QUESTION)
    assert prompt.value in VALUES
    ast.parse(prompt.text + str(prompt.value))  # cut at function borders alone
    right = prompt.ids + prompt.candidates[VALUES.index(prompt.value)]
    assert tokenizer.decode(right[1:]) == f"{prompt.text}{prompt.value}"
    # An independent measure of the place: tokens of the text before and after.
    before = prompt.text[: prompt.before]
    after = prompt.text[prompt.before + len(key_function(prompt.value)) + 2 : -len(QUESTION)]
    sizes = [len(tokenizer.encode(part, leading_space=False)) for part in (before, after)]
    assert prompt.placed == pytest.approx(sizes[0] / sum(sizes), abs=0.02)
    assert abs(prompt.placed - position) <= largest / sum(sizes) / 2 + 0.02


def test_a_prompt_is_a_function_of_its_arguments(
    tokenizer: Tokenizer, filler: list[Filler]
) -> None:
    def made(seed: int, example: int) -> Prompt:
        return make_prompt(tokenizer, filler, length=300, position=0.4, seed=seed, example=example)

    assert made(1, 2) == made(1, 2)
    assert len({made(seed, example).text for seed in (1, 2) for example in (0, 1)}) == 4


def test_functions_stand_once_while_they_last(tokenizer: Tokenizer, filler: list[Filler]) -> None:
    few = make_prompt(tokenizer, filler, length=300, position=0, seed=0, example=0)
    many = make_prompt(tokenizer, filler[:3], length=300, position=0, seed=0, example=0)
    assert few.repeats == 0
    assert many.repeats > 0
    assert len(many.ids) > 300 - 3 * filler[0].tokens


def test_the_shortest_prompt_can_be_made(tokenizer: Tokenizer, filler: list[Filler]) -> None:
    least = shortest(filler, tokenizer)
    prompt = make_prompt(tokenizer, filler, length=least, position=1, seed=0, example=0)
    assert len(prompt.ids) <= least


@pytest.mark.parametrize("kind", ["split digits", "whole numbers"])
def test_prompt_and_answer_are_encoded_as_they_are_in_a_file(
    kind: str, tokenizer: Tokenizer, whole_numbers: Tokenizer
) -> None:
    chosen = tokenizer if kind == "split digits" else whole_numbers
    text = f"{SMALL[0]}\n\n{QUESTION}"
    ids, candidates = encoded(chosen, text)
    for value, candidate in zip(VALUES, candidates, strict=True):
        assert ids + candidate == chosen.encode(f"{text}{value}", bos=True)
    if kind == "split digits":
        assert {len(candidate) for candidate in candidates} == {2}
        assert ids == chosen.encode(text, bos=True), "the paper's prompt, its last space a token"
    else:
        assert {len(candidate) for candidate in candidates} == {1}
        assert [*ids, candidates[0][0]] != chosen.encode(text, bos=True)


def test_llama_reads_the_paper_prompt_as_it_is(release_tokenizer: Tokenizer) -> None:
    ids, candidates = encoded(release_tokenizer, f"{SMALL[0]}\n\n{QUESTION}")
    assert ids == release_tokenizer.encode(f"{SMALL[0]}\n\n{QUESTION}", bos=True)
    assert [release_tokenizer.pieces(c) for c in candidates] == [list(str(v)) for v in VALUES]


def naive(model: Transformer, ids: list[int], candidate: list[int]) -> float:
    """The log-probability of a continuation, by one forward pass of everything."""
    row = torch.tensor([ids + candidate])
    positions = torch.arange(row.shape[1]).unsqueeze(0)
    with torch.no_grad():
        scores = model.logits(model(row, positions, PackedAttention(None)))[0].log_softmax(-1)
    return sum(float(scores[len(ids) - 1 + n, token]) for n, token in enumerate(candidate))


def test_forced_choice_is_what_separate_forwards_give(
    generator: Generator, filler: list[Filler]
) -> None:
    prompt = make_prompt(generator.tokenizer, filler, length=150, position=0.5, seed=3, example=0)
    asked = Asked(generator.runner, prompt.ids, room=4)
    rng = random.Random(0)
    uneven = [[rng.randrange(3, 600) for _ in range(size)] for size in (1, 2, 3, 4, 2)]
    candidates = [*prompt.candidates, *uneven]
    found = asked.log_probability(candidates)
    for candidate, score in zip(candidates, found, strict=True):
        assert score == pytest.approx(naive(generator.model, prompt.ids, candidate), abs=1e-3)


def test_the_greedy_answer_is_what_generate_writes_even_after_the_choice(
    generator: Generator, filler: list[Filler]
) -> None:
    prompt = make_prompt(generator.tokenizer, filler, length=150, position=0.2, seed=1, example=4)
    answer = ask(generator.runner, generator.tokenizer, prompt, ends=generator.ends)
    limits = Limits(max_tokens=8, context=1_000)
    *_, (_, done) = generator.complete(prompt.ids, Sampling(), limits)
    assert not isinstance(done, str)
    assert answer.text == done.text
    assert answer.greedy == (first_number(done.text) == prompt.value)


def test_rank_and_choice_follow_the_scores(generator: Generator, filler: list[Filler]) -> None:
    ranks = []
    for example in range(3):
        prompt = make_prompt(
            generator.tokenizer, filler, length=130, position=0, seed=0, example=example
        )
        scores = {
            value: naive(generator.model, prompt.ids, candidate)
            for value, candidate in zip(VALUES, prompt.candidates, strict=True)
        }
        order = sorted(VALUES, key=lambda value: -scores[value])
        answer = ask(generator.runner, generator.tokenizer, prompt, ends=generator.ends)
        assert answer.rank == order.index(prompt.value) + 1
        assert answer.forced == (order[0] == prompt.value)
        ranks.append(answer.rank)
    runner, tokenizer, ends = generator.runner, generator.tokenizer, generator.ends
    [cell] = grid(
        lambda prompts: (ask(runner, tokenizer, prompt, ends=ends) for prompt in prompts),
        tokenizer,
        filler,
        lengths=[130],
        positions=[0],
        examples=3,
        seed=0,
    )
    assert cell["mean_rank"] == pytest.approx(sum(ranks) / 3)
    assert cell["forced"] == sum(rank == 1 for rank in ranks) / 3


def test_the_likeliest_number_is_chosen_when_it_is_the_value(
    generator: Generator, filler: list[Filler]
) -> None:
    prompt = make_prompt(generator.tokenizer, filler, length=130, position=0, seed=0, example=0)
    best = max(
        VALUES,
        key=lambda v: naive(generator.model, prompt.ids, prompt.candidates[VALUES.index(v)]),
    )
    answer = ask(
        generator.runner, generator.tokenizer, replace(prompt, value=best), ends=generator.ends
    )
    assert (answer.forced, answer.rank) == (True, 1)


def test_a_number_that_is_generated_is_right_when_it_is_the_value(
    tokenizer: Tokenizer, filler: list[Filler], random_model: Callable[..., Path]
) -> None:
    # What random weights say depends on the tokenizer, and that on the project's own sources: one
    # set of tokens after another may be said, until a number of two digits comes up.
    right = 0
    for digits in itertools.combinations("0123456789", 3):
        said = {tokenizer.encode(text, leading_space=False)[-1] for text in (*digits, "\n", "(")}
        unsaid = [i for i in range(tokenizer.vocab_size) if i not in said]
        path = random_model(tokenizer, max_context=64, unsaid=unsaid)
        runner = Generator.load(path, device="cpu", dtype="float32").runner
        for example in range(4):
            prompt = make_prompt(tokenizer, filler, length=120, position=0, seed=0, example=example)
            answer = ask(runner, tokenizer, prompt, ends=frozenset())
            number = first_number(answer.text)
            assert answer.greedy == (number == prompt.value)
            if number in VALUES:
                assert ask(
                    runner, tokenizer, replace(prompt, value=number), ends=frozenset()
                ).greedy
                right += 1
        if right:
            break
    assert right, "no completion held a number of two digits: the test shows nothing"


@pytest.mark.parametrize(
    ("text", "number"),
    [("42", 42), (" 42\n", 42), ("420", 420), ("(7, 42)", 7), ("None", None), ("", None)],
)
def test_the_answer_is_the_first_number(text: str, number: int | None) -> None:
    assert first_number(text) == number


def test_wilson_against_its_own_equation() -> None:
    # The bounds are the shares p at which the observed share is 1.96 standard errors away.
    for successes, n in ((0, 16), (1, 16), (8, 16), (60, 64), (64, 64)):
        for bound in wilson(successes, n):
            if 0 < bound < 1:
                away = abs(successes / n - bound) / math.sqrt(bound * (1 - bound) / n)
                assert away == pytest.approx(1.959964, abs=1e-4)
    assert wilson(0, 16)[0] == pytest.approx(0, abs=1e-12)
    assert wilson(64, 64)[1] == pytest.approx(1, abs=1e-12)
    assert pytest.approx(1 / 90) == CHANCE


def test_functions_are_taken_whole_with_their_decorators() -> None:
    text = (
        "import os\r\n\r\n@cache\r\ndef first(x):\r\n    return '''a\r\n\fb'''\r\n\r\n"
        "class C:\n    def method(self): ...\n\n"
        "async def second():\n    pass  # end\n"
        "def my_function_caller(): return my_function()\n"
    )
    first, second = functions_in(text)
    assert first == "@cache\ndef first(x):\n    return '''a\n\fb'''\n"
    assert second == "async def second():\n    pass  # end\n"
    assert functions_in("int main() { return 0; }") == []
    assert functions_in("x = '\0'") == []


def test_solutions_come_from_python_and_json_lines(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def a():\n    return 1\n")
    (tmp_path / "b.jsonl").write_text(
        '{"code": "n = int(input())\\nprint(n)"}\n\n{"text": "not python :", "id": 3}\n'
    )
    assert filler_in(tmp_path) == ["def a():\n    return 1\n", "n = int(input())\nprint(n)\n"]
    (tmp_path / "c.jsonl").write_text("{]\n")
    with pytest.raises(UserError, match="line 1"):
        filler_in(tmp_path / "c.jsonl")
    (tmp_path / "d.py").write_text("not python :")
    with pytest.raises(UserError, match="no Python"):
        filler_in(tmp_path / "d.py")
    with pytest.raises(UserError, match="cannot read"):
        filler_in(tmp_path / "e.py")


def test_mbpp_solutions_fill_a_prompt(tokenizer: Tokenizer) -> None:
    path = Path(__file__).parents[3].parent / "shared" / "benchmarks" / "mbpp" / "mbpp.jsonl"
    if not path.is_file():
        pytest.skip("MBPP is not on this machine")
    found = filler_in(path)
    assert len(found) > 500
    parts = measured(random.Random(0).sample(found, 60), tokenizer)
    prompt = make_prompt(tokenizer, parts, length=2_000, position=0.4, seed=0, example=0)
    assert 1_700 < len(prompt.ids) <= 2_000
    assert abs(prompt.placed - 0.4) < 0.1
