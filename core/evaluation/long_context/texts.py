"""Long texts to read: documents of a shard set or files, whole, joined and cut.

A text is held as text and encoded for each model that reads it, so models with different tokenizers
read the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from codecria.data.errors import UserError
from codecria.data.rows.rows import keyed, permute
from codecria.data.rows.shards import ROUNDTRIP_LOSSY, ShardSet, read_manifest
from codecria.data.tokenizer.tokenizer import Tokenizer

Ids = npt.NDArray[np.int32]

PAPER_MIN_BYTES = 50_000  # Code Llama, section 3.3: files of at least 50 kB
BETWEEN = "\n\n"  # what stands between joined documents


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A text that is read from its start.

    Attributes:
        name: of the document or file, or of the first of those joined.
        text: all of it.
        source: where it comes from; only texts of one source are joined.
        documents: how many were joined to make it.
    """

    name: str
    text: str
    source: str = ""
    documents: int = 1

    @property
    def bytes(self) -> int:
        """Its length in UTF-8."""
        return len(self.text.encode())


def open_split(folder: Path, split: str | None) -> ShardSet:
    """A split of a shard set: the one asked for, else validation, or train where that is empty.

    Raises:
        UserError: no shard set, or the split is missing or empty.
    """
    if split is None:
        held_out = read_manifest(folder).splits.get("validation")
        split = "validation" if held_out is not None and held_out.tokens else "train"
    return ShardSet.open(folder, split)


def texts_of_shards(shards: ShardSet, *, min_bytes: int, seed: int) -> Iterator[Text]:
    """The documents of at least `min_bytes`, in an order that the seed fixes.

    Documents that the ids do not give back whole are left out.

    Args:
        shards: one split; its tokenizer.model lies beside it.
        min_bytes: of text, in UTF-8.
        seed: of the order.

    Raises:
        UserError: the tokenizer is missing or damaged.
    """
    tokenizer = Tokenizer.load(shards.folder)
    longest_piece = max(map(len, tokenizer.typed_bytes()))
    key = keyed(seed, shards.digest, shards.split)
    frame = (tokenizer.bos_id, tokenizer.eos_id)
    for place in range(shards.n_documents):
        d = permute(place, shards.n_documents, key)
        # Lengths are at hand, texts are not: most documents of a corpus are short.
        if shards.length(d) * longest_piece < min_bytes or shards.flags(d) & ROUNDTRIP_LOSSY:
            continue
        ids = shards.document(d)
        text = tokenizer.text_of(ids[~np.isin(ids, frame)])
        if text is not None and len(text.encode()) >= min_bytes:
            known = shards.metadata(d)
            yield Text(name=str(known.get("id", d)), text=text, source=str(known.get("source", "")))


def texts_of_files(paths: Sequence[Path]) -> Iterator[Text]:
    """Files as they are, in the order given.

    Raises:
        UserError: one cannot be read, or is not UTF-8.
    """
    for path in paths:
        try:
            text = path.read_bytes().decode()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 from byte {error.start} on") from error
        yield Text(name=str(path), text=text)


def joined(texts: Iterable[Text], *, tokens: int, tokenizer: Tokenizer) -> Iterator[Text]:
    """Texts of one source, a blank line apart, each as long as `tokens` or a little longer.

    What is left over at the end comes only if nothing got that long, longest first.

    Args:
        texts: in their order.
        tokens: length to reach.
        tokenizer: counts them.
    """
    parts: dict[str, list[Text]] = {}
    sizes: dict[str, int] = {}
    reached = False
    for text in texts:
        if not text.text:
            continue
        parts.setdefault(text.source, []).append(text)
        size = len(tokenizer.encode_array(text.text, leading_space=False)) + 1
        sizes[text.source] = sizes.get(text.source, 0) + size
        if sizes[text.source] > tokens:
            reached = True
            yield _join(parts.pop(text.source))
            del sizes[text.source]
    if not reached:
        for source in sorted(parts, key=lambda name: -sizes[name]):
            yield _join(parts[source])


def _join(parts: Sequence[Text]) -> Text:
    return Text(
        name=parts[0].name,
        text=BETWEEN.join(part.text.rstrip("\n") for part in parts),
        source=parts[0].source,
        documents=len(parts),
    )


@dataclass(frozen=True, slots=True)
class Cut:
    """A text, as much of it as is read, and its ids.

    Attributes:
        text: what the ids decode to.
        ids: (T,) BOS first.
    """

    text: Text
    ids: Ids


def gather(
    texts: Iterable[Text], tokenizer: Tokenizer, *, longest: int, max_tokens: int, whole: bool
) -> list[Cut]:
    """Take texts until there is enough to read.

    Args:
        texts: in the order they are wanted.
        tokenizer: of the model that reads them.
        longest: no token with more tokens before it is scored.
        max_tokens: scored in all; the last text is cut to it.
        whole: leave out texts that end before `longest`, so that every bucket is of the same texts.
    """
    found: list[Cut] = []
    left = max_tokens
    for text in texts:
        if left < 1:
            break
        ids = tokenizer.encode_array(text.text, bos=True)
        if len(ids) < 2 or (whole and (len(ids) <= longest or left < longest)):
            continue
        keep = min(len(ids), longest + 1, left + 1)
        cut = _cut(text, ids, keep, tokenizer)
        if len(cut.ids) > 1:
            found.append(cut)
            left -= len(cut.ids) - 1
    return found


def _cut(text: Text, ids: Ids, keep: int, tokenizer: Tokenizer) -> Cut:
    """The first `keep` ids and the text they are; a few less where they end within a character."""
    if keep == len(ids):
        return Cut(text, ids)
    for size in range(keep, 1, -1):
        start = tokenizer.text_of(ids[1:size])
        if start is not None:
            part = Text(name=text.name, text=start, source=text.source, documents=text.documents)
            return Cut(part, ids[:size])
    return Cut(Text(name=text.name, text="", source=text.source), ids[:1])
