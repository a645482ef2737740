"""Conversion between checkpoint layouts: weight by weight, compared with the source, published.

The destination appears only after the result was read back and compared with the source. A killed
conversion leaves a hidden temporary, which the next one removes.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codecria.core.checkpoints.formats.chat_template import TEMPLATES, template_for
from codecria.core.checkpoints.formats.gguf import (
    GgufFacts,
    GgufType,
    GgufWeights,
    is_gguf,
    quantisation_error,
    type_of,
    write_gguf,
)
from codecria.core.checkpoints.formats.hugging_face import (
    GENERATION_NAME,
    TEMPLATE_NAME,
    TOKENIZER_CONFIG_NAME,
    TOKENIZER_JSON_NAME,
)
from codecria.core.checkpoints.formats.layout import (
    EMBEDDING,
    OUTPUT,
    RotaryOrder,
    meta_name,
    reordered,
    rotary_heads,
    shapes_of,
)
from codecria.core.checkpoints.formats.meta import (
    CHECKLIST_NAME,
    PARAMS_NAME,
    MetaWeights,
    check_ranks,
    checklist,
    is_meta_folder,
    listed,
    md5,
    params_of,
    rank_part,
    rank_shape,
    write_pickle,
)
from codecria.core.checkpoints.formats.weights import Weights
from codecria.core.model.config import ModelConfig
from codecria.data.errors import UsageError, UserError
from codecria.data.files import (
    atomic_folder,
    atomic_path,
    atomic_write,
    atomic_write_json,
    read_json,
    require_free_space,
    sweep,
    write_error,
)
from codecria.data.formats.chat import form_of
from codecria.data.progress import Progress
from codecria.data.tokenizer.hugging_face import ADDED_NAME, MAP_NAME, named_tokens
from codecria.data.tokenizer.tokenizer import Tokenizer

from . import parity
from .checkpoint import (
    CARD_NAME,
    DTYPES,
    MAX_SHARD_BYTES,
    TOKENIZER_NAME,
    Checkpoint,
    write_checkpoint,
    write_lineage,
)
from .ends import CONFIG_NAME

TOKENIZER_FILES = (
    TOKENIZER_JSON_NAME,
    TOKENIZER_CONFIG_NAME,
    MAP_NAME,
    ADDED_NAME,
    TEMPLATE_NAME,
)
SPARE_BYTES = 64 << 20  # beside the weights: tokenizer, headers
Q8_BYTES = 34 / 32  # a weight in Q8_0: 32 bytes and a float16 scale for 32 of them
# How far logits may be apart, relative to their size. Without a change of type only the order of
# sums differs; otherwise each weight is rounded by up to 2^-9 (bfloat16) or 1/254 (Q8_0) of the
# largest beside it, and layers add it up.
TOLERANCE_SAME, TOLERANCE_ROUNDED = 1e-3, 0.1


class Layout(StrEnum):
    """What can be written."""

    HF = "hf"
    META = "meta"
    GGUF = "gguf"


class Chat(StrEnum):
    """The chat template that goes with the model; AUTO is the source's own, or that of its kind."""

    AUTO = "auto"
    LLAMA2 = "llama2"
    TURNS = "turns"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to convert.

    Attributes:
        source: a checkpoint or run folder.
        out: a folder, or a .gguf file.
        layout: of the result.
        dtype: of the matrices: "float32", "float16", "bfloat16", and "q8_0" in GGUF; None keeps it.
        verify: compare logits too, not the weights alone.
        context, theta: correct what the source says of itself, or does not say.
        chat: the template.
        max_shard_bytes: of a safetensors file.
        ranks: files of Meta's layout, each a part of a model-parallel model.
        force: replace what is at `out`.
    """

    source: Path
    out: Path
    layout: Layout
    dtype: str | None = None
    verify: bool = True
    context: int | None = None
    theta: float | None = None
    chat: Chat = Chat.AUTO
    max_shard_bytes: int = MAX_SHARD_BYTES
    ranks: int = 1
    force: bool = False


Report = Callable[[Progress], None]


def _silent(_: object) -> None:
    """Discard progress and notes."""


def convert(
    request: Request,
    report: Report = _silent,
    note: Callable[[str], None] = _silent,
) -> dict[str, Any]:
    """Convert a checkpoint.

    Args:
        request: what to do.
        report: called with the progress.
        note: called with what the user should know.

    Returns:
        JSON values: what was read, what was written, and how they were compared.

    Raises:
        UsageError: the options do not go together.
        UserError: the source is unsound, there is no space, or the result differs; nothing is left.
    """
    started = time.monotonic()
    source = _opened(request)
    config = _corrected(source.config, request)
    tokenizer = _tokenizer(source, config, request, note)
    if request.layout is Layout.GGUF:
        config = _with_frame(config, tokenizer)
    template = _template(source, tokenizer, request, note)
    if request.ranks != 1 and request.layout is not Layout.META:
        raise UsageError("--ranks is for Meta's layout", hint="add --to meta")
    check_ranks(config, request.ranks)
    dtypes = _types(source, config, request)
    size = int(sum(math.prod(s) * d for s, d in _sizes(config, dtypes, request).values()))
    out = request.out
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(out, error) from error
    sweep(out)
    require_free_space(out.parent, size + SPARE_BYTES)
    _check_list(source, request, report)
    job = _Job(request, source, config, tokenizer, template, dtypes, report)
    if request.layout is Layout.GGUF:
        with atomic_path(out) as path:
            job.write_gguf(path)
            result = GgufWeights(path)
            compared = job.compare(result, result.facts.config, result.facts.ends)
        written = out.stat().st_size
    else:
        with atomic_folder(out) as folder:
            job.write_folder(folder)
            opened = Checkpoint.open(folder)
            compared = job.compare(opened.weights, opened.config, opened.end_ids(tokenizer))
        written = sum(path.stat().st_size for path in out.iterdir())
    return {
        "source": str(source.folder),
        "source_layout": "meta" if isinstance(source.weights, MetaWeights) else "hf",
        "source_files": len(source.weights.files),
        "out": str(out),
        "layout": request.layout.value,
        "dtype": _dtype_name(dtypes, request),
        "parameters": config.parameters,
        "bytes": written,
        "model": asdict(config),
        "chat_template": bool(template),
        "compared": compared,
        "seconds": time.monotonic() - started,
    }


def _opened(request: Request) -> Checkpoint:
    source = Checkpoint.open(request.source)
    problems = source.problems()
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise UserError(
            f"{source.folder} is not sound: {'; '.join(problems[:3])}{more}",
            hint=f"see `codecria inspect {source.folder}`",
        )
    _check_out(request, source.folder)
    return source


def _check_out(request: Request, source: Path) -> None:
    """See that nothing is lost at the destination that was not meant to be.

    Raises:
        UsageError, UserError: it would be.
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


