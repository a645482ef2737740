"""A tokenizer from a Hugging Face folder: its tokenizer.json, and the tokens added to it.

    tokenizer.model                         pieces 0 .. N - 1, where the folder has it
    tokenizer.json                          the same pieces as a BPE of merges; rebuilt where it is
                                            alone, as transformers 5 saves it
    added_tokens.json, tokenizer_config.json, tokenizer.json   tokens added from N on

The result is a SentencePiece model. Added tokens are control pieces where they are special, else
unused pieces, which decode to their text; either way no text yields them. `trainer_spec` lists them
as user-defined symbols, so that the file alone says which pieces were added.

Limit: only BPE with byte fallback over whole texts, with U+2581 for a space, can be rebuilt. Of two
ways to make one piece, `tokenizers` takes the one ranked first and SentencePiece the leftmost.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codecria.data.errors import UserError
from codecria.data.files import read_json, refuse_lfs_pointer
from codecria.data.gguf import is_gguf

from .gguf import model_of
from .model_file import (
    BPE,
    BYTE,
    CONTROL,
    METASPACE,
    MODEL_NAME,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    ModelProto,
)

JSON_NAME = "tokenizer.json"
ADDED_NAME = "added_tokens.json"
CONFIG_NAME = "tokenizer_config.json"
MAP_NAME = "special_tokens_map.json"
_NAMES = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}  # unless configured
_HINT = "copy the tokenizer.model of the model it was tuned from into the folder"


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that was added to a trained vocabulary.

    Attributes:
        text: as it stands in a text.
        special: whether it is a mark rather than text.
    """

    text: str
    special: bool

    @property
    def piece(self) -> str:
        """The token as a piece of the vocabulary, U+2581 for a space."""
        return self.text.replace(" ", SPACE)


def model_content(path: Path) -> tuple[Path, bytes]:
    """The SentencePiece model that a path means, tokens added beside it included.

    Args:
        path: a SentencePiece model, a tokenizer.json, a GGUF file, or a folder that holds one of
            the first two.

    Returns:
        the file it comes from, and the model's bytes: those of the file where nothing was added.

    Raises:
        UserError: there is none, or it cannot be read, rebuilt or extended.
    """
    folder = path if path.is_dir() else path.parent
    file = path
    if path.is_dir():
        alone = not (path / MODEL_NAME).is_file() and (path / JSON_NAME).is_file()
        file = path / (JSON_NAME if alone else MODEL_NAME)
    if file.name == JSON_NAME and file.is_file():
        refuse_lfs_pointer(file)
        return file, _extended(rebuilt(file), added_tokens(folder), folder)
    if is_gguf(file):
        return file, model_of(file)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read the tokenizer {file}: {error.strerror or error}",
            hint="name a SentencePiece tokenizer.model or a folder that holds one",
        ) from error
    refuse_lfs_pointer(file)
    if file.name != MODEL_NAME:
        return file, content
    added = added_tokens(folder)
    return file, _extended(content, added, folder) if added else content


def added_tokens(folder: Path) -> dict[int, AddedToken]:
    """The tokens that the files of a folder list, by id; those of the base vocabulary too.

    Raises:
        UserError: a file is damaged, or two of them give an id to different tokens.
    """
    marks = set(_marks(folder))
    found: dict[int, AddedToken] = {}
    for name, number, text, special in _listed(folder):
        token = AddedToken(text, text in marks if special is None else special)
        old = found.setdefault(number, token)
        if old.text != text:
            raise UserError(
                f"{folder / name} gives the id {number} to {text!r}, another file to {old.text!r}",
                hint="the files are of different tokenizers: get them again",
            )
    return dict(sorted(found.items()))


def _listed(folder: Path) -> Iterator[tuple[str, int, str, bool | None]]:
    """(file, id, text, special or None where the file does not say) of each token listed."""
    listed = _added_list(folder / JSON_NAME)
    for token in listed if isinstance(listed, list) else []:
        yield JSON_NAME, *_token(folder / JSON_NAME, token.get("id"), token)
    listed = _object(folder / CONFIG_NAME).get("added_tokens_decoder")
    for number, token in listed.items() if isinstance(listed, dict) else ():
        yield CONFIG_NAME, *_token(folder / CONFIG_NAME, number, token)
    for text, number in _object(folder / ADDED_NAME).items():
        yield ADDED_NAME, *_token(folder / ADDED_NAME, number, {"content": text})


def _added_list(path: Path) -> Any:
    """The `added_tokens` of a tokenizer.json; where they come first, only they are parsed.

    The megabytes of vocabulary that follow would take 40 ms of every start of `generate`.
    """
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        head, key, rest = text.partition('"added_tokens":')
        outermost = head.count("{") - head.count("}") == 1 and '"model"' not in head
        if key and outermost and rest.rstrip().endswith("}"):
            return json.JSONDecoder().raw_decode(rest.lstrip())[0]
    except (OSError, ValueError):
        pass  # reading it whole reports what is wrong
    return _object(path).get("added_tokens")


