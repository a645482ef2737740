"""The inverse of `Infiller.example`: the document that an infilling example was made from."""

from __future__ import annotations

from collections.abc import Sequence

from codecria.data.formats.infill import Infiller, Order


def recompose(infiller: Infiller, ids: Sequence[int], order: Order) -> str:
    """The document that a training example was made from.

    Args:
        ids: as `example` makes them.
        order: its order. The ids alone do not show it: with an empty prefix both begin alike.

    Raises:
        ValueError: the ids are no training example.
    """
    special, tokenizer = infiller.special, infiller.tokenizer
    found = [int(i) for i in ids]
    if found and found[-1] == tokenizer.eos_id:
        found.pop()
    try:
        suffix_at, middle_at = found.index(special.suffix), found.index(special.middle)
        if found[:2] != [tokenizer.bos_id, special.prefix] or found[-1] != special.end:
            raise ValueError
    except ValueError:
        raise ValueError("these ids are no infilling example") from None
    suffix = tokenizer.decode_continuation(found[suffix_at + 1 : middle_at])
    written = found[middle_at + 1 : -1]
    if order == Order.SPM:
        return tokenizer.decode(written) + suffix
    prefix = tokenizer.decode(found[2:suffix_at])
    return prefix + tokenizer.decode_continuation(written) + suffix
