"""The record that Python fills and kernels read: sizes, addresses, and the words threads share.

A record is an array of 64-bit words at a fixed address. Both sides know a word by its name in
`FIELDS`; distances are in bytes, and lengths are padded as the products need them.
"""

from __future__ import annotations

import ctypes
from typing import Any

FIELDS = (
    # The model
    "layers",
    "dim",  # D, over which a norm is taken
    "width",  # D padded to 32: what lies beyond D is zero everywhere
    "eps",  # of the norms, as the bits of a float32
    "heads",  # H
    "kv_heads",  # K
    "head_dim",  # E
    "value_width",  # E padded to 16, the distance of positions in the values, in elements
    "hidden",  # F padded to 32
    "mixed_width",  # H * E padded to 32
    "query_blocks",  # blocks of 16 rows of the query matrix
    "key_blocks",  # of the key matrix, and of the value matrix
    "width_blocks",  # of what is added to the residual stream
    "hidden_blocks",
    "vocab_blocks",
    "embedding",  # see embedding.py
    "embedding_kind",
    "table",  # of the layers, see LAYER_FIELDS
    "final_norm",
    "head_weights",
    "head_kind",
    "rope",  # for each position E/2 cosines and E/2 sines, float32
    # How many blocks of 16 rows a thread takes at a time
    "query_share",
    "out_share",
    "hidden_share",
    "head_share",
    # Memory of a step, one line a token
    "body_how",  # how inputs are prepared in the layers, see products.py
    "head_how",  # and for the output matrix
    "x",  # the residual stream, float32
    "inputs",  # prepared for the products, of width D
    "inputs_distance",
    "qkv",  # queries, keys and values, float32
    "qkv_distance",
    "mixed",  # what attention gives, float32
    "mixed_inputs",
    "mixed_distance",
    "gates",  # outputs of the gate, then silu(gate) * up
    "ups",
    "hidden_distance",  # of both
    "hidden_inputs",
    "hidden_inputs_distance",
    "added",  # products before they are added to the residual stream
    "logits",
    "logits_distance",
    "scratch",  # memory of each thread
    "scratch_distance",
    "scores_distance",  # in the scratch, of the scores of a query
    # The key-value cache, see attention.py
    "keys",
    "values",
    "cache_kind",
    "key_scales",
    "value_scales",
    "cache_rows",
    "cache_positions",
    # The step
    "tokens",  # T
    "token_ids",  # (T,)
    "token_row",  # (T,) rows of the cache
    "token_position",  # (T,) positions
    "items",  # how many
    "item_table",  # (items, 4) first token, tokens, row, position of the first: at most 16 tokens
    "scored",  # how many tokens get scores
    "scored_at",  # (scored,) which tokens
    "threads",  # that take part, this one included
)
LAYER_FIELDS = (
    "query", "key", "value", "out", "gate", "up", "down",
    "query_kind", "key_kind", "value_kind", "out_kind", "gate_kind", "up_kind", "down_kind",
    "attention_norm", "hidden_norm",
)  # fmt: skip
STAGES, END_STAGES = 9, 2  # of a layer, and after the last one: see stages.py
LAYER_BYTES = 8 * len(LAYER_FIELDS)
_LINE = 128  # bytes: two lines of the cache, as they are fetched in pairs
OFFSETS = {name: 8 * place for place, name in enumerate(FIELDS)}
_SHARED = -(-8 * len(FIELDS) // _LINE) * _LINE
# Words that threads write, each on lines of its own: how often a stage was opened and closed, how
# many shares of the open one helpers have finished, whether helpers are to end, and for each thread
# the next share of its range and whether it sleeps.
OPENED, DONE, QUIT, THREADS = (_SHARED + _LINE * place for place in range(4))
THREAD_BYTES = 2 * _LINE
TICKET, PARKED = (THREADS + _LINE * place for place in range(2))  # of thread 0


class Record:
    """The words, with the names of `FIELDS` as attributes to read and write.

    Args:
        helpers: threads beside the one that runs the steps.
    """

    def __init__(self, helpers: int) -> None:
        size = THREADS + THREAD_BYTES * (helpers + 1)
        memory = ctypes.create_string_buffer(size + _LINE)
        start = -ctypes.addressof(memory) % _LINE
        self.__dict__["_memory"] = memory
        self.__dict__["words"] = (ctypes.c_int64 * (size // 8)).from_buffer(memory, start)
        self.__dict__["address"] = ctypes.addressof(memory) + start

    def __setattr__(self, name: str, value: int) -> None:
        self.words[OFFSETS[name] >> 3] = value

    def __getattr__(self, name: str) -> Any:
        try:
            return self.words[OFFSETS[name] >> 3]
        except KeyError:
            raise AttributeError(name) from None
