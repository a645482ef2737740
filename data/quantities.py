"""Counts as people write them: 50M, 5e7, 7B, 50_000_000."""

from __future__ import annotations

import re
from decimal import Decimal

from .errors import UsageError

SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}
_FORM = re.compile(r"([+-]?(?:\d[\d_]*)(?:\.\d+)?(?:[eE][+-]?\d{1,3})?)\s?([KMBGTkmbgt]?)\Z")


def parse_count(text: str | int) -> int:
    """A whole number from its written form: digits, an exponent, or K, M, B (G), T after it.

    >>> parse_count("50M"), parse_count("5e7"), parse_count("1.5K"), parse_count(12)
    (50000000, 50000000, 1500, 12)

    Raises:
        UsageError: the text is no such number, or not a whole one.
    """
    if isinstance(text, int):
        return text
    match = _FORM.match(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not a count", hint="write it as 50000000, 5e7 or 50M")
    number = Decimal(match[1].replace("_", "")) * SUFFIXES[match[2].upper()]
    if number != number.to_integral_value():
        raise UsageError(f"{text!r} is not a whole number", hint="write it as 1500 or 1.5K")
    return int(number)


def parse_bytes(text: str | int) -> int:
    """Bytes from their written form: a count, with or without a B after K, M, G or T.

    >>> parse_bytes("80GB"), parse_bytes("512M")
    (80000000000, 512000000)

    Raises:
        UsageError: as `parse_count`.
    """
    if isinstance(text, str) and re.search(r"[KMGTkmgt][Bb]\Z", text.strip()):
        text = text.strip()[:-1]
    return parse_count(text)
