"""How far long work is, for whoever shows it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a stage is: jobs done of all, and how many of these an earlier run had done."""

    stage: str
    done: int
    total: int
    resumed: int = 0
