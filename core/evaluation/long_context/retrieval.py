"""Key retrieval: does a model find one function again in a long prompt (Code Llama, appendix G.2)?

The prompt is Python functions, one after the other, up to a number of tokens. Among them, at a
relative position, stands a function that returns a two-digit number, and the prompt ends by
asserting what it returns. The answer is judged in two ways from one prefill: greedily, by the first
number that is generated, and by forced choice, where the most likely of the 90 two-digit numbers is
the answer. The second measures models that are too small to answer.

Tokens of the prompt's end: the paper's prompt ends with a space, which a tokenizer that splits
digits encodes alone. Others join the space with the number. So prompt and number are encoded
together for each of the 90, what all begin with is the prompt, and the rest are the candidates: the
model sees what it would see in a file, with either kind.
"""

from __future__ import annotations

import ast
import itertools
import json
import math
import random
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from codecria.core.inference.runner import Runner, Scores
from codecria.data.errors import UserError
from codecria.data.tokenizer.tokenizer import Tokenizer

VALUES = tuple(range(10, 100))  # Code Llama, appendix G.2: "a random two-digit number"
CHANCE = 1 / len(VALUES)
PAPER_POSITIONS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
NAME = "my_function"
QUESTION = f"assert {NAME}() == "
ANSWER_TOKENS = 8  # generated greedily: two digits, and room for a space or a false start
LARGEST = 10  # functions of at most this part of a prompt are always drawn from
VARIETY = 4  # longer ones too, until there are this many prompts' worth of tokens to draw from
BETWEEN = "\n\n"
SOLUTION_KEYS = ("solution", "code", "content", "text")  # of a JSON line, the first there is


def key_function(value: int) -> str:
    """The function that is to be found again."""
    return (
        f"def {NAME}() -> int:\n"
        '    """Note that this function is used at the end"""\n'
        f"    return {value}\n"
    )


# --- the filler -----------------------------------------------------------------------------------


def functions_in(text: str) -> list[str]:
    """The top-level Python functions of a text, decorators included; none if it is not Python.

    A function that names the one to be found is left out.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")  # as Python's parser counts lines
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other people's invalid escapes
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    lines = text.split("\n")
    found = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(part.lineno for part in node.decorator_list)])
            body = "".join(f"{line}\n" for line in lines[first - 1 : node.end_lineno])
            if NAME not in body:
                found.append(body)
    return found


def filler_in(path: Path) -> list[str]:
    """The solutions in a Python file, a JSON Lines file, or a folder of either.

    A file's functions; a file or line that has none at its top level counts whole, if it is Python.

    Raises:
        UserError: it cannot be read, or holds none.
    """
    files = sorted(path.rglob("*.py")) + sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
    found: list[str] = []
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{file} is not UTF-8 from byte {error.start} on") from error
        for solution in _solutions(file, text):
            found += functions_in(solution) or _whole(solution)
    found = list(dict.fromkeys(found))
    if not found:
        raise UserError(
            f"{path} holds no Python functions", hint="name .py or .jsonl files of solutions"
        )
    return found


def _solutions(file: Path, text: str) -> list[str]:
    if file.suffix != ".jsonl":
        return [text]
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"{file}: line {number} is not JSON: {error}") from error
        known = record if isinstance(record, dict) else {}
        value = next((known[key] for key in SOLUTION_KEYS if isinstance(known.get(key), str)), None)
        if value is not None:
            found.append(value)
    return found


def _whole(text: str) -> list[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return [text.strip("\n") + "\n"] if text.strip() and NAME not in text else []


@dataclass(frozen=True, slots=True)
class Filler:
    """A function of the filler and its tokens, the blank line after it included."""

    text: str
    tokens: int


def measured(functions: Iterable[str], tokenizer: Tokenizer) -> list[Filler]:
    """Functions with their lengths."""
    return [Filler(text, _count(tokenizer, text)) for text in functions]


def _count(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode_array(text.rstrip("\n") + "\n" + BETWEEN, leading_space=False))


# --- the prompts ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt of the task.

    Attributes:
        text: ends with "== ".
        ids: BOS first, without what only the answer's first token shares with the space.
        candidates: for each of VALUES, the ids that go on from `ids`.
        value: the right one.
        before: characters of the text before the function to be found.
        length, position: what was asked for.
        placed: the relative position it got, in tokens of the filler.
        repeats: functions of the filler that stand more than once.
    """

    text: str
    ids: list[int]
    candidates: list[list[int]]
    value: int
    before: int
    length: int
    position: float
    placed: float
    repeats: int

    @property
    def marked(self) -> str:
        """The text for people, the function and the answer's place marked."""
        key = key_function(self.value)
        after = self.text[self.before + len(key) :]
        return f"{self.text[: self.before]}[KEY]{key}[/KEY]{after}[ANSWER {self.value}]"


def shortest(filler: Sequence[Filler], tokenizer: Tokenizer) -> int:
    """The least length of a prompt, in tokens: BOS, the key, the question, and one function."""
    return _frame(tokenizer) + min(part.tokens for part in filler)