def _token(path: Path, number: Any, token: Any) -> tuple[int, str, bool | None]:
    try:
        text, special = token["content"], token.get("special")
        if not isinstance(text, str) or not text:
            raise TypeError("it has no text")
        return int(number), text, None if special is None else bool(special)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path}: an added token is not valid: {token!r}", hint="get the file again"
        ) from error


def _marks(folder: Path) -> Iterator[str]:
    """The texts that a folder's files name as BOS, EOS, padding and the like."""
    for name in (MAP_NAME, CONFIG_NAME):
        for key, value in _object(folder / name).items():
            if key.endswith("_token") or key in (
                "additional_special_tokens",
                "extra_special_tokens",
            ):
                for token in value if isinstance(value, list) else [value]:
                    text = token.get("content") if isinstance(token, Mapping) else token
                    if isinstance(text, str):
                        yield text


def named_tokens(folder: Path) -> dict[str, str]:
    """The text of each token that a folder's files name: "eos_token", "pad_token", ...

    Raises:
        UserError: a file is damaged.
    """
    found = {}
    for name in (MAP_NAME, CONFIG_NAME):
        for key, value in _object(folder / name).items():
            text = value.get("content") if isinstance(value, Mapping) else value
            if key.endswith("_token") and isinstance(text, str):
                found[key] = text
    return found


def _object(path: Path) -> Mapping[str, Any]:
    value = read_json(path) if path.is_file() else {}
    return value if isinstance(value, Mapping) else {}


def _extended(content: bytes, added: Mapping[int, AddedToken], folder: Path) -> bytes:
    """A model with the added tokens that it lacks, at their ids."""
    model = ModelProto.FromString(content)
    size = len(model.pieces)
    beyond = any(number >= size for number in added)
    known = {piece.piece: i for i, piece in enumerate(model.pieces)} if beyond else {}
    for number, listed in added.items():
        here = model.pieces[number].piece if number < size else None
        if here in (listed.text, listed.piece) or (here is None and listed.piece not in known):
            continue
        has = f"{here!r} there" if here is not None else f"it as {known[listed.piece]}"
        raise UserError(
            f"{folder}: the added token {listed.text!r} has the id {number}, the tokenizer has"
            f" {has}",
            hint="the files are of different tokenizers: get them again",
        )
    extra = {number: token for number, token in added.items() if number >= size}
    if not extra:
        return content
    for number in range(size, max(extra) + 1):
        token: AddedToken | None = extra.get(number)
        model.pieces.add(
            piece=f"<unused {number}>" if token is None else token.piece,
            score=0.0,
            type=UNUSED if token is not None and not token.special else CONTROL,
        )
    model.trainer_spec.user_defined_symbols.extend(token.piece for token in extra.values())
    model.trainer_spec.vocab_size = len(model.pieces)
    return bytes(model.SerializeToString(deterministic=True))


def rebuilt(path: Path) -> bytes:
    """The SentencePiece model of a tokenizer.json: the same ids, but for the module's limit.

    Raises:
        UserError: it is damaged, or of a kind that SentencePiece cannot express.
    """
    raw = _object(path)
    vocabulary, merges = _bpe(raw, path)
    added = {token.piece: token for token in added_tokens(path.parent).values()}
    ranks = _ranks(vocabulary, merges, set(added), path)
    names = _NAMES | {k: v for k, v in named_tokens(path.parent).items() if k in _NAMES}
    kinds = {names["unk_token"]: UNKNOWN, names["bos_token"]: CONTROL, names["eos_token"]: CONTROL}
    for (
        key,
        plain,
    ) in _NAMES.items():  # a chat model's EOS is an added token: the base keeps its own
        if names[key] not in vocabulary and plain in vocabulary:
            names[key] = plain
            kinds[plain] = UNKNOWN if key == "unk_token" else CONTROL
    if names["unk_token"] not in vocabulary:
        raise _foreign(path, "it has no unknown piece")
    for piece, token in added.items():
        if piece in vocabulary and piece not in kinds:
            kinds[piece] = CONTROL if token.special else UNUSED
    model = ModelProto()
    for number, piece in enumerate(vocabulary):
        score = -float(ranks.get(piece, len(ranks) + number))
        kind = BYTE if piece in _BYTES else kinds.get(piece, NORMAL)
        if piece in added and piece not in names.values():
            model.trainer_spec.user_defined_symbols.append(piece)
        model.pieces.add(piece=piece, score=0.0 if kind != NORMAL else score, type=kind)
    ids = {piece: number for number, piece in enumerate(vocabulary)}
    spec = model.trainer_spec
    spec.model_type, spec.vocab_size, spec.byte_fallback = BPE, len(vocabulary), True
    spec.unk_id = ids[names["unk_token"]]
    spec.bos_id, spec.eos_id = (ids.get(names[key], -1) for key in ("bos_token", "eos_token"))
    spec.unk_piece, spec.bos_piece, spec.eos_piece = (names[key] for key in _NAMES)
    spec.pad_id = -1
    model.normalizer_spec.name, model.normalizer_spec.add_dummy_prefix = _spaces(raw, path)
    model.normalizer_spec.remove_extra_whitespaces = False
    return bytes(model.SerializeToString(deterministic=True))


