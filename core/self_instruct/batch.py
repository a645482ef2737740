"""Requests and responses as files in the form of OpenAI's batches, for a cluster without a network.

    {"custom_id": ID, "method": "POST", "url": "/v1/chat/completions", "body": {...}}
    {"custom_id": ID, "response": {"status_code": 200, "body": {...}}, "error": null}

`vllm run-batch -i REQUESTS -o RESPONSES --model M` answers such a file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from codecria.data.errors import UserError
from codecria.data.files import atomic_writer

from .models import Absent, Ask, Known, Reply, body_of, reply_of
from .prompts import Form


class BatchModel(Absent):
    """A model whose answers come in files, which are read before it is asked.

    Args:
        name: of the model, as the requests name it.
        form: how it is asked.
    """

    def __init__(self, name: str, *, form: Form = "chat") -> None:
        super().__init__({"kind": "openai", "model": name}, form=form)


def write_requests(path: Path, asks: Sequence[Ask], known: Known, name: str) -> int:
    """Write the requests whose replies are not known.

    Args:
        path: of the file; replaced.
        asks: of one stage.
        known: the ids whose replies are known.
        name: of the model.

    Returns:
        how many.

    Raises:
        UserError: it cannot be written.
    """
    count = 0
    with atomic_writer(path) as file:
        for ask in asks:
            for sample, key in enumerate(ask.ids()):
                if key in known:
                    continue
                where, body = body_of(ask, sample, name)
                line = {"custom_id": key, "method": "POST", "url": f"/v1{where}", "body": body}
                file.write(json.dumps(line).encode() + b"\n")
                count += 1
    return count


@dataclass(slots=True)
class Responses:
    """What files of responses hold.

    Attributes:
        replies: by id, the last of each.
        wrong: lines that are none, with what is wrong.
        failed: ids of requests that were not answered, which remain open.
    """

    replies: dict[str, Reply]
    wrong: list[str]
    failed: list[str]


def read_responses(paths: Sequence[Path]) -> Responses:
    """The replies in files of responses.

    Raises:
        UserError: a file cannot be read.
    """
    found = Responses({}, [], [])
    for path in paths:
        try:
            with path.open("rb") as file:
                for number, raw in enumerate(file, start=1):
                    if raw.strip():
                        _take(found, f"{path.name}:{number}", raw)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    return found


def _take(found: Responses, where: str, raw: bytes) -> None:
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError) as error:
        found.wrong.append(f"{where}: not JSON: {error}")
        return
    key = line.get("custom_id") if isinstance(line, dict) else None
    if not isinstance(key, str):
        found.wrong.append(f"{where}: no custom_id")
        return
    response = line.get("response")
    status = response.get("status_code", 200) if isinstance(response, dict) else None
    if line.get("error") or status != 200:
        found.failed.append(key)
        return
    try:
        found.replies[key] = reply_of(key, response.get("body"))
    except ValueError as error:
        found.wrong.append(f"{where}: {error}")
