"""Leaked problems are found, also laid out anew and renamed; ordinary code is not one of them."""

from __future__ import annotations

import ast
import bz2
import gzip
import json
import pickle
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codecria.data.corpus import decontaminate, problems, shingles
from codecria.data.corpus import windows as windows_of
from codecria.data.corpus.decontaminate import Decontamination, Index, build
from codecria.data.errors import UserError

BENCHMARKS = Path(__file__).parents[3].parent / "shared" / "benchmarks"
needs_benchmarks = pytest.mark.skipif(
    not (BENCHMARKS / "humaneval").is_dir(), reason="the public problem files are not here"
)

# Problems of our own, in the layouts of the public sets.
PROMPT = '''def busiest_floor(visits, floors):
    """A lift notes every floor it stops at. Return the floor with the most stops;
    of several such floors the lowest, and None for a lift that never stopped.
    >>> busiest_floor([3, 1, 3], 5)
    3
    """
'''
SOLUTION = """    stops = [0] * floors
    for visit in visits:
        if 0 <= visit < floors:
            stops[visit] += 1
    most = max(stops, default=0)
    if most == 0:
        return None
    for floor in range(floors):
        if stops[floor] == most:
            return floor
    return None
"""
TEST = """def check(candidate):
    assert candidate([3, 1, 3], 5) == 3
    assert candidate([], 5) is None
"""
HUMANEVAL = {
    "task_id": "HumanEval/900",
    "prompt": PROMPT,
    "entry_point": "busiest_floor",
    "canonical_solution": SOLUTION,
    "test": TEST,
}
INFILLING = {
    "task_id": "SingleLineInfilling/HumanEval/900/L3",
    "entry_point": "busiest_floor",
    "prompt": PROMPT + SOLUTION[:60],
    "canonical_solution": SOLUTION[60:100],
    "suffix": SOLUTION[100:],
    "test": TEST,
}
MBPP = {
    "text": "Write a function that says how many miles a snail with a wet shell crawls a week.",
    "code": "def crawl(rate, wet):\r\n  if wet:\r\n    rate = rate * 2\r\n"
    "  return rate * 7 * 24 / 1000",
    "task_id": 9001,
    "test_setup_code": "",
    "test_list": ["assert crawl(5, True) == 1.68", "assert crawl(5, False) == 0.84"],
    "challenge_test_list": [],
}
MULTIPL_E = {
    "name": "HumanEval_900_busiest_floor",
    "language": "cpp",
    "prompt": "// A lift notes every floor it stops at. Return the floor with the most stops.\n"
    "long busiest_floor(std::vector<long> visits, long floors) {\n",
    "original": "/a path/with blanks/that is/no text/of the problem/at all/and/is never/a/hit.py",
    "tests": "}\nint main() {\n    auto candidate = busiest_floor;\n}\n",
    "stop_tokens": ["\n}"],
}
HUMANEVAL_X = {
    "task_id": "Go/900",
    "prompt": "// The lift that notes its floors, and asks which of them was the busiest one.\n",
    "declaration": "func BusiestFloor(visits []int, floors int) int {\n",
    "canonical_solution": "    stops := make([]int, floors)\n    return argmax(stops)\n}\n",
    "test": "func TestBusiestFloor(t *testing.T) {}\n",
}
APPS = {
    "problem_id": "0042",
    "split": "test",
    "question": "Petra stacks n boxes of different weights so that no box breaks the one below it.",
    "solutions": json.dumps(
        ["n = int(input())\nboxes = sorted(map(int, input().split()))\nprint(sum(boxes[:n]), n)"]
    ),
    "input_output": json.dumps({"inputs": ["3\n1 2 3\n"], "outputs": ["6\n"]}),
    "metadata": {"url": "https://example.org/a b c d e f g h i j k l m n o p"},
}
GSM8K = {
    "question": "A snail pays 3 coins a mile for a ride with a mole. How much are 4 miles?",
    "answer": "It pays 3*4=<<3*4=12>>12 coins for all of the miles, and nothing for the return.\n"
    "#### 12",
}
LAYOUTS: dict[str, tuple[dict[str, Any], str, str]] = {  # record, its name, a leak of it
    "humaneval": (HUMANEVAL, "HumanEval/900", PROMPT + SOLUTION),
    "infilling": (INFILLING, "HumanEval/900", PROMPT + SOLUTION),
    "mbpp": (MBPP, "MBPP/9001", str(MBPP["code"])),
    "multipl-e": (MULTIPL_E, "HumanEval/900", str(MULTIPL_E["prompt"])),
    "humaneval-x": (HUMANEVAL_X, "HumanEval/900", str(HUMANEVAL_X["prompt"])),
    "apps": (APPS, "APPS/test/42", "# " + str(APPS["question"]).replace(" ", "\n# ")),
    "gsm8k": (GSM8K, "gsm8k.jsonl:1", "it pays 3 * 4 = 12 coins for all of the miles, and nothing"),
}
HOST = "import os\n\n\ndef total(paths):\n    return sum(os.stat(path).st_size for path in paths)\n"


