"""Whether a value looks drawn at random, or is a word, a name, a template or an example.

`randomness` compares two explanations of a value, in bits: every character drawn at random from
the smallest usual alphabet that holds them all, and text as programmers write it (words, names,
paths), of which `_NEXT` and `_PAIRS` are a small model. Above zero, chance explains the value
better.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter

SAMPLE = 400  # characters of a value that are enough to judge it

# The 110 commonest pairs of letters in the words of the Python standard library, each distinct word
# weighed by the root of its count. They are 70% of the pairs in those words and a sixth of those in
# random letters.
_PAIRS = frozenset(
    """
    in er re te es st on at le en se ti co de ed ar al nt or ng me et li it ra ec an ta tr ne as
    ri is nd ro di io th pa lo ge el ma pe un ct ac si ea fi il ex ca ce ns la na he ch ss ve am
    to pr ll rs ic nc od rt ad om ou ts mp ut ck no em ha su ur im ab op oc po ef pl ol fo bl ni
    id ke ff ai ap ot ig cl ul mo os sp da tt ho us ep
    """.split()  # noqa: SIM905
)
_COMMON, _RARE = 0.165, 0.0138  # chance of a given letter after a letter: a common pair, another

# Characters by kind: lower, Upper, digit, separator, other. `_NEXT[a][b]` is the share of
# kind b after kind a in 310,000 distinct names and literals of 8 characters or more of the standard
# library and of installed packages.
_KINDS = "lUdsp"
_NEXT = {
    "l": (0.8625, 0.0397, 0.0060, 0.0868, 0.0050),
    "U": (0.5442, 0.3852, 0.0149, 0.0522, 0.0036),
    "d": (0.1021, 0.0617, 0.5920, 0.2022, 0.0420),
    "s": (0.7894, 0.1010, 0.0534, 0.0333, 0.0230),
    "p": (0.3287, 0.0475, 0.1028, 0.1976, 0.3233),
}
_SIZES = {"l": 26, "U": 26, "d": 10, "s": 6, "p": 27}
_SEPARATORS = frozenset("_-./: ")


def _kind(character: str) -> str:
    if character in _SEPARATORS:
        return "s"
    if character.isdigit():
        return "d"
    if character.isalpha():
        return "U" if character.isupper() else "l"
    return "p"


def _pair_bits() -> dict[str, float]:
    """log2 of the chance of a character after another, in text, by the pair of ASCII characters."""
    bits: dict[str, float] = {}
    letters = frozenset("lU")
    for first, second in itertools.product(map(chr, range(32, 127)), repeat=2):
        before, after = _kind(first), _kind(second)
        chance = _NEXT[before][_KINDS.index(after)]
        if before in letters and after in letters and not (before == "l" and after == "U"):
            chance *= _COMMON if (first + second).lower() in _PAIRS else _RARE
        else:
            chance /= _SIZES[after]
        bits[first + second] = math.log2(chance)
    return bits


_BITS = _pair_bits()
_ALPHABETS = (
    (re.compile(r"[0-9a-f]*+|[0-9A-F]*+"), 16),
    (re.compile(r"[0-9a-z]*+|[0-9A-Z]*+"), 36),
    (re.compile(r"[0-9A-Za-z]*+"), 62),
    (re.compile(r"[0-9A-Za-z+/_=-]*+"), 65),
)


def randomness(value: str) -> float:
    """By how many bits chance explains a value better than text does; see the module."""
    value = value[:SAMPLE]
    if value.isupper():  # `AWS_DEFAULT_REGION`: the letters pair as they do in lower case
        value = value.lower()
    size = next((n for alphabet, n in _ALPHABETS if alphabet.fullmatch(value)), 94)
    drawn = -math.log2(size)
    unknown = drawn  # of a pair outside ASCII: says nothing
    pairs = map("".join, itertools.pairwise(value))
    return sum(drawn - _BITS.get(pair, unknown) for pair in pairs)


def entropy(value: str) -> float:
    """Shannon entropy of a text's own characters, in bits a character; 0 for an empty one."""
    size = len(value)
    return sum([n * math.log2(size / n) for n in Counter(value).values()]) / max(1, size)


# ------------------------------------------------------------- templates, examples, references

