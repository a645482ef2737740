"""Whether a run is the same as the one that a folder holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codecria.data.errors import UserError
from codecria.data.identity import differences, require_same

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("xyz", min_size=1, max_size=2), inner)
    ),
    max_leaves=6,
)
IDENTITIES = st.dictionaries(st.text("abc", min_size=1, max_size=2), VALUES, max_size=4)


@given(identity=IDENTITIES)
def test_an_identity_equals_its_record(identity: dict[str, Any]) -> None:
    assert differences(json.loads(json.dumps(identity)), identity) == []


@given(old=IDENTITIES, new=IDENTITIES)
def test_every_changed_fact_is_named_once_and_no_other(
    old: dict[str, Any], new: dict[str, Any]
) -> None:
    changed = {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
    lines = differences(old, new)
    named = [line.split(":")[0] for line in lines]
    assert len(set(lines)) == len(lines)
    assert {name.split(".")[0] for name in named} == changed
    assert len(differences(new, old)) == len(lines)


def test_facts_are_compared_as_json_has_them_and_by_their_dotted_names() -> None:
    old = {"sizes": [1, 2], "recipe": {"steps": 5, "seed": 1}, "gone": 3}
    new = {"sizes": (1, 2), "recipe": {"steps": 6, "seed": 1}, "fresh": None}
    assert differences(old, new) == ["gone: 3 -> absent", "recipe.steps: 5 -> 6"]


def test_another_run_is_refused_with_what_changed_and_the_next_step() -> None:
    require_same(Path("out"), [], hint="")
    with pytest.raises(UserError, match="out holds other shards: seed: 1 -> 2; x: a -> b") as error:
        require_same(Path("out"), ["seed: 1 -> 2", "x: a -> b"], what="other shards", hint="go on")
    assert error.value.hint == "go on"