def column(*texts: str) -> pa.Array:
    return pa.array(texts, pa.string())


def write(path: Path, *records: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return build([write(tmp_path / "HumanEval.jsonl", HUMANEVAL)], Decontamination())


# ------------------------------------------------------------------------------------------ finding


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_leak_is_found_in_every_layout(tmp_path: Path, layout: str) -> None:
    record, name, leak = LAYOUTS[layout]
    index = build([write(tmp_path / f"{layout}.jsonl", record)], Decontamination())
    assert index.problems == [name]
    assert index.hits(column(HOST, f"{HOST}\n{leak}\n{HOST}", "")) == [None, name, None]


def renamed(code: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        code = re.sub(rf"\b{old}\b", new, code)
    return code


NEW_NAMES = {
    **{"busiest_floor": "f", "visits": "seq", "floors": "n", "stops": "counter"},
    **{"visit": "x", "most": "best", "floor": "sum"},
}
DISGUISES: dict[str, Callable[[], str]] = {
    "verbatim": lambda: PROMPT + SOLUTION,
    "other quotes and indentation": lambda: (
        (PROMPT + SOLUTION).replace('"', "'").replace("    ", "\t").replace("\n", "\r\n")
    ),
    "unparsed": lambda: ast.unparse(ast.parse(PROMPT + SOLUTION)),
    "shouted, one word a line": lambda: "\n".join((PROMPT + SOLUTION).upper().split()),
    "only the prompt, renamed": lambda: renamed(PROMPT, {"busiest_floor": "f", "visits": "seq"}),
    "no docstring": lambda: PROMPT.split("\n")[0] + "\n" + SOLUTION,
    "no docstring, all renamed": lambda: renamed(
        PROMPT.split("\n")[0] + "\n" + SOLUTION, NEW_NAMES
    ),
    "all renamed, in a class": lambda: (
        "class Lift:\n" + renamed(SOLUTION, NEW_NAMES).replace("\n", "\n        ")
    ),
}


@pytest.mark.parametrize("disguise", DISGUISES)
def test_a_disguised_leak_is_found(index: Index, disguise: str) -> None:
    text = HOST + "\n\n" + DISGUISES[disguise]() + "\n\n" + HOST
    assert index.hits(column(text)) == ["HumanEval/900"]


def test_names_merged_into_one_are_another_program(index: Index) -> None:
    same = {"stops": "x", "visits": "x", "visit": "x", "most": "x", "floor": "x", "floors": "x"}
    text = renamed(SOLUTION, same)
    assert not any(hit.kind == "renamed" for hit in index.find(text))


def test_without_windows_of_tokens_a_renamed_leak_stays(tmp_path: Path) -> None:
    path = write(tmp_path / "HumanEval.jsonl", HUMANEVAL)
    plain = build([path], Decontamination(window=0))
    leak = renamed(SOLUTION, NEW_NAMES)
    assert plain.hits(column(leak, SOLUTION)) == [None, "HumanEval/900"]


def test_find_says_what_and_where(index: Index) -> None:
    lines = HOST.count("\n")
    hits = index.find(HOST + SOLUTION)
    assert {(hit.problem, hit.file) for hit in hits} == {("HumanEval/900", "HumanEval.jsonl")}
    by_kind = {hit.kind: hit for hit in hits}
    words = len(re.findall(r"\w+", SOLUTION)) - 12
    assert by_kind["words"].grams == words
    assert by_kind["words"].line == lines + 1
    assert abs(by_kind["renamed"].line - lines) <= 2
    assert [hit.kind for hit in index.find(HOST + renamed(SOLUTION, NEW_NAMES))] == ["renamed"]
    assert index.find(HOST) == index.find("") == []


def test_hits_name_the_problem_with_most_windows_first_and_count_the_rest(tmp_path: Path) -> None:
    words = ["ant", "bee", "cow", "doe", "eel", "fox", "gnu", "hen", "ibex", "jay", "kea", "lark"]
    records = [
        {"id": str(i), "question": " ".join(f"{word}{i}" for word in [*words, *words[: 4 + i]])}
        for i in range(5)
    ]
    index = build([write(tmp_path / "zoo.jsonl", *records)], Decontamination())
    leak = "\n".join(str(record["question"]) for record in records)
    assert index.hits(column(leak)) == ["zoo/4, zoo/3, zoo/2 and 2 more"]
    assert index.problems_in(column("", leak)) == [[], [f"zoo/{i}" for i in (4, 3, 2, 1, 0)]]


# ------------------------------------------------------------------------- what is not evidence


def test_what_many_problems_share_is_no_evidence(tmp_path: Path) -> None:
    frame = "import the usual things and then run every case of this list through one loop please"
    records = [
        {
            "task_id": f"T/{i}",
            "prompt": f"{frame} number{i} " + " ".join(f"word{i}x{k}" for k in range(13)),
        }
        for i in range(6)
    ]
    few = build([write(tmp_path / "few.jsonl", *records[:4])], Decontamination())
    many = build([write(tmp_path / "many.jsonl", *records)], Decontamination())
    assert few.hits(column(frame)) == ["T/0, T/1, T/2 and 1 more"]
    assert many.hits(column(frame, str(records[5]["prompt"]))) == [None, "T/5"]
    assert many.facts()["grams_shared"]["words"] > 0


def test_forms_of_one_problem_are_one_problem(tmp_path: Path) -> None:
    forms = [{**INFILLING, "task_id": f"SingleLineInfilling/HumanEval/900/L{i}"} for i in range(9)]
    files = [
        write(tmp_path / "infilling.jsonl", *forms),
        write(tmp_path / "HumanEval.jsonl", HUMANEVAL),
        write(tmp_path / "humaneval-cpp.jsonl", MULTIPL_E),
        write(tmp_path / "humaneval_go.jsonl", HUMANEVAL_X),
    ]
    index = build(files, Decontamination())
    assert index.problems == ["HumanEval/900"]
    assert index.hits(column(PROMPT)) == ["HumanEval/900"]
    leaked = {hit.file for hit in index.find(str(MULTIPL_E["prompt"])) if hit.kind == "words"}
    assert leaked == {"HumanEval.jsonl", "humaneval-cpp.jsonl"}  # the first words are the prompt's


@pytest.mark.parametrize(
    "text",
    [
        " ".join(str(i) for i in range(40)),
        " ".join("abcdefghijklmnopqrstuvwxyz"),
        "x = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]\n" * 3,
        "data data data data data data data data data data data data data data data data\n",
    ],
)
def test_windows_that_say_little_are_no_evidence(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": f"{text}\n", "test": TEST})
    assert build([path], Decontamination()).hits(column(text)) == [None]


def test_short_texts_count_as_wholes(tmp_path: Path) -> None:
    short = "Say which snail won the race on Tuesday morning."  # nine words
    index = build(
        [write(tmp_path / "p.jsonl", {"id": 1, "text": short}, {"id": 2, "text": "Sort a list."})],
        Decontamination(),
    )
    cut = "Say which snail won the race on Tuesday evening."
    texts = column(f"# {short.upper()}", cut, short[:-9], f"x {short} y", "Sort a list.")
    assert index.hits(texts) == ["p/1", None, None, "p/1", None]
    facts = index.facts()
    assert (facts["problems"], facts["problems_short"]) == (2, 2)
    assert (facts["problems_not_indexed"], facts["not_indexed"]) == (1, ["p/2"])
    assert [hit.kind for hit in index.find(short)] == ["short"]


# ---------------------------------------------------------------------------------------- windows

TOKEN = re.compile(r"[0-9A-Za-z_\x80-\uffff]+|[-+*/%=<>!&|^~.?@$\[]")
KEYWORDS = set(windows_of._KEYWORDS.lower().split())
CALLED = set(windows_of._CALLED.lower().split()) - KEYWORDS


def plain_windows(text: str, size: int) -> list[tuple[object, ...]]:
    """Windows of tokens with names replaced by distances, one at a time."""
    tokens: list[tuple[str, bool]] = []
    matches = list(TOKEN.finditer(text))
    for i, match in enumerate(matches):
        word = match[0].lower()
        before = [m[0] for m in matches[max(0, i - 2) : i]]
        called = text[match.end() : match.end() + 1] == "("
        attribute = before[-1:] == ["."] and before != [".", "."]
        is_name = (
            (word[0].isalpha() or word[0] == "_")
            and word not in KEYWORDS
            and not (word in CALLED and called)
            and not attribute
        )
        tokens.append((word, is_name))
    windows = []
    for begin in range(len(tokens) - size + 1):
        last: dict[str, int] = {}
        window: list[object] = []
        for place, (word, is_name) in enumerate(tokens[begin : begin + size]):
            if is_name:
                window.append(place - last[word] if word in last else 0)
                last[word] = place
            else:
                window.append(word)
        windows.append(tuple(window))
    return windows


PIECES = ["a", "b ", "é", "x1", " = ", "max", "max(", "(", ".", "..", "if ", "7", "0.5", ")\n", "["]
CODE = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)


@given(st.lists(CODE, min_size=1, max_size=5), st.integers(1, 6))
def test_windows_of_tokens_are_those_of_a_plain_reading(texts: list[str], size: int) -> None:
    strings = column(*texts)
    tokens = windows_of.tokens_of(strings, shingles.words(strings))
    seen: dict[tuple[object, ...], int] = {}
    found: list[list[int]] = [[] for _ in texts]
    for begin, windows in windows_of.token_windows(tokens, size):
        places = np.arange(begin, begin + len(windows))
        owners, is_within = windows_of.owners_of(tokens.offsets, places, size)
        for owner, value in zip(owners[is_within], windows[is_within], strict=True):
            found[int(owner)].append(int(value))
    for text, values in zip(texts, found, strict=True):
        for window, value in zip(plain_windows(text, size), values, strict=True):
            assert seen.setdefault(window, value) == value
    assert len(set(seen.values())) == len(seen)


NAMES = ["alpha", "beta", "gamma", "delta"]
WITHOUT_DOTS = [piece for piece in PIECES if piece[0] != "."]  # attributes are not renamed


@given(st.permutations(NAMES), st.lists(st.sampled_from([*WITHOUT_DOTS, *NAMES]), max_size=40))
def test_renaming_changes_no_window(names: list[str], pieces: list[str]) -> None:
    code = " ".join(pieces)
    other = " ".join(
        names[NAMES.index(piece)] + "_" if piece in NAMES else piece for piece in pieces
    )
    hashes = []
    for text in (code, other):
        strings = column(text)
        tokens = windows_of.tokens_of(strings, shingles.words(strings))
        hashes.append([w.tolist() for _, w in windows_of.token_windows(tokens, 4)])
    assert hashes[0] == hashes[1]


@given(st.lists(CODE, max_size=4), st.integers(9, 13))
def test_windows_of_words_are_the_shingles(texts: list[str], size: int) -> None:
    found = shingles.words(column(*texts))
    expected = shingles.shingles(found, size, whole_short=False)
    ours = []
    for begin, windows in windows_of.word_windows(found.hashes, size):
        places = np.arange(begin, begin + len(windows))
        ours += windows[windows_of.owners_of(found.offsets, places, size)[1]].tolist()
    same = {(a, b) for a, b in zip(ours, expected.hashes.tolist(), strict=True)}
    assert len(same) == len({a for a, _ in same}) == len({b for _, b in same})


@given(st.lists(st.sampled_from([*PIECES, PROMPT, SOLUTION, HOST]), max_size=6), st.data())
@settings(max_examples=40)
def test_the_answer_is_the_same_in_any_company(parts: list[str], data: st.DataObject) -> None:
    texts = [*parts, data.draw(CODE), SOLUTION.rstrip() + ".", renamed(SOLUTION, NEW_NAMES)]
    together = OWN.hits(column(*texts))
    assert together == [OWN.hits(column(text))[0] for text in texts]
    large = pa.array(["x", *texts], pa.large_string())
    assert OWN.hits(large[1:]) == together
    assert OWN.hits(large) == [None, *together]


def own_index() -> Index:
    maker = decontaminate._Maker(Decontamination())
    for text in (PROMPT + SOLUTION, TEST):
        maker.add(problems.Problem("HumanEval/900", "HumanEval/900", "f.jsonl", (text,)))
    return maker.index({})


OWN = own_index()


@pytest.mark.parametrize("before", [0, 1, 30, 32])
def test_leaks_over_the_ends_of_what_is_hashed_at_once_are_found(before: int) -> None:
    filler = "word " * (windows_of.SEGMENT - before)
    leaks = [f"{filler}\n{SOLUTION}", f"{filler}\n{renamed(SOLUTION, NEW_NAMES)}", filler]
    leaks += [leak.replace(" ", "   ") for leak in leaks]  # and of the blocks
    assert OWN.hits(column(*leaks)) == ["HumanEval/900", "HumanEval/900", None] * 2


def test_words_longer_than_any_are_cut_like_the_shingles() -> None:
    long = "y" * (shingles.LONGEST_WORD * 2 + 5)
    texts = column(f"a.b {long} c", long, f"{long}.x\n{renamed(SOLUTION, NEW_NAMES)}")
    assert OWN.hits(texts) == [None, None, "HumanEval/900"]


def test_an_empty_column_has_no_hits() -> None:
    assert OWN.hits(column()) == []
    assert OWN.hits(column("", "")) == [None, None]
    assert OWN.hits(pa.array([], pa.large_string())) == []


# ---------------------------------------------------------------------- files, digests, saving


def every_format(folder: Path, records: list[dict[str, Any]]) -> Iterator[Path]:
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    contents = {
        "a.jsonl": lines,
        "bom.jsonl": b"\xef\xbb\xbf" + lines + b"\n",
        "a.ndjson": lines,
        "a.jsonl.gz": gzip.compress(lines),
        "a.jsonl.bz2": bz2.compress(lines),
        "list.json": json.dumps(records, indent=1).encode(),
        "lines.json": lines,
        "list.json.gz": gzip.compress(json.dumps(records).encode()),
        "wrapped.json": json.dumps({"version": "1", "examples": records}).encode(),
        "named.json": json.dumps({str(r["task_id"]): r for r in records}).encode(),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        yield folder / name
    with pa.CompressedOutputStream(str(folder / "a.jsonl.zst"), "zstd") as out:
        out.write(lines)
    yield folder / "a.jsonl.zst"
    pq.write_table(pa.Table.from_pylist(records), folder / "a.parquet")
    yield folder / "a.parquet"


def test_every_format_makes_the_same_index(tmp_path: Path) -> None:
    records = [HUMANEVAL, {**HUMANEVAL, "task_id": "HumanEval/901", "prompt": PROMPT[::-1]}]
    digests = {
        path.name: build([path], Decontamination()).digest
        for path in every_format(tmp_path, records)
    }
    assert len(digests) == 12
    assert len(set(digests.values())) == 1, digests
    folder = build([tmp_path], Decontamination())
    assert folder.problems == ["HumanEval/900", "HumanEval/901"]
    assert set(folder.facts()["files"]) == set(digests)
    assert folder.digest in digests.values()


def test_any_strings_of_a_layout_we_do_not_know_count(tmp_path: Path) -> None:
    sentence = "whichever field holds this sentence of fourteen words it is part of the problem"
    for value in (sentence, [sentence], {"deep": [{"er": sentence}]}, json.dumps([sentence, "b"])):
        path = write(tmp_path / "own.jsonl", {"id": "q7", "whatever": value})
        assert build([path], Decontamination()).hits(column(sentence)) == ["own/q7"]
    passed = write(tmp_path / "own.jsonl", {"id": sentence, "url": sentence, "x": "some text"})
    assert build([passed], Decontamination()).hits(column(sentence)) == [None]


def test_the_digest_depends_on_texts_and_recipe_alone(tmp_path: Path) -> None:
    first = write(tmp_path / "one" / "HumanEval.jsonl", HUMANEVAL)
    second = write(tmp_path / "one" / "gsm8k.jsonl", GSM8K)
    third = write(tmp_path / "two" / "renamed.jsonl", HUMANEVAL)
    fourth = write(tmp_path / "three" / "test.jsonl", GSM8K)
    digest = build([first, second], Decontamination()).digest
    assert build([second, first], Decontamination()).digest == digest
    assert build([first.parent], Decontamination()).digest == digest
    assert build([third, fourth], Decontamination()).digest == digest
    assert build([first], Decontamination()).digest != digest
    assert build([first, second], Decontamination(shared=5)).digest != digest
    changed = write(tmp_path / "x.jsonl", {**HUMANEVAL, "test": TEST.replace("5", "6")})
    assert build([changed, second], Decontamination()).digest != digest


def test_saved_loaded_and_pickled_it_answers_the_same(tmp_path: Path) -> None:
    files = [
        write(tmp_path / "HumanEval.jsonl", HUMANEVAL),
        write(tmp_path / "mbpp.jsonl", MBPP),
        write(tmp_path / "s.jsonl", {"text": "Say which snail won the race on Tuesday morning."}),
    ]
    index = build(files, Decontamination(shared=2))
    index.save(tmp_path / "index.arrow")
    texts = [SOLUTION, str(MBPP["code"]), HOST, "say which snail won the race on tuesday morning"]
    expected = index.hits(column(*texts))
    assert expected == ["HumanEval/900", "MBPP/9001", None, "s.jsonl:1"]
    loaded = Index.load(tmp_path / "index.arrow")
    for other in (loaded, pickle.loads(pickle.dumps(index)), pickle.loads(pickle.dumps(loaded))):
        assert other.hits(column(*texts)) == expected
        assert [other.find(text) for text in texts] == [index.find(text) for text in texts]
        assert (other.digest, other.recipe) == (index.digest, index.recipe)
        assert other.facts() == index.facts()
    again = tmp_path / "again.arrow"
    loaded.save(again)
    assert Index.load(again).hits(column(*texts)) == expected
    assert json.loads(json.dumps(index.facts()))["problems"] == 3


def test_a_saved_index_that_is_damaged_says_so(tmp_path: Path) -> None:
    path = tmp_path / "index.arrow"
    OWN.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"index\.arrow"):
        Index.load(path)
    with pytest.raises(UserError, match=r"absent\.arrow"):
        Index.load(tmp_path / "absent.arrow")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", b'{"prompt": "a b"}\n\n{"prompt": \n', r"p\.jsonl:3 is not valid JSON"),
        ("p.jsonl", b'{"prompt": "a b"}\n[1]\n', r"p\.jsonl:2 is no JSON object"),
        ("p.jsonl", b'{"prompt": "\xff b"}\n', r"p\.jsonl:1 is not valid JSON"),
        ("p.jsonl", b"", r"p\.jsonl holds no problem"),
        ("p.jsonl", b'{"id": 3, "url": "a b"}\n', r"p\.jsonl holds no problem"),
        ("p.json", b'[{"prompt": "a b"},\n{"prompt" "a"}]', r"p\.json:2 is not valid JSON"),
        ("p.json", b"[]", r"p\.json holds no problem"),
        ("p.json", b"3", r"p\.json holds no problem"),
        (
            "p.jsonl.gz",
            gzip.compress(b'{"prompt": "a b"}\n' * 99, mtime=0)[:-9],
            r"cannot read .*\.gz",
        ),
        ("p.jsonl.zst", b"no zstd", r"cannot read .*\.zst"),
        ("p.jsonl.bz2", b"no bzip", r"cannot read .*\.bz2"),
        ("p.parquet", b"no parquet", r"cannot read .*\.parquet"),
        ("p.csv", b"a,b", r"p\.csv is not a file of problems"),
        ("folder/readme.txt", b"-", r"folder has no file of problems"),
    ],
)
def test_broken_files_are_named_with_the_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        build([path.parent if "/" in name else path], Decontamination())


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl does not exist"):
        build([tmp_path / "none.jsonl"], Decontamination())


