"""prepare-data as a whole: the same shards however it is run, and nothing lost without a reason."""

from __future__ import annotations

import io
import json
import resource
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from codecria.cli.app import app
from codecria.data.corpus import dedup, filters
from codecria.data.corpus.base import recipe_of
from codecria.data.corpus.explain import explain
from codecria.data.corpus.prepare import prepare
from codecria.data.corpus.recipe import PrepareRecipe, override
from codecria.data.corpus.report import in_order, totals
from codecria.data.corpus.runner import Engine
from codecria.data.corpus.sources import Source, parse_sources
from codecria.data.corpus.stages import (
    Job,
    Progress,
    RunLease,
    Superseded,
    acquire,
    connect,
    run_stage,
)
from codecria.data.errors import UsageError, UserError
from codecria.data.files import locked, read_json
from codecria.data.rows.mixture import Mixture
from codecria.data.rows.shards import ShardSet, sets_in
from codecria.data.tokenizer.tokenizer import Tokenizer
from codecria.data.tokenizer.training import train

HALVES = st.tuples(st.integers(0, 3), st.integers(0, 3)).map(
    # Few values, so that they repeat; the high half spreads them over the buckets.
    lambda pair: (pair[0] << 62, pair[1] << 62)
)


@settings(max_examples=50, deadline=None)
@given(
    partitions=st.lists(st.lists(HALVES, max_size=12), min_size=1, max_size=4),
    buckets=st.integers(1, 5),
)
def test_the_join_keeps_the_first_of_equals_and_names_it_to_the_others(
    tmp_path_factory: pytest.TempPathFactory, partitions: list[list[tuple[int, int]]], buckets: int
) -> None:
    folder = tmp_path_factory.mktemp("join")
    first: dict[tuple[int, int], tuple[int, int]] = {}
    lost: dict[tuple[int, int], tuple[int, int]] = {}
    for p, digests in enumerate(partitions):
        halves = np.array(digests, dtype=np.uint64).reshape(-1, 2)
        dedup.scatter(folder / f"{p}.arrow", halves[:, 0], halves[:, 1], buckets=buckets)
        for row, digest in enumerate(digests):
            if digest in first:
                lost[p, row] = first[digest]
            else:
                first[digest] = (p, row)
    files = [folder / f"{p}.arrow" for p in range(len(partitions))]
    found: dict[tuple[int, int], str] = {}
    for bucket in range(buckets):
        path = folder / f"losers-{bucket}.arrow"
        joined = dedup.join(files, bucket)
        kept = zip(joined.kept_partition.tolist(), joined.kept_row.tolist(), strict=True)
        dedup.write_lost(path, joined, [str(place) for place in kept])
        for p in range(len(partitions)):
            for row, winner in dedup.lost_of(path, p).items():
                assert winner.jaccard == 1
                found[p, row] = winner.id
    assert found == {place: str(kept) for place, kept in lost.items()}


def test_the_split_covers_every_source_and_never_takes_a_sources_only_document() -> None:
    def counts(lows: list[int]) -> dict[str, object]:
        return {
            "documents": len(lows),
            "bytes": 1,
            "lowest": [lows[0], 0],
            "highest": [lows[-1], 0],
        }

    half = dedup.TWO_64 // 2
    summary = dedup.merge_summaries(
        [{"0": counts([half]), "1": counts([half + 1, half + 3])}, {"1": counts([half + 2])}]
    )
    assert summary["1"]["documents"] == 3
    split = dedup.plan_split(summary, share=0.01)
    chosen = [low for low in range(half, half + 4) if split.validates((0, low))]
    assert chosen == [half + 1], "source 1 gives its lowest, source 0 keeps its only one"
    assert split.validates((7, 5)), "what lies under the threshold validates by itself"
    none = dedup.plan_split({"1": counts([half + 1, half + 3])}, share=0)
    assert not any(none.validates((0, low)) for low in (0, half + 1, half + 3))


