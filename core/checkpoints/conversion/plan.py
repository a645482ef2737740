"""What a conversion writes: shape, tokenizer, chat template, types and sizes, settled before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from codecria.core.checkpoints.checkpoint import TOKENIZER_NAME, Checkpoint
from codecria.core.checkpoints.formats.chat_template import TEMPLATES, template_for
from codecria.core.checkpoints.formats.gguf.facts import GgufType
from codecria.core.checkpoints.formats.gguf.read import GgufWeights
from codecria.core.checkpoints.formats.layout import EMBEDDING, OUTPUT, RotaryOrder, shapes_of
from codecria.core.checkpoints.formats.meta import check_ranks
from codecria.core.checkpoints.formats.weights import FLOATS
from codecria.core.model.config import ModelConfig
from codecria.core.model.dtypes import DTYPES
from codecria.core.native.packing import GROUP_BYTES, PackedKind, packed_shape
from codecria.data.errors import UsageError, UserError
from codecria.data.formats.chat import form_of
from codecria.data.progress import Progress
from codecria.data.tokenizer.tokenizer import Tokenizer

from .request import Chat, Layout, Request, check_destination

Report = Callable[[Progress], None]
_GGUF_TYPES: Mapping[torch.dtype | PackedKind, GgufType] = {
    torch.float32: GgufType.F32,
    torch.float16: GgufType.F16,
    torch.bfloat16: GgufType.BF16,
    "q8": GgufType.Q8_0,
    "q4": GgufType.Q4_0,
}
DEQUANTISED = torch.float16  # of what was quantised: its scales are, and codes have few bits


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is settled before a conversion writes.

    Attributes:
        request: what the user asks for.
        source: the checkpoint to read.
        config: shape of the result.
        tokenizer: of the result, or None.
        template: its chat template, "" for none.
        dtypes: the type each weight is written in, by our name; of a quantised one the type before.
        kind: how matrices are quantised, or None.
        ends: its end ids.
    """

    request: Request
    source: Checkpoint
    config: ModelConfig
    tokenizer: Tokenizer | None
    template: str
    dtypes: Mapping[str, torch.dtype]
    kind: PackedKind | None
    ends: tuple[int, ...]

    @property
    def packed(self) -> dict[str, PackedKind]:
        """The type of every matrix that is quantised, by our name."""
        if self.kind is None:
            return {}
        # In 4 bits the embedding and the output matrix would cost the most (docs/convert.md).
        heads: PackedKind = "q8"
        return {
            n: heads if n in (EMBEDDING, OUTPUT) else self.kind
            for n, shape in shapes_of(self.config).items()
            if len(shape) == 2
        }

    @property
    def gguf_type(self) -> GgufType:
        """The type of the matrices in a GGUF file: the one all have, else float32."""
        if self.kind is not None:
            return _GGUF_TYPES[self.kind]
        matrices = {d for name, d in self.dtypes.items() if not name.endswith("norm.weight")}
        return _GGUF_TYPES[matrices.pop()] if len(matrices) == 1 else GgufType.F32

    @property
    def dtype_name(self) -> str:
        """The types of the result, as the report names them."""
        if self.request.layout is Layout.GGUF:
            return self.gguf_type.value
        if self.kind is not None:
            return self.kind
        return "/".join(
            sorted({str(dtype).removeprefix("torch.") for dtype in self.dtypes.values()})
        )

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Bytes of everything that is written, by our name."""
        packed = self.packed
        sizes = {
            name: math.prod(packed_shape(packed[name], *shape))
            if name in packed  # in GGUF as well, but for what rows are padded with
            else math.prod(shape) * self._width(name)
            for name, shape in shapes_of(self.config).items()
        }
        if self.request.layout is Layout.META and self.config.tied:
            sizes[OUTPUT] = sizes[EMBEDDING]
        return sizes

    @property
    def size(self) -> int:
        """Bytes of all weights of the result."""
        return sum(self.sizes.values())

    def _width(self, ours: str) -> int:
        """Bytes of a value of a weight that is not quantised."""
        if self.request.layout is Layout.GGUF and self.gguf_type is GgufType.F32:
            return torch.float32.itemsize
        return self.dtypes[ours].itemsize

    @property
    def lineage(self) -> dict[str, Any]:
        """The source's, and in which types it was quantised."""
        types = sorted({part.dtype for part in self.source.weights.stored.values()} - FLOATS)
        lineage = self.source.lineage()
        if types:
            lineage["quantised_source"] = {"name": self.source.folder.name, "types": types}
        return lineage

    def weight(self, ours: str, rotary_order: RotaryOrder) -> Tensor:
        """A weight of the source in its new type, a copy.

        Raises:
            UserError: the source is damaged, or values are not finite in that type.
        """
        weights = self.source.weights
        with weights.borrow(ours) as raw:
            value = weights.ordered(raw, ours, self.config, rotary_order)
            value = value.to(self.dtypes[ours], copy=True)
        if not bool(value.isfinite().all()):
            raise UserError(
                f"{weights.name(ours)} holds values that are not finite"
                f" as {str(self.dtypes[ours]).removeprefix('torch.')}",
                hint="choose another --dtype; if the source has them itself, get it again",
            )
        return value