@pytest.mark.parametrize(
    "values",
    [
        {"words": 8},
        {"words": 65},
        {"window": 7},
        {"window": 257},
        {"shared": 0},
        {"distinct": 14},
        {"lettered": -1},
        {"kept": 21},
        {"kinds": -1},
    ],
)
def test_thresholds_that_mean_nothing_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        Decontamination(**values)


# ------------------------------------------------------------------- the public problem files


class Renamer(ast.NodeTransformer):
    """Every function, parameter and variable of a program under another name."""

    def __init__(self, tree: ast.AST) -> None:
        names = [
            node.name if isinstance(node, ast.FunctionDef) else node.arg
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.arg)
        ]
        names += [
            node.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        ]
        self.names = {name: f"v{i}" for i, name in enumerate(dict.fromkeys(names))}

    def visit_Name(self, node: ast.Name) -> ast.Name:
        node.id = self.names.get(node.id, node.id)
        return node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        self.generic_visit(node)
        node.arg = self.names[node.arg]
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        node.name = self.names[node.name]
        return node


def disguises(program: str) -> dict[str, str]:
    bare = ast.parse(program)
    for node in ast.walk(bare):
        if isinstance(node, ast.Module | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    stripped = ast.unparse(bare)
    return {
        "verbatim": program,
        "reformatted": ast.unparse(ast.parse(program)).replace("    ", "\t").replace('"', "'"),
        "stripped": stripped,
        "renamed": ast.unparse(Renamer(bare).visit(bare)),
    }


def public_programs() -> Iterator[tuple[str, str]]:
    with gzip.open(BENCHMARKS / "humaneval" / "HumanEval.jsonl.gz", "rt") as file:
        for record in map(json.loads, file):
            yield "HumanEval", record["prompt"] + record["canonical_solution"]
    with (BENCHMARKS / "mbpp" / "mbpp.jsonl").open() as lines:
        for record in map(json.loads, lines):
            yield "MBPP", "# " + record["text"] + "\n" + record["code"]


@needs_benchmarks
def test_the_public_problems_are_found_and_the_standard_library_is_not_one() -> None:
    index = build([BENCHMARKS / "humaneval", BENCHMARKS / "mbpp"], Decontamination())
    least = {
        ("HumanEval", "verbatim"): 1.0,
        ("HumanEval", "reformatted"): 1.0,
        ("HumanEval", "stripped"): 0.98,
        ("HumanEval", "renamed"): 0.8,
        ("MBPP", "verbatim"): 1.0,
        ("MBPP", "reformatted"): 0.97,  # the comment with the task's text is gone
        ("MBPP", "stripped"): 0.97,
        ("MBPP", "renamed"): 0.65,
    }
    texts: dict[tuple[str, str], list[str]] = {key: [] for key in least}
    for source, program in public_programs():
        for disguise, text in disguises(program).items():
            texts[source, disguise].append(f"{HOST}\n{text}\n{HOST}")
    for key, leaks in texts.items():
        found = sum(hit is not None for hit in index.hits(column(*leaks)))
        assert found / len(leaks) >= least[key], key

    library = sorted((Path(sys.base_prefix) / "lib").glob("python3.*/*.py"))
    ordinary = [path.read_text(encoding="utf-8", errors="replace") for path in library]
    hits = index.hits(pa.array(ordinary, pa.large_string()))
    assert len(library) > 100
    assert sum(hit is not None for hit in hits) <= 1
