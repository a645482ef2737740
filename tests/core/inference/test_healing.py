"""Token healing: what is taken back from a prompt, and what the completion then begins with."""

from __future__ import annotations

import pytest
import torch

from codecria.core.inference.decoding import Completion, Limits
from codecria.core.inference.engine import complete
from codecria.core.inference.healing import heal
from codecria.core.inference.sampling import Sampling
from codecria.core.inference.torch_runner import TorchRunner
from codecria.core.model.config import ModelConfig
from codecria.core.model.transformer import Transformer
from codecria.data.tokenizer.tokenizer import Tokenizer


def test_healing_takes_back_what_a_longer_piece_begins_with(tokenizer: Tokenizer) -> None:
    pieces = tokenizer.typed_bytes()
    ids = tokenizer.encode("    retur", bos=True)
    kept, opening = heal(ids, pieces)
    assert opening is not None
    assert b"".join(pieces[i] for i in kept) + opening.text == b"     retur"
    whole = tokenizer.encode("\n", bos=True)
    assert len(heal(whole, pieces)[0]) <= len(whole)


@pytest.mark.parametrize("text", ["    retur", "def __ini", "self.to"])
def test_a_healed_completion_begins_with_what_was_taken_back(
    tokenizer: Tokenizer, text: str
) -> None:
    torch.manual_seed(2)
    config = ModelConfig(
        dim=16,
        n_layers=1,
        n_heads=2,
        n_kv_heads=2,
        hidden_dim=32,
        vocab_size=tokenizer.vocab_size + 5,  # rows that no piece has are never drawn
        max_context=64,
    )
    model = Transformer(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    pieces = tokenizer.typed_bytes()
    ids, opening = heal(tokenizer.encode(text, bos=True), pieces)
    assert opening is not None
    events = complete(
        TorchRunner(model),
        ids,
        new_stream=tokenizer.stream,
        sampling=Sampling(temperature=1.0, seed=3),
        limits=Limits(max_tokens=12, samples=3),
        ends=frozenset({tokenizer.eos_id}),
        opening=opening,
    )
    for _, event in events:
        if isinstance(event, Completion):
            generated = b"".join(pieces[i] for i in event.ids)
            assert generated.startswith(opening.text)
            whole = tokenizer.decode_continuation(event.ids)
            assert whole == opening.text.decode() + event.text
