"""Names that the command line looks up: of its environment variables, and of what was mistyped."""

from __future__ import annotations

from collections.abc import Iterable

ENV_PREFIX = "CODECRIA"


def near_name(name: str, names: Iterable[str]) -> str:
    """The one of `names` that is most like a mistyped name, or nothing."""
    import difflib

    return next(iter(difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)), "")
