"""What to convert, and where the result may go."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from codecria.core.checkpoints.ends import CONFIG_NAME
from codecria.core.checkpoints.formats.meta import is_meta_folder
from codecria.core.checkpoints.writing import MAX_SHARD_BYTES
from codecria.data.errors import UsageError, UserError
from codecria.data.gguf import is_gguf


class Layout(StrEnum):
    """The layouts that can be written."""

    HF = "hf"
    META = "meta"
    GGUF = "gguf"


class Chat(StrEnum):
    """The chat template to write; AUTO is the source's own, or the one for its kind of model."""

    AUTO = "auto"
    LLAMA2 = "llama2"
    TURNS = "turns"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to convert.

    Attributes:
        source: a checkpoint or run folder.
        adapter: the folder of an adapter to merge into it.
        out: a folder, or a .gguf file.
        layout: of the result.
        dtype: of the matrices: "float32", "float16", "bfloat16", "q8" or "q4"; None keeps it, and
            takes float16 for what is quantised.
        verify: compare logits too, not the weights alone.
        context, theta: replace the source's value, or supply it if the source has none.
        chat: the template.
        max_shard_bytes: of a safetensors file.
        ranks: files of Meta's layout, each a part of a model-parallel model.
        force: replace what is at `out`.
    """

    source: Path
    out: Path
    layout: Layout
    adapter: Path | None = None
    dtype: str | None = None
    verify: bool = True
    context: int | None = None
    theta: float | None = None
    chat: Chat = Chat.AUTO
    max_shard_bytes: int = MAX_SHARD_BYTES
    ranks: int = 1
    force: bool = False


def check_destination(request: Request, source: Path) -> None:
    """Refuse a destination where something other than an old model would be lost.

    Raises:
        UsageError: the destination is the source, or holds it.
        UserError: it exists and is not to be replaced.
    """
    out = request.out
    if out.resolve() == source.resolve():
        raise UsageError(f"{out} is the source", hint="choose another destination")
    if out.resolve() in source.resolve().parents:
        raise UsageError(f"{out} holds the source", hint="choose another destination")
    if not out.exists():
        return
    if not request.force:
        raise UserError(f"{out} exists", hint="--force replaces it")
    wrong = out.is_dir() if request.layout is Layout.GGUF else out.is_file()
    if wrong:
        kind = "a folder" if out.is_dir() else "a file"
        raise UserError(f"{out} is {kind}, and is not replaced", hint="choose another destination")
    replaceable = (
        is_gguf(out)
        if request.layout is Layout.GGUF
        else (out / CONFIG_NAME).is_file() or is_meta_folder(out) or not any(out.iterdir())
    )
    if not replaceable:
        raise UserError(
            f"{out} is no model, and is not replaced", hint="choose another destination"
        )
