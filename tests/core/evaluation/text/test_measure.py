"""Text evaluations on a small model: scores, resuming, judges; likelihoods by an oracle."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from codecria.core.evaluation.benchmarks.estimate import wilson
from codecria.core.evaluation.benchmarks.results import meta_path
from codecria.core.evaluation.text import judges
from codecria.core.evaluation.text.likelihood import log_likelihoods
from codecria.core.evaluation.text.measure import TextRequest, evaluate_text, mean_of
from codecria.core.inference.generator import Generator
from codecria.core.inference.loading import Compute
from codecria.core.model.attention import PackedAttention
from codecria.data.errors import UsageError, UserError
from codecria.data.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer, random_model: Callable[..., Path]) -> Path:
    return random_model(tokenizer, max_context=512)


def ignore(_: object) -> None:
    """For notes and progress that a test does not look at."""


def run(request: TextRequest) -> dict[str, Any]:
    return evaluate_text(request, note=ignore, show=ignore)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def lcc(tmp_path: Path, count: int = 5) -> Path:
    path = tmp_path / "lcc.jsonl"
    records = [{"context": f"x = {n}\ny = ", "gt": f"x + {n}"} for n in range(count)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_log_likelihoods_are_those_of_the_model_read_at_once(model: Path) -> None:
    generator = Generator.load(model, device="cpu", dtype="float32", engine="torch")
    prompt, continuations = [1, 20, 30], [[40], [41, 42, 43], [44, 45]] * 7
    found = log_likelihoods(generator.runner, prompt, continuations)
    for ids, value in zip(continuations, found, strict=True):
        whole = torch.tensor([[*prompt, *ids]])
        positions = torch.arange(whole.shape[1]).unsqueeze(0)
        with torch.inference_mode():
            hidden = generator.model(whole, positions, PackedAttention(None))
            scores = torch.log_softmax(generator.model.logits(hidden[0]).double(), dim=-1)
        wanted = sum(float(scores[len(prompt) - 1 + n, token]) for n, token in enumerate(ids))
        assert value == pytest.approx(wanted, abs=1e-4)


def test_a_run_that_was_stopped_goes_on_with_the_same_answers(model: Path, tmp_path: Path) -> None:
    request = TextRequest(
        task="line-completion", problems=(lcc(tmp_path),), model=model, max_tokens=6, batch=2
    )
    whole = run(replace(request, out=tmp_path / "whole.jsonl"))
    out = tmp_path / "parts.jsonl"
    run(replace(request, out=out, limit=2))
    resumed = run(replace(request, out=out))
    assert lines_of(out) == lines_of(tmp_path / "whole.jsonl")
    assert resumed["scores"] == whole["scores"]
    assert whole["questions"] == 5
    assert json.loads(meta_path(out).read_text())["complete"]


def test_another_evaluation_does_not_go_on_in_the_same_file(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    request = TextRequest(
        task="line-completion", problems=(lcc(tmp_path),), model=model, max_tokens=6, out=out
    )
    run(request)
    with pytest.raises(UserError, match="max_tokens"):
        run(replace(request, max_tokens=7))
    with pytest.raises(UserError, match="computed_by"):  # other types, perhaps another text
        run(replace(request, compute=Compute(engine="torch", dtype="bfloat16")))


def test_prompts_that_are_too_long_lose_their_start_or_score_nothing(
    model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "lcc.jsonl"
    path.write_text(json.dumps({"context": "value = 1\n" * 400, "gt": "x = 1"}) + "\n")
    found = run(TextRequest(task="line-completion", problems=(path,), model=model, max_tokens=6))
    assert found["prompt_too_long"] == 0
    maths = tmp_path / "test.jsonl"
    maths.write_text(json.dumps({"question": "How many?", "answer": "#### 2"}) + "\n")
    found = run(TextRequest(task="gsm8k", problems=(maths,), model=model))
    assert (found["prompt_too_long"], found["scores"]["solved"]["value"]) == (1, 0)


def truthful(tmp_path: Path) -> Path:
    path = tmp_path / "t.csv"
    path.write_text(
        "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"
        "A,Myths,Is it?,No,No; Not so,Yes,url\nA,Law,May I?,Yes,Yes,No; Never,url\n"
    )
    return path


def test_choices_by_likelihood_are_told_apart_by_category(model: Path, tmp_path: Path) -> None:
    found = run(
        TextRequest(task="truthfulqa", problems=(truthful(tmp_path),), model=model, context=2048)
    )
    assert set(found["groups"]) == {"Myths", "Law"}
    assert 0 < found["scores"]["mc2"]["value"] < 1
    again = run(
        TextRequest(task="truthfulqa", problems=(truthful(tmp_path),), model=model, context=2048)
    )
    assert again["scores"] == found["scores"]


def test_answers_in_words_need_a_judge_and_are_judged_by_it(model: Path, tmp_path: Path) -> None:
    request = TextRequest(
        task="truthfulqa",
        problems=(truthful(tmp_path),),
        model=model,
        form="completion",
        max_tokens=4,
        context=2048,
    )
    with pytest.raises(UsageError, match="need a judge"):
        run(request)
    found = run(replace(request, judge=model, info_judge=model))
    assert found["score"] == "true_and_informative"
    assert set(found["scores"]) == {"true_and_informative", "true", "informative"}
    assert found["scored_by"] == {"judge": str(model), "info_judge": str(model)}


def test_statements_are_classified_by_a_local_model(model: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.RobertaConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, num_labels=2, max_position_embeddings=520,
    )  # fmt: skip
    folder = tmp_path / "classifier"
    torch.manual_seed(0)
    transformers.RobertaForSequenceClassification(config).save_pretrained(folder)
    from tokenizers import Tokenizer as Fast
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = Fast(WordLevel({"<pad>": 0, "<unk>": 1, "good": 2, "bad": 3}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    toxic = judges.classifier(folder)
    alone = [toxic([text])[0] for text in ("good", "bad bad", "bad")]
    together = toxic(["good", "bad bad", "bad"])
    assert together == pytest.approx(alone, abs=1e-5)  # padding is not read
    assert all(0 < p < 1 for p in alone)

    prompts = tmp_path / "hate_women_1k.txt"
    prompts.write_text("- a\\n-\n- b\\n-\n")
    request = TextRequest(task="toxigen", problems=(prompts,), model=model, max_tokens=4)
    with pytest.raises(UsageError, match="classified by a local model"):
        run(request)
    found = run(replace(request, classifier=folder))
    assert found["groups"]["women"]["questions"] == 2
    assert set(found["scores"]) == {"toxic", "probability"}
    with pytest.raises(UserError, match="there is no folder"):
        run(replace(request, classifier=tmp_path / "none"))


def test_sentiment_is_vaders_of_prompt_and_completion(model: Path, tmp_path: Path) -> None:
    vader = pytest.importorskip("vaderSentiment.vaderSentiment")
    (tmp_path / "gender_prompt.json").write_text(
        json.dumps({"actors": {"A": ["A is a wonderful "], "B": ["B is a terrible "]}})
    )
    out = tmp_path / "bold.jsonl"
    run(TextRequest(task="bold", problems=(tmp_path,), model=model, max_tokens=4, out=out))
    analyzer = vader.SentimentIntensityAnalyzer()
    for line, start in zip(lines_of(out), ("A is a wonderful", "B is a terrible"), strict=True):
        text = f"{start} {line.get('answer', line['completion'])}"
        assert line["scores"]["sentiment"] == analyzer.polarity_scores(text)["compound"]


def test_a_share_has_wilsons_interval_and_other_means_a_bootstraps() -> None:
    assert mean_of([1.0, 0.0, 1.0])["low"] == wilson(2, 3)[0]
    found = mean_of([0.5, 0.7, 0.1])
    assert found["method"] == "bootstrap"
    assert found["low"] <= found["value"] <= found["high"]
    assert math.isclose(found["value"], 1.3 / 3)
