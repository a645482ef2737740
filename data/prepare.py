"""`prepare-data`: sources to a shard set, in stages that resume.

Each stage maps a pass (`passes.py`) over partitions (`stages.py`); files lie between them in
`.work` inside the output folder, which the end removes. Whatever decides about a document is a
function of its text, its id and its place in the order of the sources, so neither the number of
workers nor the size of the partitions changes a byte of the result. Memory is bounded by a
partition or a shard.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from . import dedup, passes, shards, tokenizer
from .errors import UserError
from .files import (
    atomic_write_json,
    atomic_writer,
    digest_file,
    digest_json,
    locked,
    read_json,
    remove_leftovers,
    require_free_space,
    temporary_beside,
    write_error,
)
from .intake import PrepareRecipe, partitions, save_plan, survey
from .report import Tally, make_report, totals
from .sources import DAMAGE, Source
from .stages import Charge, Job, Progress, run_stage, take_charge

WORK = ".work"
REPORT_NAME = "report.json"
IDENTITY_NAME = "identity.json"  # in the work folder: what an unfinished run is making
PIPELINE_VERSION = 1  # raise it when a pass's output changes for the same input
# Small inputs are cut finer, so that every core has work: 64 partitions from 64 MiB to 4 GiB.
PARTITION_BYTES = (1 << 20, 64 << 20)
PARTITIONS = 64
KEY_BUCKET_BYTES = 1 << 30  # of input, for each bucket of keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What `prepare` did: the report, and whether the output was already there."""

    report: dict[str, Any]
    unchanged: bool


