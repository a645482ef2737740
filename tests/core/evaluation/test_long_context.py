"""Perplexity by position: against whole forwards and direct sums, and the verb from the shell."""

import importlib.util
import io
import itertools
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from codecria.cli import app as cli
from codecria.core.evaluation.likelihood.perplexity import (
    Sums,
    aligned,
    borders,
    paired_differences,
    rows,
    sums,
    token_bytes,
    token_losses,
)
from codecria.core.evaluation.long_context.measure import ModelSpec, Request, measure
from codecria.core.evaluation.long_context.texts import (
    Text,
    gather,
    joined,
    open_split,
    texts_of_files,
    texts_of_shards,
)
from codecria.core.inference.generator import Generator
from codecria.core.model.attention import PackedAttention
from codecria.core.model.loss import masked_cross_entropy
from codecria.core.model.transformer import Transformer
from codecria.data.errors import UserError
from codecria.data.tokenizer.tokenizer import Tokenizer
from codecria.data.tokenizer.training import train


@pytest.fixture(scope="module")
def model(small_model: Path) -> Transformer:
    """Trained context 64."""
    return Generator.load(small_model, engine="torch", device="cpu", dtype="float32").model


def some_ids(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(3, 600, count).astype(np.int32)


def whole_forward(model: Transformer, ids: Any) -> torch.Tensor:
    """The final hidden states by one forward pass, without a cache."""
    row = torch.from_numpy(ids[:-1].astype(np.int64)).unsqueeze(0)
    positions = torch.arange(row.shape[1]).unsqueeze(0)
    with torch.no_grad():
        return model(row, positions, PackedAttention(None))[0]


# --- the losses -----------------------------------------------------------------------------------


@settings(max_examples=25)
@given(count=st.integers(2, 300), chunk=st.integers(1, 128))
def test_chunks_give_the_losses_of_one_forward_pass_beyond_the_trained_context(
    model: Transformer, count: int, chunk: int
) -> None:
    ids = some_ids(count)
    found = token_losses(model, ids, chunk=chunk)
    scores = model.logits(whole_forward(model, ids))
    direct = F.cross_entropy(scores, torch.from_numpy(ids[1:].astype(np.int64)), reduction="none")
    np.testing.assert_allclose(found, direct.detach().numpy(), atol=2e-4, rtol=1e-4)


def test_bucket_sums_are_the_loss_that_training_minimises(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    texts = [some_ids(n, seed=n) for n in (300, 70, 2, 65)]
    ends = borders(64, multiples=(1, 2, 5))
    losses = [token_losses(model, ids) for ids in texts]
    found = sums(losses, [token_bytes(tokenizer, ids) for ids in texts], [ends] * len(texts))
    for n, ids in enumerate(texts):
        targets = torch.from_numpy(ids[1:].astype(np.int64))
        mean, _ = masked_cross_entropy(
            whole_forward(model, ids), model.output_weight, targets, count=len(targets)
        )
        assert found.nats[n].sum() / len(targets) == pytest.approx(float(mean), rel=1e-5)
        assert found.tokens[n].sum() == len(targets)


def test_progress_counts_every_token(model: Transformer) -> None:
    told: list[int] = []
    token_losses(model, some_ids(101), chunk=30, done=told.append)
    assert told == [30, 30, 30, 10]


# --- the buckets ----------------------------------------------------------------------------------


def test_borders_go_up_by_two_and_end_where_asked() -> None:
    assert borders(4_096, multiples=(1, 2, 4)) == [0, 512, 1024, 2048, 4096, 8192, 16384]
    assert borders(100, multiples=(3,)) == [0, 12, 24, 48, 96, 192, 300]
    assert borders(64, multiples=(0.5,)) == [0, 8, 16, 32]
    assert borders(4_096, ends=(500, 100, 100)) == [0, 100, 500]


@given(st.lists(st.lists(st.floats(0, 20), min_size=1, max_size=80), min_size=1, max_size=5))
def test_every_token_is_in_one_bucket_and_later_ones_in_none(texts: list[list[float]]) -> None:
    ends = [0, 1, 7, 40]
    found = sums(texts, [np.ones(len(t)) for t in texts], [ends] * len(texts))
    for s, losses in enumerate(texts):
        # Entry j has j + 1 tokens before it: a bucket "2 .. 7" holds entries 1 to 6.
        direct = [
            [loss for j, loss in enumerate(losses) if first < j + 1 <= last]
            for first, last in itertools.pairwise(ends)
        ]
        assert found.tokens[s].tolist() == [len(part) for part in direct]
        assert found.nats[s] == pytest.approx([sum(part) for part in direct])


@given(st.lists(st.integers(1, 6), min_size=1, max_size=40), st.data(), st.integers(1, 20))
def test_aligned_buckets_hold_the_same_text(own: list[int], data: st.DataObject, end: int) -> None:
    # Another way to cut the same bytes.
    total = sum(own)
    cuts = sorted(data.draw(st.sets(st.integers(1, total), max_size=total)) | {0, total})
    other = np.diff(cuts)
    ends = [0, end, 2 * end, 50]
    found = aligned(ends, np.array(own), other)
    assert found[0] == 0
    assert found[-1] == len(other)
    for place, moved in zip(ends, found, strict=True):
        reached = sum(own[:place])
        assert other[:moved].sum() <= reached
        assert moved == len(other) or other[: moved + 1].sum() > reached


def test_rows_by_hand() -> None:
    # Two texts, two buckets; the second text does not reach the second bucket.
    log = math.log
    found = Sums(
        nats=np.array([[4 * log(8), 2 * log(2)], [4 * log(2), 0.0]]),
        tokens=np.array([[4.0, 2.0], [4.0, 0.0]]),
        bytes=np.array([[8.0, 8.0], [8.0, 0.0]]),
    )
    first, second = rows(found, seed=0)
    assert first["perplexity"] == pytest.approx(4)  # the mean of log 8 and log 2
    assert first["bits_per_byte"] == pytest.approx(16 / 16)  # 4 tokens of 3 bits, 4 of 1
    assert (first["texts"], first["tokens"]) == (2, 8)
    assert (second["texts"], second["tokens"]) == (1, 2)
    assert second["perplexity"] == pytest.approx(2)
    assert second["perplexity_interval"] is None, "one text says nothing of others"
    assert second["upto"]["perplexity"] == pytest.approx(2 ** ((12 + 4 + 2) / 10))
    low, high = first["perplexity_interval"]
    assert (low, high) == (pytest.approx(2), pytest.approx(8)), "both drawn alike, now and then"


def test_empty_buckets_have_no_figures() -> None:
    nothing = np.zeros((2, 1))
    [row] = rows(Sums(nothing, nothing, nothing), seed=0)
    assert row["perplexity"] is None
    assert row["tokens"] == 0
    json.dumps(row, allow_nan=False)


def test_intervals_cover_the_mean_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for trial in range(100):
        nats = rng.normal(2.0, 0.5, (40, 1)) * 100
        [row] = rows(Sums(nats, np.full((40, 1), 100.0), np.full((40, 1), 300.0)), seed=trial)
        low, high = row["perplexity_interval"]
        covered += low < math.exp(2.0) < high
    assert 0.86 < covered / 100 < 0.99  # the bootstrap is a little narrow for forty texts


@given(
    st.lists(st.floats(1, 9), min_size=2, max_size=8),
    st.floats(-0.5, 0.5),
    st.booleans(),
)
def test_a_constant_difference_has_no_spread(losses: list[float], shift: float, same: bool) -> None:
    tokens = np.full((len(losses), 1), 10.0)
    nats = np.array(losses)[:, None] * tokens
    first = Sums(nats, tokens, 3 * tokens)
    factor = 1 + shift
    second = Sums(nats + shift * tokens if same else nats * factor, tokens, 3 * tokens)
    [found] = paired_differences(first, second, same_tokens=same, seed=1)
    expected = math.expm1(shift) if same else shift
    assert found["relative"] == pytest.approx(expected, abs=1e-9)
    assert found["interval"] == pytest.approx([expected, expected], abs=1e-9)


# --- the texts ------------------------------------------------------------------------------------


def test_documents_come_whole_long_enough_and_in_an_order_of_the_seed(
    shards: Path, corpus: list[str]
) -> None:
    split = open_split(shards, "train")
    found = list(texts_of_shards(split, min_bytes=2_000, seed=0))
    # SentencePiece's own sign for a space comes back as one; prepare-data marks such documents.
    known = {text[:3000].replace("\u2581", " ") for text in corpus}
    assert found
    assert all(text.text in known and text.bytes >= 2_000 for text in found)
    every = list(texts_of_shards(split, min_bytes=0, seed=0))
    assert len(found) == sum(text.bytes >= 2_000 for text in every)
    other = list(texts_of_shards(split, min_bytes=0, seed=1))
    assert [text.name for text in every] != [text.name for text in other]
    assert sorted(text.name for text in every) == sorted(text.name for text in other)


def test_validation_is_taken_when_there_is_some(
    shards: Path, tokenizer: Tokenizer, tmp_path: Path, shard_writer: Callable[..., None]
) -> None:
    assert open_split(shards, None).split == "validation"
    shard_writer(tmp_path / "all", [tokenizer.encode("x = 1", bos=True, eos=True), []], tokenizer)
    assert open_split(tmp_path / "all", None).split == "train"


def test_joined_texts_are_of_one_source_and_hold_every_text_once(tokenizer: Tokenizer) -> None:
    texts = [
        Text(name=f"{source}{n}", text=f"{source}{n} = {n}\n", source=source)
        for n in range(30)
        for source in ("a", "b")
    ]
    found = list(joined(texts, tokens=50, tokenizer=tokenizer))
    assert found
    for text in found:
        parts = text.text.split("\n\n")
        assert len(parts) == text.documents
        assert {part[0] for part in parts} == {text.source}
        assert len(tokenizer.encode(text.text, bos=True)) > 50
    parts = [part for text in found for part in text.text.split("\n\n")]
    assert len(parts) == len(set(parts))


def test_what_is_left_over_is_joined_when_nothing_gets_long(tokenizer: Tokenizer) -> None:
    texts = [Text(name="x", text="x\n", source="s"), Text(name="y", text="y = 1\n" * 9, source="t")]
    found = list(joined([*texts, texts[1]], tokens=10_000, tokenizer=tokenizer))
    assert [(text.source, text.documents) for text in found] == [("t", 2), ("s", 1)]


@settings(max_examples=30)
@given(st.lists(st.text(max_size=60), max_size=6), st.integers(1, 40), st.integers(1, 120))
def test_what_is_gathered_is_as_long_as_asked_and_its_text_is_its_ids(
    tokenizer: Tokenizer, contents: list[str], longest: int, most: int
) -> None:
    texts = [Text(name=str(n), text=text) for n, text in enumerate(contents)]
    cuts = gather(texts, tokenizer, longest=longest, max_tokens=most, whole=False)
    assert sum(len(cut.ids) - 1 for cut in cuts) <= most
    for cut in cuts:
        assert 2 <= len(cut.ids) <= longest + 1
        assert tokenizer.decode(cut.ids[1:].tolist()) == cut.text.text
        assert contents[int(cut.text.name)].startswith(cut.text.text)
        assert token_bytes(tokenizer, cut.ids).sum() == cut.text.bytes
    whole = gather(texts, tokenizer, longest=longest, max_tokens=most, whole=True)
    assert all(len(cut.ids) > longest - 3 for cut in whole)


def test_files_are_read_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.c").write_bytes(b"int a;\r\n")
    (tmp_path / "b.c").write_bytes(b"\xff")
    [text] = texts_of_files([tmp_path / "a.c"])
    assert text.text == "int a;\r\n"
    with pytest.raises(UserError, match="not UTF-8 from byte 0"):
        list(texts_of_files([tmp_path / "b.c"]))
    with pytest.raises(UserError, match="cannot read"):
        list(texts_of_files([tmp_path / "c.c"]))


# --- all of it ------------------------------------------------------------------------------------


def measured(request: Request, *specs: ModelSpec) -> tuple[dict[str, Any], list[str]]:
    notes: list[str] = []
    told = measure(
        request,
        specs,
        device="cpu",
        dtype="float32",
        note=notes.append,
        progress=lambda _: None,
    )
    return told, notes


@pytest.fixture
def request_for(shards: Path) -> Request:
    return Request(
        data=shards,
        split="train",
        min_bytes=2_500,
        max_tokens=2_000,
        multiples=(1, 2, 4),
        retrieval_lengths=(120,),
        retrieval_positions=(0, 1),
        examples=2,
    )


def test_a_model_beside_itself_is_the_same_and_beside_another_theta_is_not(
    small_model: Path, request_for: Request
) -> None:
    plain = ModelSpec.open(small_model)
    told, _ = measured(request_for, plain, plain)
    for row in told["perplexity"]["rows"]:
        assert row["models"][0] == row["models"][1]
        assert row["difference"] == {"relative": 0.0, "interval": [0.0, 0.0]}
    for cell in told["retrieval"]["cells"]:
        assert cell["models"][0] == cell["models"][1]
    bent, _ = measured(request_for, ModelSpec.open(small_model, theta=1e6), plain)
    assert bent["models"][0]["rope_theta"] == 1e6
    assert bent["models"][0]["dtype"] == "float32"
    assert bent["models"][0]["own_rope_theta"] == bent["models"][1]["rope_theta"] == 1e4
    last = bent["perplexity"]["rows"][-1]
    assert last["models"][0]["nll"] != last["models"][1]["nll"]
    assert (
        bent["perplexity"]["rows"][-1]["models"][1] == told["perplexity"]["rows"][-1]["models"][0]
    )
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_the_rope_scale_divides_positions(small_model: Path, request_for: Request) -> None:
    halved = ModelSpec.open(small_model, rope_scale=2.0)
    model = halved.load(device="cpu", dtype="float32").model
    ids = some_ids(50)
    row = torch.from_numpy(ids[:-1].astype(np.int64)).unsqueeze(0)
    plain = ModelSpec.open(small_model).load(device="cpu", dtype="float32").model
    # Positions 0, 2, 4 .. of the scaled model stand where 0, 1, 2 .. of the plain one do.
    with torch.no_grad():
        positions = torch.arange(row.shape[1]).unsqueeze(0)
        scaled = model(row, positions * 2, PackedAttention(None))
        expected = plain(row, positions, PackedAttention(None))
    torch.testing.assert_close(scaled, expected, atol=1e-4, rtol=1e-4)


def test_other_tokenizers_are_compared_by_bits_a_byte_of_the_same_texts(
    small_model: Path,
    corpus: list[str],
    tmp_path: Path,
    random_model: Callable[..., Path],
    request_for: Request,
) -> None:
    other = train(corpus, vocab_size=400, out=tmp_path / "tokenizer.model")
    second = ModelSpec.open(random_model(other, max_context=64))
    request = replace(request_for, ends=(40, 1_000), max_tokens=3_000, retrieval_lengths=(200,))
    told, notes = measured(request, ModelSpec.open(small_model), second)
    assert told["perplexity"]["measure"] == "bits_per_byte"
    assert any("tokenizers differ" in note for note in notes)
    a, b = told["perplexity"]["rows"][-1]["models"]
    assert a["upto"]["bytes"] == b["upto"]["bytes"]
    assert a["upto"]["tokens"] != b["upto"]["tokens"]
    difference = told["perplexity"]["rows"][0]["difference"]["relative"]
    first = told["perplexity"]["rows"][0]["models"]
    assert difference == pytest.approx(first[1]["bits_per_byte"] / first[0]["bits_per_byte"] - 1)


def test_too_little_is_said_and_nothing_is_an_error(
    small_model: Path, request_for: Request
) -> None:
    model = ModelSpec.open(small_model)
    _, notes = measured(replace(request_for, max_tokens=10**6, retrieval=False), model)
    assert len(notes) == 1
    assert "--join" in notes[0]
    with pytest.raises(UserError, match="no document of 1,000,000 bytes") as caught:
        measured(replace(request_for, min_bytes=10**6), model)
    assert "--join" in caught.value.hint
    with pytest.raises(UserError, match="a retrieval prompt of 30 tokens is too short"):
        measured(replace(request_for, retrieval_lengths=(30, 200)), model)
    with pytest.raises(UserError, match="--whole"):
        measured(replace(request_for, whole=True, max_tokens=100), model)


# --- the verb -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Told:
    status: int
    out: str
    err: str


@pytest.fixture
def evaluate(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], small_model: Path
) -> Callable[..., Told]:
    def call(*arguments: object) -> Told:
        line = ["codecria", "evaluate", "long-context", "--model", str(small_model)]
        monkeypatch.setattr(sys, "argv", [*line, *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
        capfd.readouterr()
        status = cli.run()
        sys.stdout.flush()
        return Told(int(status), *capfd.readouterr())

    return call


QUICK = ("--examples", 1, "--retrieval-positions", "0,1", "--max-tokens", 1_500)


def test_the_json_on_stdout_is_the_file_written(
    evaluate: Callable[..., Told], shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "result.json"
    told = evaluate("--data", shards, "--join", *QUICK, "--json", "--out", out)
    assert told.status == 0, told.err
    found = json.loads(told.out)
    assert found == json.loads(out.read_text())
    assert [row["to"] for row in found["perplexity"]["rows"]] == [8, 16, 32, 64, 128, 256]
    assert {cell["length"] for cell in found["retrieval"]["cells"]} == {128, 256}
    assert "no key retrieval at 64 tokens" in told.err


def test_the_tables_mark_the_trained_context(
    evaluate: Callable[..., Told], shards: Path, small_model: Path
) -> None:
    told = evaluate("--data", shards, "--join", *QUICK, "--compare", small_model)
    assert told.status == 0, told.err
    [marked] = [line for line in told.out.split("\n") if "<- trained context of A and B" in line]
    assert "33 .. 64" in marked
    assert "+0.00%" in marked


def test_prompts_are_shown_without_a_model(
    evaluate: Callable[..., Told], tmp_path: Path, small_model: Path
) -> None:
    (tmp_path / "f.py").write_text("".join(f"def f{n}(): return {n}\n" for n in range(30)))
    options = ("--filler", tmp_path / "f.py", "--retrieval-lengths", 200, "--show", 2)
    told = evaluate(*options)
    assert told.status == 0, told.err
    assert told.out.count("[KEY]def my_function() -> int:") == 2
    assert told.out.count("assert my_function() == [ANSWER ") == 2
    lines = [json.loads(line) for line in evaluate(*options, "--json").out.splitlines()]
    tokenizer = Tokenizer.load(small_model)
    assert [line["position"] for line in lines] == [0, 0.2]
    assert all(tokenizer.decode(line["ids"][1:]) == line["text"] for line in lines)


def test_filler_alone_measures_retrieval_alone(
    evaluate: Callable[..., Told], tmp_path: Path
) -> None:
    (tmp_path / "f.py").write_text("".join(f"def f{n}(): return {n}\n" for n in range(30)))
    told = evaluate("--filler", tmp_path, "--retrieval-lengths", 200, *QUICK, "--json")
    assert told.status == 0, told.err
    found = json.loads(told.out)
    assert found["perplexity"] is None
    assert len(found["retrieval"]["cells"]) == 2
    nothing = evaluate("--filler", tmp_path, "--no-retrieval")
    assert nothing.status == 1
    assert "nothing to measure" in nothing.err


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        ((), 2, "no texts are given"),
        (("--data", "nowhere"), 1, "is not a finished shard set"),
        (("--data", "nowhere", "--file", "x.py"), 2, "cannot be combined"),
        (("--file", "nowhere.py"), 1, "cannot read nowhere.py"),
        (("--file", "x.py", "--lengths", "1,two"), 2, "not a list of numbers"),
        (("--file", "x.py", "--lengths", "0"), 2, "above 0"),
        (("--file", "x.py", "--lengths", "nan"), 2, "above 0"),
        (("--file", "x.py", "--positions", "1.5"), 2, "not a whole number"),
        (("--file", "x.py", "--retrieval-positions", "2"), 2, "from 0 to 1"),
        (("--file", "x.py", "--theta", "0.5"), 2, "must exceed 1"),
        (("--file", "x.py", "--rope-scale", "0"), 2, "must exceed 0"),
        (("--file", "x.py", "--out", "nowhere/x.json"), 1, "does not exist"),
        (("--file", "x.py", "--out", "."), 1, "it is a folder"),
    ],
)
def test_mistakes_are_told_in_a_line(
    evaluate: Callable[..., Told], options: tuple[str, ...], status: int, said: str
) -> None:
    told = evaluate(*options)
    assert told.status == status
    assert said in told.err
    assert told.out == ""


def test_a_picture_needs_matplotlib_and_says_so(
    evaluate: Callable[..., Told], shards: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "long.png"
    told = evaluate("--data", shards, "--join", *QUICK, "--plot", picture)
    if importlib.util.find_spec("matplotlib") is None:
        assert told.status == 1
        assert "codecria[plot]" in told.err
        assert not picture.exists()
    else:
        assert told.status == 0, told.err
        assert picture.read_bytes().startswith(b"\x89PNG")
