"""Passwords and tokens that are secret by their place: in a URL, a header, a command, SQL."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator

from .addresses import is_reserved
from .chosen import looks_chosen
from .findings import KEY, PASSWORD, Document, Finding, Redaction, words
from .randomness import is_example, looks_secret, without_references

# Passwords that nobody means to keep secret: manuals', defaults of servers and of test set-ups.
_OPEN_PASSWORDS = words(
    """
    admin default demo guest minio minioadmin mongo mysql none null p pass pass123 passwd passwort
    password password1 password123 pg postgres postgresql pw pwd rabbitmq redis root sa secret
    test test123 testing token user x-oauth-basic x-token-auth xxx
    """
)
_TEMPLATE = re.compile(r"[<>{}()\[\]|\\`]|\$[A-Za-z_]|\$\$|^[%:@]|%[sdr]$|\*\*|\.\.\.|^[xX*.]+$")
_PORT = re.compile(r"[0-9]{1,5},")  # `http://one:80,user:...`: hosts, the first with its port
_URL = re.compile(
    r"://(?<=[A-Za-z0-9]://)(?P<user>[^\s/:@\"'<>()]{0,200})(?::(?P<secret>[^\s/\"'<>@]{1,200}))?"
    r"@(?P<host>[A-Za-z0-9_.-]{1,253}|\[[0-9a-fA-F:.]{2,45}\])"
)


def _random(value: str, recipe: Redaction, bits: float = 0.0) -> bool:
    return looks_secret(
        value, min_length=recipe.min_length, min_entropy=recipe.min_entropy, bits=bits
    )


def _in_urls(text: str, recipe: Redaction) -> Iterator[Finding]:
    at = text.find("://")
    while at >= 0:
        match = _URL.match(text, at)
        at = text.find("://", at + 1)
        if match is None:
            continue
        if match["secret"] and _is_password(match, recipe):
            yield Finding(*match.span("secret"), "url_password", PASSWORD)
        elif (
            len(match["user"]) >= 16
            and text[max(0, match.start() - 5) : match.start()].endswith(("http", "https"))
            and (match["secret"] or "").lower() in ("", "x-oauth-basic", "x-token-auth")
            and not match["host"].endswith("sentry.io")
            and _random(match["user"], recipe, bits=4)
        ):
            yield Finding(*match.span("user"), "url_password", PASSWORD)


def _is_password(match: re.Match[str], recipe: Redaction) -> bool:
    """Not a manual's, a template's, or a default; a random one is one wherever it stands."""
    password = match["secret"]
    lower = password.lower()
    if _random(password, recipe) or (recipe.chosen and looks_chosen(password)):
        return True
    return not (
        _TEMPLATE.search(password)
        or not without_references(password)
        or lower in _OPEN_PASSWORDS
        or lower == match["user"].lower()
        or "passw" in lower
        or _PORT.match(lower)
        or (is_example(lower) and not lower.startswith("/"))
        or is_reserved(match["host"].lower())
    )


_HEADER = re.compile(
    r"(?<![A-Za-z0-9])(?P<scheme>Bearer|Basic|Token|ApiKey|SSWS|GenieKey|Splunk)"
    r"[ \t]{1,4}(?P<secret>[A-Za-z0-9+/_.~=-]{8,1000})(?![A-Za-z0-9])",
    re.IGNORECASE,
)
_SCHEMES = (b"bearer", b"basic ", b"token ", b"apikey ", b"ssws ", b"geniekey ", b"splunk ")


def _in_headers(document: Document, recipe: Redaction) -> Iterator[Finding]:
    text, lower = document.text, document.lower
    for scheme in filter(document.may_hold, _SCHEMES):
        at = lower.find(scheme)
        while at >= 0:
            match = _HEADER.match(text, at)
            if match and (_is_basic(match) or _random(match["secret"], recipe, bits=4)):
                yield Finding(*match.span("secret"), "bearer", KEY)
            at = lower.find(scheme, at + 1)


def _is_basic(match: re.Match[str]) -> bool:
    """Whether it is `user:password` in base64, the password being no manual's."""
    if match["scheme"].lower() != "basic" or len(match["secret"]) < 12:
        return False
    try:
        decoded = base64.b64decode(match["secret"], validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        return False
    user, sign, password = decoded.partition(":")
    return (
        bool(sign)
        and decoded.isprintable()
        and password.lower() not in _OPEN_PASSWORDS | {"", user.lower()}
    )


# Options that take a password or `user:password`, by command. The value ends with its quotes, else
# at white space.
_ARGUMENT = r"""(?:(?P<q>["'])(?P<quoted>[^"'\n]{8,200})(?P=q)|(?P<bare>[^\s"'|]{8,200}))"""
_CALL = r"""["'][^"'\n]{1,64}["'],\s{0,20}["'](?P<quoted>[^"'\n]{8,200})["']"""
_COMMANDS: tuple[tuple[tuple[bytes, ...], re.Pattern[str]], ...] = (
    (
        (b" -u", b"-user"),
        re.compile(
            r"[ \t'\"](?:-u|-U|--user|--proxy-user)[ =]?[\"']?[\w.@+-]{1,64}:"
            r"(?P<bare>[^\s\"']{8,200})"
        ),
    ),
    (
        (b" -p", b" -a ", b" -w "),
        re.compile(
            r"\b(?:sshpass|mysql\w{0,10}|mariadb\w{0,10}|(?:docker|podman|helm|az|oc|buildah)\b[^\n|;]{0,80}?\blogin"
            r"|mongo\w{0,10}|redis-cli|ldap\w{1,12}|7z|zip)\b[^\n|;]{0,200}?\s-(?:p|a|w|P)[ =]?"
            + _ARGUMENT
        ),
    ),
    (
        (b"stdin", b"chpasswd"),
        re.compile(
            r"""\b(?:echo|printf)(?:[ ]-\w{1,3}){0,2}[ ]
            (?:"(?:[\w.-]{1,32}:)?(?P<quoted>[^"\n]{8,200})"
            |'(?:[\w.-]{1,32}:)?(?P<single>[^'\n]{8,200})'|(?:[\w.-]{1,32}:)?(?P<bare>[^\s"'|]{8,200}))
            \s{0,4}\|""",
            re.VERBOSE,
        ),
    ),
    (
        (b"auth(", b"auth=(", b"auth = (", b".login("),
        re.compile(r"(?:[Aa]uth(?:\s?=\s?)?|\.login)\(\s{0,20}" + _CALL),
    ),
    (
        (b"-oauth", b"gitlab-token"),
        re.compile(
            r"""["'](?:github|gitlab|bitbucket)-(?:oauth|token)["']\s{0,4}:\s{0,4}\{\s{0,40}"""
            r"""["'][^"'\n]{1,64}["']\s{0,4}:\s{0,4}["'](?P<quoted>[^"'\n]{8,200})["']"""
        ),
    ),
    (
        (b"htpasswd ",),
        re.compile(
            r"htpasswd[^\n|;]{0,80}?\s-\w*b\w*\s[^\n|;]{0,200}?[\w.-]\s" + _ARGUMENT + r"\s"
        ),
    ),
    (
        (b":5432:", b":*:"),  # .pgpass
        re.compile(
            r"^[\w.*-]{1,80}:(?:\d{2,5}|\*):[\w*-]{1,64}:[\w*-]{1,64}:(?P<bare>\S{8,200})$",
            re.MULTILINE,
        ),
    ),
    (
        (b"identified ", b"password for "),
        re.compile(
            r"(?i:\b(?:identified\s{1,4}(?:with\s{1,4}\w{1,40}\s{1,4})?(?:by|as)(?:\s{1,4}password)?"
            r"|password\s{1,4}for\s[^\n=]{1,80}=)\s{1,4})" + _ARGUMENT
        ),
    ),
)


def _in_commands(document: Document, recipe: Redaction) -> Iterator[Finding]:
    for signs, pattern in _COMMANDS:
        if not document.holds_any(signs):
            continue
        for match in pattern.finditer(document.text):
            group = next(
                g for g in ("quoted", "single", "bare") if g in match.re.groupindex and match[g]
            )
            value = match[group]
            certain = b"stdin" not in signs  # any text may be piped
            chosen = recipe.chosen and certain and looks_chosen(value)
            if (chosen or _random(value, recipe)) and not any(map(str.isspace, value)):
                yield Finding(*match.span(group), "password", PASSWORD)


def find(document: Document, recipe: Redaction) -> Iterator[Finding]:
    """Credentials in URLs, in headers and on command lines."""
    yield from _in_urls(document.text, recipe)
    yield from _in_headers(document, recipe)
    yield from _in_commands(document, recipe)
