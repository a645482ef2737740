"""The funnel: how many came through each stage, and for what reasons the others did not (PAPER 7).

Every number is a count of lines of the run's files: what a stage takes in is what it hands on and
what it loses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .items import Loss

EXAMPLES = 3  # of each reason
LOSS_STAGES = ("questions", "asserts", "tests", "solutions", "keep")


@dataclass(slots=True)
class Losses:
    """What went no further, counted as it comes.

    Attributes:
        lines: all of it, for the file.
    """

    lines: list[Loss] = field(default_factory=list)

    def __call__(self, loss: Loss) -> None:
        """Take a loss."""
        self.lines.append(loss)

    def count(self, stage: str) -> int:
        """How many were lost in a stage."""
        return sum(loss.stage == stage for loss in self.lines)

    def reasons(self) -> dict[str, dict[str, Any]]:
        """By stage and reason: how many, and the first few."""
        by_stage: dict[str, dict[str, Any]] = {}
        for stage in LOSS_STAGES:
            own = [loss for loss in self.lines if loss.stage == stage]
            counts = Counter(loss.reason for loss in own)
            by_stage[stage] = {
                reason: {
                    "count": count,
                    "examples": [
                        {"from": loss.where, "text": loss.text[:160]}
                        for loss in own
                        if loss.reason == reason
                    ][:EXAMPLES],
                }
                for reason, count in counts.most_common()
            }
        return by_stage


@dataclass(slots=True, kw_only=True)
class Cost:
    """What a stage's answers took.

    Attributes:
        replies: how many.
        prompt_tokens, tokens: of prompts and answers, as far as they are known.
        seconds: of the model's time; requests side by side count each.
    """

    replies: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def add(self, line: Mapping[str, Any]) -> None:
        """Count a reply."""
        self.replies += 1
        self.prompt_tokens += line.get("prompt_tokens") or 0
        self.tokens += line.get("tokens") or 0
        self.seconds += line.get("seconds") or 0.0

    def as_json(self) -> dict[str, Any]:
        """The cost as JSON values."""
        return {
            "replies": self.replies,
            "prompt_tokens": self.prompt_tokens,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 1),
        }


def costs_json(costs: Mapping[str, Cost], run_seconds: float, kept: int) -> dict[str, Any]:
    """The costs of all stages, and of a kept item.

    Args:
        costs: by stage.
        run_seconds: of programs in the sandbox.
        kept: items.
    """
    tokens = sum(cost.tokens for cost in costs.values())
    seconds = sum(cost.seconds for cost in costs.values())
    return {
        "models": {stage: cost.as_json() for stage, cost in costs.items()},
        "sandbox_seconds": round(run_seconds, 1),
        "tokens_per_kept": round(tokens / kept, 1) if kept else None,
        "seconds_per_kept": round((seconds + run_seconds) / kept, 2) if kept else None,
    }


def outcomes(verdicts: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How programs ended, by outcome; "unconfirmed" passed in one process and failed in two."""
    words = Counter(
        "unconfirmed" if verdict.get("passed_once") else str(verdict["outcome"])
        for verdict in verdicts
    )
    return dict(sorted(words.items()))
