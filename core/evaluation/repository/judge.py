"""Answers of models, and what a repository's own tests say of them.

What was found is kept by what decides it: the tests of a span by how they were asked for, a verdict
by the tests and the text. So it holds for any model that says the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from codecria.data.corpus.history import History
from codecria.data.errors import UserError
from codecria.data.files import digest_json
from codecria.data.progress import Progress

from .kept import Kept
from .measure import Answer
from .spans import Span
from .suites import files_of_tests
from .trial import Config, Trial, Trialled, in_order, open_trial

VERDICT = "verdict"  # kind of what is kept


def try_answers(
    repository: Path,
    spans: Sequence[Span],
    config: Config,
    kept: Kept,
    answer: Callable[[], list[list[Answer]]],
    *,
    note: Callable[[str], None],
    stages: Callable[[], AbstractContextManager[Callable[[Progress], None]]],
) -> tuple[list[list[Answer]], dict[str, Any] | None]:
    """Find the tests of spans, have models answer, and run the tests on what they say.

    Args:
        repository: a git clone.
        spans: of its history.
        config: how tests are run.
        kept: what an earlier call has found, and where to keep more.
        answer: gives the answers of each model; called when it is known which spans have tests.
        note: called with what the user may want to know.
        stages: opened while tests run, and its function called as they go on.

    Returns:
        the answers with what their tests say, and what came of the tests: None without tests.

    Raises:
        UserError: tests are required and cannot be run, or the sandbox fails.
    """
    with History.open(repository) as history:
        commits = in_order(spans)
        if not any(files_of_tests(history.files(commit), config.asked) for commit in commits):
            if config.required:
                raise UserError(
                    f"there are no tests at {commits[-1][:12]}",
                    hint="name other paths for --tests",
                )
            return answer(), None
        with ExitStack() as opened:
            try:
                trial = opened.enter_context(open_trial(history, config))
            except UserError as error:
                if config.required:
                    raise
                note(f"tests are not run: {error.message}")
                return answer(), None
            kind = f"tests {_digest(_asked(config))}"
            with stages() as progress:
                tests = trial.reference(
                    spans,
                    known={name: _trialled(value) for name, value in kept.of(kind).items()},
                    keep=lambda new: kept.add(kind, {n: asdict(t) for n, t in new.items()}),
                    progress=progress,
                )
            found = counts(tests)
            note(f"{trial.backend}: tests decide about {found['spans']} of {len(spans)} spans")
            made = answer()
            with stages() as progress:
                judged = [_judged(trial, spans, tests, each, kept, progress) for each in made]
    return judged, {"backend": trial.backend, "tier": str(trial.tier)} | found | {
        "named": {name: each.left_out for name, each in tests.items() if each.left_out}
    }


def _judged(
    trial: Trial,
    spans: Sequence[Span],
    tests: Mapping[str, Trialled],
    answers: Sequence[Answer],
    kept: Kept,
    progress: Callable[[Progress], None],
) -> list[Answer]:
    """The answers of a model with what their tests say."""
    tried = {
        span.id: (span, tests[span.id], answer.said)
        for span, answer in zip(spans, answers, strict=True)
        if tests[span.id].tests
    }
    keys = {
        name: f"{name} {_digest([tests.tests, said])}" for name, (_, tests, said) in tried.items()
    }
    verdicts: dict[str, list[str]] = kept.of(VERDICT)
    left = [entry for name, entry in tried.items() if keys[name] not in verdicts]
    done = len(tried) - len(left)

    def keep(name: str, outcome: str, detail: str) -> None:
        nonlocal done
        done += 1
        verdicts[keys[name]] = [outcome, detail]
        kept.add(VERDICT, {keys[name]: [outcome, detail]})
        progress(Progress(stage="tests", done=done, total=len(tried)))

    trial.judge(left, keep)
    return [
        replace(answer, tests=verdicts[key][0], detail=verdicts[key][1])
        if (key := keys.get(answer.id)) is not None
        else answer
        for answer in answers
    ]


def _asked(config: Config) -> list[Any]:
    """What decides the tests of a span, beside the span and this machine."""
    folders = [str(folder) for folder in config.packages.folders]
    packages = [config.packages.names, folders]
    return [asdict(config.asked), packages, config.seconds, config.memory_bytes]


def _digest(value: Any) -> str:
    return digest_json(value)[:16]


def _trialled(value: Mapping[str, Any]) -> Trialled:
    lists = {name: tuple(value[name]) for name in ("tests", "plugins")}
    return Trialled(**{**value, **lists})


def counts(found: Mapping[str, Trialled]) -> dict[str, Any]:
    """How many spans tests decide about, how these were found, and why others are left out."""
    by = Counter(each.by for each in found.values() if each.tests)
    why = Counter(each.left_out for each in found.values() if each.left_out)
    return {"spans": sum(by.values()), "by": dict(by), "left_out": dict(why.most_common())}
