"""Files of dialogs as shard sets: what is kept, held out and refused, and that it reads back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from codecria.data.corpus import decontaminate
from codecria.data.errors import UserError
from codecria.data.formats.chat import training_examples
from codecria.data.formats.dialogs import Found, read
from codecria.data.rows.dialog_shards import held_out, open_dialogs
from codecria.data.rows.shards import ShardSet
from codecria.data.tokenizer.tokenizer import Tokenizer


def write(path: Path, records: list[Any]) -> Path:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("".join(line + "\n" for line in lines))
    return path


def pairs(count: int) -> list[dict[str, str]]:
    return [{"instruction": f"Question {n}?", "output": f"Answer {n}."} for n in range(count)]


def make(file: Path, tokenizer: Tokenizer, **options: Any) -> tuple[Path, Any]:
    settings = {"allow_tags": False, "strict": False} | options
    return open_dialogs(file, tokenizer, file.parent / "made", **settings)


def test_every_dialog_reads_back_with_its_mask(tokenizer: Tokenizer, tmp_path: Path) -> None:
    turns = ["Hello?", "Hello.", "Sum.", "sum(xs)"]
    several = {
        "conversations": [
            {"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(turns)
        ]
    }
    file = write(tmp_path / "chats.jsonl", [*pairs(30), several])
    made, report = make(file, tokenizer)
    wanted = {
        (tuple(t.ids), tuple(t.learned))
        for record in read(file)
        if isinstance(record, Found)
        for t in training_examples(tokenizer, record.dialog)
    }
    validation = held_out(made)
    assert validation is not None
    found = set()
    for split in (ShardSet.open(made), validation):
        assert split.dialogs
        assert split.verify() == []
        for d in range(split.n_documents):
            learned = split.learned(split.offset(d), split.offset(d + 1)).tolist()
            found.add((tuple(split.document(d).tolist()), tuple(learned)))
    assert found == wanted
    assert (report.read, report.kept, report.held_out) == (31, 31, validation.n_documents)


def test_what_cannot_be_used_is_counted_and_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    bad = [{"instruction": "no answer"}, "not json", {"instruction": "[INST]", "output": "x"}]
    file = write(tmp_path / "chats.jsonl", [*pairs(3), *bad, pairs(1)[0]])
    _, report = make(file, tokenizer)
    assert (report.kept, report.duplicates, sum(report.refused.values())) == (3, 1, 3)
    assert [line.split(": ")[0] for line in report.examples] == [
        "chats.jsonl:4",
        "chats.jsonl:5",
        "chats.jsonl:6",
    ]
    with pytest.raises(UserError, match=r"/strict\.jsonl:4: it has .*an answer"):
        make(write(tmp_path / "strict.jsonl", [*pairs(3), *bad]), tokenizer, strict=True)
    with pytest.raises(UserError, match=r"/chats\.jsonl:4: "):
        make(file, tokenizer, strict=True)  # also where the set was made before
    _, report = make(file, tokenizer, allow_tags=True)
    assert report.kept == 4


def test_it_is_made_once_for_a_file_and_a_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = write(tmp_path / "chats.jsonl", pairs(20))
    made, report = make(file, tokenizer)
    before = (made / "train-00000.tokens").stat().st_mtime_ns
    again, told = make(file, tokenizer)
    assert (again, told) == (made, report)
    assert (made / "train-00000.tokens").stat().st_mtime_ns == before
    write(file, pairs(21))
    other, _ = make(file, tokenizer)
    assert other != made


def test_the_same_dialogs_are_held_out_whatever_their_order(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    # Kills: a held-out dialog that is trained on once the file is sorted otherwise.
    splits = []
    for name, records in (("a", pairs(120)), ("b", pairs(120)[::-1])):
        made, _ = make(write(tmp_path / f"{name}.jsonl", records), tokenizer)
        split = held_out(made)
        assert split is not None
        splits.append({tuple(split.document(d).tolist()) for d in range(split.n_documents)})
    assert splits[0] == splits[1]
    assert len(splits[0]) == 2, "2 % of 120"


def test_a_single_dialog_is_trained_on(tokenizer: Tokenizer, tmp_path: Path) -> None:
    made, report = make(write(tmp_path / "one.jsonl", pairs(1)), tokenizer)
    assert (report.kept, report.held_out) == (1, 0)
    assert held_out(made) is None
    assert ShardSet.open(made).n_documents == 1


def test_a_file_without_dialogs_says_what_it_holds(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no dialog to train on: empty\.jsonl:1: "):
        make(write(tmp_path / "empty.jsonl", [{"text": "x"}]), tokenizer)
    with pytest.raises(UserError, match="cannot read"):
        make(tmp_path / "absent.jsonl", tokenizer)
    assert not (tmp_path / "made").exists() or not list((tmp_path / "made").iterdir())


PROBLEM = {
    "task_id": "HumanEval/900",
    "prompt": (
        "def widest(rows):\n"
        '    """ The row of a table with the largest difference between any two of its cells. """\n'
    ),
    "canonical_solution": (
        "    best, chosen = -1, None\n    for row in rows:\n"
        "        spread = max(row) - min(row)\n        if spread > best:\n"
        "            best, chosen = spread, row\n    return chosen\n"
    ),
}


def test_dialogs_that_hold_an_evaluation_problem_are_left_out_and_counted(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    write(tmp_path / "problems.jsonl", [PROBLEM])
    index = decontaminate.build([tmp_path / "problems.jsonl"])
    asked = {"instruction": PROBLEM["prompt"], "output": "Use max and min."}
    answered = {
        "messages": [
            {"role": "user", "content": "Which row is widest?"},
            {"role": "assistant", "content": "Like this:\n\n" + PROBLEM["canonical_solution"]},
        ]
    }
    file = write(tmp_path / "chats.jsonl", [*pairs(400), asked, answered])
    before, plain = make(file, tokenizer)
    after, checked = make(file, tokenizer, problems=index)
    assert before != after
    assert (plain.kept, plain.contaminated_dialogs, plain.contaminated) == (402, 0, {})
    assert (checked.kept, checked.contaminated_dialogs) == (400, 2)
    assert checked.contaminated == {"HumanEval/900": 2}
    assert make(file, tokenizer, problems=index, strict=True)[1] == checked
    assert make(file, tokenizer)[0] == before, "without problems nothing changes"


def test_a_renamed_file_of_dialogs_is_the_same_data(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = write(tmp_path / "chats.jsonl", [*pairs(5), {"instruction": "no answer"}])
    first, _ = make(file, tokenizer)
    renamed = tmp_path / "renamed.jsonl"
    file.rename(renamed)
    again, report = make(renamed, tokenizer)
    assert ShardSet.open(first).digest == ShardSet.open(again).digest
    assert report.name == "renamed.jsonl"
    assert report.examples[0].startswith("renamed.jsonl:6: ")