def prepare(
    sources: Sequence[Source],
    out: Path,
    recipe: PrepareRecipe,
    *,
    model: Path | None,
    workers: int = 1,
    partition_bytes: int | None = None,
    strict: bool = False,
    force: bool = False,
    keep_work: bool = False,
    stdin: IO[bytes] | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Outcome:
    """Make the shard set at `out`, resuming what an earlier run left there.

    Args:
        sources: what to read, in order of precedence among duplicates.
        out: the shard set's folder; complete only once its manifest is there.
        recipe: what decides the content; its `tokenizer` is filled in from `model`.
        model: the tokenizer to use, or None to train one of `recipe.vocab_size` pieces.
        workers: processes; changes no byte of the output.
        partition_bytes: of input worked on at once, by default at most 64 MiB; changes no byte of
            the output either.
        strict: damaged input (a broken record, a file that cannot be decoded) is an error.
        force: replace an output, or discard unfinished work, of other inputs or another recipe.
        keep_work: leave `.work` in place at the end.
        stdin: what the source `-` reads.
        progress: called as stages advance.

    Raises:
        UserError: nothing to read, nothing left, damage under `strict`, an output that differs, a
            folder that is not ours, another process at work on it, no space.
    """
    if model is not None:
        given = tokenizer.Tokenizer.load(model)
        model, recipe = given.path, replace(recipe, tokenizer=given.digest, vocab_size=None)
    assert (model is None) != (recipe.vocab_size is None), "one tokenizer: given, or trained here"
    _refuse_strangers(out)
    with locked(out):
        remove_leftovers(out)
        sources, spooled = _spool(sources, out / WORK, stdin)
        sources = [replace(source, without=out) for source in sources]
        identity = _plain(
            {
                "recipe": asdict(recipe),
                "inputs": survey(sources, recipe, spooled)["sources"],
                "pipeline": PIPELINE_VERSION,
            }
        )
        report = _finished(out, identity, force=force)
        if report is not None:
            _refuse_damage(report["dropped"], strict=strict)
            if not keep_work:
                shutil.rmtree(out / WORK, ignore_errors=True)
            return Outcome(report=report, unchanged=True)
        _claim(out / WORK, identity, force=force)
        run = _Run(
            work=out / WORK,
            sources=tuple(sources),
            recipe=recipe,
            identity=identity,
            charge=take_charge(out / WORK),
            workers=workers,
            strict=strict,
            progress=progress,
        )
        try:
            report = run.make(out, model, partition_bytes or run.partition_bytes)
        except UserError:
            # The next try will have other settings; what this one finished still serves it.
            (out / WORK / IDENTITY_NAME).unlink(missing_ok=True)
            raise
        if not keep_work:
            shutil.rmtree(out / WORK)
        return Outcome(report=report, unchanged=False)


def _plain(value: Any) -> Any:
    """The value as it comes back from a JSON file."""
    return json.loads(json.dumps(value))


def _refuse_strangers(out: Path) -> None:
    """Never fill, and with force never clear, a folder that holds somebody's own files."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file", hint="choose another --out")
    ours = (out / shards.MANIFEST_NAME).exists() or (out / WORK).exists()
    if not ours and any(path.name != ".lock" for path in out.iterdir()):
        raise UserError(
            f"{out} is not empty and not a shard set", hint="choose a new folder for --out"
        )


def _spool(
    sources: Sequence[Source], work: Path, stdin: IO[bytes] | None
) -> tuple[list[Source], dict[str, str]]:
    """Standard input as a file named by its content, so that a resumed run finds it unchanged."""
    spooled: dict[str, str] = {}
    ready = []
    for source in sources:
        if source.path is not None:
            ready.append(source)
            continue
        assert stdin is not None, "a source is standard input, but none was passed"
        temporary = work / "stdin" / "incoming"
        with atomic_writer(temporary) as file:
            shutil.copyfileobj(stdin, file, 1 << 20)
        digest = digest_file(temporary)
        path = work / "stdin" / digest / "stdin.jsonl"
        path.parent.mkdir(exist_ok=True)
        if path.exists():
            temporary.unlink()  # the older file keeps its time, by which partitions know it
        else:
            temporary.replace(path)
        spooled[source.name] = digest
        ready.append(Source(name=source.name, path=path))
    return ready, spooled


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """What differs between two JSON values, a line each: `recipe.seed: 1, was 0`."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in sorted(old.keys() | new.keys())
            for line in differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if old == new else [f"{name}: {new}, was {old}"]


def _finished(out: Path, identity: dict[str, Any], *, force: bool) -> dict[str, Any] | None:
    """The report of the output if it is complete and the same; None if there is work to do."""
    if not (out / shards.MANIFEST_NAME).exists():
        return None
    report: dict[str, Any] = read_json(out / REPORT_NAME)
    changed = differences(report["identity"], identity)
    if changed and not force:
        raise UserError(
            f"{out} holds other shards:\n  " + "\n  ".join(changed),
            hint="choose another --out, or replace it with --force",
        )
    return None if changed else report


def _claim(work: Path, identity: dict[str, Any], *, force: bool) -> None:
    """Mark the work folder with what it is for."""
    path = work / IDENTITY_NAME
    if path.exists() and not force:
        changed = differences(read_json(path), identity)
        if changed:
            raise UserError(
                f"{work.parent} holds an unfinished run of something else:\n  "
                + "\n  ".join(changed),
                hint="choose another --out, or give the old run up with --force",
            )
    atomic_write_json(path, identity)


def _refuse_damage(reasons: dict[str, Any], *, strict: bool) -> None:
    if not strict:
        return
    counts = totals(reasons)
    damaged = [reason.value for reason in DAMAGE if reason.value in counts]
    if damaged:
        more = sum(counts[reason] for reason in damaged) - 1
        example = next(
            by_reason[damaged[0]]["examples"][0]
            for by_reason in reasons.values()
            if damaged[0] in by_reason
        )
        raise UserError(
            f"{damaged[0]}: {example}" + f" (and {more} more)" * (more > 0),
            hint="mend or remove it, or leave out --strict to count it and go on",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One run of the stages, in its work folder."""

    work: Path
    sources: tuple[Source, ...]
    recipe: PrepareRecipe
    identity: dict[str, Any]
    charge: Charge
    workers: int
    strict: bool
    progress: Callable[[Progress], None]

    def make(self, out: Path, model: Path | None, partition_bytes: int) -> dict[str, Any]:
        """All stages, then publish; the report."""
        seconds: dict[str, float] = {}
        started = time.perf_counter()

        def lap(stage: str) -> None:
            nonlocal started
            seconds[stage] = round(time.perf_counter() - started, 3)
            started = time.perf_counter()

        tally = Tally()
        read = self._read(tally, partition_bytes)
        lap("read")
        join, summaries = self._join(read)
        lap("join")
        split = dedup.plan_split(summaries, share=self.recipe.validation_share)
        bytes_kept = sum(counts["bytes"] for summary in summaries for counts in summary.values())
        self._refuse_nothing(tally, summaries)
        model = self._tokenizer(model, join, len(read), split, bytes_kept)
        lap("tokenizer")
        require_free_space(self.work, bytes_kept)  # ids between the stages, and again as shards
        layout = self._layout(bytes_kept)
        tokens, counts = self._tokens(tally, read, join, split, layout, model)
        lap("tokens")
        facts = _facts(model)
        splits = self._shards(tokens, layout, facts.vocab_size)
        lap("shards")
        tally.check()
        report = make_report(tally, counts, self.identity) | {"seconds": seconds}
        self._publish(out, model, facts, splits, report)
        return report

    def _map(self, stage: str, function: Any, works: Sequence[Any], inputs: Sequence[str]) -> Any:
        """The results of one stage over its works, whose inputs have these digests."""
        folder = self.work / stage
        folder.mkdir(exist_ok=True)
        remove_leftovers(folder)
        jobs = [
            Job(inputs=digest, output=passes.partition_path(folder, i), payload=work)
            for i, (work, digest) in enumerate(zip(works, inputs, strict=True))
        ]

        def check(result: Any) -> None:
            if stage == "read":
                _refuse_damage(result["reasons"], strict=self.strict)

        return run_stage(
            stage,
            function,
            jobs,
            charge=self.charge,
            workers=self.workers,
            report=self.progress,
            check=check,
        )

    @property
    def _input_bytes(self) -> int:
        return sum(source["bytes"] for source in self.identity["inputs"].values())

    @property
    def partition_bytes(self) -> int:
        """The default size of a partition; it follows from the input alone, for resuming."""
        smallest, largest = PARTITION_BYTES
        return min(largest, max(smallest, self._input_bytes // PARTITIONS))

    @property
    def _buckets(self) -> int:
        """How many buckets the keys are scattered to; any number gives the same result."""
        return min(1024, 1 + self._input_bytes // KEY_BUCKET_BYTES)

    def _read(self, tally: Tally, partition_bytes: int) -> list[str]:
        """Read and filter everything into the tally; the digest of each partition's inputs."""
        plans = self.work / "plan"
        plans.mkdir(exist_ok=True)
        names = tuple(source.name for source in self.sources)
        works, inputs = [], []
        # Of the recipe, only what decides about this pass: other changes leave its results good.
        recipe = self.identity["recipe"]
        filters = [recipe["languages"], recipe["quality"]]
        settings = [PIPELINE_VERSION, names, self._buckets, filters]
        cut = partitions(self.sources, self.recipe, partition_bytes=partition_bytes, tally=tally)
        for i, units in enumerate(cut):
            path = passes.partition_path(plans, i).with_suffix(".json")
            digest = save_plan(path, units)
            works.append(
                passes.ReadWork(plan=path, sources=names, recipe=self.recipe, buckets=self._buckets)
            )
            inputs.append(digest_json([*settings, digest]))
        _refuse_damage(tally.reasons, strict=self.strict)
        for result in self._map("read", passes.read_partition, works, inputs):
            tally.merge(result)
        return inputs

    def _join(self, read: Sequence[str]) -> tuple[str, list[dict[str, Any]]]:
        """Find duplicates; the digest of all inputs, and each bucket's counts by source."""
        works = [
            passes.JoinWork(
                read=self.work / "read",
                partitions=len(read),
                bucket=bucket,
                remove=self.recipe.dedup == "exact",
            )
            for bucket in range(self._buckets)
        ]
        inputs = [digest_json([list(read), work.bucket, work.remove]) for work in works]
        return digest_json(inputs), self._map("join", passes.join_bucket, works, inputs)

    def _refuse_nothing(self, tally: Tally, summaries: Sequence[dict[str, Any]]) -> None:
        if not any(summaries):
            why = ", ".join(f"{r} {count}" for r, count in totals(tally.reasons).items())
            raise UserError(
                f"none of the {tally.count('found')} documents found is left",
                hint=f"dropped as {why}" if why else "the files hold no documents",
            )

    def _tokenizer(
        self, model: Path | None, join: str, partition_count: int, split: dedup.Split, kept: int
    ) -> Path:
        """The model to use, trained if none was given."""
        if model is not None:
            return model
        assert self.recipe.vocab_size is not None
        work = passes.TrainWork(
            read=self.work / "read",
            join=self.work / "join",
            partitions=partition_count,
            buckets=self._buckets,
            split=split,
            sample_below=dedup.TWO_64 * self.recipe.sample_bytes // max(1, kept),
            vocab_size=self.recipe.vocab_size,
            threads=self.workers,
        )
        settings = [self.recipe.vocab_size, self.recipe.sample_bytes, self.recipe.validation_share]
        self._map("tokenizer", passes.train_tokenizer, [work], [digest_json([join, *settings])])
        return self.work / "tokenizer" / tokenizer.MODEL_NAME

    def _layout(self, kept: int) -> tuple[int, int]:
        """How many shards of training and of validation."""
        share = self.recipe.validation_share
        train = -(-kept // self.recipe.shard_bytes)
        return train, 1 + int(kept * share / self.recipe.shard_bytes) if share else 0

    def _tokens(
        self,
        tally: Tally,
        read: Sequence[str],
        join: str,
        split: dedup.Split,
        layout: tuple[int, int],
        model: Path,
    ) -> tuple[list[str], list[dict[str, Any]]]:
        """Tokenise every survivor; the digest of each partition's inputs, and its counts."""
        works = [
            passes.TokensWork(
                read=self.work / "read",
                join=self.work / "join",
                partition=i,
                buckets=self._buckets,
                tokenizer=model,
                split=split,
                shards=layout,
                seed=self.recipe.seed,
            )
            for i in range(len(read))
        ]
        share, seed = self.recipe.validation_share, self.recipe.seed
        shared = [join, digest_file(model), layout, share, seed]
        inputs = [digest_json([digest, *shared]) for digest in read]
        counts = self._map("tokens", passes.tokens_partition, works, inputs)
        for result in counts:
            tally.merge(result["tally"])
        return inputs, counts

    def _shards(
        self, tokens: Sequence[str], layout: tuple[int, int], vocab_size: int
    ) -> dict[str, list[shards.ShardEntry]]:
        """Sort every shuffle bucket into a shard; the entries of those that are not empty."""
        works = [
            passes.ShardWork(
                tokens=self.work / "tokens",
                partitions=len(tokens),
                shards=layout,
                number=number,
                vocab_size=vocab_size,
            )
            for number in range(sum(layout))
        ]
        inputs = [digest_json([list(tokens), number]) for number in range(sum(layout))]
        results = self._map("shards", passes.write_shard, works, inputs)
        entries = [shards.ShardEntry(**result) for result in results if result is not None]
        splits = {
            split: [entry for entry in entries if entry.name.startswith(split)]
            for split in passes.SPLITS
        }
        return {split: held for split, held in splits.items() if held}

    def _publish(
        self,
        out: Path,
        model: Path,
        facts: shards.TokenizerFacts,
        splits: dict[str, list[shards.ShardEntry]],
        report: dict[str, Any],
    ) -> None:
        """Make the shard set appear: the old manifest goes first, the new one comes last."""
        names = {
            f"{entry.name}.{part}"
            for entries in splits.values()
            for entry in entries
            for part in shards.PARTS
        }
        try:
            (out / shards.MANIFEST_NAME).unlink(missing_ok=True)
            for split in passes.SPLITS:
                for path in sorted(out.glob(f"{split}-*")):
                    if path.name not in names:
                        path.unlink()
        except OSError as error:
            raise write_error(out, error) from error
        for name in sorted(names):
            _place(self.work / "shards" / name, out / name)
        _place(model, out / tokenizer.MODEL_NAME)
        atomic_write_json(out / REPORT_NAME, report)
        shards.write_manifest(
            out,
            splits,
            tokenizer=facts,
            sources=[
                {"name": name, **{split: counts[split] for split in passes.SPLITS}}
                for name, counts in report["sources"].items()
            ],
            languages={
                language: counts["kept"]
                for language, counts in report["languages"].items()
                if counts["kept"]["documents"]
            },
            licences=report["licences"],
            recipe=self.identity["recipe"],
        )


def _facts(model: Path) -> shards.TokenizerFacts:
    loaded = tokenizer.Tokenizer.load(model)
    return shards.TokenizerFacts(
        digest=loaded.digest,
        vocab_size=loaded.vocab_size,
        bos_id=loaded.bos_id,
        eos_id=loaded.eos_id,
    )


def _place(source: Path, target: Path) -> None:
    """The file at `source`, whole, also at `target`: a link where the disk has them, else a copy.

    The source stays: a run killed while publishing publishes again.
    """
    temporary = temporary_beside(target)
    try:
        temporary.hardlink_to(source)
    except OSError:
        with atomic_writer(target) as file, source.open("rb") as content:
            shutil.copyfileobj(content, file, 1 << 20)
    else:
        temporary.replace(target)