# A part that a program fills in: `${X}`, `$(x)`, `{{ x }}`, `#{x}`, `<x>`, `%(x)s`, `%X%`, `%02x`,
# `{name}`, `@x@`, an escape. Names in them are words; see `_without_references`.
_REFERENCE = re.compile(
    r"\$?\{\{[^{}\n]{0,80}\}\}|[$#@%]\{[^{}\n]{0,80}\}|\$\([^()\n]{0,80}\)|<%[^%\n]{0,80}%>"
    r"|\[\[[^\[\]\n]{0,80}\]\]|<[A-Za-z][\w .:/-]{1,60}>|\$[A-Za-z_]\w{2,60}|\$env:\w{2,60}"
    r"|%\(\w{1,40}\)[a-z]|%[A-Za-z_]\w{2,40}%|%[-+ #0]{0,3}\d{0,3}(?:\.\d+)?[a-zA-Z](?![a-zA-Z0-9])"
    r"|@[A-Za-z_]\w{2,40}@|\{[A-Za-z_]?[\w.\[\]!:]{0,60}\}|__[A-Z][A-Z0-9_]{2,40}__"
    r"|\\u[0-9a-fA-F]{4}|\\x[0-9a-fA-F]{2}|&#?\w{2,8};"
)
_EXAMPLE = re.compile(
    r"x{4}|\*{4}|\.{4}|\.{3}$|example|your|placeholder|dummy|redact|replace|insert|change_?-?me|secret_?here"
    r"|foobar|lorem|1234567|abcdef|fedcba|deadbeef|cafebabe|(.)\1{5}"
    r"|environ\b|getenv|process\.env|^(?:vault|op|ssm|arn|env|file|secret|keyring|kms):",
    re.IGNORECASE,
)
# Digests with their algorithm, addresses of contracts, UUIDs, numbers of versions and dates.
_PUBLIC = re.compile(
    r"^sha\d+[-:=]|^h1:|^md5[-:]|^0x[0-9a-fA-F]{40}$|^[a-z][a-z0-9+.-]{1,20}://|^data:"
    r"|^(?:\.{1,2}|~)/\w+[/.]\w|^v?\d+(?:\.\d+){1,3}(?:$|[-+])|^\d{4}-\d\d-\d\d"
    r"|^[A-Za-z_][\w.]*\[[-\w*:]{0,20}\][\w.\[\]-]*$|^(?:[0-9a-f]{4}[ :.-]){5}"
    r"|^(?:[0-9a-fA-F]{2}[:-]){5}"
)
UUID = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")
# Of regular expressions: one sure sign, or two of the others.
_REGEX = re.compile(r"[aA]-[zZ]|0-9(?=[\]_])|\(\?[:=!<P]|\[\^\S")
_REGEX_MAY = re.compile(r"[.)\]][*+?]|\\[wdsbSWD]|\{\d+(?:,\d*)?\}|\[[^\]]{1,20}\]")


# `django-insecure-`, `base64:`, `prod_key_`: what stands before a value within its quotes.
_WORDS_BEFORE = re.compile(r"(?:[a-z]{3,12}\d{0,2}[-_:.]){1,3}")


_LEAST_OWN = 8  # characters of a value that no program fills in


def without_references(value: str) -> str:
    """A value without the parts that a program fills in; what is left is the author's own."""

    def stays(match: re.Match[str]) -> str:
        inner = match[0].strip("${}()<>%#@[]\\")
        return match[0] if len(inner) >= 5 and randomness(inner) > 4 else ""

    if not any(sign in value for sign in "${<%@\\&#["):
        return value.replace("__", "") if value.startswith("__") and value.endswith("__") else value
    return _REFERENCE.sub(stays, value)


def is_example(value: str) -> bool:
    """Whether a value has the marks of manuals: `xxxx`, `your-key`, `1234567`."""
    return _EXAMPLE.search(value[:SAMPLE]) is not None


def is_public(value: str) -> bool:
    """Whether a value has a form that anybody may see: a digest, an address, a URL, a path."""
    return _PUBLIC.search(value[:SAMPLE]) is not None


def is_regex(value: str) -> bool:
    """Whether a value is rather a regular expression."""
    value = value[:SAMPLE]
    return _REGEX.search(value) is not None or len(_REGEX_MAY.findall(value)) >= max(
        2, len(value) // 12
    )


def looks_secret(value: str, *, min_length: int, min_entropy: float, bits: float = 0.0) -> bool:
    """Whether a value that stands where a secret may stand is one, and no template or example.

    Args:
        value: the value, without its quotes.
        min_length: the shortest that is one, in characters, references left out.
        min_entropy: the least Shannon entropy of its characters, in bits a character.
        bits: the least `randomness`.
    """
    if len(value) < min_length or entropy(value[:SAMPLE]) < min_entropy:
        return False
    own = without_references(value)
    if (head := _WORDS_BEFORE.match(own)) and len(own) - head.end() >= max(min_length, 16):
        own, bits = own[head.end() :], max(bits, 6.0)
    if own.isalpha() and (own.islower() or own.isupper()):
        bits = max(bits, 6.0)  # rather a word of another language
    return (
        len(own) >= _LEAST_OWN
        and sum(map(str.isalpha, own[:SAMPLE])) >= 3
        and not is_example(own)
        and not is_public(own)
        and not is_regex(own)
        and randomness(own) > bits
    )