def plan(request: Request, note: Callable[[str], None]) -> Plan:
    """Open the source and settle what is written.

    Args:
        request: what to convert.
        note: called with what the user should know.

    Raises:
        UsageError: the options do not go together.
        UserError: the source is unsound, or cannot be written in the layout asked for.
    """
    source = _opened(request)
    config = _corrected(source.config, request)
    tokenizer = _tokenizer(source, config, request, note)
    if request.layout is Layout.GGUF:
        config = _with_frame(config, tokenizer)
    if request.dtype == "q4" and tokenizer is None:
        note("without a tokenizer there is no text to calibrate on: q4 is rounded to nearest")
    template = _template(source, tokenizer, request, note)
    if request.ranks != 1 and request.layout is not Layout.META:
        raise UsageError("--ranks is for Meta's layout", hint="add --to meta")
    check_ranks(config, request.ranks)
    return Plan(
        request=request,
        source=source,
        config=config,
        tokenizer=tokenizer,
        template=template,
        dtypes=_types(source, config, request, note),
        kind=_kind(request),
        ends=source.end_ids(tokenizer),
    )


def _opened(request: Request) -> Checkpoint:
    source = Checkpoint.open(request.source, request.adapter)
    problems = source.problems()
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise UserError(
            f"{source.folder} is not sound: {'; '.join(problems[:3])}{more}",
            hint=f"see `codecria inspect {source.folder}`",
        )
    check_destination(request, source.folder)
    return source


def _corrected(config: ModelConfig, request: Request) -> ModelConfig:
    changes: dict[str, Any] = {}
    if request.context is not None:
        changes["max_context"] = request.context
    if request.theta is not None:
        changes["rope_theta"] = request.theta
    return replace(config, **changes)


def _with_frame(config: ModelConfig, tokenizer: Tokenizer | None) -> ModelConfig:
    """The shape, with the tokenizer's BOS and EOS if it has none: llama.cpp assumes 1 and 2."""
    assert tokenizer is not None, "_tokenizer checks it"
    return replace(
        config,
        bos_id=config.bos_id if config.bos_id >= 0 else tokenizer.bos_id,
        eos_id=config.eos_id if config.eos_id >= 0 else tokenizer.eos_id,
    )


def _tokenizer(
    source: Checkpoint, config: ModelConfig, request: Request, note: Callable[[str], None]
) -> Tokenizer | None:
    path = source.tokenizer_path
    if path is None:
        if request.layout is Layout.GGUF:
            raise UserError(
                f"{source.folder} has no {TOKENIZER_NAME}, which a GGUF file must hold",
                hint="put the model's tokenizer there",
            )
        if isinstance(source.weights, GgufWeights):
            note(
                f"{source.folder}: {source.weights.tokenizer_obstacle}, which is not converted:"
                " copy the tokenizer of the original model into the result"
            )
        return None
    try:
        tokenizer = Tokenizer.load(path)
    except UserError as error:
        if request.layout is not Layout.HF or path.name == TOKENIZER_NAME:
            raise
        note(f"{error.message}: its files are copied as they are")
        return None
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{path} has {tokenizer.vocab_size} pieces, the model {config.vocab_size} rows",
            hint="it is the tokenizer of another model",
        )
    return tokenizer


def _template(
    source: Checkpoint, tokenizer: Tokenizer | None, request: Request, note: Callable[[str], None]
) -> str:
    if request.chat is Chat.NONE or tokenizer is None:
        return ""
    if request.chat is not Chat.AUTO:
        return TEMPLATES["llama2" if request.chat is Chat.LLAMA2 else "turns"]
    own = source.chat_template() or template_for(tokenizer, source.lineage())
    named = "instruct" in source.folder.resolve().name.lower()
    if not own and named and not source.lineage():
        note("taken for an Instruct model by its name: its chat template is added (--chat none)")
        return TEMPLATES[form_of(tokenizer)]
    return own


def _kind(request: Request) -> PackedKind | None:
    """How matrices are quantised.

    Raises:
        UsageError: there is no such type, or the layout has none.
    """
    known = ("float32", "bfloat16", "float16", *GROUP_BYTES)
    if request.dtype is not None and request.dtype not in known:
        raise UsageError(
            f"there is no type {request.dtype!r}", hint=f"choose one of {', '.join(known)}"
        )
    kind: PackedKind | None = next((k for k in GROUP_BYTES if k == request.dtype), None)
    if kind is not None and request.layout is Layout.META:
        raise UsageError(f"Meta's layout has no type {kind}", hint="leave out --to meta")
    return kind


def _types(
    source: Checkpoint, config: ModelConfig, request: Request, note: Callable[[str], None]
) -> dict[str, torch.dtype]:
    """The type each weight is written in, by our name; of a quantised one the type before."""
    stored = source.weights.stored
    quantised = {stored[n].dtype for n in shapes_of(config)} - FLOATS
    if quantised and request.dtype is None:
        note(
            f"quantised weights ({', '.join(sorted(quantised))}) become float16;"
            " --dtype float32 keeps each value exactly"
        )
    # Decoded values are float32; those that are quantised again lose nothing before.
    decoded = DEQUANTISED if request.dtype is None else torch.float32
    kept = {
        n: decoded if stored[n].dtype in quantised else getattr(torch, stored[n].dtype)
        for n in shapes_of(config)
    }
    if request.layout is Layout.GGUF:  # which has nothing wider than float32 for a weight
        kept = {n: torch.float32 if d is torch.float64 else d for n, d in kept.items()}
    if request.dtype is None:
        return kept
    if _kind(request) is not None:  # norms are float32, as the kernels and llama.cpp read them
        return {n: torch.float32 if n.endswith("norm.weight") else d for n, d in kept.items()}
    return dict.fromkeys(kept, DTYPES[request.dtype])
