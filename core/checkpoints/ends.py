"""The ids that end a completion: gathered here from every file of a checkpoint that names some.

    config.json              eos_token_id: a number, a list, or null
    generation_config.json   eos_token_id: what transformers' generate and vLLM obey
    codecria.json            end_ids: what Meta's layout has no place for
    tokenizer_config.json    eos_token, by its text; special_tokens_map.json likewise
    tokenizer.model          EOS, the end of a middle (EOT), the end of a 70b turn (<step>)

Files often name different ones: each of them is what some tool ends at, so all of them count.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from codecria.core.model.config import ModelConfig, special_ids
from codecria.data.files import read_json
from codecria.data.tokenizer.tokenizer import Tokenizer

CONFIG_NAME = "config.json"
GENERATION_NAME = "generation_config.json"
LINEAGE_NAME = "codecria.json"
ENDS_KEY = "end_ids"  # in codecria.json
_NAMING = ("tokenizer_config.json", "special_tokens_map.json")


def end_ids(folder: Path, config: ModelConfig, tokenizer: Tokenizer | None) -> tuple[int, ...]:
    """The ids that end a completion, the checkpoint's own EOS first.

    Args:
        folder: of the checkpoint.
        config: its shape.
        tokenizer: its tokenizer, or None where it has none.

    Raises:
        UserError: a file is damaged, or names something that is not an id.
    """
    found = [*_in_files(folder)]
    if tokenizer is not None:
        found += _named(folder, tokenizer)
    return sorted_ends(found, config, tokenizer)


def sorted_ends(
    named: Iterable[int], config: ModelConfig, tokenizer: Tokenizer | None
) -> tuple[int, ...]:
    """The ids that end a completion, the checkpoint's own EOS first, each once.

    Args:
        named: in the checkpoint's files.
        config, tokenizer: as for `end_ids`.
    """
    found = [config.eos_id, *named]
    if tokenizer is not None:
        found += [tokenizer.eos_id]
        found += [] if tokenizer.infill is None else [tokenizer.infill.end]
        found += [] if tokenizer.step_id is None else [tokenizer.step_id]
    # An id without a row in the model is never drawn.
    return tuple(dict.fromkeys(i for i in found if 0 <= i < config.vocab_size))


def _in_files(folder: Path) -> Iterator[int]:
    for name, key in (
        (CONFIG_NAME, "eos_token_id"),
        (GENERATION_NAME, "eos_token_id"),
        (LINEAGE_NAME, ENDS_KEY),
    ):
        yield from special_ids(_object(folder / name), key, where=str(folder / name))


def _named(folder: Path, tokenizer: Tokenizer) -> Iterator[int]:
    for name in _NAMING:
        token = _object(folder / name).get("eos_token")
        text = token.get("content") if isinstance(token, Mapping) else token
        number = tokenizer.id_of(text) if isinstance(text, str) else None
        if number is not None:
            yield number


def _object(path: Path) -> Mapping[str, Any]:
    value = read_json(path) if path.is_file() else {}
    return value if isinstance(value, Mapping) else {}
