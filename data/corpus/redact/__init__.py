"""Secrets and e-mail addresses in source code, found and replaced before a model learns them.

A finding becomes a placeholder: `<KEY>`, `<PASSWORD>`, `<PRIVATE_KEY>` or `<EMAIL>`. The quotes and
the code around it stay, and so do the lines, except those within a PEM block. Each module finds one
kind:

    keys         private keys in blocks
    vendors      tokens by their documented form
    credentials  by place: in a URL, a header, a command line
    assigned     by the name they are given to
    addresses    e-mail
    randomness   does a value look random, or is it a word, a template, an example?
    chosen       could a person have chosen it as a password?

Templates, plain words, paths and hashes stay: a line of good code that is damaged costs more than a
test token kept. No value is logged, returned or put in an exception: it is nowhere but in the
input.
"""

from __future__ import annotations

from . import addresses, assigned, credentials, keys, vendors
from .findings import DEFAULT, Document, Finder, Finding, Redaction
from .randomness import entropy

__all__ = ["DEFAULT", "Redaction", "entropy", "redact"]

# Where two findings begin at one place, the one whose finder stands first counts.
_SECRETS: tuple[Finder, ...] = (keys.find, vendors.find, credentials.find, assigned.find)
_ADDRESSES: tuple[Finder, ...] = (addresses.find,)

_PARTS = frozenset(("", *" \t\r\n\"'<>(),;[]{}"))


def _findings(text: str, recipe: Redaction) -> list[Finding]:
    document = Document(text)
    finders = (_SECRETS if recipe.secrets else ()) + (_ADDRESSES if recipe.emails else ())
    found = [finding for finder in finders for finding in finder(document, recipe)]
    return sorted(found, key=lambda finding: finding.start)  # stable: finders keep their order


def redact(text: str, recipe: Redaction = DEFAULT) -> tuple[str, dict[str, int]]:
    """A text with every finding replaced, and how many there were by rule.

    What comes out holds no finding: applied again, nothing changes. Where nothing is found the very
    same object comes back, and an empty count.
    """
    counts: dict[str, int] = {}
    # A placeholder ends the word before it and starts a new one after it, which may bring out
    # another finding beside it. Each pass takes characters away that are no placeholder's, so the
    # passes come to an end; almost always the second finds nothing, and mostly it is not needed:
    # where signs that no value goes over stood around every finding, the words were parted before.
    searching = True
    while searching and (found := _findings(text, recipe)):
        searching = False
        pieces: list[str] = []
        done = 0
        for start, end, rule, placeholder in found:
            if start < done:  # within one that is replaced already, or over its end
                searching |= end > done
                continue
            counts[rule] = counts.get(rule, 0) + 1
            pieces += (text[done:start], placeholder)
            done = end
            searching |= text[start - 1 : start] not in _PARTS or text[end : end + 1] not in _PARTS
        pieces.append(text[done:])
        text = "".join(pieces)
    return text, counts
