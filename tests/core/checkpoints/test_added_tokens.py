"""Tokens added to a checkpoint's tokenizer: conversions carry them, or refuse them by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from codecria.core.checkpoints.checkpoint import Checkpoint
from codecria.core.checkpoints.conversion.convert import convert
from codecria.core.checkpoints.conversion.request import Layout, Request
from codecria.core.checkpoints.formats.gguf.read import GgufWeights
from codecria.core.inspect import describe
from codecria.data.errors import UserError
from codecria.data.tokenizer.tokenizer import Tokenizer

END, TOOL = 600, 601


@pytest.fixture
def chat(tokenizer: Tokenizer, random_model: Any, tmp_path: Path) -> Path:
    """A fine-tuned model as people publish it: tokenizer.model short of two tokens, one EOS."""
    folder = tmp_path / "chat"
    model: Path = random_model(_Sized(tokenizer, 602), max_context=64)
    shutil.copytree(model, folder)
    listed = {
        "added_tokens": [
            {"id": END, "content": "<|im_end|>", "special": True},
            {"id": TOOL, "content": "<tool>", "special": False},
        ]
    }
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"] += listed["added_tokens"]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "chat_template": "{{ 1 }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    shape = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(shape | {"eos_token_id": END}))
    generation = {"eos_token_id": [END, 2], "temperature": 0.7}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


class _Sized:
    """A tokenizer for `random_model`, whose model gets more rows than the tokenizer has pieces."""

    def __init__(self, tokenizer: Tokenizer, rows: int) -> None:
        self.path, self.vocab_size = tokenizer.path, rows


def loaded(folder: Path) -> tuple[Checkpoint, Tokenizer]:
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.tokenizer_path is not None
    return checkpoint, Tokenizer.load(checkpoint.tokenizer_path)


def test_inspect_names_the_added_tokens_and_the_ends(chat: Path) -> None:
    facts = describe(chat, verify=False)["facts"]
    assert facts["tokenizer"]["added_tokens"] == ["<|im_end|>", "<tool>"]
    assert facts["end_ids"] == [END, 2]


@pytest.mark.parametrize("layout", ["hf", "meta"])
def test_folders_carry_added_tokens_and_their_use(layout: str, chat: Path, tmp_path: Path) -> None:
    convert(Request(source=chat, out=tmp_path / "a", layout=Layout(layout)))
    convert(Request(source=tmp_path / "a", out=tmp_path / "b", layout=Layout.HF))
    _, before = loaded(chat)
    for name in ("a", "b"):
        checkpoint, after = loaded(tmp_path / name)
        assert after.added == (END, TOOL)
        assert set(checkpoint.end_ids(after)) == {END, 2}
        for text in ("x<|im_end|>y<tool>", "def f(x): return x"):
            assert after.encode(text) == before.encode(text)
            assert after.encode(text, specials="parse") == before.encode(text, specials="parse")
    config = json.loads((tmp_path / "b" / "tokenizer_config.json").read_text())
    assert config["eos_token"] == "<|im_end|>"


def test_hugging_face_keeps_padding_and_how_to_generate(chat: Path, tmp_path: Path) -> None:
    convert(Request(source=chat, out=tmp_path / "a", layout=Layout.HF))
    config = json.loads((tmp_path / "a" / "tokenizer_config.json").read_text())
    assert (config["eos_token"], config["pad_token"]) == ("<|im_end|>", "<|im_end|>")
    generation = json.loads((tmp_path / "a" / "generation_config.json").read_text())
    assert generation["temperature"] == 0.7
    assert generation["eos_token_id"] == [END, 2]


def test_transformers_reads_added_tokens_from_the_result(chat: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    convert(Request(source=chat, out=tmp_path / "a", layout=Layout.HF))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "a")
    _, ours = loaded(tmp_path / "a")
    text = "def f(x):\n    return x<tool><|im_end|>"
    assert theirs.eos_token_id == END
    assert theirs(text, add_special_tokens=False).input_ids == ours.encode(text, specials="parse")


def test_gguf_has_added_tokens_with_their_kinds(chat: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    out = tmp_path / "m.gguf"
    convert(Request(source=chat, out=out, layout=Layout.GGUF))
    opened = GgufWeights(out)
    assert opened.special_ids()["eos"] == END
    fields = opened.file.metadata
    kinds = fields["tokenizer.ggml.token_type"]
    assert fields["tokenizer.ggml.tokens"][END : TOOL + 1] == ["<|im_end|>", "<tool>"]
    assert kinds[END] == gguf.TokenType.CONTROL
    assert kinds[TOOL] == gguf.TokenType.USER_DEFINED


def test_a_tokenizer_json_alone_is_enough(chat: Path, tmp_path: Path) -> None:
    _, before = loaded(chat)
    (chat / "tokenizer.model").unlink()
    checkpoint, after = loaded(chat)
    assert after.added == (END, TOOL)
    text = "def f(x):\n    return  x<|im_end|>"
    assert after.encode(text) == before.encode(text)
    convert(Request(source=chat, out=tmp_path / "m", layout=Layout.META))
    assert loaded(tmp_path / "m")[1].encode(text) == before.encode(text)
    assert checkpoint.end_ids(after)[0] == END


@pytest.mark.parametrize("layout", ["hf", "meta", "gguf"])
def test_a_tokenizer_that_is_not_read_is_copied_or_refused(
    layout: str, chat: Path, tmp_path: Path
) -> None:
    (chat / "tokenizer.model").unlink()
    content = json.loads((chat / "tokenizer.json").read_text())
    content["pre_tokenizer"] = {"type": "ByteLevel"}
    (chat / "tokenizer.json").write_text(json.dumps(content))
    out, notes = tmp_path / "out", list[str]()
    request = Request(source=chat, out=out, layout=Layout(layout))
    if layout != "hf":
        with pytest.raises(UserError, match="byte-level BPE"):
            convert(request)
        return
    convert(request, note=notes.append)
    assert (out / "tokenizer.json").read_bytes() == (chat / "tokenizer.json").read_bytes()
    assert json.loads((out / "tokenizer_config.json").read_text())["pad_token"] == "<|im_end|>"
    assert "copied as they are" in notes[0]
