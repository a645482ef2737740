"""Hugging Face folders: rebuilt tokenizers give the ids of `tokenizers`, added tokens count."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codecria.core.checkpoints.formats.tokenizer_json import tokenizer_json
from codecria.data.errors import UserError
from codecria.data.tokenizer.hugging_face import added_tokens
from codecria.data.tokenizer.tokenizer import Tokenizer

HARD = (
    "   x",
    " x",
    "x ",
    "\t\t x \n\n   y",
    " ",
    "  ",
    "a" + " " * 37 + "b",
    *(" " * n + "x" for n in range(1, 40)),
    "🙂👩‍👩‍👧 é ü 漢字 \u2581 \x00\x01\x7f",
    "x\r\n\ty\f\u2028\ufeff",
    "▁▁a ▁",
    "<PRE> <EOT> <step> <|im_end|",
    "0123456789 3.14e-10",
)


def engine(folder: Path) -> Any:
    tokenizers = pytest.importorskip("tokenizers")
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def saved_by_transformers(model: Path, folder: Path, **tokens: list[str]) -> Path:
    """The folder that transformers 5 makes of a tokenizer.model: tokenizer.json alone."""
    transformers = pytest.importorskip("transformers")
    source = folder / "source"
    source.mkdir(parents=True)
    shutil.copyfile(model, source / "tokenizer.model")
    made = transformers.LlamaTokenizer.from_pretrained(source)
    for text in tokens.get("special", ()):
        made.add_special_tokens({"additional_special_tokens": [text]}, False)
    made.add_tokens(tokens.get("plain", []))
    made.save_pretrained(folder / "saved")
    assert not (folder / "saved" / "tokenizer.model").exists()
    return folder / "saved"


@pytest.fixture(scope="module")
def saved(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    return saved_by_transformers(
        tokenizer.path, folder, special=["<|im_end|>"], plain=["<tool>", "two words"]
    )


@pytest.fixture(scope="module")
def ours(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ours")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(tokenizer)))
    return folder


def assert_like_the_engine(folder: Path, texts: list[str]) -> None:
    rebuilt, oracle = Tokenizer.load(folder), engine(folder)
    assert rebuilt.path == folder / "tokenizer.json"
    for text in texts:
        # The engine knows no text of that name: it parses <s> wherever it stands.
        text = re.sub(r"</?s>|<unk>", "<->", text)
        ids = rebuilt.encode(text)
        assert ids == oracle.encode(text, add_special_tokens=False).ids, repr(text[:200])
        assert rebuilt.encode_fragment(text).tolist() == ids, repr(text[:200])
        assert rebuilt.decode(ids) == oracle.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("which", ["saved", "ours"])
def test_a_rebuilt_tokenizer_gives_the_ids_of_the_engine(
    which: str, corpus: list[str], request: pytest.FixtureRequest
) -> None:
    assert_like_the_engine(request.getfixturevalue(which), [*corpus[:60], *HARD])


@given(
    st.text(
        st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("  \t\n<>/_aeit0🙂")),
        max_size=60,
    ).filter(lambda text: not any(mark in text for mark in ("<s>", "</s>", "<unk>", "<tool>")))
)
def test_any_text_gets_the_ids_of_the_engine(saved: Path, text: str) -> None:
    assert_like_the_engine(saved, [text])


def test_our_own_tokenizer_json_rebuilds_the_model_it_was_made_from(
    ours: Path, tokenizer: Tokenizer, corpus: list[str]
) -> None:
    rebuilt = Tokenizer.load(ours)
    for text in (*corpus[:40], *HARD):
        assert rebuilt.encode(text) == tokenizer.encode(text)
    assert (rebuilt.bos_id, rebuilt.eos_id, rebuilt.unk_id) == (1, 2, 0)
    assert rebuilt.fast_path == "chunks"


def test_llama_2_s_tokenizer_saved_by_transformers_is_rebuilt(
    llama_tokenizer: Tokenizer, corpus: list[str], tmp_path: Path
) -> None:
    folder = saved_by_transformers(llama_tokenizer.path, tmp_path)
    assert_like_the_engine(folder, [*corpus, *HARD])


@pytest.mark.parametrize("alone", [True, False])
def test_added_tokens_stay_text_unless_they_are_parsed(
    alone: bool, saved: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    for file in saved.iterdir():
        shutil.copyfile(file, tmp_path / file.name)
    if not alone:
        shutil.copyfile(tokenizer.path, tmp_path / "tokenizer.model")
    loaded, oracle = Tokenizer.load(tmp_path), engine(tmp_path)
    size = tokenizer.vocab_size
    assert loaded.vocab_size == size + 3
    assert loaded.pieces(loaded.added) == ["<|im_end|>", "<tool>", "two▁words"]
    for text in ("hi<|im_end|> there <tool>x", "two words", "<tool>", "<|im_end|>"):
        ids = loaded.encode(text)
        assert max(ids) < size
        assert loaded.decode(ids) == text
        assert max(loaded.encode(text, specials="parse")) >= size
    parsed = loaded.encode("a<|im_end|><tool>", specials="parse")
    assert parsed == oracle.encode("a<|im_end|><tool>", add_special_tokens=False).ids
    assert loaded.decode(parsed) == "a<tool>"  # a special token is no text
    assert loaded.id_of("<|im_end|>") == size


def test_the_model_s_file_alone_keeps_its_added_tokens(saved: Path, tmp_path: Path) -> None:
    loaded = Tokenizer.load(saved)
    (tmp_path / "tokenizer.model").write_bytes(loaded.content)
    again = Tokenizer.load(tmp_path)
    assert (again.digest, again.added) == (loaded.digest, loaded.added)
    for text in ("a<|im_end|>b", "<tool> two words"):
        for specials in ("text", "parse"):
            assert again.encode(text, specials=specials) == loaded.encode(text, specials=specials)  # type: ignore[arg-type]


def test_ids_between_the_pieces_and_an_added_token_are_unused(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    shutil.copyfile(tokenizer.path, tmp_path / "tokenizer.model")
    (tmp_path / "added_tokens.json").write_text('{"<|im_end|>": 605, "[PAD]": 602}')
    (tmp_path / "special_tokens_map.json").write_text(
        '{"pad_token": "[PAD]", "eos_token": {"content": "<|im_end|>"}}'
    )
    loaded = Tokenizer.load(tmp_path)
    assert loaded.vocab_size == 606
    assert loaded.added == (602, 605)
    assert loaded.decode([600, 601, 602, 603, 604, 605]) == ""
    assert loaded.encode("x[PAD]") == tokenizer.encode("x[PAD]")


def test_without_added_tokens_the_model_is_the_file(ours: Path, tokenizer: Tokenizer) -> None:
    folder = ours.parent / "both"
    folder.mkdir()
    shutil.copyfile(tokenizer.path, folder / "tokenizer.model")
    shutil.copyfile(ours / "tokenizer.json", folder / "tokenizer.json")
    assert Tokenizer.load(folder).digest == tokenizer.digest


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("added_tokens.json", {"<x>": 5}, "'<x>' has the id 5, the tokenizer has '<0x02>' there"),
        ("added_tokens.json", {"</s>": 600}, "'</s>' has the id 600, .* has it as 2"),
        ("added_tokens.json", {"<x>": "many"}, "an added token is not valid"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"600": {"text": "x"}}}, "not valid"),
        ("tokenizer.json", {"added_tokens": [{"id": 600, "content": ""}]}, "not valid"),
    ],
)  # fmt: skip
def test_added_tokens_that_do_not_fit_are_refused_by_name(
    name: str, content: object, message: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    shutil.copyfile(tokenizer.path, tmp_path / "tokenizer.model")
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        Tokenizer.load(tmp_path)


def change(*path: str, to: Any) -> Any:
    def edit(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = to

    return edit


def without_a_merge(content: dict[str, Any]) -> None:
    del content["model"]["merges"][100]


def interleaved(content: dict[str, Any]) -> None:
    merges = content["model"]["merges"]
    pieces = ["".join(pair) for pair in merges]
    first = next(i for i, piece in enumerate(pieces) if pieces.count(piece) > 1)
    merges.append(merges.pop(first))


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (change("model", "byte_fallback", to=False), "it has no byte fallback"),
        (change("model", "type", to="Unigram"), "it is a Unigram tokenizer"),
        (change("model", "type", to="WordPiece"), "it is a WordPiece tokenizer"),
        (change("model", "ignore_merges", to=True), "it uses ignore_merges"),
        (change("pre_tokenizer", to={"type": "ByteLevel"}), "byte-level BPE, as Llama 3's"),
        (change("pre_tokenizer", to={"type": "Sequence", "pretokenizers": [
            {"type": "Split"}, {"type": "ByteLevel"}]}), "byte-level BPE"),
        (change("pre_tokenizer", to={"type": "Digits"}), "cuts texts by .*Digits"),
        (change("normalizer", to={"type": "NFKC"}), "changes or cuts texts by NFKC"),
        (change("model", "vocab", "<0x0A>", to=10**6), "gaps"),
        (without_a_merge, "it does not merge"),
        (interleaved, "not ranked together"),
        (change("model", to=None), "it has no model"),
    ],
)  # fmt: skip
def test_other_tokenizers_are_refused_in_one_line_that_says_why(
    edit: Any, why: str, ours: Path, tmp_path: Path
) -> None:
    content = json.loads((ours / "tokenizer.json").read_text())
    edit(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=why) as error:
        Tokenizer.load(tmp_path)
    assert "\n" not in error.value.message


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("first", [True, False])
def test_added_tokens_are_found_wherever_tokenizer_json_has_them(
    first: bool, indent: int | None, tmp_path: Path
) -> None:
    # Kills: a list within the model, or text that looks like the key, taken for the file's own.
    listed = [{"id": 7, "content": '"added_tokens":[', "special": True}]
    model = {"vocab": {"{": 0}, "added_tokens": [{"id": 1, "content": "wrong"}]}
    parts = {"added_tokens": listed, "model": model}
    value = {"version": "1.0"} | (parts if first else dict(reversed(parts.items())))
    (tmp_path / "tokenizer.json").write_text(json.dumps(value, indent=indent), encoding="utf-8")
    [(number, token)] = added_tokens(tmp_path).items()
    assert (number, token.text, token.special) == (7, '"added_tokens":[', True)
    (tmp_path / "tokenizer.json").write_text(json.dumps(value)[:-8], encoding="utf-8")
    with pytest.raises(UserError):
        added_tokens(tmp_path)