def _frame(tokenizer: Tokenizer) -> int:
    """Tokens that every prompt has: BOS, an implied space, the function and the question."""
    key = max(_count(tokenizer, key_function(value)) for value in (10, 88, 99))
    return 2 + key + len(tokenizer.encode_array(QUESTION, leading_space=False))


def make_prompt(
    tokenizer: Tokenizer,
    filler: Sequence[Filler],
    *,
    length: int,
    position: float,
    seed: int,
    example: int,
) -> Prompt:
    """One prompt: a function of its arguments.

    Functions are drawn, each once while they last, until none that is left fits. The key stands at
    the border between functions that is nearest to the position.

    Args:
        tokenizer: counts.
        filler: what the prompt is made of.
        length: tokens it may have at most; at least `shortest`.
        position: of the key, 0 the start of the filler and 1 its end.
        seed, example: fix the draw, with length and position.
    """
    assert 0 <= position <= 1, f"position {position}"
    room = length - _frame(tokenizer)
    usable = _usable(filler, room)
    assert usable, f"{length} tokens, the shortest prompt has {shortest(filler, tokenizer)}"
    rng = random.Random(f"{seed}/{length}/{position}/{example}")
    value = rng.choice(VALUES)
    chosen: list[Filler] = []
    taken = len(usable)
    while taken == len(usable):  # again only when every one is in already
        taken = 0
        for part in rng.sample(usable, len(usable)):
            if part.tokens <= room:
                chosen.append(part)
                room -= part.tokens
                taken += 1
    rng.shuffle(chosen)  # else the small ones would stand at the end
    while True:
        k = _place(chosen, position)
        parts = [part.text.rstrip("\n") + "\n" for part in chosen]
        parts.insert(k, key_function(value))
        text = "".join(part + BETWEEN for part in parts) + QUESTION
        ids, candidates = encoded(tokenizer, text)
        if len(ids) <= length:
            break
        chosen.pop()  # pieces counted apart may be fewer than together
    total = sum(part.tokens for part in chosen)
    return Prompt(
        text=text,
        ids=ids,
        candidates=candidates,
        value=value,
        before=sum(len(part + BETWEEN) for part in parts[:k]),
        length=length,
        position=position,
        placed=sum(part.tokens for part in chosen[:k]) / max(total, 1),
        repeats=len(chosen) - len({part.text for part in chosen}),
    )


def _usable(filler: Sequence[Filler], room: int) -> list[Filler]:
    """The functions to draw from: short ones, so that the key comes near its position.

    Those of at most a tenth of the room, and as many longer ones as variety needs.
    """
    found: list[Filler] = []
    total = 0
    for part in sorted(filler, key=lambda part: (part.tokens, part.text)):
        if part.tokens > room or (part.tokens * LARGEST > room and total >= VARIETY * room):
            break
        found.append(part)
        total += part.tokens
    return found


def _place(chosen: Sequence[Filler], position: float) -> int:
    """The number of functions before the key: of the borders, the nearest to the position."""
    total = sum(part.tokens for part in chosen)
    best, where, so_far = math.inf, 0, 0
    for k in range(len(chosen) + 1):
        if abs(so_far - position * total) < best:
            best, where = abs(so_far - position * total), k
        so_far += chosen[k].tokens if k < len(chosen) else 0
    return where


def encoded(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[list[int]]]:
    """The ids of a prompt, and of the 90 answers that go on from it.

    Args:
        tokenizer: any.
        text: of the prompt, its last line the question.

    Returns:
        the ids that prompt and answer begin with whatever the answer, BOS first, and the rest of
        each; the two joined are the encoding of the text with the answer.
    """
    head, tail = "", text
    if tokenizer.newline_id is not None:  # lines are encoded apart: only the last differs
        split = text.rindex("\n") + 1 if "\n" in text else 0
        head, tail = text[:split], text[split:]
    start = tokenizer.encode(head, bos=True)
    each = [
        tokenizer.encode(f"{tail}{value}", bos=False, leading_space=not head) for value in VALUES
    ]
    shared = 0
    while len({row[shared] if shared < len(row) else None for row in each}) == 1:
        shared += 1
    return start + each[0][:shared], [row[shared:] for row in each]


