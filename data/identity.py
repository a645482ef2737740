"""Is this the same run? The facts that a folder or file was made with, against those asked for.

Whatever can be resumed records its identity: JSON facts that decide its content. Rerunning with
the same identity resumes; another identity is refused, since the result would be neither.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import UserError

ABSENT = "absent"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two identities, a line each, by dotted names.

    They are compared as JSON records them: a tuple is a list there. A fact that one of them lacks
    equals null in the other: a version that did not have it did without it.

    >>> differences({"seed": 1, "recipe": {"steps": 5}}, {"seed": 1, "recipe": {"steps": 6}})
    ['recipe.steps: 5 -> 6']
    >>> differences({"sizes": [1, 2]}, {"sizes": (1, 2), "tags": True})
    ['tags: absent -> True']
    """
    return _differences(json.loads(json.dumps(old)), json.loads(json.dumps(new)), "")


def _differences(old: Any, new: Any, name: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
            for line in _differences(
                old.get(key, ABSENT), new.get(key, ABSENT), f"{name}.{key}" if name else key
            )
        ]
    return [f"{name}: {old} -> {new}"]


def require_same(
    place: Path, changed: Sequence[str], *, what: str = "another run", hint: str
) -> None:
    """Refuse to resume in a place that holds something else.

    Args:
        place: the folder or file.
        changed: what differs, see `differences`.
        what: what the place holds then.
        hint: the next step.

    Raises:
        UserError: something differs.
    """
    if changed:
        raise UserError(f"{place} holds {what}: " + "; ".join(changed), hint=hint)
