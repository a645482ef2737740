"""What asks a model at an endpoint gets from `serve` what it gets from the model itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from codecria.core.endpoint import Access
from codecria.core.evaluation.benchmarks.evaluate import Request, evaluate
from codecria.core.evaluation.benchmarks.protocol import Changes
from codecria.core.evaluation.benchmarks.remote import Remote
from codecria.core.self_instruct.endpoint import Endpoint
from codecria.core.self_instruct.models import Ask
from codecria.core.self_instruct.settings import Settings
from codecria.data.errors import UserError
from codecria.data.formats.chat import Message
from tests.core.serving.conftest import Served

ADD = 'def add(a, b):\n    """The sum of two numbers.\n\n    >>> add(1, 2)\n    3\n    """\n'


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two functions to be completed, in HumanEval's form."""
    path = tmp_path_factory.mktemp("problems") / "problems.jsonl"
    lines = [
        {
            "task_id": f"HumanEval/{number}",
            "prompt": ADD.replace("add", name),
            "canonical_solution": "    return a + b\n",
            "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
            "entry_point": name,
        }
        for number, name in enumerate(("add", "total"))
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def remote(served: Served) -> Remote:
    return Remote(access=Access(url=f"{served.url}/v1", retries=0), name="small")


def samples(path: Path) -> dict[tuple[str, int], Any]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {(line["task_id"], line["sample"]): line for line in lines if "task_id" in line}


@pytest.mark.parametrize("form", ["completion", "chat"])
def test_evaluate_gets_the_samples_of_the_model_itself(
    served: Served, problems: Path, tmp_path: Path, form: str
) -> None:
    found = {}
    for name in ("here", "there"):
        out = tmp_path / f"{name}.jsonl"
        request = Request(
            task="humaneval",
            problems=problems,
            model=served.model if name == "here" else None,
            remote=remote(served) if name == "there" else None,
            forms=(form,),
            changes=Changes(temperature=0.0, samples=1, max_tokens=24, ks=(1,)),
            out=out,
            generate_only=True,
        )
        evaluate(request, note=lambda _: None, show=lambda _: None)
        found[name] = samples(out)
    assert found["here"].keys() == found["there"].keys()
    assert len(found["here"]) == 2
    for key, line in found["here"].items():
        assert line["completion"] == found["there"][key]["completion"]


def test_evaluate_says_what_the_endpoint_says(
    served: Served, problems: Path, tmp_path: Path
) -> None:
    request = Request(
        task="humaneval",
        problems=problems,
        remote=Remote(access=Access(url=f"{served.url}/nowhere", retries=0), name="small"),
        out=tmp_path / "out.jsonl",
        generate_only=True,
    )
    with pytest.raises(UserError, match="HTTP 404"):
        evaluate(request, note=lambda _: None, show=lambda _: None)


def test_self_instruct_is_answered(served: Served) -> None:
    endpoint = Endpoint(Access(url=f"{served.url}/v1", retries=0), "small", form="chat", note=print)
    ask = Ask(
        stage="questions",
        key="0",
        dialog=(Message(role="user", content="Write a question."),),
        samples=3,
        settings=Settings(),
        model=endpoint.facts,
        form="chat",
    )
    replies = [reply for batch in endpoint.answer([ask], frozenset()) for reply in batch]
    assert sorted(reply.id for reply in replies) == sorted(ask.ids())
    assert all(reply.text for reply in replies)
    assert endpoint.failed == 0
