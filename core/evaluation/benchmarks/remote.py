"""Samples of a model at an OpenAI-compatible endpoint, such as `codecria serve`.

Gaps are sent as prompt and `suffix`, questions as chat completions, everything else as text to be
continued; the endpoint makes the model's tokens of it. Each sample of a task has a seed of its own,
of 31 bits, as some servers take no more.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from codecria.core.endpoint import Access, Client, Post
from codecria.core.seed import seed_of
from codecria.data.errors import UserError

from .problems import Problem
from .protocol import Protocol
from .samples import Sample
from .tasks import Worded, worded_of, written_of

# Words of servers for a prompt that leaves no room.
TOO_LONG = ("context", "too long", "maximum", "max_model_len")


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A model at an endpoint.

    Attributes:
        access: where, and how it is spoken to.
        name: of the model there.
    """

    access: Access
    name: str

    @property
    def facts(self) -> dict[str, Any]:
        """What names it in results."""
        return {"model": self.name, "endpoint": self.access.url}


def generate(
    remote: Remote,
    problems: Sequence[Problem],
    protocol: Protocol,
    shots: Sequence[Problem],
    *,
    known: Collection[tuple[str, int]] = (),
    batch: int,
    note: Callable[[str], None],
) -> Iterator[list[Sample]]:
    """The samples that are not known, in the order in which they come.

    Args:
        remote: the model.
        problems: asked for.
        protocol, shots: say how.
        known: (task id, sample) that exist already.
        batch: samples that are given at a time.
        note: takes remarks: a sample that failed after all retries is left out.

    Raises:
        UserError: the endpoint cannot be used, or refuses a request.
    """
    wanted = [
        (problem, number)
        for problem in problems
        for number in range(protocol.samples)
        if (problem.task_id, number) not in known
    ]
    posts = [_post(remote, problem, number, protocol, shots) for problem, number in wanted]
    held: list[Sample] = []
    for found in Client(remote.access, remote.name).answers(posts):
        problem, number = wanted[found.place]
        if found.answer is not None:
            held.append(found.answer)
        elif found.refused:
            if not any(word in found.refused.lower() for word in TOO_LONG):
                raise UserError(f"{remote.access.url} refuses {problem.task_id}: {found.refused}")
            held.append(
                Sample(
                    task_id=problem.task_id,
                    number=number,
                    text="",
                    tokens=0,
                    finish_reason="prompt_too_long",
                )
            )
        else:
            note(f"no sample {number} of {problem.task_id}: {found.failed}")
        if len(held) >= batch:
            yield held
            held = []
    if held:
        yield held


def _post(
    remote: Remote, problem: Problem, number: int, protocol: Protocol, shots: Sequence[Problem]
) -> Post[Sample]:
    """The request for a sample."""
    body: dict[str, Any] = {
        "model": remote.name,
        "max_tokens": protocol.max_tokens,
        "temperature": protocol.temperature,
        "top_p": protocol.top_p,
        "seed": (seed_of(protocol.seed, problem.task_id) + number) % (1 << 31),
    }
    path = "/completions"
    if protocol.form in ("psm", "spm"):
        before, after = problem.fill or (problem.before, problem.after)
        worded = Worded(before)
        body |= {"prompt": before, "suffix": after, "form": protocol.form}
    else:
        worded = worded_of(problem, protocol, shots)
        if protocol.form == "chat":
            path = "/chat/completions"
            body["messages"] = [{"role": "user", "content": worded.prompt}]
        else:
            body["prompt"] = worded.prompt
    if worded.stops:
        body["stop"] = list(worded.stops)
    return Post(path, body, functools.partial(_sample, problem, number, protocol, worded))


def _sample(
    problem: Problem,
    number: int,
    protocol: Protocol,
    worded: Worded,
    response: Any,
    seconds: float,  # noqa: ARG001
) -> Sample:
    """The sample in a response.

    Raises:
        ValueError: there is none.
    """
    try:
        choice = response["choices"][0]
        said = choice["message"]["content"] if "message" in choice else choice["text"]
        tokens = (response.get("usage") or {}).get("completion_tokens")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError("the response has no choices") from None
    said = said if isinstance(said, str) else ""
    is_cut = choice.get("finish_reason") == "length"
    # Whether a stop string or the end token ended it, no response says.
    written = written_of(
        problem,
        protocol,
        said,
        left_out=worded.left_out,
        cut=bool(worded.stops) and not is_cut,
    )
    return Sample(
        task_id=problem.task_id,
        number=number,
        text=written.text,
        whole=written.is_whole,
        said=said if written.text != said else None,
        extracted=written.extracted,
        tokens=tokens if isinstance(tokens, int) else None,
        finish_reason="length" if is_cut else "stop",
    )
