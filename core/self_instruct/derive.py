"""From replies of models to questions, tests and solutions, by pure functions.

    replies -> questions -> questions with tests -> solutions

Nothing here asks a model or runs a program, so a resumed run derives the same files again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from codecria.data.corpus import near, shingles
from codecria.data.corpus.decontaminate import Index
from codecria.data.corpus.near import Near
from codecria.data.formats.code_names import wanted_by

from .inputs import Given
from .items import Candidate, Loss, Question, Tested
from .models import Ask
from .parse import Code, asserts_in, code_in, questions_in
from .settings import Settings

Line = Mapping[str, Any]
Get = Callable[[str], Line | None]
Lose = Callable[[Loss], None]
NEAR_WORDS = 1  # per shingle: a question is one sentence, which rarely repeats five words in a row
UNANSWERED = "no answer"


def rounds(settings: Settings) -> list[int]:
    """Questions per request: `per_request` each, and the rest in the last one."""
    whole, rest = divmod(settings.questions, settings.per_request)
    return [settings.per_request] * whole + ([rest] if rest else [])


def asked_questions(
    asks: Sequence[Ask], counts: Sequence[int], get: Get, lose: Lose
) -> list[Question]:
    """The questions in the lists that a model wrote.

    Args:
        asks: one per round.
        counts: questions that each asked for.
        get: the reply of an id.
        lose: called with each item that is not a question.
    """
    found: list[Question] = []
    for number, (ask, count) in enumerate(zip(asks, counts, strict=True)):
        line = get(ask.ids()[0])
        if line is None or line["finish_reason"] in ("prompt_too_long", "refused"):
            continue  # no answer; the report counts these
        items = questions_in(line["text"], cut=line["finish_reason"] == "length")
        for place, (text, problem) in enumerate(items):
            where = f"round {number}, item {place + 1}"
            if not problem and place >= count:
                problem = "more than asked for"
            if problem:
                lose(Loss(stage="questions", reason=problem, where=where, text=text))
            else:
                found.append(Question.of(text, where))
    return found


def unique(
    questions: Sequence[Question], near_dedup: float, index: Index | None, lose: Lose
) -> list[Question]:
    """The questions without duplicates and without benchmark problems.

    Args:
        questions: in order; the first of two duplicates stays.
        near_dedup: Jaccard similarity from which two are duplicates; 0 for equal strings only.
        index: of the benchmark problems; None skips the check.
        lose: called with each question removed.
    """
    first: dict[str, Question] = {}
    for question in questions:
        if question.text in first:
            _lose(lose, question, "duplicate", first[question.text].where)
        else:
            first[question.text] = question
    kept = list(first.values())
    if near_dedup and kept:
        kept = _without_near(kept, near_dedup, lose)
    if index is not None and kept:
        hits = index.hits(shingles.column([question.text for question in kept]))
        for question, hit in zip(kept, hits, strict=True):
            if hit:
                _lose(lose, question, "contaminated", hit)
        kept = [question for question, hit in zip(kept, hits, strict=True) if not hit]
    return kept


def _lose(lose: Lose, question: Question, reason: str, detail: str) -> None:
    loss = Loss(
        stage="questions", reason=reason, where=question.where, text=question.text, detail=detail
    )
    lose(loss)


def _without_near(questions: list[Question], threshold: float, lose: Lose) -> list[Question]:
    """The first of every cluster of near-duplicates.

    Each is compared with those kept before it that share one of its rarest words: two sets of a
    similarity s have a common word among the first (1 - s) n + 1 in any order, so nothing is missed
    (prefix filtering: Chaudhuri et al. 2006, "A Primitive Operator for Similarity Joins").
    """
    recipe = Near(threshold=threshold, shingle=NEAR_WORDS)
    sets = near.gram_sets(shingles.column([question.text for question in questions]), recipe)
    words, counts = np.unique(np.concatenate(sets), return_counts=True)
    rarity = dict(zip(words.tolist(), counts.tolist(), strict=True))
    holders: dict[int, list[int]] = {}
    kept = []
    for place, words_of in enumerate(sets):
        order = sorted(words_of.tolist(), key=lambda word: (rarity[word], word))
        prefix = order[: int((1 - threshold) * len(order) + 1e-9) + 1]
        candidates = {other for word in prefix for other in holders.get(word, ())}
        same = next(
            (
                other
                for other in sorted(candidates)
                if near.jaccard(words_of, sets[other]) >= threshold
            ),
            None,
        )
        if same is not None:
            _lose(lose, questions[place], "near-duplicate", questions[same].text)
            continue
        kept.append(questions[place])
        for word in prefix:
            holders.setdefault(word, []).append(place)
    return kept


def asked_tests(
    questions: Sequence[Question], asks: Sequence[Ask], settings: Settings, get: Get, lose: Lose
) -> list[Tested]:
    """The questions for which a model wrote tests.

    Args:
        questions: those asked about.
        asks: one per question.
        settings: give the tests needed per question.
        get: the reply of an id.
        lose: called with each question without tests and each invalid assert.
    """
    found = []
    for question, ask in zip(questions, asks, strict=True):
        line = get(ask.ids()[0])
        if why := _no_answer(line):
            lose(Loss(stage="tests", reason=why, where=question.where, text=question.text))
            continue
        assert line is not None, "a reply without a line"
        tests, lost = asserts_in(line["text"], settings.rule)
        tested = _tested(Given(question=question, tests=tests, lost=tuple(lost)), settings, lose)
        if tested is not None:
            found.append(tested)
    return found


def given_tests(given: Sequence[Given], settings: Settings, lose: Lose) -> list[Tested]:
    """The questions of a file that have tests there; see `asked_tests`."""
    found = [_tested(one, settings, lose) for one in given]
    return [one for one in found if one is not None]


def _tested(given: Given, settings: Settings, lose: Lose) -> Tested | None:
    where = given.question.where
    for text, reason in given.lost:
        lose(Loss(stage="asserts", reason=reason, where=where, text=text))
    tests = given.tests
    if tests is None or len(tests.asserts) < settings.least_tests:
        reason = "no tests" if tests is None or not tests.asserts else "too few tests"
        lose(Loss(stage="tests", reason=reason, where=where, text=given.question.text))
        return None
    return Tested.of(given.question, tests, settings.seed)


def asked_solutions(
    tested: Sequence[Tested], asks: Sequence[Ask], settings: Settings, get: Get, lose: Lose
) -> Iterator[Candidate]:
    """The programs that a model wrote, in order of questions and samples.

    Args:
        tested: those asked about.
        asks: one per question.
        settings: give the rule that finds programs in answers, and whether duplicates count.
        get: the reply of an id.
        lose: called with each answer without a program.
    """
    for one, ask in zip(tested, asks, strict=True):
        wanted = wanted_by(one.tests.program)
        shapes: dict[str, int] = {}
        for sample, key in enumerate(ask.ids()):
            where = f"{one.question.where}, sample {sample}"
            line = get(key)
            why = _no_answer(line)
            said = line["text"] if line is not None else ""
            code: Code | str = why or code_in(said, wanted=wanted, rule=settings.rule)
            if isinstance(code, str):
                lose(Loss(stage="solutions", reason=code, where=where, text=said))
                continue
            if settings.dedup_solutions and code.shape in shapes:
                same = f"as sample {shapes[code.shape]}"
                loss = Loss(
                    stage="solutions",
                    reason="duplicate",
                    where=where,
                    text=code.source,
                    detail=same,
                )
                lose(loss)
                continue
            shapes[code.shape] = sample
            yield Candidate.of(one, sample, code)


def _no_answer(line: Line | None) -> str:
    """Why a reply has no answer; empty if it has one."""
    if line is None:
        return UNANSWERED
    return {
        "prompt_too_long": "the prompt did not fit the context",
        "refused": "refused by the endpoint",
    }.get(line["finish_reason"], "")
