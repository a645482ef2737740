"""llama.cpp's own protocol, as llama.vim and llama.vscode speak it: /infill and /completion.

Field names and meanings are those of llama.cpp's server (tools/server/README.md). `samplers`,
penalties and slot numbers are ignored: tokens are drawn by temperature, top_k and top_p alone.
`t_max_prompt_ms` and `t_max_predict_ms` are limits that hold: what was read of a prompt until then
stays in the cache, and what was generated until then is the answer. `n_predict: 0` reads all.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from codecria.core.inference.decoding import Completion, TokenScore
from codecria.core.inference.prompts import Extra, Form, Prompt
from codecria.data.errors import UsageError

from .tasks import Piece, Shaper, Task
from .wire import (
    MOST_PROMPTS,
    Body,
    Result,
    Served,
    budget_s,
    gap_in_template,
    most_of,
    parsed,
    samples_of,
    sampling_of,
    shaper_of,
    stops_of,
    task_of,
    token_text,
)

MOST_SCORES = 20


class Common(Body):
    """Fields of both requests."""

    n_predict: int = Field(-1, ge=-1)
    max_tokens: int | None = Field(None, ge=-1)
    stream: bool = False
    stop: str | list[str] | None = None
    temperature: float | None = Field(None, ge=0)
    top_k: int | None = None
    top_p: float | None = Field(None, gt=0)
    seed: int | None = None
    n_probs: int = Field(0, ge=0, le=MOST_SCORES)
    n_cmpl: int | None = None
    n: int | None = None
    n_indent: int = Field(0, ge=0)
    t_max_prompt_ms: float | None = None
    t_max_predict_ms: float | None = None
    response_fields: list[str] = Field(default_factory=list, max_length=64)
    return_tokens: bool = False
    grammar: str | None = None
    json_schema: Any = None

    @property
    def most(self) -> int:
        """Longest completion in tokens; -1 for what the context holds."""
        return self.n_predict if self.max_tokens is None else self.max_tokens

    @property
    def samples(self) -> int:
        """How many completions."""
        return samples_of(self.n if self.n_cmpl is None else self.n_cmpl)


class Chunk(Body):
    """Another file, or a part of one."""

    text: str = ""
    filename: str = ""


class InfillBody(Common):
    """/infill. `prompt` is what of the middle is there already."""

    input_prefix: str = ""
    input_suffix: str = ""
    input_extra: list[Chunk] = Field(default_factory=list)
    prompt: str = ""
    form: Form | None = None  # ours


class CompletionBody(Common):
    """/completion."""

    prompt: str | list[int] | list[str | list[int]]


class TokenizeBody(Body):
    """/tokenize."""

    content: str
    add_special: bool = False
    parse_special: bool = False
    with_pieces: bool = False


class DetokenizeBody(Body):
    """/detokenize."""

    tokens: list[int]


class LlamaCall:
    """A request for completions, and its response."""

    media_type = "text/event-stream"

    def __init__(self, served: Served, body: Common, prompts: Sequence[Prompt]) -> None:
        if body.grammar or body.json_schema is not None:
            raise UsageError("grammars are not supported", hint="leave out grammar and json_schema")
        self._served, self._body, self._prompts = served, body, prompts
        self.stream = body.stream
        samples = body.samples
        sampling = sampling_of(
            served,
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=body.top_k,
            seed=body.seed,
            samples=samples,
        )
        self.tasks: Sequence[Task] = [
            task_of(
                served,
                prompt,
                sampling,
                max_tokens=body.most,
                stops=stops_of(body.stop),
                samples=samples,
                top_scores=body.n_probs or None,
                # Nobody waits for a request that only warms the cache, and llama.vim's limit of
                # 1 ms would end it before it has.
                prompt_s=budget_s(body.t_max_prompt_ms) if body.most else None,
                predict_s=budget_s(body.t_max_predict_ms),
            )
            for prompt in prompts
        ]

    def shaper(self) -> Shaper | None:
        """Ends a middle with its block, and gives it the text's line ends."""
        return shaper_of(self._prompts[0], least_indent=self._body.n_indent)

    def whole(self, results: Sequence[Result]) -> Any:
        """One object, or several in a list."""
        found = [self._final(result, result.text) for result in results]
        return found[0] if len(found) == 1 else found

    def first(self) -> Sequence[bytes]:
        """Nothing."""
        return ()

    def piece(self, index: int, text: str, piece: Piece) -> Sequence[bytes]:
        """The text, and how many tokens there are."""
        if not text:
            return ()
        task = self.tasks[index // self._body.samples]
        chunk: dict[str, Any] = {
            "index": index,
            "content": text,
            "tokens": [],
            "stop": False,
            "id_slot": -1,
            "tokens_predicted": piece.tokens,
            "tokens_evaluated": len(task.prompt),
        }
        if self._body.n_probs:
            chunk["completion_probabilities"] = [
                _score(self._served, score) for score in piece.scores
            ]
        return (_event(chunk),)

    def done(self, result: Result) -> Sequence[bytes]:
        """The counts and times."""
        return (_event(self._final(result, "")),)

    def last(self, results: Sequence[Result]) -> Sequence[bytes]:  # noqa: ARG002
        """Nothing."""
        return ()

    def _final(self, result: Result, text: str) -> dict[str, Any]:
        completion, body = result.completion, self._body
        task = self.tasks[result.index // body.samples]
        kind = "eos" if completion.finish_reason == "stop" else "limit"
        kind = "word" if completion.stop else kind
        found: dict[str, Any] = {
            "index": result.index,
            "content": text,
            "tokens": list(completion.ids) if body.return_tokens else [],
            "id_slot": -1,
            "stop": True,
            "model": self._served.name,
            "tokens_predicted": len(completion.ids),
            "tokens_evaluated": completion.prompt_tokens,
            "generation_settings": {
                "n_predict": body.most,
                "temperature": task.sampling.temperature,
                "top_k": task.sampling.top_k,
                "top_p": task.sampling.top_p,
                "seed": task.sampling.seed,
                "stop": list(task.stops),
                "n_ctx": task.context,
            },
            "has_new_line": "\n" in completion.text,
            "truncated": task.left_out is not None,
            "stop_type": kind,
            "stopping_word": completion.stop,
            "tokens_cached": completion.prompt_tokens + len(completion.ids),
            "timings": timings(completion),
        }
        if body.n_probs:
            found["completion_probabilities"] = [
                _score(self._served, score) for score in completion.scores
            ]
        if not body.response_fields:
            return found
        picked = {}
        for path in body.response_fields:
            value: Any = found
            for name in path.split("/"):
                value = value.get(name) if isinstance(value, dict) else None
            if value is not None:
                picked[path] = value
        return picked


def infill(served: Served, content: bytes) -> LlamaCall:
    """The call of a POST to /infill.

    Raises:
        UserError: the request is wrong, or does not fit.
    """
    body = parsed(InfillBody, content)
    extras = [Extra(chunk.text, chunk.filename) for chunk in body.input_extra]
    prompt = served.prompts.infilling(
        body.input_prefix,
        body.input_suffix,
        body.most if body.most >= 0 else served.prompts.context // 4,
        middle=body.prompt,
        extras=extras,
        form=body.form,
    )
    return LlamaCall(served, body, [prompt])


def completion(served: Served, content: bytes) -> LlamaCall:
    """The call of a POST to /completion.

    Raises:
        UserError: the request is wrong, or does not fit.
    """
    body = parsed(CompletionBody, content)
    built = [
        served.prompts.given(prompt)
        if isinstance(prompt, list)
        else continued(served, prompt, most_of(body.most))
        for prompt in texts_of(body.prompt)
    ]
    return LlamaCall(served, body, built)


def continued(served: Served, text: str, most: int | None) -> Prompt:
    """The prompt of text that is continued, or of a gap that it holds as a template.

    Args:
        served: the model.
        text: the prompt.
        most: longest completion in tokens; None for what the context holds.

    Raises:
        UserError: it does not fit.
    """
    gap = gap_in_template(served, text)
    if gap is None:
        return served.prompts.completion(text, most or 0)
    return served.prompts.infilling(*gap, served.prompts.context // 4 if most is None else most)


def texts_of(prompt: str | list[int] | list[str | list[int]]) -> list[str | list[int]]:
    """The prompts of a request: one or several, as text or ids.

    Raises:
        UsageError: there are none, or too many.
    """
    if isinstance(prompt, str):
        return [prompt]
    if not prompt or (len(prompt) > MOST_PROMPTS and not isinstance(prompt[0], int)):
        raise UsageError(f"from 1 to {MOST_PROMPTS} prompts are taken")
    if isinstance(prompt[0], int):
        return [[token for token in prompt if isinstance(token, int)]]
    return [part for part in prompt if not isinstance(part, int)]


def tokenize(served: Served, content: bytes) -> dict[str, Any]:
    """The response to /tokenize.

    Raises:
        UserError: the request is wrong.
    """
    body = parsed(TokenizeBody, content)
    tokenizer = served.prompts.tokenizer
    ids = tokenizer.encode(
        body.content, bos=body.add_special, specials="parse" if body.parse_special else "text"
    )
    if not body.with_pieces:
        return {"tokens": ids}
    pieces = tokenizer.pieces(ids)
    return {"tokens": [{"id": token, "piece": p} for token, p in zip(ids, pieces, strict=True)]}


def detokenize(served: Served, content: bytes) -> dict[str, Any]:
    """The response to /detokenize.

    Raises:
        UserError: the request is wrong.
    """
    body = parsed(DetokenizeBody, content)
    return {"content": served.prompts.tokenizer.decode(body.tokens)}


def props(served: Served, slots: int) -> dict[str, Any]:
    """The response to /props."""
    return {
        "default_generation_settings": {
            "n_ctx": served.prompts.context,
            "params": {
                "temperature": served.temperature,
                "top_k": 0,
                "top_p": 1.0,
                "n_predict": -1,
            },
        },
        "total_slots": slots,
        "model_alias": served.name,
        "model_path": served.name,
        "chat_template": "",
        "modalities": {"vision": False, "audio": False},
        "build_info": "codecria",
    }


def timings(completion: Completion) -> dict[str, Any]:
    """Counts and times as llama.cpp names them."""
    read = completion.prompt_tokens - completion.cached_tokens
    found: dict[str, Any] = {"cache_n": completion.cached_tokens}
    for name, tokens, seconds in (
        ("prompt", read, completion.prefill_s),
        ("predicted", len(completion.ids), completion.decode_s),
    ):
        ms = seconds * 1000
        found |= {
            f"{name}_n": tokens,
            f"{name}_ms": round(ms, 3),
            f"{name}_per_token_ms": round(ms / tokens, 3) if tokens else 0.0,
            f"{name}_per_second": round(tokens / seconds, 2) if seconds else 0.0,
        }
    if completion.drafted:
        found |= {"draft_n": completion.drafted, "draft_n_accepted": completion.accepted}
    return found


def error(message: str, status: int) -> dict[str, Any]:
    """An error as llama.cpp writes it."""
    kinds = {401: "authentication_error", 404: "not_found_error", 503: "unavailable_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"code": status, "message": message, "type": kind}}


def _event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def _score(served: Served, score: TokenScore) -> dict[str, Any]:
    def one(token: int, logprob: float) -> dict[str, Any]:
        text, raw = token_text(served, token)
        return {"id": token, "token": text, "bytes": list(raw), "logprob": logprob}

    return one(score.token, score.logprob) | {"top_logprobs": [one(*top) for top in score.top]}
