"""What `evaluate repo` and `adapt` share: tests of a repository, and figures with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codecria.data.errors import UsageError

from . import options, render

if TYPE_CHECKING:
    from codecria.core.evaluation.repository.kept import Kept
    from codecria.core.evaluation.repository.measure import Answer
    from codecria.core.evaluation.repository.spans import Span
    from codecria.core.evaluation.repository.trial import Config


def trial_of(
    tests: str,
    packages: str | None,
    seconds: float,
    memory_mb: int,
    *,
    tier: str,
    workers: int | None,
) -> Config | None:
    """How the repository's tests are run, or None where they are not.

    Args:
        tests, packages: as --tests and --packages say.
        seconds: for the tests of one commit.
        memory_mb: of each program.
        tier, workers: of the sandbox.

    Raises:
        UsageError: options that do not go together, or a value that is not understood.
    """
    if tests == "off":
        if packages is not None:
            raise UsageError("--packages is for tests, and --tests off runs none")
        return None
    if tier == "command":
        raise UsageError(
            "--sandbox command cannot run a repository's tests", hint="add --tests off"
        )
    from codecria.core.evaluation.repository.suites import parse_packages, parse_tests
    from codecria.core.evaluation.repository.trial import Config
    from codecria.core.sandbox.config import SandboxConfig

    return Config(
        asked=parse_tests(tests),
        required=tests != "auto",
        packages=parse_packages(options.names_of(packages)),
        sandbox=SandboxConfig(tier=tier, workers=workers),
        seconds=seconds,
        memory_bytes=memory_mb << 20,
    )


def tried(
    repository: Path,
    spans: Sequence[Span],
    config: Config | None,
    kept: Kept,
    answer: Callable[[], list[list[Answer]]],
) -> tuple[list[list[Answer]], dict[str, Any] | None]:
    """The answers of each model, with what the tests say of them; and what came of the tests.

    Args:
        repository, spans, kept, answer: as `try_answers` takes them.
        config: how tests are run; None runs none.

    Raises:
        UserError: see `try_answers`.
    """
    if config is None:
        return answer(), None
    from codecria.core.evaluation.repository.judge import try_answers

    return try_answers(
        repository, spans, config, kept, answer, note=render.note, stages=render.stages
    )


def figure(value: dict[str, float] | None, *, percent: bool = False, signed: bool = False) -> str:
    """A figure with its interval on one line."""
    if value is None:
        return "-"
    form = ("+" if signed else "") + (".1f" if percent else ".3f")
    scale = 100 if percent else 1
    parts = [format(value[name] * scale, form) for name in ("value", "low", "high")]
    return f"{parts[0]} [{parts[1]}, {parts[2]}]"


def show_tests(tested: dict[str, Any]) -> None:
    """Say on how many spans tests decide, and why not on the others."""
    how = ", ".join(f"{count} by {by}" for by, count in tested["by"].items())
    render.note(
        f"{tested['backend']} decides about {tested['spans']} spans" + (f" ({how})" if how else "")
    )
    for reason, count in tested["left_out"].items():
        render.note(f"{count} left out: {reason}")