def _corrected(config: ModelConfig, request: Request) -> ModelConfig:
    changes: dict[str, Any] = {}
    if request.context is not None:
        changes["max_context"] = request.context
    if request.theta is not None:
        changes["rope_theta"] = request.theta
    return replace(config, **changes)


def _with_frame(config: ModelConfig, tokenizer: Tokenizer | None) -> ModelConfig:
    """The shape with the tokenizer's BOS and EOS where it has none: llama.cpp would assume 1, 2."""
    assert tokenizer is not None, "_tokenizer checked it"
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


def _types(source: Checkpoint, config: ModelConfig, request: Request) -> dict[str, torch.dtype]:
    """The type each weight is written in, by our name; of Q8_0 what it is made from."""
    stored = source.weights.stored
    kept = {n: getattr(torch, stored[n].dtype) for n in shapes_of(config)}
    if request.layout is Layout.GGUF:  # which has nothing wider than float32 for a weight
        kept = {n: torch.float32 if d is torch.float64 else d for n, d in kept.items()}
    if request.dtype is None:
        return kept
    if request.dtype == GgufType.Q8_0:
        if request.layout is not Layout.GGUF:
            raise UsageError("q8_0 is a type of GGUF files", hint="name the destination X.gguf")
        return kept
    if request.dtype not in DTYPES:
        known = ", ".join([*DTYPES, GgufType.Q8_0])
        raise UsageError(f"there is no type {request.dtype!r}", hint=f"choose one of {known}")
    return dict.fromkeys(kept, DTYPES[request.dtype])


def _gguf_type(dtypes: Mapping[str, torch.dtype], request: Request) -> GgufType:
    if request.dtype == GgufType.Q8_0:
        return GgufType.Q8_0
    matrices = {dtype for name, dtype in dtypes.items() if not name.endswith("norm.weight")}
    return type_of(matrices.pop()) if len(matrices) == 1 else GgufType.F32


def _dtype_name(dtypes: Mapping[str, torch.dtype], request: Request) -> str:
    if request.layout is Layout.GGUF:
        return _gguf_type(dtypes, request).value
    return "/".join(sorted({str(dtype).removeprefix("torch.") for dtype in dtypes.values()}))