def plant(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def program(i: int) -> str:
    return f"def function_{i}(value):\n    return value * {i} + {i * i}\n"


LONG = "".join(f"step_{i} = compute(step_{i - 1}, {i})\n" for i in range(1, 40))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree, a record file and a parquet file with duplicates, damage and several languages."""
    folder = tmp_path_factory.mktemp("corpus")
    tree: dict[str, str | bytes] = {f"p{i % 3}/m{i}.py": program(i) for i in range(40)}
    tree |= {f"c/m{i}.c": f"int function_{i}(int x) {{ return x + {i}; }}\n" for i in range(10)}
    tree |= {
        "copy/of_m1.py": program(1),
        "empty.py": "",
        "long.py": LONG,
        "longer.py": LONG + "print(1)\n",
        "latin.py": b"# caf\xe9 au lait, s'il vous pla\xeet\n",
        "marked.py": b"\xef\xbb\xbf" + program(2).encode(),
        "odd.py": "# a literal \u2581 does not survive decoding\n",
        "photo.png": b"\x89PNG\0",
        ".git/config": "[core]\n",
    }
    plant(folder / "tree", tree)
    lines = [json.dumps({"text": program(i), "lang": "python"}) for i in range(35, 60)]
    lines[3:3] = ["{broken", json.dumps({"text": "nul \0 nul nul nul nul nul"})]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    rows = {"content": [program(i) for i in range(50, 80)], "ext": ["py"] * 30}
    pq.write_table(pa.table(rows), folder / "rows.parquet", row_group_size=7)
    return folder


@pytest.fixture(scope="module")
def model(corpus: Path) -> Path:
    texts = [path.read_text() for path in sorted((corpus / "tree/p0").glob("*.py"))]
    return train(texts, vocab_size=300, out=corpus / "tokenizer.model").path


RECIPE = PrepareRecipe(shard_bytes=1500, validation_share=0.1)


def sources_of(corpus: Path) -> list[Source]:
    return parse_sources([f"{corpus}/tree", f"{corpus}/rows.jsonl", f"pq={corpus}/rows.parquet"])


def digest(folder: Path) -> str:
    for split in ("train", "validation"):
        assert ShardSet.open(folder, split).verify() == []
    return ShardSet.open(folder).digest


@pytest.fixture(scope="module")
def reference(corpus: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of an unbroken run in one process."""
    out = tmp_path_factory.mktemp("reference") / "shards"
    prepare(sources_of(corpus), out, RECIPE, model=model)
    return out


def texts_of(folder: Path, split: str) -> dict[str, str]:
    """id -> text of every document, decoded."""
    opened = ShardSet.open(folder, split)
    model = Tokenizer.load(folder / "tokenizer.model")
    texts = {}
    for i in range(opened.n_documents):
        ids = opened.document(i).tolist()
        assert (ids[0], ids[-1]) == (model.bos_id, model.eos_id)
        texts[opened.metadata(i)["id"]] = model.decode(ids[1:-1])
    return texts


@pytest.mark.parametrize(("workers", "partition_bytes"), [(1, 1200), (1, 30_000), (2, 9000)])
def test_workers_and_partition_sizes_change_no_byte(
    corpus: Path, model: Path, reference: Path, tmp_path: Path, workers: int, partition_bytes: int
) -> None:
    out = tmp_path / "out"
    outcome = prepare(
        sources_of(corpus),
        out,
        RECIPE,
        model=model,
        engine=Engine(workers=workers, partition_bytes=partition_bytes),
    )
    assert digest(out) == digest(reference)
    expected = read_json(reference / "report.json")
    for key in outcome.report.keys() - {"seconds"}:
        assert outcome.report[key] == expected[key], key
    assert sorted(path.name for path in out.iterdir()) == sorted(
        path.name for path in reference.iterdir()
    )


def test_every_document_found_is_kept_or_dropped_for_a_reason(reference: Path) -> None:
    report = read_json(reference / "report.json")
    found = report["funnel"]["found"]["documents"]
    assert found == 40 + 10 + 8 + 27 + 30
    dropped = totals(report["dropped"])
    assert dropped == {
        "language-unknown": 1,
        "bad-record": 1,
        "binary": 1,
        "undecodable": 1,
        "empty": 1,
        "exact-duplicate": 2 + 5 + 10,
        "near-duplicate": 1,
    }
    kept = sum(split["documents"] for split in report["splits"].values())
    assert found == kept + sum(dropped.values())
    assert kept == sum(ShardSet.open(reference, s).n_documents for s in ("train", "validation"))
    assert report["dropped"]["read"]["bad-record"]["examples"][0].startswith(
        "rows.jsonl/rows.jsonl:4: not JSON"
    )
    assert report["skipped_folders"] == {"version-control": 1}


def test_shards_decode_to_the_documents_and_flag_the_one_that_does_not(reference: Path) -> None:
    texts = texts_of(reference, "train") | texts_of(reference, "validation")
    assert texts["tree/p1/m7.py"] == program(7)
    assert texts["pq/rows.parquet:30"] == program(79)
    flags = {}
    for split in ("train", "validation"):
        opened = ShardSet.open(reference, split)
        for i in range(opened.n_documents):
            flags[opened.metadata(i)["id"]] = opened.flags(i)
    assert [identity for identity, flag in flags.items() if flag] == ["tree/odd.py"]


def test_of_equal_documents_the_lowest_stays(reference: Path) -> None:
    kept = texts_of(reference, "train") | texts_of(reference, "validation")
    assert "tree/copy/of_m1.py" in kept, "copy/ comes before p1/ in the order of paths"
    assert "tree/p1/m1.py" not in kept
    assert "tree/marked.py" in kept, "a byte order mark makes no other document"
    assert "tree/p2/m2.py" not in kept
    assert "tree/p2/m35.py" in kept, "the first source comes before the second"
    assert "rows.jsonl/rows.jsonl:1" not in kept


def test_validation_is_disjoint_and_covers_every_source(reference: Path) -> None:
    train, validation = (texts_of(reference, split) for split in ("train", "validation"))
    assert not set(train.values()) & set(validation.values())
    assert {identity.split("/")[0] for identity in validation} == {"tree", "rows.jsonl", "pq"}


def test_the_order_is_a_shuffle_of_the_seed(
    corpus: Path, model: Path, reference: Path, tmp_path: Path
) -> None:
    prepare(sources_of(corpus), tmp_path / "out", replace(RECIPE, seed=1), model=model)
    first, second = (list(texts_of(out, "train")) for out in (reference, tmp_path / "out"))
    assert sorted(first) == sorted(second), "the split does not depend on the seed"
    assert first != second
    assert first != sorted(first)


KILLED = """
import os, signal, sys
from pathlib import Path
from codecria.data.corpus.sources import parse_sources
from codecria.data.corpus.recipe import PrepareRecipe
from codecria.data.corpus.prepare import prepare
from codecria.data.corpus.runner import Engine

corpus, model, out, stage, done = sys.argv[1:]

def progress(seen):
    if (seen.stage, seen.done) == (stage, int(done)):
        os.kill(os.getpid(), signal.SIGKILL)

sources = [f"{corpus}/tree", f"{corpus}/rows.jsonl", f"pq={corpus}/rows.parquet"]
recipe = PrepareRecipe(shard_bytes=1500, validation_share=0.1)
prepare(parse_sources(sources), Path(out), recipe, model=Path(model),
        engine=Engine(partition_bytes=1500, progress=progress))
"""


def test_killed_at_any_stage_and_resumed_the_shards_are_the_same(
    warm_python: str, corpus: Path, model: Path, reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for stage, done in (
        ("read", 2),
        ("exact", 1),
        ("sketch", 3),
        ("pairs", 1),
        ("tokens", 0),
        ("tokens", 3),
        ("shards", 1),
    ):
        command = [warm_python, "-c", KILLED, corpus, model, out, stage, str(done)]
        killed = subprocess.run(command, capture_output=True, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
        assert not (out / "manifest.json").exists()
        (out / ".work" / stage / ".tmp-torn").write_bytes(b"half a file")
    seen: list[Progress] = []
    prepare(
        sources_of(corpus),
        out,
        RECIPE,
        model=model,
        engine=Engine(partition_bytes=1500, progress=seen.append),
    )
    resumed = {p.stage: (p.resumed, p.total) for p in seen}
    assert resumed["read"][0] == resumed["read"][1] > 2, "finished partitions are not done again"
    assert resumed["shards"][0] == 1
    assert digest(out) == digest(reference)
    assert not (out / ".work").exists()


def test_a_run_killed_while_publishing_publishes_again(
    corpus: Path, model: Path, reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    prepare(sources_of(corpus), out, RECIPE, model=model, keep_work=True)
    (out / "manifest.json").unlink()
    (out / "train-00000.flags").unlink()
    outcome = prepare(sources_of(corpus), out, RECIPE, model=model)
    assert not outcome.unchanged
    assert digest(out) == digest(reference)


def test_a_finished_run_does_nothing_and_other_settings_are_refused(
    corpus: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    sources = sources_of(corpus)
    prepare(sources, out, RECIPE, model=model)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("[!.]*")}
    assert prepare(
        sources, out, RECIPE, model=model, engine=Engine(workers=2, partition_bytes=9)
    ).unchanged
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("[!.]*")} == before

    other = replace(RECIPE, seed=5)
    with pytest.raises(UserError, match=r"recipe\.seed: 0 -> 5"):
        prepare(sources, out, other, model=model)
    with pytest.raises(UserError, match=r"inputs\.pq"):
        prepare(sources[:2], out, RECIPE, model=model)
    old = digest(out)
    assert not prepare(sources, out, other, model=model, force=True).unchanged
    assert digest(out) != old


def test_an_unfinished_run_of_another_recipe_is_refused(
    corpus: Path, model: Path, tmp_path: Path
) -> None:
    class Stop(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.stage == "tokens":
            raise Stop

    with pytest.raises(Stop):
        prepare(
            sources_of(corpus), tmp_path / "o", RECIPE, model=model, engine=Engine(progress=stop)
        )
    other = replace(RECIPE, dedup="none", seed=9)
    with pytest.raises(UserError, match="unfinished run"):
        prepare(sources_of(corpus), tmp_path / "o", other, model=model)
    for name, force in (("o", True), ("fresh", False)):
        prepare(sources_of(corpus), tmp_path / name, other, model=model, force=force)
    assert digest(tmp_path / "o") == digest(tmp_path / "fresh")


@pytest.mark.parametrize("workers", [1, 2])
def test_strict_refuses_damage_and_names_it(
    corpus: Path, model: Path, tmp_path: Path, workers: int
) -> None:
    sources = parse_sources([f"{corpus}/rows.jsonl"])
    with pytest.raises(UserError, match=r"rows\.jsonl:4: not JSON"):
        prepare(
            sources,
            tmp_path / "out",
            RECIPE,
            model=model,
            strict=True,
            engine=Engine(workers=workers, partition_bytes=500),
        )
    assert not (tmp_path / "out/manifest.json").exists()
    assert prepare(
        sources, tmp_path / "out", RECIPE, model=model, engine=Engine(partition_bytes=500)
    ).report
    with pytest.raises(UserError, match="bad-record"):
        prepare(sources, tmp_path / "out", RECIPE, model=model, strict=True)


def test_standard_input_is_a_source_and_its_content_decides_about_doing_nothing(
    corpus: Path, model: Path, tmp_path: Path
) -> None:
    data = (corpus / "rows.jsonl").read_bytes()

    def run(content: bytes) -> bool:
        return prepare(
            parse_sources(["-"]), tmp_path / "out", RECIPE, model=model, stdin=io.BytesIO(content)
        ).unchanged

    assert not run(data)
    train = texts_of(tmp_path / "out", "train")
    assert all(identity.startswith("stdin/stdin.jsonl:") for identity in train)
    assert run(data)
    with pytest.raises(UserError, match=r"inputs\.stdin"):
        run(data + data)


def test_a_tokenizer_is_trained_on_what_trains(corpus: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, vocab_size=320)
    reports = []
    for name, workers, partition_bytes in (("a", 1, 1 << 20), ("b", 2, 2000)):
        outcome = prepare(
            sources_of(corpus),
            tmp_path / name,
            recipe,
            model=None,
            engine=Engine(workers=workers, partition_bytes=partition_bytes),
        )
        reports.append(outcome.report["splits"])
    assert reports[0] == reports[1]
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert Tokenizer.load(tmp_path / "a").vocab_size == 320


def test_languages_are_filtered_in_trees_and_in_records(
    corpus: Path, model: Path, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, filters={**RECIPE.filters, "languages": ("C",)})
    report = prepare(sources_of(corpus), tmp_path / "out", recipe, model=model).report
    assert list(report["languages"]) == ["C", "Python"]
    assert report["languages"]["Python"]["kept"]["documents"] == 0
    assert sum(split["documents"] for split in report["splits"].values()) == 10
    assert report["sources"]["rows.jsonl"]["train"]["documents"] == 0


def test_a_missing_end_is_one_clear_error(corpus: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    plant(tmp_path / "tiny", {"a.py": "x\n", "b.py": ""})
    for folder, message in (("empty", "nothing to read"), ("tiny", "none of the 2 documents")):
        with pytest.raises(UserError, match=message) as caught:
            prepare(parse_sources([str(tmp_path / folder)]), tmp_path / "out", RECIPE, model=model)
        assert caught.value.hint
    plant(tmp_path / "mine", {"thesis.tex": "years of work"})
    with pytest.raises(UserError, match="not a shard set"):
        prepare(sources_of(corpus), tmp_path / "mine", RECIPE, model=model, force=True)
    assert (tmp_path / "mine/thesis.tex").exists()
    with (
        locked(tmp_path / "busy"),
        pytest.raises(UserError, match="another process"),
    ):
        prepare(sources_of(corpus), tmp_path / "busy", RECIPE, model=model)


def test_an_output_inside_its_source_is_no_part_of_it(
    corpus: Path, model: Path, tmp_path: Path
) -> None:
    shutil.copytree(corpus / "tree", tmp_path / "tree")
    (tmp_path / "tree/shards.txt").write_text("a file whose name begins as the folder's\n")
    sources, out = parse_sources([str(tmp_path / "tree")]), tmp_path / "tree/shards"
    first = prepare(sources, out, RECIPE, model=model)
    assert "tree/shards.txt" in texts_of(out, "train") | texts_of(out, "validation")
    again = prepare(sources, out, RECIPE, model=model)
    assert again.unchanged
    assert again.report == first.report


def test_a_report_is_shown_in_one_order_whether_made_or_read_back(
    corpus: Path, model: Path, tmp_path: Path
) -> None:
    sources, out = parse_sources([str(corpus / "tree")]), tmp_path / "shards"
    first = prepare(sources, out, RECIPE, model=model)
    again = prepare(sources, out, RECIPE, model=model)
    assert again.unchanged
    shown, shown_again = (json.dumps(in_order(made.report)) for made in (first, again))
    assert shown == shown_again
    assert list(in_order(again.report)["funnel"]) == list(filters.steps())
    assert next(iter(in_order(again.report)["seconds"])) == "read"


def test_full_disks_are_one_clear_error_and_leave_no_shard_set(
    corpus: Path, model: Path, tmp_path: Path
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, limits[1]))  # no file may grow beyond
    try:
        with pytest.raises(UserError, match="cannot write"):
            prepare(sources_of(corpus), tmp_path / "out", RECIPE, model=model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "out/manifest.json").exists()
    assert not list((tmp_path / "out").rglob(".tmp-*"))
    assert prepare(sources_of(corpus), tmp_path / "out", RECIPE, model=model).report


def test_the_command_prints_json_alone_and_a_dry_run_writes_nothing(
    corpus: Path, model: Path, tmp_path: Path
) -> None:
    def run(*options: str) -> Any:
        found = CliRunner().invoke(
            app,
            ["prepare-data", f"{corpus}/tree", "--out", f"{tmp_path}/out", "--json", *options],
            catch_exceptions=False,
        )
        return json.loads(found.stdout)

    survey = run("--dry-run")
    assert survey["sources"]["tree"]["files"] == 57
    assert survey["skipped"] == {"language-unknown": {"files": 1, "bytes": 5}}
    assert not (tmp_path / "out").exists()
    report = run("--tokenizer", str(model), "--languages", "c", "--workers", "1")
    assert report["splits"]["train"]["documents"] == 9
    assert report["identity"]["recipe"]["languages"] == ["C"]


def test_a_late_worker_of_a_killed_run_writes_nothing(tmp_path: Path) -> None:
    old = acquire(tmp_path)
    with old.held():
        pass
    new = acquire(tmp_path)
    with pytest.raises(Superseded), old.held():
        pass
    job = Job(inputs="x", output=tmp_path / "000000", payload=7)
    with pytest.raises(Superseded):
        _run_square(job, old)
    assert not job.marker.exists()
    assert _run_square(job, new) == [49]


def _run_square(job: Job[int], lease: RunLease) -> list[int]:
    with connect("processes", workers=1) as mapper:
        return run_stage("s", _square, [job], lease=lease, mapper=mapper, report=lambda _: None)


def _square(_: Path, number: int) -> int:
    return number * number


def test_settings_override_any_field_and_misfits_are_named() -> None:
    recipe = override(RECIPE, ["quality.programming.longest_line=7", "seed=3", "dedup=none"])
    limits = recipe.filters["quality"]
    assert (limits.programming.longest_line, recipe.seed, recipe.dedup) == (7, 3, "none")
    assert override(RECIPE, ["quality=null"]).filters["quality"] is None
    for setting in (
        "sed=3",
        "quality.max_byte=1",
        "seed",
        "seed.x=1",
        "seed=many",
        "dedup=all",
        "shard_bytes=0",
    ):
        with pytest.raises(UsageError, match="--set"):
            override(RECIPE, [setting])


def test_a_run_that_failed_by_itself_binds_nobody_and_its_work_is_used(
    corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="too small"):
        prepare(sources_of(corpus), out, replace(RECIPE, vocab_size=30_000), model=None)
    seen: list[Progress] = []
    prepare(
        sources_of(corpus),
        out,
        replace(RECIPE, vocab_size=300),
        model=None,
        engine=Engine(progress=seen.append),
    )
    assert [p.resumed for p in seen if p.stage == "read"] == [1]


# -------------------------------------------------------------------- appending, groups, explaining


def more(folder: Path) -> Path:
    """Documents for an append: an old one, nearly an old one, a pair of twins, and a new one."""
    return plant(
        folder,
        {
            "same.py": program(7),
            "near.py": LONG.replace("step_3 ", "step_three ") + "\n# the same again\n",
            "twin_a.py": LONG.replace("step", "stage"),
            "twin_b.py": LONG.replace("step", "stage") + "# twin\n",
            "new.py": "class New:\n    def method(self):\n        return 'something else'\n",
        },
    )


@pytest.mark.parametrize("engine", [Engine(), Engine(workers=2, partition_bytes=300)])
def test_appending_adds_what_is_new_and_touches_nothing_old(
    corpus: Path, model: Path, tmp_path: Path, engine: Engine
) -> None:
    out = tmp_path / "out"
    prepare(sources_of(corpus), out, RECIPE, model=model)
    before = {path.name: path.read_bytes() for path in out.glob("*-0*.tokens")}
    old = texts_of(out, "train") | texts_of(out, "validation")
    added = parse_sources([str(more(tmp_path / "more"))])
    outcome = prepare(added, out, recipe_of(out), model=None, append=True, engine=engine)
    now = texts_of(out, "train") | texts_of(out, "validation")
    assert now.keys() - old.keys() == {"more/new.py", "more/twin_a.py"}
    assert old.items() <= now.items()
    assert {name: (out / name).read_bytes() for name in before} == before
    for split in ("train", "validation"):
        assert ShardSet.open(out, split).verify() == []
    report = outcome.report
    assert report["sources"]["more"]["found"]["documents"] == 5
    kept = sum(split["documents"] for split in report["splits"].values())
    assert kept == len(now)
    assert report["funnel"]["found"]["documents"] == kept + sum(totals(report["dropped"]).values())
    assert explained(out, "more/near.py") == "~ tree/long.py"
    assert explained(out, "more/same.py").startswith("= tree/")
    assert explained(out, "more/twin_b.py") == "~ more/twin_a.py"
    again = prepare(added, out, recipe_of(out), model=None, append=True)
    assert again.unchanged
    assert again.report == report


def explained(out: Path, name: str) -> str:
    [one] = explain(out, name)
    return str(one.facts["detail"]).partition(" (Jaccard")[0]


def test_what_cannot_be_appended_is_refused(corpus: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    added = parse_sources([str(more(tmp_path / "more"))])
    with pytest.raises(UserError, match="not a finished shard set"):
        recipe_of(out)
    prepare(sources_of(corpus), out, replace(RECIPE, dedup="none"), model=model)
    with pytest.raises(UserError, match="keeps no keys"):
        prepare(added, out, recipe_of(out), model=None, append=True)
    other = parse_sources([f"tree={tmp_path}/more"])
    with pytest.raises(UserError, match="holds a source called 'tree' already"):
        prepare(other, out, recipe_of(out), model=None, append=True)
    plant(tmp_path / "nothing", {"same.py": program(7)})
    prepare(sources_of(corpus), out, RECIPE, model=model, force=True)
    nothing = parse_sources([str(tmp_path / "nothing")])
    with pytest.raises(UserError, match="none of the 1 documents"):
        prepare(nothing, out, recipe_of(out), model=None, append=True)
    assert digest(out)


def test_an_append_stopped_while_publishing_goes_on_from_what_was_there(
    corpus: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    recipe = replace(RECIPE, group_by="source")
    added = parse_sources([str(more(tmp_path / "more")), f"again={corpus}/rows.jsonl"])
    digests = []
    for name in ("whole", "torn"):
        out = tmp_path / name
        prepare(sources_of(corpus), out, recipe, model=model)
        if name == "torn":

            def killed(*_: object, **__: object) -> None:
                raise Killed

            # The new report is there, of the sets none.
            with monkeypatch.context() as patch:
                patch.setattr("codecria.data.rows.shards.write_manifest", killed)
                with pytest.raises(Killed):
                    prepare(added, out, recipe_of(out), model=None, append=True)
            assert read_json(out / "report.json")["sources"]["more"]
        outcome = prepare(added, out, recipe_of(out), model=None, append=True)
        assert outcome.report["sources"]["more"]["found"]["documents"] == 5
        assert outcome.report["identity"]["appended"] == [["again", "more"]]
        digests.append({group: ShardSet.open(path).digest for group, path in sets_in(out).items()})
        assert not (out / ".work").exists()
    assert digests[0] == digests[1]
    assert sorted(digests[0]) == ["more", "pq", "rows.jsonl", "tree"]


def test_groups_are_shard_sets_of_their_own_and_duplicates_are_removed_across_them(
    corpus: Path, model: Path, reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    recipe = replace(RECIPE, group_by="source")
    weights = {"tree": 8.0, "rows.jsonl": 1.0, "pq": 1.0}
    with pytest.raises(UsageError, match="pq has no weight"):
        prepare(sources_of(corpus), out, recipe, model=model, weights={"tree": 1, "rows.jsonl": 1})
    report = prepare(sources_of(corpus), out, recipe, model=model, weights=weights).report
    together: dict[str, str] = {}
    for name, folder in sets_in(out).items():
        for split in ("train", "validation"):
            texts = texts_of(folder, split)
            assert {identity.split("/")[0] for identity in texts} <= {name}
            together |= texts
    assert together == texts_of(reference, "train") | texts_of(reference, "validation")
    assert sum(group["documents"] for group in report["groups"].values()) == len(together)
    mixture = Mixture.parse([str(out)])
    assert {Path(s.name).name: round(s.weight, 3) for s in mixture.sources} == {
        "tree": 0.8,
        "rows.jsonl": 0.1,
        "pq": 0.1,
    }
    assert prepare(sources_of(corpus), out, recipe, model=model).unchanged
    with pytest.raises(UserError, match="several shard sets"):
        ShardSet.open(out)


def test_kinds_part_prose_from_code(model: Path, tmp_path: Path) -> None:
    tree = {f"m{i}.py": program(i) for i in range(5)}
    tree |= {f"d{i}.md": f"# Title {i}\n\nProse about number {i}.\n" for i in range(5)}
    source = parse_sources([str(plant(tmp_path / "src", tree))])
    recipe = replace(RECIPE, group_by="kind")
    prepare(source, tmp_path / "out", recipe, model=model)
    assert sorted(sets_in(tmp_path / "out")) == ["code", "prose"]


def test_secrets_are_replaced_and_appear_nowhere(model: Path, tmp_path: Path) -> None:
    address = "jane.doe" + "@" + "corporation.com"
    key = "AK" + "IA" + "Q3EGWTPL7RZ5XKVB"
    tree = {f"m{i}.py": program(i) for i in range(5)}
    tree["secret.py"] = f"AUTHOR = '{address}'\nAWS_KEY = '{key}'\n" + program(99)
    source = parse_sources([str(plant(tmp_path / "src", tree))])
    out = tmp_path / "out"
    report = prepare(source, out, RECIPE, model=model, keep_work=True).report
    assert sum(rule["findings"] for rule in report["redacted"].values()) == 2
    texts = texts_of(out, "train") | texts_of(out, "validation")
    assert "<EMAIL>" in texts["src/secret.py"]
    for path in out.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert address.encode() not in content, path
            assert key.encode() not in content, path


def test_evaluation_problems_stay_out_also_of_what_is_appended(model: Path, tmp_path: Path) -> None:
    told = (
        "Return the words joined by blanks, in upper case, an exclamation mark after the last one."
    )
    prompt = f'def shout(words):\n    """{told}"""\n'
    problem = {
        "task_id": "Own/1",
        "prompt": prompt,
        "canonical_solution": "    return ' '.join(words).upper() + '!'\n",
    }
    (tmp_path / "own.jsonl").write_text(json.dumps(problem) + "\n")
    leak = "import os\n\n" + prompt.replace("    ", "\t").replace("shout", "cry") + "\tpass\n"
    tree = {f"m{i}.py": program(i) for i in range(5)}
    out = tmp_path / "out"
    first = parse_sources([str(plant(tmp_path / "src", tree | {"leak.py": leak}))])
    outcome = prepare(first, out, RECIPE, model=model, benchmarks=[tmp_path / "own.jsonl"])
    assert outcome.report["benchmarks"]["hits"] == {"Own/1": 1}
    [one] = explain(out, "src/leak.py")
    assert (one.kept, one.facts["reason"]) == (False, "holds-a-benchmark-problem")
    second = parse_sources(
        [str(plant(tmp_path / "new", {"leak.py": leak + "x = 1\n", "n.py": program(9)}))]
    )
    (tmp_path / "own.jsonl").unlink()
    outcome = prepare(second, out, recipe_of(out), model=None, append=True)
    assert outcome.report["benchmarks"]["hits"] == {"Own/1": 2}


def test_every_candidate_can_be_explained(reference: Path) -> None:
    [kept] = explain(reference, "tree/p1/m7.py")
    assert kept.kept
    assert len(kept.lines) == 5
    assert "document" in kept.lines[0]
    for name, reason in (
        ("tree/empty.py", "empty"),
        ("./tree/empty.py", "empty"),
        ("/somewhere/else/tree/empty.py", "empty"),
        ("tree/photo.png", "language-unknown"),
        ("tree/latin.py", "undecodable"),
        (".git/config", "version-control"),
        ("tree/longer.py", "near-duplicate"),
        ("rows.jsonl/rows.jsonl:1", "exact-duplicate"),
        ("rows.jsonl/rows.jsonl:4", "bad-record"),
    ):
        [one] = explain(reference, name)
        assert (one.kept, one.facts["reason"]) == (False, reason), name
        assert 3 <= len(one.lines) <= 5
    with pytest.raises(UserError, match="was not seen"):
        explain(reference, "nowhere.py")
    found = CliRunner().invoke(
        app, ["prepare-data", "--out", str(reference), "--explain", "tree/longer.py"]
    )
    assert found.stdout.splitlines()[1].startswith("~ tree/long.py (Jaccard 0.")
