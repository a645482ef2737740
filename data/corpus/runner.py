"""The stages of one run, in order, each a pass mapped over partitions or buckets.

read       partition -> filtered, redacted documents; keys scattered by hash
exact      bucket of keys over all partitions -> who loses to whom
sketch, pairs, cluster, grams, near    the same for near-duplicates (`near_passes.py`)
summary    partition -> what is kept, for the split and the layout
tokenizer  (if trained) sample of the training documents
tokens     partition -> ids and flags, scattered to shards
shards     what all partitions scattered to one shard -> sorted, written
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from codecria.data.errors import UserError
from codecria.data.files import (
    digest_file,
    digest_json,
    remove_leftovers,
    require_free_space,
)
from codecria.data.progress import Progress
from codecria.data.rows import shards
from codecria.data.tokenizer.model_file import MODEL_NAME

from . import (
    dedup,
    drops,
    filters,
    near_passes,
    read_pass,
    survivors,
    token_passes,
)
from .append import OldShard, RecallWork, recall_shard
from .base import Base
from .filters import Chain, Inputs
from .intake import partitions, save_plan
from .partition_files import SPLITS, partition_path
from .publish import Publisher, check_weights, facts_of
from .recipe import PrepareRecipe
from .report import make_report, totals
from .sources import Source
from .stages import (
    Job,
    Mapper,
    RunLease,
    Runner,
    end_processes,
    run_stage,
)
from .tally import Tally
from .work_folder import (
    PIPELINE_VERSION,
    PROBLEMS_NAME,
    refuse_damage,
)

# Small inputs are cut finer, so that every core has work: 64 partitions from 64 MiB to 4 GiB.
PARTITION_BYTES = (1 << 20, 64 << 20)
PARTITIONS = 64
KEY_BUCKET_BYTES = 1 << 30  # of input, for each bucket of keys
DOCUMENTS_A_JOB = 1 << 12  # near dedup joins all bands at once for so few documents


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of the stages, in its work folder."""

    work: Path
    sources: tuple[Source, ...]
    recipe: PrepareRecipe
    identity: dict[str, Any]
    lease: RunLease
    mapper: Mapper
    engine: Engine
    strict: bool
    onto: Base | None
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
        check_weights(self.recipe, {*old, *(name for name, *_ in layout.groups)}, self.weights)
        model = self._tokenizer(model, corpus, state, split, kept)
        lap("tokenizer")
        require_free_space(self.work, kept)  # ids between the stages, and again as shards
        tokens, counts = self._tokens(tally, read, corpus, state, split, layout, model)
        lap("tokens")
        facts = facts_of(model)
        entries = self._shards(tokens, corpus, layout, facts.vocab_size)
        lap("shards")
        tally.check(filters.steps())
        report = make_report(tally, counts, self.identity, self.benchmarks)
        report |= {"seconds": seconds}
        publisher = Publisher(
            work=self.work,
            sources=self.sources,
            recipe=self.recipe,
            identity=self.identity,
            onto=self.onto,
            benchmarks=self.benchmarks,
            weights=self.weights,
        )
        return publisher.publish(out, model, facts, entries, counts, report, corpus)

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
            Job(inputs=digest, output=partition_path(place, first + i), payload=work)
            for i, (work, digest) in enumerate(zip(works, inputs, strict=True))
        ]

        def check(result: Any) -> None:
            if function is read_pass.read_partition:
                refuse_damage(result["reasons"], strict=self.strict)

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
                path = partition_path(plans, i).with_suffix(".json")
                digest = save_plan(path, units)
                works.append(read_pass.ReadWork(plan=path, filters=chain, buckets=self._buckets))
                new.append(digest_json([*settings, digest]))
        refuse_damage(tally.reasons, strict=self.strict)
        for result in self._map("read", read_pass.read_partition, works, new, first=len(old)):
            tally.merge(result)
        return inputs + new

    def _exact(self, read: Sequence[str]) -> tuple[survivors.Corpus, str]:
        """Find exact duplicates; the corpus without them, and a digest of all that decided."""
        corpus = survivors.Corpus(read=self.work / "read", old=len(self._old), partitions=len(read))
        state = digest_json([list(read), corpus.old])
        if self.recipe.dedup == "none":
            return corpus, state
        works = [
            survivors.JoinWork(corpus=corpus, bucket=bucket) for bucket in range(self._buckets)
        ]
        inputs = [digest_json([state, work.bucket]) for work in works]
        self._map("exact", survivors.join_bucket, works, inputs)
        return replace(corpus, exact=self._outputs("exact", len(works))), digest_json(inputs)

    def _outputs(self, stage: str, count: int) -> tuple[Path, ...]:
        folder = self.work / stage
        return tuple(partition_path(folder, i).with_suffix(".arrow") for i in range(count))

    def _near(
        self, corpus: survivors.Corpus, read: Sequence[str], state: str
    ) -> tuple[survivors.Corpus, str]:
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
        clusters = partition_path(folder["cluster"], 0)
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
        self, corpus: survivors.Corpus, read: Sequence[str], state: str
    ) -> dict[str, dict[str, Any]]:
        """What is kept of the new partitions, by group and source."""
        numbers = range(corpus.old, corpus.partitions)
        group_by = self.recipe.group_by
        works = [
            survivors.SummaryWork(corpus=corpus, partition=i, group_by=group_by) for i in numbers
        ]
        inputs = [digest_json([state, read[i], group_by]) for i in numbers]
        found = self._map("summary", survivors.summarise_partition, works, inputs, first=corpus.old)
        return dedup.merge_summaries(found)

    def _refuse_nothing(self, tally: Tally, summary: dedup.Summary) -> None:
        if summary:
            return
        first = {
            reason: f", the first is {found['examples'][0]}"
            for by_reason in tally.reasons.values()
            for reason, found in by_reason.items()
            if found["examples"]
        }
        why = "; ".join(f"{r} {n}{first.get(r, '')}" for r, n in totals(tally.reasons).items())
        if self.onto is not None:
            why = why or "all are in the set already"
        raise UserError(
            f"none of the {tally.count('found')} documents found is left",
            hint=f"dropped as {why}" if why else "the files hold no documents",
        )

    def _tokenizer(
        self,
        model: Path | None,
        corpus: survivors.Corpus,
        state: str,
        split: dedup.Split,
        kept: int,
    ) -> Path:
        """The model to use, trained if none was given."""
        if model is not None:
            return model
        assert self.recipe.vocab_size is not None
        work = token_passes.TrainWork(
            corpus=corpus,
            split=split,
            sample_below=dedup.TWO_64 * self.recipe.sample_bytes // max(1, kept),
            vocab_size=self.recipe.vocab_size,
            threads=self.engine.workers,
        )
        settings = [self.recipe.vocab_size, self.recipe.sample_bytes, self.recipe.validation_share]
        inputs = [digest_json([state, self.recipe.group_by, *settings])]
        self._map("tokenizer", token_passes.train_tokenizer, [work], inputs)
        return self.work / "tokenizer" / MODEL_NAME

    def _layout(self, summary: dedup.Summary) -> token_passes.Layout:
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
        return token_passes.Layout(
            groups=groups, first=tuple(self._taken(group) for group, *_ in groups)
        )

    def _taken(self, group: str) -> tuple[int, int]:
        """How many numbers of shards, in training and in validation, are taken already."""
        if self.onto is None or group not in self.onto.manifests:
            return 0, 0
        splits = self.onto.manifests[group].splits
        train, validation = (
            max((int(entry.name[-5:]) + 1 for entry in splits[split].shards), default=0)
            if split in splits
            else 0
            for split in SPLITS
        )
        return train, validation

    def _tokens(
        self,
        tally: Tally,
        read: Sequence[str],
        corpus: survivors.Corpus,
        state: str,
        split: dedup.Split,
        layout: token_passes.Layout,
        model: Path,
    ) -> tuple[list[str], list[dict[str, Any]]]:
        """Tokenise every survivor; the digest of each partition's inputs, and its counts."""
        numbers = range(corpus.old, corpus.partitions)
        sketches = self._outputs("sketch", corpus.partitions)
        works = [
            token_passes.TokensWork(
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
        counts = self._map("tokens", token_passes.tokens_partition, works, inputs, first=corpus.old)
        for result in counts:
            tally.merge(result["tally"])
        return inputs, counts

    def _shards(
        self,
        tokens: Sequence[str],
        corpus: survivors.Corpus,
        layout: token_passes.Layout,
        vocab_size: int,
    ) -> dict[str, dict[str, list[shards.ShardEntry]]]:
        """Sort every shuffle bucket into a shard; the entries by group and split, none empty."""
        works = [
            token_passes.ShardWork(
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
        results = self._map("shards", token_passes.write_shard, works, inputs)
        found: dict[str, dict[str, list[shards.ShardEntry]]] = {}
        for number, result in enumerate(results):
            if result is not None:
                group, split, _ = layout.name(number)
                entries = found.setdefault(group, {}).setdefault(split, [])
                entries.append(shards.ShardEntry(**result))
        return found