def _sizes(
    config: ModelConfig, dtypes: Mapping[str, torch.dtype], request: Request
) -> dict[str, tuple[tuple[int, ...], float]]:
    """Shape and bytes a value of everything that will be written."""
    shapes = shapes_of(config)
    kinds = {GgufType.F32: 4.0, GgufType.F16: 2.0, GgufType.BF16: 2.0, GgufType.Q8_0: Q8_BYTES}
    gguf = request.layout is Layout.GGUF
    width = {
        n: kinds[_gguf_type(dtypes, request)] if gguf else float(dtypes[n].itemsize) for n in shapes
    }
    sizes = {n: (shape, width[n]) for n, shape in shapes.items()}
    if request.layout is Layout.META and config.tied:
        sizes[OUTPUT] = sizes[EMBEDDING]
    return sizes


def _check_list(source: Checkpoint, request: Request, report: Report) -> None:
    """Compare the source with its checklist, where it has one."""
    if not request.verify:
        return
    files = listed(source.folder)
    for done, (name, problem) in enumerate(checklist(source.folder), start=1):
        if problem:
            raise UserError(
                f"{source.folder / name} {problem}",
                hint="download it again, or pass --no-verify to convert it as it is",
            )
        report(Progress(stage="checklist", done=done, total=files))