_BYTES = frozenset(f"<0x{number:02X}>" for number in range(256))


def _bpe(raw: Mapping[str, Any], path: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """Pieces by id, and merges by rank.

    Raises:
        UserError: it is no BPE with byte fallback.
    """
    model = raw.get("model")
    if not isinstance(model, Mapping) or "vocab" not in model:
        raise UserError(f"{path} is no tokenizer: it has no model", hint="get the file again")
    kind = model.get("type", "BPE" if "merges" in model else "unknown")
    if kind != "BPE":
        raise _foreign(path, f"it is a {kind} tokenizer")
    parts = _parts(raw.get("pre_tokenizer"))
    if any(part.get("type") == "ByteLevel" for part in parts):
        raise _foreign(path, "it is byte-level BPE, as Llama 3's and GPT's")
    if not model.get("byte_fallback"):
        raise _foreign(path, "it has no byte fallback")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.get(key):
            raise _foreign(path, f"it uses {key}")
    try:
        vocabulary = sorted(model["vocab"], key=model["vocab"].__getitem__)
        if [model["vocab"][piece] for piece in vocabulary] != list(range(len(vocabulary))):
            raise ValueError("its ids have gaps")
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        merges = [(left, right) for left, right in pairs]
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {error}", hint="get the file again") from error
    if not set(vocabulary) >= _BYTES:
        raise _foreign(path, "it has no byte fallback")
    return vocabulary, merges


def _ranks(
    vocabulary: list[str], merges: list[tuple[str, str]], added: set[str], path: Path
) -> dict[str, int]:
    """The rank of each piece that is merged, where pieces alone decide what is merged first.

    Raises:
        UserError: SentencePiece joins any two pieces that make a piece, and would merge otherwise.
    """
    ranks: dict[str, int] = {}
    last = ""
    for left, right in merges:
        piece = left + right
        if piece != last and piece in ranks:
            raise _foreign(path, f"its merges into {piece!r} are not ranked together")
        ranks.setdefault(piece, len(ranks))
        last = piece
    known, given = set(vocabulary), set(merges)
    for piece in known - added - _BYTES - {*_NAMES.values()}:
        for cut in range(1, len(piece)):
            pair = piece[:cut], piece[cut:]
            if pair[0] in known and pair[1] in known and pair not in given and not added & {*pair}:
                raise _foreign(path, f"it does not merge {pair[0]!r} and {pair[1]!r}")
    return ranks


def _spaces(raw: Mapping[str, Any], path: Path) -> tuple[str, bool]:
    """The normaliser's name, and whether a space is put before a text.

    Raises:
        UserError: a text is changed or cut in another way.
    """
    normalizers, cutters = _parts(raw.get("normalizer")), _parts(raw.get("pre_tokenizer"))
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Prepend", "prepend": SPACE}
    if not cutters and normalizers in ([replace], [prepend, replace]):
        return "identity", len(normalizers) == 2
    if len(cutters) == 1 and cutters[0].get("type") == "Metaspace" and not normalizers:
        [cutter] = cutters
        scheme = cutter.get(
            "prepend_scheme", "always" if cutter.get("add_prefix_space", True) else "never"
        )
        if cutter.get("replacement") == SPACE and cutter.get("split") is False:
            return (METASPACE, True) if scheme in ("first", "always") else ("identity", False)
    kinds = [str(part.get("type")) for part in (*normalizers, *cutters)]
    raise _foreign(path, f"it changes or cuts texts by {', '.join(kinds) or 'nothing'}")


def _parts(value: Any) -> list[Mapping[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, one or a sequence of them."""
    if not isinstance(value, Mapping):
        return []
    inner = value.get("normalizers", value.get("pretokenizers"))
    if value.get("type") != "Sequence" or not isinstance(inner, list):
        return [value]
    return [part for step in inner for part in _parts(step)]


def _foreign(path: Path, why: str) -> UserError:
    return UserError(
        f"{path} cannot be read: {why}; only SentencePiece's BPE with byte fallback can", hint=_HINT
    )
