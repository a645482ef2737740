"""A shard set as if it had been encoded with the extended tokenizer, without writing a new one.

The infilling pieces take a little ordinary text: " <E", " <M", " <SU" and the like. Only documents
with such text differ, and a scan of the stored ids finds a few that may: these are decoded and
encoded again, when the set is opened to learn their length and when they are read. All other tokens
are the stored ones. So one set of shards serves training before and after the extension.

Limits: the stored tokenizer must be the one that was extended. Documents that do not survive
decoding (ROUNDTRIP_LOSSY) stay as they are stored.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from codecria.data.errors import UserError
from codecria.data.files import digest_json
from codecria.data.tokenizer.extension import affected
from codecria.data.tokenizer.fast_encode import Ids
from codecria.data.tokenizer.tokenizer import Tokenizer

from .shards import ROUNDTRIP_LOSSY, ShardSet

SCAN_TOKENS = 1 << 22  # tokens scanned at a time


class ReencodedShards(ShardSet):
    """One split of a shard set under the extended tokenizer; open one with `under`.

    Args:
        shards: the split as stored.
        base: the tokenizer it was encoded with.
        tokenizer: the extended one.
    """

    def __init__(self, shards: ShardSet, base: Tokenizer, tokenizer: Tokenizer) -> None:
        super().__init__(shards.folder, shards.split, shards.manifest)
        self._stored = shards
        self._tokenizer = tokenizer
        self._digest = digest_json([shards.digest, tokenizer.digest])
        self._again = lru_cache(maxsize=256)(self._encode_again)
        suspects = [
            d for d in _suspects(shards, base).tolist() if not shards.flags(d) & ROUNDTRIP_LOSSY
        ]
        saved = [shards.length(d) - len(self._again(d)) for d in suspects]
        changed = [(d, less) for d, less in zip(suspects, saved, strict=True) if less]
        self._changed = np.array([d for d, _ in changed], dtype=np.int64)
        # Tokens saved before each changed document, and in all; where each ends now.
        self._saved = np.cumsum([0, *(less for _, less in changed)], dtype=np.int64)
        ends = np.array([shards.offset(d + 1) for d, _ in changed], dtype=np.int64)
        self._ends = ends - self._saved[1:]

    @property
    def digest(self) -> str:
        """Of the stored set and the tokenizer."""
        return self._digest

    @property
    def tokenizer_digest(self) -> str:
        """Of the extended tokenizer."""
        return self._tokenizer.digest

    @property
    def n_tokens(self) -> int:
        """Tokens in the split under the extended tokenizer."""
        return self._stored.n_tokens - int(self._saved[-1])

    def offset(self, d: int) -> int:
        """The first token of document d; of d = n_documents, the number of tokens."""
        return self._stored.offset(d) - int(self._saved[np.searchsorted(self._changed, d)])

    def offsets(self, first: int, last: int) -> npt.NDArray[np.int64]:
        """The first tokens of documents first .. last, `last` included."""
        passed = np.searchsorted(self._changed, np.arange(first, last + 1))
        return self._stored.offsets(first, last) - self._saved[passed]

    def document_at(self, token: int) -> int:
        """The document that token number `token` belongs to."""
        assert 0 <= token < self.n_tokens, f"token {token} of {self.n_tokens}"
        passed = int(np.searchsorted(self._ends, token, side="right"))
        if passed < len(self._changed) and token >= self.offset(int(self._changed[passed])):
            return int(self._changed[passed])
        return self._stored.document_at(token + int(self._saved[passed]))

    def tokens(self, start: int, stop: int) -> Ids:
        """Tokens start .. stop - 1 under the extended tokenizer."""
        assert 0 <= start <= stop <= self.n_tokens, f"[{start}, {stop}) of {self.n_tokens}"
        parts = [np.empty(0, dtype=np.int32)]
        passed = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            saved = int(self._saved[passed])
            if passed == len(self._changed):
                parts.append(self._stored.tokens(start + saved, stop + saved))
                break
            d = int(self._changed[passed])
            first = self.offset(d)
            if start < first:
                end = min(stop, first)
                parts.append(self._stored.tokens(start + saved, end + saved))
                start = end
            if start < stop:
                end = min(stop, int(self._ends[passed]))
                parts.append(self._again(d)[start - first : end - first])
                start = end
            passed += 1
        return np.concatenate(parts)

    def _encode_again(self, d: int) -> Ids:
        """Document d under the extended tokenizer, framed."""
        text = self._tokenizer.text_of(self._stored.document(d)[1:-1])
        assert text is not None, f"document {d} survives decoding, by its flag"
        return self._tokenizer.encode_array(text, bos=True, eos=True)


def _suspects(shards: ShardSet, base: Tokenizer) -> npt.NDArray[np.int64]:
    """The documents whose ids allow text that a new piece could take, ascending."""
    inside, before, behind = affected(base.surfaces())
    found: set[int] = set()
    for start in range(0, shards.n_tokens, SCAN_TOKENS):
        ids = shards.tokens(start, min(start + SCAN_TOKENS + 1, shards.n_tokens))
        hits = inside[ids]
        hits[:-1] |= before[ids[:-1]] & behind[ids[1:]]
        places = np.flatnonzero(hits) + start
        if len(places):
            first = shards.document_at(int(places[0]))
            last = shards.document_at(int(places[-1]))
            offsets = shards.offsets(first, last)
            found.update((np.searchsorted(offsets, places, side="right") - 1 + first).tolist())
    return np.array(sorted(found), dtype=np.int64)


def under(shards: ShardSet, tokenizer: Tokenizer) -> ShardSet:
    """The split as training with this tokenizer sees it.

    Args:
        shards: encoded with the tokenizer, or with the one that it extends.
        tokenizer: of the model.

    Raises:
        UserError: they were encoded with another tokenizer.
    """
    if shards.tokenizer_digest == tokenizer.digest:
        return shards
    base = Tokenizer.load(shards.folder)
    same = base.digest == shards.tokenizer_digest
    if not same or base.infill is not None or base.extension_digest() != tokenizer.digest:
        raise UserError(
            f"{shards.folder} was encoded with another tokenizer than the model's",
            hint=f"prepare it again: codecria prepare-data ... --tokenizer {tokenizer.path}",
        )
    return ReencodedShards(shards, base, tokenizer)