# --- the answers ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model says to a prompt.

    Attributes:
        text: generated greedily.
        greedy: whether its first number is the value.
        forced: whether the value is the likeliest of the 90.
        rank: of the value among the 90, 1 the likeliest; equals share their ranks' mean.
    """

    text: str
    greedy: bool
    forced: bool
    rank: float


def first_number(text: str) -> int | None:
    """The first integer literal of a completion, if it has one.

    >>> first_number(" 42\\n\\ndef f(): return 7")
    42
    """
    found = re.search(r"[0-9]+", text)
    return int(found.group()) if found else None


class Asked:
    """A prompt that was read once, to be continued in several ways.

    Args:
        runner: whose first row it may use.
        ids: of the prompt.
        room: tokens that may come after it.
    """

    def __init__(self, runner: Runner, ids: Sequence[int], *, room: int) -> None:
        self.runner = runner
        self.length = len(ids)
        runner.keep([])
        runner.reserve(1, self.length + room)
        self.scores = runner.prefill(0, [ids]).copy()  # (1,V)

    def log_probability(self, candidates: Sequence[Sequence[int]]) -> list[float]:
        """The log-probability of each continuation: the sum over its tokens, in nats.

        What candidates begin with alike is read once; the cache holds one sequence throughout.
        """
        first = _log_softmax(self.scores)[0]
        after: dict[tuple[int, ...], Scores] = {}
        found = []
        for candidate in candidates:
            stem = tuple(candidate[:-1])
            if stem and stem not in after:
                self.runner.truncate(0, self.length)
                after[stem] = _log_softmax(self.runner.decode(0, [stem]))
            total = float(first[candidate[0]])
            for step, token in enumerate(candidate[1:]):
                total += float(after[stem][step, token])
            found.append(total)
        return found

    def greedy(self, tokens: int, *, ends: frozenset[int], vocab_size: int) -> list[int]:
        """The likeliest tokens one by one, up to an end or an id that no piece has."""
        self.runner.truncate(0, self.length)
        scores, found = self.scores, list[int]()
        while True:
            token = int(scores[0].argmax())
            if token in ends or token >= vocab_size:
                return found
            found.append(token)
            if len(found) == tokens:
                return found
            scores = self.runner.decode(0, [[token]])


def _log_softmax(scores: Scores) -> Scores:
    """(N,V) log-probabilities."""
    centred = scores - scores.max(-1, keepdims=True)
    found: Scores = centred - np.log(np.exp(centred).sum(-1, keepdims=True))
    return found


def ask(runner: Runner, tokenizer: Tokenizer, prompt: Prompt, *, ends: frozenset[int]) -> Answer:
    """Let a model answer a prompt.

    Args:
        runner: whose first row it may use.
        tokenizer: that the prompt was made with.
        prompt: of `make_prompt`.
        ends: ids that end an answer.
    """
    room = max(ANSWER_TOKENS, *map(len, prompt.candidates))
    asked = Asked(runner, prompt.ids, room=room)
    scores = asked.log_probability(prompt.candidates)
    ids = asked.greedy(ANSWER_TOKENS, ends=ends, vocab_size=tokenizer.vocab_size)
    text = tokenizer.decode_continuation(ids)
    own = scores[VALUES.index(prompt.value)]
    better, equal = sum(s > own for s in scores), sum(s == own for s in scores)
    return Answer(
        text=text,
        greedy=first_number(text) == prompt.value,
        forced=max(zip(scores, (-value for value in VALUES), strict=True))[1] == -prompt.value,
        rank=better + (equal + 1) / 2,
    )


# --- the grid -------------------------------------------------------------------------------------


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share.

    >>> [round(x, 3) for x in wilson(0, 16)]
    [0.0, 0.194]

    Args:
        successes: of n.
        n: at least 1.
    """
    z = 1.959964  # the normal distribution's 97.5% quantile
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def grid(
    answers: Callable[[Iterator[Prompt]], Iterator[Answer]],
    tokenizer: Tokenizer,
    filler: Sequence[Filler],
    *,
    lengths: Sequence[int],
    positions: Sequence[float],
    examples: int,
    seed: int,
    done: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Every length and position, as JSON values: a row a cell.

    Args:
        answers: gives the model's answers to prompts, in their order.
        tokenizer: its own.
        filler: see `measured`.
        lengths: of the prompts, in tokens; at least `shortest`.
        positions: of the key, from 0 to 1.
        examples: of each cell.
        seed: of the prompts.
        done: called after each prompt.
    """
    made: deque[Prompt] = deque()

    def prompts() -> Iterator[Prompt]:
        for length, position, example in itertools.product(lengths, positions, range(examples)):
            prompt = make_prompt(
                tokenizer, filler, length=length, position=position, seed=seed, example=example
            )
            made.append(prompt)
            yield prompt

    answered = answers(prompts())
    cells = []
    for length, position in itertools.product(lengths, positions):
        found: list[tuple[Prompt, Answer]] = []
        for answer in itertools.islice(answered, examples):
            found.append((made.popleft(), answer))
            done()
        cells.append({"length": length, "position": position} | _cell(found))
    return cells


def _cell(found: Sequence[tuple[Prompt, Answer]]) -> dict[str, Any]:
    """What the answers to the prompts of a cell amount to."""
    n = len(found)
    greedy, forced = (sum(getattr(a, way) for _, a in found) for way in ("greedy", "forced"))
    return {
        "examples": n,
        "tokens": sum(len(p.ids) for p, _ in found) / n,
        "placed": sum(p.placed for p, _ in found) / n,
        "repeats": sum(p.repeats for p, _ in found) / n,
        "greedy": greedy / n,
        "greedy_interval": list(wilson(greedy, n)),
        "forced": forced / n,
        "forced_interval": list(wilson(forced, n)),
        "mean_rank": sum(a.rank for _, a in found) / n,
    }
