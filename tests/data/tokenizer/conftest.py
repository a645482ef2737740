"""Fixtures of the tokenizer's tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from codecria.data.tokenizer.tokenizer import Tokenizer
from tests.data.tokenizer.models import LLAMA, MODELS


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tokenizer]:
    folder = tmp_path_factory.mktemp("models")

    @cache
    def made(name: str) -> Tokenizer:
        if "llama" in name and not LLAMA.exists():
            pytest.skip("no Llama 2 tokenizer: set CODECRIA_LLAMA_TOKENIZER")
        file = folder / f"{name}.model"
        file.write_bytes(MODELS[name]())
        return Tokenizer.load(file)

    return made
