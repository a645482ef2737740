"""`prepare-data`: sources to a shard set, in stages that resume.

Each stage maps a pass (`passes.py`, `near_passes.py`) over partitions (`stages.py`); files lie
between them in `.work` inside the output folder, which the end removes. Whatever decides about a
document is a function of its text, its id and its place in the order of the sources, so neither
the number of workers nor the size of the partitions changes a byte of the result. Memory is bounded
by a partition.

With `append`, the shards that are there stay as they are and stand at the front as partitions that
never lose (`append.py`); new documents go to new shards, and a new manifest lists both.
"""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

from codecria.data.errors import UsageError, UserError
from codecria.data.files import (
    atomic_write,
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
from codecria.data.progress import Progress
from codecria.data.rows import shards
from codecria.data.rows.shards import Manifest
from codecria.data.tokenizer import tokenizer

from . import decontaminate, dedup, drops, filters, near_passes, passes
from .append import OldShard, RecallWork, old_shards, recall_shard
from .filters import Chain, Inputs, Problems
from .intake import partitions, save_plan, survey
from .reasons import DAMAGE
from .recipe import PrepareRecipe
from .report import kept_tables, make_report, merge_reports, totals
from .sources import Source
from .stages import (
    Job,
    Mapper,
    RunLease,
    Runner,
    acquire,
    connect,
    end_processes,
    run_stage,
)
from .tally import Tally

WORK = ".work"
REPORT_NAME = "report.json"
PROBLEMS_NAME = "benchmarks.index"  # hashes of what was kept out, for what is appended
IDENTITY_NAME = "identity.json"  # in the work folder: what an unfinished run is making
BASE = "base"  # in the work folder: what was there before an append began
PIPELINE_VERSION = 3  # raise it when a pass's output changes for the same input
# Small inputs are cut finer, so that every core has work: 64 partitions from 64 MiB to 4 GiB.
PARTITION_BYTES = (1 << 20, 64 << 20)
PARTITIONS = 64
KEY_BUCKET_BYTES = 1 << 30  # of input, for each bucket of keys
DOCUMENTS_A_JOB = 1 << 12  # near dedup joins all bands at once for so few documents


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What `prepare` did: the report, and whether the output was already there."""

    report: dict[str, Any]
    unchanged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """How the work is done; none of it changes a byte of the output.

    Attributes:
        workers: processes.
        runner: what maps the jobs.
        address: of the cluster, or None for one on this machine.
        partition_bytes: of input worked on at once, by default at most 64 MiB.
        progress: called as stages advance.
    """

    workers: int = 1
    runner: Runner = "processes"
    address: str | None = None
    partition_bytes: int | None = None
    progress: Callable[[Progress], None] = lambda _: None


def prepare(
    sources: Sequence[Source],
    out: Path,
    recipe: PrepareRecipe,
    *,
    model: Path | None,
    benchmarks: Sequence[Path] = (),
    weights: Mapping[str, float] | None = None,
    append: bool = False,
    engine: Engine | None = None,
    strict: bool = False,
    force: bool = False,
    keep_work: bool = False,
    stdin: IO[bytes] | None = None,
) -> Outcome:
    """Make the shard set at `out`, resuming what an earlier run left there.

    Args:
        sources: what to read, in order of precedence among duplicates.
        out: the shard set's folder; complete only once its manifest is there.
        recipe: what decides the content; its `tokenizer` and `benchmarks` are filled in.
        model: the tokenizer to use, or None to train one of `recipe.vocab_size` pieces.
        benchmarks: files of evaluation problems that no document may hold.
        weights: of the groups, where there are several, for training on a mixture of them.
        append: add the sources to the set at `out`, by its own recipe (see `recipe_of`).
        engine: how the work is done.
        strict: damaged input (a broken record, a file that cannot be decoded) is an error.
        force: replace an output, or discard unfinished work, of other inputs or another recipe.
        keep_work: leave `.work` in place at the end.
        stdin: what the source `-` reads.

    Raises:
        UserError: nothing to read, nothing left, damage under `strict`, an output that differs, a
            folder that is not ours, another process at work on it, no space.
    """
    engine = engine or Engine()
    if append:
        model = next(iter(shards.sets_in(out).values())) / tokenizer.MODEL_NAME
    elif model is not None:
        given = tokenizer.Tokenizer.load(model)
        model, recipe = given.path, replace(recipe, tokenizer=given.digest, vocab_size=None)
    assert append or (model is None) != (recipe.vocab_size is None), "one tokenizer"
    problems = decontaminate.build(benchmarks, recipe.filters[Problems.key]) if benchmarks else None
    if append:
        problems = _old_problems(out, recipe)
    elif problems is not None:
        recipe = replace(recipe, benchmarks=problems.digest)
    _refuse_strangers(out)
    with locked(out):
        remove_leftovers(out)
        sources, spooled = _spool(sources, out / WORK, stdin)
        sources = [replace(source, without=out) for source in sources]
        inputs = survey(sources, recipe, spooled)["sources"]
        onto = _Base.open(out) if append else None
        identity = _plain(
            {
                "recipe": recipe.to_json(),
                "inputs": inputs,
                "pipeline": PIPELINE_VERSION,
                **({"onto": onto.digest} if onto else {}),
            }
        )
        report = onto.holds(inputs) if onto else _finished(out, identity, force=force)
        if report is not None:
            _refuse_damage(report["dropped"], strict=strict)
            if weights:
                _weigh(out, recipe, [*shards.sets_in(out)], weights)
            if not keep_work:
                shutil.rmtree(out / WORK, ignore_errors=True)
            return Outcome(report=report, unchanged=True)
        _claim(out / WORK, identity, force=force)
        if onto is not None:
            onto.keep(out / WORK / BASE)
        if problems is not None:
            problems.save(out / WORK / PROBLEMS_NAME)
        make = partial(
            _Run,
            work=out / WORK,
            sources=tuple(sources),
            recipe=recipe,
            identity=identity,
            lease=acquire(out / WORK),
            engine=engine,
            strict=strict,
            onto=onto,
            benchmarks=problems.facts() if problems is not None else None,
            weights=weights or {},
        )
        try:
            with connect(engine.runner, workers=engine.workers, address=engine.address) as mapper:
                report = make(mapper=mapper).make(out, model)
        except UserError:
            # The next try will have other settings; what this one finished still serves it.
            (out / WORK / IDENTITY_NAME).unlink(missing_ok=True)
            raise
        shutil.rmtree(out / WORK / BASE if keep_work else out / WORK, ignore_errors=keep_work)
        return Outcome(report=report, unchanged=False)


def recipe_of(out: Path) -> PrepareRecipe:
    """The recipe of the shard set at `out`, for what is appended to it.

    Raises:
        UserError: there is no finished set, or it was made by another version.
    """
    base = _Base.open(out)
    try:
        return PrepareRecipe.from_json(base.report["identity"]["recipe"])
    except (KeyError, UsageError) as error:
        raise UserError(
            f"{out} was made by another version of codecria: nothing can be appended to it",
            hint="make it again from all its sources",
        ) from error


def _old_problems(out: Path, recipe: PrepareRecipe) -> decontaminate.Index | None:
    """The problems the set at `out` keeps out."""
    if recipe.benchmarks is None:
        return None
    try:
        index = decontaminate.Index.load(out / PROBLEMS_NAME)
    except OSError as error:
        raise UserError(
            f"{out / PROBLEMS_NAME} is missing: what is appended could hold evaluation problems",
            hint="make the set again from all its sources",
        ) from error
    if index.digest != recipe.benchmarks:
        raise UserError(f"{out / PROBLEMS_NAME} is not the file that was written")
    return index


@dataclass(frozen=True, slots=True, kw_only=True)
class _Base:
    """The shard sets that are appended to, as they were before.

    Attributes:
        manifests: by group.
    """

    folder: Path
    manifests: dict[str, Manifest]
    report: dict[str, Any]

    @classmethod
    def open(cls, out: Path) -> _Base:
        """What is at `out`, or was there before an append that was stopped while publishing."""
        kept = out / WORK / BASE
        where = kept if (kept / REPORT_NAME).exists() else out
        return cls(
            folder=out,
            manifests={
                group: shards.read_manifest(folder)
                for group, folder in shards.sets_in(where).items()
            },
            report=read_json(where / REPORT_NAME),
        )

    @property
    def digest(self) -> str:
        """Of the content of all sets."""
        return digest_json({group: held.digest for group, held in self.manifests.items()})

    @property
    def shards(self) -> list[OldShard]:
        """All shards, in order."""
        return [
            shard
            for group, manifest in self.manifests.items()
            for shard in old_shards(self.folder / group, manifest)
        ]

    def holds(self, inputs: dict[str, Any]) -> dict[str, Any] | None:
        """The report if these inputs are in the set already; None if they are to be added.

        Raises:
            UserError: it holds other documents under the same name, or keeps no keys.
        """
        there = self.report["identity"]["inputs"]
        if all(there.get(name) == source for name, source in inputs.items()):
            return self.report
        same = sorted(there.keys() & inputs.keys())
        if same:
            raise UserError(
                f"{self.folder} holds a source called {same[0]!r} already, and this one differs",
                hint=f"give what is new a name of its own: {same[0]}-2=PATH",
            )
        for shard in self.shards:
            shard.check_keys()
        return None

    def keep(self, folder: Path) -> None:
        """Copy what publishing replaces."""
        if (folder / REPORT_NAME).exists():
            return
        for group in self.manifests:
            source = self.folder / group / shards.MANIFEST_NAME
            atomic_write_json(folder / group / shards.MANIFEST_NAME, read_json(source))
        if (self.folder / shards.SETS_NAME).exists():
            sets = read_json(self.folder / shards.SETS_NAME)
            atomic_write_json(folder / shards.SETS_NAME, sets)
        _copy(self.folder / drops.NAME, folder / drops.NAME)
        atomic_write_json(folder / REPORT_NAME, self.report)


def _plain(value: Any) -> Any:
    """The value as it comes back from a JSON file."""
    return json.loads(json.dumps(value))


def _refuse_strangers(out: Path) -> None:
    """Never fill, and with force never clear, a folder that holds somebody's own files."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file", hint="choose another --out")
    ours = _is_complete(out) or (out / WORK).exists()
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


def _is_complete(out: Path) -> bool:
    return (out / shards.MANIFEST_NAME).exists() or (out / shards.SETS_NAME).exists()


def _finished(out: Path, identity: dict[str, Any], *, force: bool) -> dict[str, Any] | None:
    """The report of the output if it is complete and the same; None if there is work to do."""
    if not _is_complete(out):
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
    damaged = [str(reason) for reason in DAMAGE if reason in counts]
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
    lease: RunLease
    mapper: Mapper
    engine: Engine
    strict: bool
    onto: _Base | None
    benchmarks: dict[str, Any] | None
    weights: Mapping[str, float]

    def make(self, out: Path, model: Path | None) -> dict[str, Any]:
        """All stages, then publish; the report."""
        seconds: dict[str, float] = {}
        started = time.perf_counter()

        def lap(stage: str) -> None:
            nonlocal started
            seconds[stage] = round(time.perf_counter() - started, 3)
            started = time.perf_counter()

        tally = Tally()
        read = self._read(tally)
        lap("read")
        corpus, state = self._exact(read)
        lap("exact dedup")
        if self.recipe.dedup == "near":
            corpus, state = self._near(corpus, read, state)
            lap("near dedup")
        summary = self._summary(corpus, read, state)
        split = dedup.plan_split(summary, share=self.recipe.validation_share)
        kept = sum(counts["bytes"] for counts in summary.values())
        self._refuse_nothing(tally, summary)
        layout = self._layout(summary)
        old = self.onto.manifests if self.onto is not None else {}
        _check_weights(self.recipe, {*old, *(name for name, *_ in layout.groups)}, self.weights)
        model = self._tokenizer(model, corpus, state, split, kept)
        lap("tokenizer")
        require_free_space(self.work, kept)  # ids between the stages, and again as shards
        tokens, counts = self._tokens(tally, read, corpus, state, split, layout, model)
        lap("tokens")
        facts = _facts(model)
        entries = self._shards(tokens, corpus, layout, facts.vocab_size)
        lap("shards")
        tally.check(filters.steps())
        report = make_report(tally, counts, self.identity, self.benchmarks)
        report |= {"seconds": seconds}
        return self._publish(out, model, facts, entries, counts, report, corpus)

    @property
    def _old(self) -> list[OldShard]:
        return self.onto.shards if self.onto is not None else []

    def _map(
        self,
        stage: str,
        function: Any,
        works: Sequence[Any],
        inputs: Sequence[str],
        *,
        first: int = 0,
        folder: str = "",
    ) -> Any:
        """The results of one stage over its works, whose inputs have these digests.

        Outputs are numbered from `first` on, in a folder called after the stage or otherwise.
        """
        place = self.work / (folder or stage)
        place.mkdir(exist_ok=True)
        remove_leftovers(place)
        jobs = [
            Job(inputs=digest, output=passes.partition_path(place, first + i), payload=work)
            for i, (work, digest) in enumerate(zip(works, inputs, strict=True))
        ]

        def check(result: Any) -> None:
            if function is passes.read_partition:
                _refuse_damage(result["reasons"], strict=self.strict)

        return run_stage(
            stage,
            function,
            jobs,
            lease=self.lease,
            mapper=self.mapper,
            report=self.engine.progress,
            check=check,
        )

    @property
    def _input_bytes(self) -> int:
        return sum(source["bytes"] for source in self.identity["inputs"].values())

    @property
    def _partition_bytes(self) -> int:
        """The default size of a partition follows from the input alone, for resuming."""
        smallest, largest = PARTITION_BYTES
        default = min(largest, max(smallest, self._input_bytes // PARTITIONS))
        return self.engine.partition_bytes or default

    @property
    def _buckets(self) -> int:
        """How many buckets the keys are scattered to; any number gives the same result."""
        return min(1024, 1 + self._input_bytes // KEY_BUCKET_BYTES)

    def _read(self, tally: Tally) -> list[str]:
        """Read and filter everything into the tally; the digest of each partition's inputs.

        The shards that are appended to come first.
        """
        old = self._old
        works: list[Any] = [RecallWork(shard=shard, buckets=self._buckets) for shard in old]
        inputs = [digest_json([shard.digests, self._buckets]) for shard in old]
        if old:
            self._map("recall", recall_shard, works, inputs, folder="read")
        plans = self.work / "plan"
        plans.mkdir(exist_ok=True)
        works, new = [], []
        problems = self.work / PROBLEMS_NAME if self.benchmarks is not None else None
        chain = Chain(
            filters=filters.FILTERS,
            settings=self.recipe.filters,
            inputs=Inputs(problems=problems, benchmarks=self.recipe.benchmarks),
        )
        # Of the recipe, only the filters decide about this pass: other changes leave it good.
        names = [source.name for source in self.sources]
        settings = [PIPELINE_VERSION, names, self._buckets, chain.identity]
        with drops.writing(plans / "drops.arrow") as dropped:
            cut = partitions(
                self.sources,
                self.recipe,
                partition_bytes=self._partition_bytes,
                tally=tally,
                dropped=dropped,
            )
            for i, units in enumerate(cut):
                path = passes.partition_path(plans, i).with_suffix(".json")
                digest = save_plan(path, units)
                works.append(passes.ReadWork(plan=path, filters=chain, buckets=self._buckets))
                new.append(digest_json([*settings, digest]))
        _refuse_damage(tally.reasons, strict=self.strict)
        for result in self._map("read", passes.read_partition, works, new, first=len(old)):
            tally.merge(result)
        return inputs + new

    def _exact(self, read: Sequence[str]) -> tuple[passes.Corpus, str]:
        """Find exact duplicates; the corpus without them, and a digest of all that decided."""
        corpus = passes.Corpus(read=self.work / "read", old=len(self._old), partitions=len(read))
        state = digest_json([list(read), corpus.old])
        if self.recipe.dedup == "none":
            return corpus, state
        works = [passes.JoinWork(corpus=corpus, bucket=bucket) for bucket in range(self._buckets)]
        inputs = [digest_json([state, work.bucket]) for work in works]
        self._map("exact", passes.join_bucket, works, inputs)
        return replace(corpus, exact=self._outputs("exact", len(works))), digest_json(inputs)

    def _outputs(self, stage: str, count: int) -> tuple[Path, ...]:
        folder = self.work / stage
        return tuple(passes.partition_path(folder, i).with_suffix(".arrow") for i in range(count))

    def _near(
        self, corpus: passes.Corpus, read: Sequence[str], state: str
    ) -> tuple[passes.Corpus, str]:
        """Find near-duplicates; the corpus without them, and a digest of all that decided."""
        near, old = self.recipe.near, self._old
        shard_of = [*old, *([None] * (len(read) - len(old)))]
        folder = {name: self.work / name for name in ("sketch", "pairs", "cluster", "grams")}
        state = digest_json([state, asdict(near)])
        inputs = [digest_json([state, digest]) for digest in read]
        sketches: list[Any] = [
            near_passes.SketchWork(corpus=corpus, partition=i, near=near, shard=shard)
            for i, shard in enumerate(shard_of)
        ]
        documents = sum(self._map("sketch", near_passes.sketch_partition, sketches, inputs))

        bands = near.bands[0]
        jobs = min(bands, 1 + documents // DOCUMENTS_A_JOB)
        borders = [bands * i // jobs for i in range(jobs + 1)]
        works: list[Any] = [
            near_passes.CandidateWork(
                sketches=folder["sketch"], partitions=len(read), bands=(start, stop), near=near
            )
            for start, stop in itertools.pairwise(borders)
        ]
        inputs = [digest_json([state, list(work.bands)]) for work in works]
        self._map("pairs", near_passes.candidate_bands, works, inputs)

        cluster_work = near_passes.ClusterWork(
            pairs=folder["pairs"],
            files=jobs,
            sketches=folder["sketch"],
            partitions=len(read),
        )
        [found] = self._map("cluster", near_passes.cluster_pairs, [cluster_work], [state])
        if not found["pairs"]:
            return corpus, state
        clusters = passes.partition_path(folder["cluster"], 0)
        works = [
            near_passes.ExtractWork(
                corpus=corpus,
                partition=i,
                members=clusters.with_suffix(".arrow"),
                buckets=found["buckets"],
                near=near,
                shard=shard,
            )
            for i, shard in enumerate(shard_of)
        ]
        inputs = [digest_json([state, i]) for i in range(len(works))]
        self._map("grams", near_passes.extract_partition, works, inputs)
        works = [
            near_passes.VerifyWork(
                pairs=clusters.with_suffix(".pairs.arrow"),
                grams=folder["grams"],
                old=corpus.old,
                partitions=len(read),
                bucket=bucket,
                near=near,
            )
            for bucket in range(found["buckets"])
        ]
        inputs = [digest_json([state, bucket]) for bucket in range(len(works))]
        self._map("near", near_passes.verify_bucket, works, inputs)
        return replace(corpus, near=self._outputs("near", len(works))), state

    def _summary(
        self, corpus: passes.Corpus, read: Sequence[str], state: str
    ) -> dict[str, dict[str, Any]]:
        """What is kept of the new partitions, by group and source."""
        numbers = range(corpus.old, corpus.partitions)
        group_by = self.recipe.group_by
        works = [passes.SummaryWork(corpus=corpus, partition=i, group_by=group_by) for i in numbers]
        inputs = [digest_json([state, read[i], group_by]) for i in numbers]
        found = self._map("summary", passes.summarise_partition, works, inputs, first=corpus.old)
        return dedup.merge_summaries(found)

    def _refuse_nothing(self, tally: Tally, summary: dedup.Summary) -> None:
        if summary:
            return
        why = ", ".join(f"{r} {count}" for r, count in totals(tally.reasons).items())
        if self.onto is not None:
            why = why or "all are in the set already"
        raise UserError(
            f"none of the {tally.count('found')} documents found is left",
            hint=f"dropped as {why}" if why else "the files hold no documents",
        )

    def _tokenizer(
        self,
        model: Path | None,
        corpus: passes.Corpus,
        state: str,
        split: dedup.Split,
        kept: int,
    ) -> Path:
        """The model to use, trained if none was given."""
        if model is not None:
            return model
        assert self.recipe.vocab_size is not None
        work = passes.TrainWork(
            corpus=corpus,
            split=split,
            sample_below=dedup.TWO_64 * self.recipe.sample_bytes // max(1, kept),
            vocab_size=self.recipe.vocab_size,
            threads=self.engine.workers,
        )
        settings = [self.recipe.vocab_size, self.recipe.sample_bytes, self.recipe.validation_share]
        inputs = [digest_json([state, self.recipe.group_by, *settings])]
        self._map("tokenizer", passes.train_tokenizer, [work], inputs)
        return self.work / "tokenizer" / tokenizer.MODEL_NAME

    def _layout(self, summary: dedup.Summary) -> passes.Layout:
        """How many shards of training and of validation each group has."""
        kept: dict[str, int] = {}
        for key, counts in summary.items():
            group = json.loads(key)[0]
            kept[group] = kept.get(group, 0) + counts["bytes"]
        share, size = self.recipe.validation_share, self.recipe.shard_bytes
        groups = tuple(
            (group, -(-held // size), 1 + int(held * share / size) if share else 0)
            for group, held in sorted(kept.items())
        )
        return passes.Layout(groups=groups, first=tuple(self._taken(group) for group, *_ in groups))

    def _taken(self, group: str) -> tuple[int, int]:
        """How many numbers of shards, in training and in validation, are taken already."""
        if self.onto is None or group not in self.onto.manifests:
            return 0, 0
        splits = self.onto.manifests[group].splits
        train, validation = (
            max((int(entry.name[-5:]) + 1 for entry in splits[split].shards), default=0)
            if split in splits
            else 0
            for split in passes.SPLITS
        )
        return train, validation

    def _tokens(
        self,
        tally: Tally,
        read: Sequence[str],
        corpus: passes.Corpus,
        state: str,
        split: dedup.Split,
        layout: passes.Layout,
        model: Path,
    ) -> tuple[list[str], list[dict[str, Any]]]:
        """Tokenise every survivor; the digest of each partition's inputs, and its counts."""
        numbers = range(corpus.old, corpus.partitions)
        sketches = self._outputs("sketch", corpus.partitions)
        works = [
            passes.TokensWork(
                corpus=corpus,
                partition=i,
                tokenizer=model,
                split=split,
                layout=layout,
                group_by=self.recipe.group_by,
                seed=self.recipe.seed,
                sketches=sketches[i] if self.recipe.dedup == "near" else None,
                near=self.recipe.near,
            )
            for i in numbers
        ]
        share, seed = self.recipe.validation_share, self.recipe.seed
        shared = [state, digest_file(model), asdict(layout), share, seed, self.recipe.group_by]
        inputs = [digest_json([read[i], *shared]) for i in numbers]
        counts = self._map("tokens", passes.tokens_partition, works, inputs, first=corpus.old)
        for result in counts:
            tally.merge(result["tally"])
        return inputs, counts

    def _shards(
        self,
        tokens: Sequence[str],
        corpus: passes.Corpus,
        layout: passes.Layout,
        vocab_size: int,
    ) -> dict[str, dict[str, list[shards.ShardEntry]]]:
        """Sort every shuffle bucket into a shard; the entries by group and split, none empty."""
        works = [
            passes.ShardWork(
                tokens=self.work / "tokens",
                old=corpus.old,
                partitions=corpus.partitions,
                layout=layout,
                number=number,
                vocab_size=vocab_size,
                keyed=self.recipe.dedup != "none",
            )
            for number in range(layout.count)
        ]
        inputs = [digest_json([list(tokens), number]) for number in range(layout.count)]
        if self.engine.runner == "processes" and self.engine.workers > 1:
            end_processes()
        results = self._map("shards", passes.write_shard, works, inputs)
        found: dict[str, dict[str, list[shards.ShardEntry]]] = {}
        for number, result in enumerate(results):
            if result is not None:
                group, split, _ = layout.name(number)
                entries = found.setdefault(group, {}).setdefault(split, [])
                entries.append(shards.ShardEntry(**result))
        return found

    def _publish(
        self,
        out: Path,
        model: Path,
        facts: shards.TokenizerFacts,
        entries: dict[str, dict[str, list[shards.ShardEntry]]],
        counts: Sequence[dict[str, Any]],
        report: dict[str, Any],
        corpus: passes.Corpus,
    ) -> dict[str, Any]:
        """Make the shard sets appear; the report of all that is then there.

        Without an older set, the old manifests go first. The new ones come last.
        """
        old = self.onto.manifests if self.onto is not None else {}
        if not old:
            _clear(out)
        new = [*entries]
        for group in new:
            folder = out / group
            for held in entries[group].values():
                for entry in held:
                    for part in entry.digests:
                        name = f"{entry.name}.{part}"
                        _place(self.work / "shards" / group / name, folder / name)
            if not (folder / tokenizer.MODEL_NAME).exists() or not old:
                # Tokens that lie beside a Hugging Face tokenizer.model are within it here.
                content = tokenizer.Tokenizer.load(model).content
                atomic_write(folder / tokenizer.MODEL_NAME, content)
        new_partitions = range(corpus.old, corpus.partitions)
        files = [self.work / "plan" / "drops.arrow"] + [
            passes.drops_path(passes.partition_path(self.work / stage, i))
            for stage in ("read", "tokens")
            for i in new_partitions
        ]
        older = self.work / BASE / drops.NAME if old else None
        drops.publish(out / drops.NAME, files, older)
        if self.benchmarks is not None and not old:
            _place(self.work / PROBLEMS_NAME, out / PROBLEMS_NAME)
        if self.onto is not None:
            report = merge_reports(self.onto.report, report)
            report["identity"] = self._merged_identity(self.onto.report["identity"])
        atomic_write_json(out / REPORT_NAME, report)
        for group, splits in entries.items():
            self._write_manifest(out / group, group, splits, facts, counts, old.get(group))
        if self.recipe.group_by != "none":
            _weigh(out, self.recipe, sorted({*old, *new}), self.weights)
        return report

    def _merged_identity(self, old: dict[str, Any]) -> dict[str, Any]:
        appended = [*old.get("appended", []), sorted(self.identity["inputs"])]
        inputs = old["inputs"] | self.identity["inputs"]
        return old | {"inputs": inputs, "appended": appended}

    def _write_manifest(
        self,
        folder: Path,
        group: str,
        splits: dict[str, list[shards.ShardEntry]],
        facts: shards.TokenizerFacts,
        counts: Sequence[dict[str, Any]],
        old: Manifest | None,
    ) -> None:
        """The manifest of one group, over what was there and what is new."""
        tables = kept_tables(counts, group)
        names = [source.name for source in self.sources if source.name in tables.sources]
        sources = [{"name": name, **tables.sources[name]} for name in names]
        languages, licences = tables.languages, tables.licences
        joined: dict[str, list[shards.ShardEntry]] = {}
        if old is not None:
            sources = old.sources + sources
            languages = merge_reports(old.languages, languages)
            licences = merge_reports(old.licences, licences)
            joined = {split: list(held.shards) for split, held in old.splits.items()}
        for split in passes.SPLITS:
            if split in splits:
                joined.setdefault(split, []).extend(splits[split])
        shards.write_manifest(
            folder,
            {split: joined[split] for split in passes.SPLITS if split in joined},
            tokenizer=facts,
            sources=sources,
            languages=languages,
            licences=licences,
            recipe=self.identity["recipe"],
        )


def _check_weights(recipe: PrepareRecipe, groups: set[str], weights: Mapping[str, float]) -> None:
    """Refuse weights that do not name every group once."""
    if not weights:
        return
    if recipe.group_by == "none":
        raise UsageError("there is one shard set and no mixture to weigh", hint="give --group-by")
    missing, unknown = sorted(groups - weights.keys()), sorted(weights.keys() - groups)
    if missing or unknown:
        what = f"{missing[0]} has no weight" if missing else f"nothing is called {unknown[0]}"
        raise UsageError(f"--weights: {what}", hint="weigh each of: " + ", ".join(sorted(groups)))


def _weigh(
    out: Path, recipe: PrepareRecipe, groups: Sequence[str], weights: Mapping[str, float]
) -> None:
    """Name the groups and their weights; weights given before stay where none are given now."""
    _check_weights(recipe, set(groups), weights)
    known = shards.set_weights(out)
    if not weights and known.keys() == set(groups):
        weights = known
    shards.write_sets(out, groups, weights)


def _clear(out: Path) -> None:
    """Take away an older output, its manifests first."""
    try:
        folders = list(shards.sets_in(out).values())
        (out / shards.SETS_NAME).unlink(missing_ok=True)
        for folder in folders:
            (folder / shards.MANIFEST_NAME).unlink(missing_ok=True)
        for folder in folders:
            for split in passes.SPLITS:
                for path in sorted(folder.glob(f"{split}-*")):
                    path.unlink()
            if folder != out:
                shutil.rmtree(folder, ignore_errors=True)
        for name in (drops.NAME, PROBLEMS_NAME):
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise write_error(out, error) from error


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
    target.parent.mkdir(exist_ok=True)
    temporary = temporary_beside(target)
    try:
        temporary.hardlink_to(source)
    except OSError:
        _copy(source, target)
    else:
        temporary.replace(target)


def _copy(source: Path, target: Path) -> None:
    with atomic_writer(target) as file, source.open("rb") as content:
        shutil.copyfileobj(content, file, 1 << 20)