class _Job:
    """One conversion: writing, then comparing."""

    def __init__(
        self,
        request: Request,
        source: Checkpoint,
        config: ModelConfig,
        tokenizer: Tokenizer | None,
        template: str,
        dtypes: Mapping[str, torch.dtype],
        report: Report,
    ) -> None:
        self.request, self.source, self.config = request, source, config
        self.tokenizer, self.template, self.dtypes, self.report = (
            tokenizer,
            template,
            dtypes,
            report,
        )
        self.ends = source.end_ids(tokenizer)
        self.total = len(_sizes(config, dtypes, request)) * request.ranks
        self.done = 0

    def _read(self, ours: str, rotary_order: RotaryOrder) -> Tensor:
        """A weight to be written, in its new type."""
        self.done += 1
        self.report(Progress(stage="writing", done=self.done, total=self.total))
        return self._converted(ours, rotary_order)

    def _converted(self, ours: str, rotary_order: RotaryOrder) -> Tensor:
        weights = self.source.weights
        heads = rotary_heads(ours, self.config)
        with weights.borrow(ours) as raw:
            value = reordered(raw, heads, source=weights.rotary_order, target=rotary_order)
            value = value.to(self.dtypes[ours], copy=True)
        if not bool(value.isfinite().all()):
            raise UserError(
                f"{weights.name(ours)} holds values that are not finite"
                f" as {str(self.dtypes[ours]).removeprefix('torch.')}",
                hint="choose another --dtype; if the source has them itself, get it again",
            )
        return value

    def _tokenizer_path(self) -> Path | None:
        return self.tokenizer.path if self.tokenizer is not None else None

    def write_gguf(self, path: Path) -> None:
        assert self.tokenizer is not None, "_tokenizer checked it"
        facts = GgufFacts(
            config=self.config,
            name=self.source.folder.resolve().name,
            chat_template=self.template,
            lineage=self.source.lineage(),
            ends=self.ends,
        )
        kind = _gguf_type(self.dtypes, self.request)
        write_gguf(path, facts, self.tokenizer, kind, lambda n: self._read(n, "interleaved"))

    def write_folder(self, folder: Path) -> None:
        if self.request.layout is Layout.META:
            self._write_meta(folder)
        else:
            write_checkpoint(
                folder,
                self.config,
                lambda n: self._read(n, "half_split"),
                dtype=self.dtypes,
                tokenizer=self._tokenizer_path(),
                lineage=self.source.lineage(),
                chat_template=self.template,
                ends=self.ends,
                named=named_tokens(self.source.folder),
                max_shard_bytes=self.request.max_shard_bytes,
            )
            self._keep_files(folder)
        card = self.source.folder / CARD_NAME
        if card.is_file():
            shutil.copyfile(card, folder / CARD_NAME)

    def _keep_files(self, folder: Path) -> None:
        """Copy what a Hugging Face source says of generation, and a tokenizer that is not read."""
        source = self.source.folder
        if (source / GENERATION_NAME).is_file():
            own = read_json(source / GENERATION_NAME)
            written = read_json(folder / GENERATION_NAME)
            atomic_write_json(folder / GENERATION_NAME, own | written)
        if self.tokenizer is None:
            for name in TOKENIZER_FILES:
                if (source / name).is_file():
                    shutil.copyfile(source / name, folder / name)

    def _write_meta(self, folder: Path) -> None:
        atomic_write_json(folder / PARAMS_NAME, params_of(self.config))
        files = [folder / PARAMS_NAME]
        for rank in range(self.request.ranks):
            files.append(folder / f"consolidated.{rank:02d}.pth")
            self._write_rank(files[-1], rank)
        if self.tokenizer is not None:
            atomic_write(folder / TOKENIZER_NAME, self.tokenizer.content)
            files.append(folder / TOKENIZER_NAME)
        if self.template:
            atomic_write(folder / TEMPLATE_NAME, self.template.encode())
        lines = [f"{md5(path)}  {path.name}\n" for path in sorted(files)]
        atomic_write(folder / CHECKLIST_NAME, "".join(lines).encode())
        write_lineage(folder, self.source.lineage(), self.config, {}, ends=self.ends)

    def _write_rank(self, path: Path, rank: int) -> None:
        ranks = self.request.ranks
        shapes = shapes_of(self.config) | {OUTPUT: shapes_of(self.config)[EMBEDDING]}
        ours = {meta_name(name): name for name in shapes}
        tied = {OUTPUT: EMBEDDING} if self.config.tied else {}
        write_pickle(
            path,
            {
                m: (rank_shape(n, shapes[n], ranks), self.dtypes[tied.get(n, n)])
                for m, n in ours.items()
            },
            lambda m: rank_part(
                ours[m], self._read(tied.get(ours[m], ours[m]), "interleaved"), rank, ranks
            ),
        )

    def compare(
        self, result: Weights, config: ModelConfig, ends: Collection[int]
    ) -> dict[str, Any]:
        """Read the result back and compare it with the source.

        Raises:
            UserError: they differ.
        """
        if config != self.config:
            declared, meant = asdict(config), asdict(self.config)
            names = [n for n in declared if declared[n] != meant[n]]
            raise _differs(
                "; ".join(f"{n} came back as {declared[n]}, not {meant[n]}" for n in names)
            )
        if set(ends) != set(self.ends):
            raise _differs(f"its end ids are {sorted(ends)}, the source's {sorted(self.ends)}")
        problems = result.problems(config)
        if problems:
            raise _differs("; ".join(problems[:3]))
        shapes = shapes_of(config)
        for done, ours in enumerate(shapes, start=1):
            self._compare_weight(ours, result)
            self.report(Progress(stage="comparing", done=done, total=len(shapes)))
        facts: dict[str, Any] = {"weights": len(shapes), "exact": not self._quantised}
        if not self.request.verify:
            return facts
        return facts | self._compare_logits(result)

    @property
    def _quantised(self) -> bool:
        return self.request.dtype == GgufType.Q8_0

    def _compare_weight(self, ours: str, result: Weights) -> None:
        expected = self._converted(ours, result.rotary_order)
        with result.borrow(ours) as found:
            if self._quantised and expected.ndim == 2:
                sound = all(
                    bool(((found[rows] - expected[rows].float()).abs() <= bound).all())
                    for rows, bound in quantisation_error(expected)
                )
            else:
                # Norms are float32 in GGUF; widening changes nothing.
                common = torch.promote_types(found.dtype, expected.dtype)
                sound = torch.equal(found.to(common), expected.to(common))
        if not sound:
            raise _differs(f"{result.name(ours)} is not what was written")

    def _compare_logits(self, result: Weights) -> dict[str, Any]:
        ids, positions = parity.prompts(self.config, self.tokenizer)
        layers = self.config.n_layers
        scores = []
        for number, weights in enumerate((self.source.weights, result)):
            view = parity.View(config=self.config, rotary_order=weights.rotary_order)
            offset = number * layers

            def report(layer: int, offset: int = offset) -> None:
                self.report(Progress(stage="logits", done=offset + layer + 1, total=2 * layers))

            scores += parity.logits(weights, [view], ids, positions, report)
        found = parity.difference(*scores)
        stored = self.source.weights.stored
        same = not self._quantised and all(
            stored[n].dtype == str(d).removeprefix("torch.") for n, d in self.dtypes.items()
        )
        limit = TOLERANCE_SAME if same else TOLERANCE_ROUNDED
        if not found.relative <= limit:  # also where it is not a number
            raise _differs(
                f"logits are {found.relative:.2g} apart relative to their size,"
                f" {limit:g} is allowed"
            )
        return {"prompts": len(ids), "tokens": ids.numel(), "logits": asdict(found)}


def _differs(why: str) -> UserError:
    return UserError(
        f"the result does not compute what the source does: {why}",
        hint="nothing was kept; please report this with the source's config",
    )
