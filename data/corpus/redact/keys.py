"""Private keys in blocks: PEM, OpenPGP, PuTTY."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .findings import PRIVATE_KEY, Document, Finding, Redaction
from .randomness import entropy

# A block ends at its END line, or, cut off, after its last line of base64. `-----` cannot occur
# within, so every scan for the end stops at the next mark.
_BLOCK = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----"
    r"(?:(?:[^-]|-(?!----))*+-----END [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----"
    r"|(?:[\s\\nr\"'`+#/*,;.]{0,40}[A-Za-z0-9+/=]{40,100}(?![A-Za-z0-9+/=]))++)"
)
_PUTTY = re.compile(
    r"Private-Lines: \d{1,3}\s{1,4}(?P<secret>[A-Za-z0-9+/=]{16,80}"
    r"(?:\r?\n[A-Za-z0-9+/=]{4,80}){0,400})(?=\s)"
)
_ENCODED = re.compile(r"[A-Za-z0-9+/=]{16,}")


def find(document: Document, _: Redaction) -> Iterator[Finding]:
    """Blocks that hold base64; manuals show empty ones."""
    text = document.text
    if "PRIVATE KEY" in text:
        for match in _BLOCK.finditer(text):
            if _holds_key(match[0]):
                yield Finding(*match.span(), "private_key", PRIVATE_KEY)
    if "Private-Lines:" in text:
        for match in _PUTTY.finditer(text):
            if _holds_key(match["secret"]):
                yield Finding(*match.span("secret"), "putty_key", PRIVATE_KEY)


def _holds_key(block: str) -> bool:
    encoded = sum(map(len, _ENCODED.findall(block)))
    return encoded >= 40 and entropy(block[:2000]) >= 3
