"""Secrets and e-mail addresses in source code, found and replaced before a model learns them.

A finding becomes a placeholder: `<KEY>`, `<PASSWORD>`, `<PRIVATE_KEY>` or `<EMAIL>`. The quotes and
the code around it stay, and so do the lines, except those within a PEM block. The named rules know
the formats that vendors document; two general rules take a literal that looks random where it is
assigned to a name such as `db_password` or `apiKey`. Placeholders of manuals, templates, plain
words, paths and hashes stay: a line of good code that is damaged costs more than a test token kept.

Every document of a corpus passes here, so little is done for the many that hold nothing. Vendors'
tokens hold a run of 20 or more letters, digits and `_-+/`. Those runs are found by array
operations and joined, and the rules' literal keywords are looked for in that small text; a rule's
expression meets the document only where one occurred. The general rules look only around literals
that look random.

No value is logged, returned or put in an exception: it is nowhere but in the input.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import math
import random
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

EMAIL = "<EMAIL>"
KEY = "<KEY>"
PASSWORD = "<PASSWORD>"
PRIVATE_KEY = "<PRIVATE_KEY>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Redaction:
    """What is replaced.

    Attributes:
        emails: whether e-mail addresses are.
        secrets: whether keys, tokens and passwords are.
        min_length: the shortest literal the general rules take, in characters.
        min_entropy: the least Shannon entropy of such a literal, in bits a character; 32 random
            hexadecimal digits have 3.6 on average, 12 random letters and digits 3.4.
        keep_emails: addresses that stay, either whole (`dev@project.org`) or by host
            (`@project.org`), compared without regard to case.
    """

    emails: bool = True
    secrets: bool = True
    min_length: int = 12
    min_entropy: float = 3.0
    keep_emails: tuple[str, ...] = ()

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012


DEFAULT = Redaction()

Span: TypeAlias = tuple[int, int]
Check: TypeAlias = Callable[[re.Match[str], Redaction], Span | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One kind of finding.

    Attributes:
        name: what `redact` counts it under.
        placeholder: what takes its place.
        pattern: where it may be; the group `secret`, if there is one, is what is replaced.
        keywords: literals of which one must occur in the document's long runs (see the module).
        context: literals of which one must occur anywhere in the document.
        anchor: what the pattern begins with, where that is all there is to look for.
        needs_random: only documents with a literal that looks random are searched.
        near_random: and they only near such literals.
        check: the span to replace, or None where the match is no finding after all.
    """

    name: str
    placeholder: str
    pattern: re.Pattern[str]
    keywords: tuple[str, ...] = ()
    context: tuple[str, ...] = ()
    anchor: str = ""
    needs_random: bool = False
    near_random: bool = False
    check: Check | None = None


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# ------------------------------------------------------------------ does a literal look random?

# The 110 commonest pairs of letters in the words of the Python standard library, each distinct word
# weighed by the root of its count. They are 70% of the pairs in those words and a sixth of those in
# random letters.
_PAIRS = _words(
    """
    in er re te es st on at le en se ti co de ed ar al nt or ng me et li it ra ec an ta tr ne as
    ri is nd ro di io th pa lo ge el ma pe un ct ac si ea fi il ex ca ce ns la na he ch ss ve am
    to pr ll rs ic nc od rt ad om ou ts mp ut ck no em ha su ur im ab op oc po ef pl ol fo bl ni
    id ke ff ai ap ot ig cl ul mo os sp da tt ho us ep
    """
)
# `xY` is a border between words, or chance: it counts as no word's.
_CASED_PAIRS = frozenset(
    form for pair in _PAIRS for form in (pair, pair.capitalize(), pair.upper())
)
_PLACEHOLDER = re.compile(
    r"x{4}|\*{3}|\.{3}|example|your|placeholder|dummy|redact|replace|insert|change_?-?me|secret_?here"
    r"|foobar|lorem|1234567|abcdef|fedcba|deadbeef|cafebabe|(.)\1{5}"
    r"|[<>{}()\[\]]|\$[a-z_]|%[sdr]\b|://|^[./~]+\w{2,}[/.]|environ|getenv|process\.env|^sha\d+-",
    re.IGNORECASE,
)
_LETTERS = re.compile(r"[A-Za-z]{2,}")
_DIGIT = re.compile(r"[0-9]")
# A change between kinds of characters within a word, a capital and what follows it apart, or a sign
# that names are not written with.
_CHANGE = re.compile(r"[a-z](?=[A-Z0-9])|[A-Z](?=[0-9])|[0-9](?=[A-Za-z])|[^\w\s./:-]")
_SAMPLE = 400  # characters of a value that are enough to judge it


def entropy(value: str) -> float:
    """Shannon entropy of a text's own characters, in bits a character; 0 for an empty one."""
    size = len(value)
    return sum([n * math.log2(size / n) for n in Counter(value).values()]) / max(1, size)


def _is_placeholder(value: str) -> bool:
    return _PLACEHOLDER.search(value[:_SAMPLE]) is not None


def _is_wordlike(value: str) -> bool:
    """Whether the letters of a value mostly stand together as they do in words.

    Of the names of 12 characters or more in the standard library 94% are, of random values of 20
    letters and digits 0.6%, or 3% without capitals.
    """
    value = value[:_SAMPLE]
    pairs = 0
    common = 0
    for run in _LETTERS.findall(value):
        pairs += len(run) - 1
        common += sum(pair in _CASED_PAIRS for pair in map("".join, itertools.pairwise(run)))
    return pairs >= max(4, 0.3 * len(value)) and common >= 0.45 * pairs


def _is_mixed(value: str) -> bool:
    """Whether there are digits, and lower, upper and digits take turns as they do at random.

    They change at two characters in five of random values, whatever their alphabet.
    """
    if _DIGIT.search(value) is None:
        return False
    value = value[:_SAMPLE]
    return len(_CHANGE.findall(value)) >= max(3, len(value) // 5)


def _is_random(value: str, recipe: Redaction) -> bool:
    return (
        len(value) >= recipe.min_length
        and _is_mixed(value)
        and not _is_placeholder(value)
        and not _is_wordlike(value)
        and entropy(value[:_SAMPLE]) >= recipe.min_entropy
    )


# ------------------------------------------------------------------------------------- checks


def _span(match: re.Match[str]) -> Span:
    return match.span("secret") if "secret" in match.re.groupindex else match.span()


def _check_token(match: re.Match[str], _: Redaction) -> Span | None:
    """A vendor's token: its form says enough, but manuals show the form with words in it."""
    start, end = _span(match)
    value = match.string[start:end]
    if _is_placeholder(value) or _is_wordlike(value) or entropy(value[:_SAMPLE]) < 2.5:
        return None
    return start, end


def _check_private_key(match: re.Match[str], _: Redaction) -> Span | None:
    """A block is a key only where it holds base64: manuals show empty ones."""
    body = match.string[slice(*_span(match))]
    encoded = sum(map(len, re.findall(r"[A-Za-z0-9+/=]{16,}", body)))
    return _span(match) if encoded >= 40 and entropy(body[:2000]) >= 3 else None


def _check_jwt(match: re.Match[str], _: Redaction) -> Span | None:
    header = match["header"]
    try:
        decoded = json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return None
    return match.span() if isinstance(decoded, dict) else None


def _check_discord(match: re.Match[str], _: Redaction) -> Span | None:
    """The first part of a bot's token is its number in base64."""
    first = match["bot"]
    try:
        number = base64.urlsafe_b64decode(first + "=" * (-len(first) % 4))
    except (binascii.Error, ValueError):
        return None
    return match.span() if number.isdigit() else None


# Passwords that nobody means to keep secret: manuals', defaults of servers and of test set-ups.
_OPEN_PASSWORDS = _words(
    """
    admin default demo guest minio minioadmin mongo mysql none null p pass pass123 passwd passwort
    password password1 password123 pg postgres postgresql pw pwd rabbitmq redis root sa secret
    test test123 testing token user x-oauth-basic x-token-auth xxx
    """
)
_TEMPLATE = re.compile(r"[<>{}()\[\]|\\`]|\$[A-Za-z_]|\$\$|^[%:@]|%[sdr]$|\*\*|\.\.\.|^[xX*.]+$")

_PORT = re.compile(r"[0-9]{1,5},")  # `http://one:80,user:...`: hosts, the first with its port


def _check_url(match: re.Match[str], _: Redaction) -> Span | None:
    """The password of a URL, unless it is a manual's, a template's, or a default."""
    password = match["secret"]
    lower = password.lower()
    if (
        _TEMPLATE.search(password)
        or lower in _OPEN_PASSWORDS
        or lower == match["user"].lower()
        or "passw" in lower
        or _PORT.match(lower)
        or (_is_placeholder(lower) and not lower.startswith("/"))
        or _is_reserved(match["host"].lower())
    ):
        return None
    return match.span("secret")


_SECRET_NAME = re.compile(
    r"secret|token|api_?key|(?:access|auth|private|encryption|encrypt|signing|signature|master|account"
    r"|app|application|client|consumer|customer|service|hmac|aes|crypto|cipher|session|jwt|deploy"
    r"|storage|shared|subscription|license|admin|aws|bot|cookie|salt|nonce|logged_in|secure)_?key"
    r"|credential|(?:^|_)auth(?:_?code)?$|bearer|(?:auth|nonce|logged_in)_salt|authorization"
)
_PASSWORD_NAME = re.compile(r"pass_?w(?:or)?d|passphrase|pass_?code|(?:^|_)(?:pwd|pass|pw)(?:_|$)")
# Names of what goes with a secret but is none, and of what everybody may see.
_OPEN_NAME = re.compile(
    r"public|publish|(?:^|_)(?:test_?)?(?:hash|sha\d*|digest|md5|checksum|fingerprint|ids?|name|url"
    r"|uri|path|file|dir|type|regex|pattern|re|field|header|param|prefix|suffix|label|class|format"
    r"|length|size|algorithm|alg|method|endpoint|scope|version|placeholder|message|msg|error|hint"
    r"|kind|list|index|manager|count|position|pos|text|str_?hash|arn|etag|expir\w*)$|tokeni[sz]|token_?type"
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def _plain_name(name: str) -> str:
    """A name in the form that the expressions above read: `clientSecret` as `client_secret`."""
    return _CAMEL.sub("_", name).replace("-", "_").replace(".", "_").strip("_$").lower()


def _check_secret(match: re.Match[str], recipe: Redaction) -> Span | None:
    name = _plain_name(match["name"])
    if _PASSWORD_NAME.search(name) or not _SECRET_NAME.search(name):
        return None
    return _check_assigned(match, name, recipe)


def _check_password(match: re.Match[str], recipe: Redaction) -> Span | None:
    name = _plain_name(match["name"])
    return _check_assigned(match, name, recipe) if _PASSWORD_NAME.search(name) else None


def _check_assigned(match: re.Match[str], name: str, recipe: Redaction) -> Span | None:
    if _OPEN_NAME.search(name) or not _is_random(match["secret"], recipe):
        return None
    # A quoted name and a value after a comma are a call's two arguments, or items of any list.
    if "," in match["sign"] and match.string[max(0, match.start() - 2) : match.start() - 1] != "(":
        return None
    return match.span("secret")


def _check_bearer(match: re.Match[str], recipe: Redaction) -> Span | None:
    return match.span("secret") if _is_random(match["secret"], recipe) else None


# ------------------------------------------------------------------------------------- e-mail

# The general top-level domains that addresses in code are met under, and every country's. All of
# the 1,400 there are would let in `a@b.zip`, `x@y.map` and the like.
_TOP_LEVEL = _words(
    """
    com org net edu gov mil int info biz name pro mobi coop aero museum jobs travel tel cat asia
    dev app tech cloud online site xyz email blog shop club live page zone systems solutions
    software design digital network agency studio space world today team codes engineer guru ninja
    rocks works media group company technology science academy education institute foundation
    consulting services engineering host website press store life center global berlin london nyc
    paris wien hamburg koeln moscow swiss ac ad ae af ag ai al am ao aq ar as at au aw ax az ba bb
    bd be bf bg bh bi bj bm bn bo br bs bt bw by bz ca cc cd cf cg ch ci ck cl cm cn co cr cu cv
    cw cx cy cz de dj dk dm do dz ec ee eg er es et eu fi fj fk fm fo fr ga gd ge gf gg gh gi gl
    gm gn gp gq gr gs gt gu gw gy hk hm hn hr ht hu id ie il im in io iq ir is it je jm jo jp ke
    kg kh ki km kn kp kr kw ky kz la lb lc li lk lr ls lt lu lv ly ma mc md me mg mh mk ml mm mn
    mo mp mq mr ms mt mu mv mw mx my mz na nc ne nf ng ni nl no np nr nu nz om pa pe pf pg ph pk
    pl pm pn pr ps pt pw py qa re ro rs ru rw sa sb sc sd se sg sh si sk sl sm sn so sr ss st su
    sv sx sy sz tc td tf tg th tj tk tl tm tn to tr tt tv tw tz ua ug uk us uy uz va vc ve vg vi
    vn vu wf ws ye yt za zm zw
    """
)
# Extensions of files that are top-level domains too: there a host needs three labels.
_EXTENSIONS = _words("cc md ml mm pm ps py rs sh")
_LOCAL = re.compile(r"[A-Za-z0-9_+%-][A-Za-z0-9_.+%-]{0,63}")
_ROLE = re.compile(
    r"(?:.*[+._-])?(?:no|do)[._-]?not[._-]?reply|.*no[._-]?reply.*|git|hg|svn|cvs|gitolite|gitea|forgejo"
    r"|mailer-daemon|org-\d+|this|super|return|break|continue",
    re.IGNORECASE,
)
_CODE_HOST = _words("self cls this np torch tf jnp model")


def _is_reserved(host: str) -> bool:
    """Whether a host is one of RFC 2606 and RFC 6761, or is told by its name to be an example."""
    labels = host.rstrip(".").split(".")
    return labels[-1] in ("example", "invalid", "localhost", "test", "local") or (
        "example" in labels[-3:]
    )


def _check_email(match: re.Match[str], recipe: Redaction) -> Span | None:
    """The whole address around an `@` and a host; code and templates write such pairs too."""
    text, at = match.string, match.start()
    host = match["host"]
    labels = host.split(".")
    top = labels[-1]
    if top.lower() not in _TOP_LEVEL or not (top.islower() or top.isupper()):
        return None
    if labels[0] in _CODE_HOST or (top in _EXTENSIONS and len(labels) < 3):
        return None
    # Backwards from the `@`, so that a text without end costs 65 characters here and no more.
    before = _LOCAL.match(text[max(0, at - 65) : at][::-1])
    if before is None or before.end() > 64:
        return None
    local = before.group()[::-1].lstrip(".+%-")
    start = at - len(local)
    previous = text[start - 1] if start else ""
    if previous == "\\" and local[:1] in "abfnrtv":  # "\njoe@...": the n is not Joe's
        local, start = local[1:], start + 1
    elif previous in ("%", "$", ")", "}", "]", "#") and previous:
        return None
    if (
        not local
        or text[max(0, start - 2) : start] == "//"
        or _USER_INFO.search(text, start - 80, start)
    ):
        return None
    address = f"{local}@{host}".lower()
    if (
        _ROLE.fullmatch(local)
        or _is_reserved(host.lower())
        or "noreply" in host.lower()
        or any(
            address.endswith(kept.lower()) if kept[:1] == "@" else address == kept.lower()
            for kept in recipe.keep_emails
        )
    ):
        return None
    return start, match.end()


_USER_INFO = re.compile(r"://[^\s/@:]{0,64}:[^\s/@]{0,10}$")


# -------------------------------------------------------------------------------------- rules

# A token stands by itself: neither more letters nor digits on either side.
_OPEN = r"(?<![A-Za-z0-9])"
_CLOSE = r"(?![A-Za-z0-9])"


def _token(name: str, keywords: str, body: str, *, context: tuple[str, ...] = ()) -> Rule:
    """The rule of a vendor's token: what is documented of its prefix, alphabet and length."""
    return Rule(
        name=name,
        placeholder=KEY,
        keywords=tuple(keywords.split()),
        pattern=re.compile(f"{_OPEN}(?:{body}){_CLOSE}"),
        context=context,
        check=_check_token,
    )


# `name = "value"` as the languages write it: JSON, YAML, hashes, annotations of type, attributes of
# XML, PHP's `define('NAME', 'value')`, `getenv("NAME", "value")`, calls. The value is looked ahead
# at: it may be the name of the next.
_ASSIGNED = re.compile(
    r"""(?<![\w-])(?<!::)(?P<name>[A-Za-z_$][\w$.-]{1,60})["'`]?\)?\]?
    (?P<sign>\s{0,8}(?:={1,3}|:=|=>|:(?:\s{0,4}[A-Za-z][\w.<>\[\]| ?]{0,40}=)?)|["'`],[ ]{0,4}|\(
       |["']\s{1,8}value\s{0,4}=)
    (?=\s{0,40}[A-Za-z]{0,2}(?P<quote>["'`])(?P<secret>[^\s"'`\\]{8,1000})(?P=quote))""",
    re.VERBOSE,
)
# The same without quotes, a line to itself: `.env`, Dockerfile, ini, YAML, shell.
_LINE = re.compile(
    r"""^[ \t]{0,40}(?:-[ ]|export[ ]|ENV[ ]|ARG[ ]|set[ ]|setx[ ])?[ ]{0,8}
    (?P<name>[A-Za-z_][\w.-]{1,60})[ \t]{0,8}(?P<sign>:=|=|:[ \t])[ \t]{0,8}
    (?P<secret>[\w+/.~=!@\#%^&*-]{16,1000})[ \t]{0,8}\r?$""",
    re.VERBOSE | re.MULTILINE,
)

RULES: tuple[Rule, ...] = (
    # A block ends at its END line, or, cut off, after its last line of base64. `-----` cannot occur
    # within, so every scan for the end stops at the next mark.
    Rule(
        name="private_key",
        placeholder=PRIVATE_KEY,
        context=("PRIVATE KEY",),
        needs_random=True,
        pattern=re.compile(
            r"-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----"
            r"(?:(?:[^-]|-(?!----))*+-----END [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----"
            r"|(?:[\s\\nr\"'`+#/*,;.]{0,40}[A-Za-z0-9+/=]{40,100}(?![A-Za-z0-9+/=]))++)"
        ),
        check=_check_private_key,
    ),
    Rule(
        name="putty_key",
        placeholder=PRIVATE_KEY,
        context=("Private-Lines:",),
        needs_random=True,
        pattern=re.compile(
            r"Private-Lines: \d{1,3}\s{1,4}(?P<secret>[A-Za-z0-9+/=]{16,80}"
            r"(?:\r?\n[A-Za-z0-9+/=]{4,80}){0,400})(?=\s)"
        ),
        check=_check_private_key,
    ),
    _token("age_key", "AGE-SECRET-KEY-1", r"AGE-SECRET-KEY-1[0-9A-Z]{58}"),
    _token("aws_key_id", "AKIA ASIA ABIA ACCA", r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}"),
    Rule(
        name="aws_secret",
        placeholder=KEY,
        context=("aws", "AWS", "Aws", "amazon"),
        near_random=True,
        pattern=re.compile(
            r"(?:[Ss]ecret|SECRET)[\w.-]{0,30}[\"'\])]{0,2}\s{0,8}(?:=>|:=|={1,3}|:|,)\s{0,8}[\"']?"
            r"(?P<secret>[A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])"
        ),
        check=lambda match, recipe: (
            _check_token(match, recipe) if _is_mixed(match["secret"]) else None
        ),
    ),
    _token(
        "github_token",
        "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_",
        r"gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255}",
    ),
    _token(
        "gitlab_token",
        "glpat- gldt- glrt- glrtr- glcbt- glptt- glft- glsoat- glimt- glagent- gloas- glwt-",
        r"gl(?:pat|dt|rt|rtr|cbt|ptt|ft|soat|imt|agent|oas|wt)-[\w-]{20,300}"
        r"(?:\.[0-9a-z]{2}\.[0-9a-z]{9})?",
    ),
    _token(
        "slack_token",
        "xoxa- xoxb- xoxc- xoxd- xoxe- xoxo- xoxp- xoxr- xoxs- xapp-",
        r"xox[abcdeoprs]-(?=[A-Za-z0-9-]{0,20}[0-9])[A-Za-z0-9-]{18,400}"
        r"|xapp-\d-[A-Z0-9]{8,20}-\d{8,20}-[a-z0-9]{32,128}",
    ),
    Rule(
        name="webhook",
        placeholder=KEY,
        context=("hooks.slack.com/", "/webhooks/"),
        needs_random=True,
        pattern=re.compile(
            r"(?:hooks\.slack\.com/(?:services|workflows|triggers)/"
            r"|discord(?:app)?\.com/api/(?:v\d{1,2}/)?webhooks/)"
            r"(?P<secret>[TEA]\w{6,14}/[\w/]{24,80}|\d{16,20}/[\w-]{50,90})(?![\w/-])"
        ),
        check=_check_token,
    ),
    _token(
        "stripe_key",
        "k_live_ k_test_ whsec_",
        r"[sr]k_(?:live|test)_[A-Za-z0-9]{16,247}|whsec_[A-Za-z0-9]{32,64}",
    ),
    _token("google_api_key", "AIza", r"AIza[\w-]{35}"),
    _token("google_oauth", "GOCSPX- ya29.", r"GOCSPX-[\w-]{28}|ya29\.[\w-]{30,400}"),
    _token("anthropic_key", "sk-ant-", r"sk-ant-[a-z0-9]{3,12}-[\w-]{32,200}"),
    _token(
        "openai_key",
        "sk-",
        r"sk-(?:proj|svcacct|admin|None)-[\w-]{20,250}|sk-or-v1-[0-9a-f]{64}|sk-[A-Za-z0-9]{32,64}",
    ),
    _token("huggingface_token", "hf_ api_org_", r"(?:hf|api_org)_[A-Za-z0-9]{34}"),
    _token("npm_token", "npm_", r"npm_[A-Za-z0-9]{36}"),
    _token("pypi_token", "pypi-AgE", r"pypi-AgE[IN][\w-]{50,1000}"),
    _token("sendgrid_key", "SG.", r"SG\.[\w-]{22}\.[\w-]{43}"),
    _token("twilio_key", "SK", r"SK[0-9a-fA-F]{32}", context=("twilio", "Twilio", "TWILIO")),
    _token("mailgun_key", "key-", r"key-[0-9a-f]{32}"),
    Rule(
        name="mailgun_key",
        placeholder=KEY,
        context=("mailgun", "Mailgun", "MAILGUN"),
        near_random=True,
        pattern=re.compile(rf"{_OPEN}[0-9a-f]{{32}}-[0-9a-f]{{8}}-[0-9a-f]{{8}}{_CLOSE}"),
        check=_check_token,
    ),
    _token("telegram_token", ":AA", r"[0-9]{8,10}:AA[\w-]{33}"),
    Rule(
        name="discord_token",
        placeholder=KEY,
        context=("discord", "Discord", "DISCORD"),
        needs_random=True,
        pattern=re.compile(
            rf"{_OPEN}(?P<bot>[MNO][A-Za-z0-9_-]{{22,27}})\.[\w-]{{6}}\.[\w-]{{27,40}}{_CLOSE}"
        ),
        check=_check_discord,
    ),
    _token("digitalocean_token", "_v1_", r"do[opr]_v1_[a-f0-9]{64}"),
    _token("shopify_token", "shpat_ shpca_ shppa_ shpss_", r"shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}"),
    _token("square_token", "sq0 EAAA", r"sq0[a-z]{3}-[\w-]{22,43}|EAAA[\w-]{60}"),
    Rule(
        name="azure_key",
        placeholder=KEY,
        keywords=("AccountKey=", "dAccessKey="),
        pattern=re.compile(
            r"(?:AccountKey|SharedAccessKey)=(?P<secret>[A-Za-z0-9+/]{43,86}={1,2})"
            r"(?![A-Za-z0-9+/=])"
        ),
        check=_check_token,
    ),
    _token(
        "other_token",
        "dckr_pat_ rubygems_ lin_api_ PMAK- dapi gsk_ glsa_ hvs. NRAK- sntrys_ nfp_ xai- pplx- "
        "pul- r8_",
        r"dckr_pat_[\w-]{27}|rubygems_[a-f0-9]{48}|lin_api_[A-Za-z0-9]{40}"
        r"|PMAK-[a-f0-9]{24}-[a-f0-9]{34}|dapi[a-f0-9]{32}(?:-\d)?|gsk_[A-Za-z0-9]{52}"
        r"|glsa_[A-Za-z0-9]{32}_[A-Fa-f0-9]{8}|hvs\.[\w-]{90,120}|NRAK-[A-Z0-9]{27}"
        r"|sntrys_[A-Za-z0-9+/_=]{60,400}|nfp_[A-Za-z0-9]{36}|xai-[A-Za-z0-9]{80}"
        r"|pplx-[A-Za-z0-9]{48}|pul-[a-f0-9]{40}|r8_[A-Za-z0-9]{37}",
    ),
    Rule(
        name="jwt",
        placeholder=KEY,
        keywords=("eyJ",),
        pattern=re.compile(
            r"(?<![\w-])(?P<header>eyJ[\w-]{10,2000})\.[\w-]{4,8000}\.[\w-]{10,2000}(?![\w-])"
        ),
        check=_check_jwt,
    ),
    Rule(
        name="url_password",
        placeholder=PASSWORD,
        anchor="://",
        pattern=re.compile(
            r"://(?<=[A-Za-z0-9]://)(?P<user>[^\s/:@\"'<>()]{0,64}):"
            r"(?P<secret>[^\s/\"'<>(),;\[\]{}]{1,128})@(?P<host>[A-Za-z0-9_.-]{1,253}|\[[0-9a-fA-F:.]{2,45}\])"
        ),
        check=_check_url,
    ),
    Rule(
        name="bearer",
        placeholder=KEY,
        near_random=True,
        pattern=re.compile(
            r"(?<![A-Za-z0-9])(?:[Bb]earer|[Bb]asic|[Tt]oken)[ \t]{1,4}"
            r"(?P<secret>[A-Za-z0-9+/_.~-]{20,1000}={0,2})(?![A-Za-z0-9])"
        ),
        check=_check_bearer,
    ),
    Rule(
        name="password",
        placeholder=PASSWORD,
        near_random=True,
        pattern=_ASSIGNED,
        check=_check_password,
    ),
    Rule(
        name="password",
        placeholder=PASSWORD,
        near_random=True,
        pattern=_LINE,
        check=_check_password,
    ),
    Rule(name="secret", placeholder=KEY, near_random=True, pattern=_ASSIGNED, check=_check_secret),
    Rule(name="secret", placeholder=KEY, near_random=True, pattern=_LINE, check=_check_secret),
    Rule(
        name="email",
        placeholder=EMAIL,
        anchor="@",
        pattern=re.compile(
            r"@(?P<host>(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,18})"
            r"(?![\w(\[]|:[0-9])"
        ),
        check=_check_email,
    ),
)


# -------------------------------------------------------------------------------------- search

_LONG_RUN = 20
_FOUR_WORDS = np.frombuffer(b"wwww", np.uint32)[0]
_WORD, _OTHER, _QUOTE, _PLAIN, _GAP = b"w", b" ", b'"', b"c", b" "
_WORD_CHARACTERS = frozenset((string.ascii_letters + string.digits + "_-+/").encode())
_WORDS = b"".join(_WORD if code in _WORD_CHARACTERS else _OTHER for code in range(256))
# White space, controls and backslashes end a literal that may be a secret.
_LITERALS = b"".join(
    _QUOTE if code in b"\"'`" else _PLAIN if 32 < code < 127 and code != ord("\\") else _GAP
    for code in range(256)
)


class _Surface(NamedTuple):
    """What of a document decides which rules are tried on it.

    Attributes:
        runs: its long runs of token characters, a little around them as well, joined.
        near_random: the spans around literals that look random, in order and disjoint.
    """

    runs: str
    near_random: list[Span]


def _surface(text: str, recipe: Redaction) -> _Surface:
    codes = text.encode("ascii", "replace")
    runs: list[str] = []
    random_spans: list[Span] = []
    shape = codes.translate(_WORDS)
    # Four characters at once: wherever it starts, a run of 20 holds four whole blocks of four.
    blocks = np.frombuffer(shape, np.uint32, len(shape) // 4) == _FOUR_WORDS
    in_run = blocks[:-3] & blocks[1:-2] & blocks[2:-1] & blocks[3:]
    end = 0
    for at in (np.flatnonzero(in_run) * 4).tolist():
        if at < end:
            continue  # of the run before
        start = shape.rfind(_OTHER, end, at) + 1 or end
        end = shape.find(_OTHER, at)
        end = len(shape) if end < 0 else end
        if end - start < _LONG_RUN:
            continue
        has_digit = _DIGIT.search(text, start, end)
        if not has_digit and text[start:end].islower():
            continue  # a name: the most of them
        runs.append(text[max(0, start - 12) : end + 2])
        if has_digit and _may_be_random(text[start:end]):
            random_spans.append((start, end))
    quoted = re.compile(rb'"c{%d,1000}(?=")' % max(1, recipe.min_length))
    for literal in quoted.finditer(codes.translate(_LITERALS)):
        start, end = literal.span()
        if _DIGIT.search(text, start, end) and _may_be_random(text[start + 1 : end]):
            random_spans.append((start, end + 1))
    return _Surface("\n".join(runs), _around(text, random_spans))


def _may_be_random(value: str) -> bool:
    return _is_mixed(value) and not _is_wordlike(value)


def _around(text: str, spans: list[Span]) -> list[Span]:
    """The spans with the names they may be assigned to, and to the end of the line."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        low = text.rfind("\n", max(0, start - 160), start) + 1 or max(0, start - 160)
        if text[low:start].isspace():  # a value alone on its line: its name is on the one before
            low = max(0, start - 160)
        high = text.find("\n", end, end + 400)
        high = min(len(text), end + 400) if high < 0 else high
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return merged


_PARTS = frozenset(("", *" \t\r\n\"'<>(),;[]{}"))


class _Finding(NamedTuple):
    start: int
    priority: int
    end: int


def _has_any(text: str, words: tuple[str, ...]) -> bool:
    for word in words:  # noqa: SIM110 - half as long as any() with a generator
        if word in text:
            return True
    return False


_Matches: TypeAlias = dict[re.Pattern[str], list[re.Match[str]]]


def _candidates(
    rule: Rule, text: str, surface: _Surface, matches: _Matches
) -> Iterator[re.Match[str]]:
    """The places where a rule's pattern matches, none without looking where its literals lack.

    `matches` keeps those near random literals, for the rules that share a pattern.
    """
    if rule.near_random:
        near = surface.near_random
        if near and rule.pattern not in matches:
            matches[rule.pattern] = [
                match for low, high in near for match in rule.pattern.finditer(text, low, high)
            ]
        if near and (not rule.context or _has_any(text, rule.context)):
            yield from matches[rule.pattern]
        return
    if rule.keywords and not _has_any(surface.runs, rule.keywords):
        return
    if rule.needs_random and not surface.near_random:
        return
    if rule.context and not _has_any(text, rule.context):
        return
    if not rule.anchor:
        yield from rule.pattern.finditer(text)
        return
    at = text.find(rule.anchor)
    while at >= 0:
        if found := rule.pattern.match(text, at):
            yield found
        at = text.find(rule.anchor, at + 1)


def _findings(text: str, recipe: Redaction) -> list[_Finding]:
    surface = _surface(text, recipe)
    matches: _Matches = {}
    found: list[_Finding] = []
    for priority, rule in enumerate(RULES):
        if not (recipe.emails if rule.placeholder == EMAIL else recipe.secrets):
            continue
        for match in _candidates(rule, text, surface, matches):
            span = rule.check(match, recipe) if rule.check else _span(match)
            if span:
                found.append(_Finding(span[0], priority, span[1]))
    return sorted(found)


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
        for start, priority, end in found:
            if start < done:  # within one that is replaced already, or over its end
                searching |= end > done
                continue
            rule = RULES[priority]
            counts[rule.name] = counts.get(rule.name, 0) + 1
            pieces += (text[done:start], rule.placeholder)
            done = end
            searching |= text[start - 1 : start] not in _PARTS or text[end : end + 1] not in _PARTS
        pieces.append(text[done:])
        text = "".join(pieces)
    return text, counts


# ---------------------------------------------------------------------------------- self check

_LOWER_HEX = "0123456789abcdef"
_BASE62 = string.ascii_letters + string.digits
_BASE64 = _BASE62 + "+/"
_UPPER = string.ascii_uppercase + "234567"


def _examples() -> Iterator[tuple[str, str, str]]:
    """(rule, text, the secret within), each rule's at least two.

    The values are drawn here, and the prefixes put together, so that no scanner finds this file.
    """
    draw = random.Random(20230824)

    def some(size: int, alphabet: str = _BASE62) -> str:
        return "".join(draw.choices(alphabet, k=size))

    def encoded(value: str) -> str:
        return base64.urlsafe_b64encode(value.encode()).decode().rstrip("=")

    def block(kind: str, end: str = "\n", lines: int = 8, note: str = "") -> str:
        body = end.join(some(64, _BASE64) for _ in range(lines))
        mark = "-" * 5
        return f"{mark}BEGIN {kind}{mark}{end}{note}{body}{end}{mark}END {kind}{mark}"

    key = "PRIVATE " + "KEY"
    for kind in ("", "RSA ", "EC ", "DSA ", "OPENSSH ", "ENCRYPTED "):
        pem = block(kind + key)
        yield "private_key", f'KEY = """{pem}\n"""\n', pem
    pem = block(f"PGP {key} BLOCK", note="Version: GnuPG v2\n\n")
    yield "private_key", pem + "\n", pem
    pem = block(f"RSA {key}", note="Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,0A1B\n\n")
    yield "private_key", pem + "\n", pem
    pem = block(key, "\\n")
    yield "private_key", json.dumps({"private_" + "key": "@"}).replace("@", pem), pem
    pem = block(key, '\\n"\n    "', lines=3)
    yield "private_key", f'key = (\n    "{pem}\\n"\n)\n', pem
    pem = block(key).rpartition("\n")[0]
    yield "private_key", f"{pem}\n", pem  # cut off
    for count in (1, 4):
        body = "\n".join(some(64, _BASE64) for _ in range(count))
        yield "putty_key", f"Private-Lines: {count}\n{body}\nPrivate-MAC: 00\n", body
    tokens: list[tuple[str, str]] = [
        *(("age_key", "AGE-SECRET-" + "KEY-1" + some(58, _UPPER)) for _ in range(2)),
        ("aws_key_id", "AK" + "IA" + some(16, _UPPER)),
        ("aws_key_id", "AS" + "IA" + some(16, _UPPER)),
        *(("github_token", f"gh{kind}_" + some(36)) for kind in "pousr"),
        ("github_token", "github_" + "pat_" + some(22) + "_" + some(59)),
        *(("gitlab_token", f"gl{kind}-" + some(20)) for kind in ("pat", "dt", "rt", "ptt")),
        ("gitlab_token", "gl" + "pat-" + some(27) + ".01." + some(9, _LOWER_HEX)),
        *(
            ("slack_token", f"xox{kind}-{draw.randrange(10**10, 10**11)}-{some(24)}")
            for kind in "bpar"
        ),
        ("slack_token", f"xa{'pp'}-1-A0{some(9, _UPPER)}-123450987654-{some(64, _LOWER_HEX)}"),
        *(("stripe_key", f"{kind}_" + some(24)) for kind in ("sk_live", "rk_live", "sk_test")),
        ("stripe_key", "wh" + "sec_" + some(32)),
        *(("google_api_key", "AI" + "za" + some(35)) for _ in range(2)),
        ("google_oauth", "GOC" + "SPX-" + some(28)),
        ("google_oauth", "ya" + "29." + some(60)),
        ("anthropic_key", "sk-" + "ant-api03-" + some(93) + "AA"),
        ("anthropic_key", "sk-" + "ant-admin01-" + some(93) + "AA"),
        ("openai_key", "sk-" + "proj-" + some(64)),
        ("openai_key", "sk-" + some(20) + "T3Blbk" + "FJ" + some(20)),
        ("openai_key", "sk-" + some(32, _LOWER_HEX)),
        *(("huggingface_token", "h" + "f_" + some(34, string.ascii_letters)) for _ in range(2)),
        *(("npm_token", "np" + "m_" + some(36)) for _ in range(2)),
        *(("pypi_token", "py" + "pi-AgEI" + some(90)) for _ in range(2)),
        *(("sendgrid_key", "S" + "G." + some(22) + "." + some(43)) for _ in range(2)),
        *(("mailgun_key", "ke" + "y-" + some(32, _LOWER_HEX)) for _ in range(2)),
        *(("telegram_token", "712345098:A" + "A" + some(33)) for _ in range(2)),
        *(("digitalocean_token", f"do{k}_" + "v1_" + some(64, _LOWER_HEX)) for k in "por"),
        *(("shopify_token", f"shp{k}_" + some(32, _LOWER_HEX)) for k in ("at", "ca", "pa", "ss")),
        ("square_token", "sq0" + "atp-" + some(22)),
        ("square_token", "sq0" + "csp-" + some(43)),
        ("square_token", "EA" + "AA" + some(60)),
        ("other_token", "dckr_" + "pat_" + some(27)),
        ("other_token", "gs" + "k_" + some(52)),
        ("other_token", "da" + "pi" + some(32, _LOWER_HEX)),
        *(
            ("jwt", ".".join((encoded(header), encoded('{"sub":"1234"}'), some(43))))
            for header in ('{"alg":"HS256","typ":"JWT"}', '{"typ":"JWT","alg":"RS256"}')
        ),
    ]
    around = ("client = Client('{}')\n", "# was {}, rotate it\n", "TOKEN={}\n", '{{"x": "{}"}}\n')
    for (rule, value), text in zip(tokens, itertools.cycle(around)):
        yield rule, text.format(value), value
    for service, rule, value in (
        ("twilio", "twilio_key", "S" + "K" + some(32, _LOWER_HEX)),
        ("Twilio", "twilio_key", "S" + "K" + some(32, _LOWER_HEX)),
        ("mailgun", "mailgun_key", f"{some(32, _LOWER_HEX)}-{some(8, _LOWER_HEX)}-0a1b2c3d"),
        ("discord", "discord_token", f"{encoded('902873645019283746')}.G{some(5)}.{some(38)}"),
        ("discord", "discord_token", f"{encoded('412873645019283741')}.Y{some(5)}.{some(27)}"),
    ):
        yield rule, f"import {service}\nconnect('{value}')\n", value
    for text in (
        "aws_" + "secret_access_key = {}\n",
        '  "Secret' + 'AccessKey": "{}", // aws\n',
        "AWS.config.update({{ secret" + "AccessKey: '{}' }});\n",
    ):
        value = some(40, _BASE64)
        yield "aws_secret", text.format(value), value
    value = "T0" + some(8, _UPPER) + "/B0" + some(8, _UPPER) + "/" + some(24)
    yield "webhook", f'post("https://hooks.slack.com/services/{value}")\n', value
    value = "902873645019283746/" + some(68)
    yield "webhook", f"URL: https://discord.com/api/webhooks/{value}\n", value
    for name, size in (("Account", 86), ("SharedAccess", 43)):
        value = some(size, _BASE64) + "=" * (-size % 4)
        yield "azure_key", f'"Endpoint=https://n.net/;{name}' + f'Key={value};Suffix=x"\n', value
    for url in ("postgres://shop:{}@db.shop.io:5432/x", "https://ci:{}@git.shop.io/a.git"):
        for value in (some(9), "correct-horse-" + some(4, string.digits)):
            yield "url_password", f'DATABASE_URL = "{url.format(value)}"\n', value
    for text in ('headers = {{"Authorization": "Bearer {}"}}\n', "curl -H 'X-Auth: Token {}' x\n"):
        value = some(40)
        yield "bearer", text.format(value), value
    for text in (
        'db_password = "{}"\n',
        "  password: '{}',\n",
        '"Passwd" => "{}",\n',
        'String pass_word = "{}";\n',
        "define('DB_PASSWORD', '{}');\n",
        "SMTP_PASSWORD={}\n",
        '<add key="AdminPassword" value="{}" />\n',
    ):
        value = some(20)
        yield "password", text.format(value), value
    for text in (
        'api_key = "{}"\n',
        "const clientSecret: string = '{}';\n",
        '{{"auth_token": "{}"}}\n',
        "  secret_key_base: {}\n",
        "export API_TOKEN={}\n",
        'config["apiKey"] := `{}`\n',
        'os.environ["MY_SECRET"] = "{}"\n',
        "ENCRYPTION_KEY = b'{}'\n",
        "$config['consumer_secret'] = '{}';\n",
        'let access_token =\n    "{}";\n',
    ):
        for alphabet in (_BASE62, _LOWER_HEX):
            value = some(32, alphabet)
            yield "secret", text.format(value), value
    host = "@kernel-mail" + ".org"
    for text in (
        "# Author: Joe Doe <{}>\n",
        "__email__ = '{}'\n",
        " * @author {} 2019\n",
        "mailto:{}\n",
        "Reported-by: J. Doe ({}).\n",
        "联系：{}。\n",
    ):
        value = draw.choice(("joe", "j.doe+x", "JOE_DOE", "joe-doe99")) + host
        yield "email", text.format(value), value


# Code that has the look of a secret or an address and is none: it must come through unchanged.
_INNOCENT: tuple[str, ...] = (
    "",
    "x = a@b\n",
    "y = W1@x.T + b1\n",
    "scores = q@k.transpose(-2, -1)\n",
    "out = (attn@v.reshape(n, d))@self.net.weight\n",
    "z = self.a@self.net\n",
    "@app.route('/login')\n@functools.wraps(f)\ndef login(): ...\n",
    "@pytest.mark.parametrize('x', [1])\n",
    "npm install foo@1.2.3 @types/node@20.1.0 lodash@^4.17.21\n",
    '"@babel/core@^7.0.0", "@babel/core@npm:7.1.0":\n',
    "uses: actions/checkout@v4.1.1\n",
    "background: url(icon@2x.png); /* logo@3x.jpeg */\n",
    "git clone git@github.com:owner/project.git\n",
    "url = ssh://git@gitlab.com/owner/project.git\n",
    "hg clone ssh://hg@bitbucket.org/a/b\n",
    "mail('user@example.com'); mail('a@mail.example.org'); mail('b@x.example.net')\n",
    "to = 'root@localhost', 'me@host.test', 'me@nowhere.invalid', 'me@printer.local'\n",
    "From: noreply@github.com, no-reply@accounts.google.com, do-not-reply@bank.com\n",
    "Co-authored-by: x <123+x@users.noreply.github.com>\n",
    "this@MainActivity.name; return@launch.info\n",
    "systemctl start getty@tty1.service\n",
    "sprintf('%s@%s.com', user, host)\n",
    'address = f"{user}@{domain}.com"\n',
    "https://medium.com/@someone.name/a-title\n",
    "EMAIL = re.compile(r'[^@]+@[^@]+\\.[^@]+')\n",
    "docker pull image@sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\n",
    'password = "changeme"\n',
    'password = "correct horse battery staple"\n',
    'PASSWORD = os.environ["DB_PASSWORD_PRODUCTION_2"]\n',
    'password: "${DB_PASSWORD_2_PRODUCTION}"\n',
    'password = "{{ vault_db_password_2 }}"\n',
    'api_key = "YOUR_API_KEY_HERE_1234"\n',
    'api_key = "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx1"\n',
    'api_key = "<insert-your-api-key-2>"\n',
    'token = "00000000000000000000000000000000"\n',
    'secret = "this-is-not-a-real-secret-2"\n',
    'SECRET_KEY = "django-insecure-example-key-1"\n',
    "AWS_ACCESS_KEY_ID = '" + "AKIA" + "IOSFODNN7EXAMPLE'\n",
    "AWS_SECRET_ACCESS_KEY = '" + "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY'\n",
    'token_url = "https://login.microsoftonline.com/common/oauth2/v2.0/token"\n',
    'auth_backend = "django.contrib.auth.backends.ModelBackend2"\n',
    'password_hasher = "pbkdf2_sha256_iterations_600000"\n',
    'TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount2/token"\n',
    'tokenizer = Tokenizer("gpt2-medium-345M-v2-bpe-50257")\n',
    'token_type = "urn:ietf:params:oauth:token-type:saml2"\n',
    'author = "a1B2c3D4e5F6g7H8i9J0"\n',
    'secret_hash = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"\n',
    'public_key = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE1f2a3b4c5d6e7f8g9h0i"\n',
    'commit = "da39a3ee5e6b4b0d3255bfef95601890afd80709"\n',
    '"integrity": "sha512-9k1Vn7rQ2cXz8LwTf3BaYe5HdGu6JpMs4RoNi0KxWbZtCvEy=="\n',
    'wheel = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"\n',
    "checksum = e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n",
    'id = "123e4567-e89b-12d3-a456-426614174000"\n',
    "task-scheduler-with-a-very-long-name-and-more-words-2\n",
    "sk-learn-contrib-project-with-long-names-and-words\n",
    "risk-management-framework-for-artificial-intelligence\n",
    "def hf_hub_download_with_retries_and_progress_bars(): ...\n",
    "npm_config_registry_with_a_long_name_for_the_variables=1\n",
    "ghp_" + "x" * 36 + "\n",
    "glpat-" + "your-token-goes-here\n",
    "xoxb-" + "your-bot-token-here-please\n",
    "sk_test_" + "your_stripe_test_key_here\n",
    "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\n-----END PUBLIC KEY-----\n",
    "if '-----BEGIN RSA " + "PRIVATE KEY-----' in text:\n    raise ValueError('a key')\n",
    "-----BEGIN " + "PRIVATE KEY-----\n...\n-----END " + "PRIVATE KEY-----\n",
    "postgres://user:password@localhost:5432/db\n",
    "redis://:${REDIS_PASSWORD}@redis:6379/0\n",
    "mysql://root:root@127.0.0.1/test\n",
    "https://user:pass@example.com/path\n",
    "https://{user}:{password}@{host}/\n",
    "http://proxy.company.com:8080/x@y\n",
    "scheme://user:<password>@host/\n",
    "eyJ.is.not.a.token and eyJhbGciOiJ is none either\n",
    "img = 'data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk'\n",
    "if token == 'NUMBER' or token.type == tokenize.NAME: pass\n",
    "csrf_token = get_token(request)\n",
    "password = getpass.getpass('Password: ')\n",
    "def authenticate(username, password, *, token=None, secret='') -> bool: ...\n",
    "headers['Authorization'] = f'Bearer {token}'\n",
    "Authorization: Bearer <token>\n",
    "basic_authentication_with_many_words_and_2_numbers\n",
    "from cryptography.hazmat.primitives.ciphers.aead import AESGCM\n",
    'client_secret_file = "client_secret_4f5a9b2c7d1e8f3a.json"\n',
    "SECRET_LENGTH = 32\nTOKEN_EXPIRES_IN = 3600\n",
    "T0000000/B0000000/XXXXXXXXXXXXXXXXXXXXXXXX\n",
    "// eslint-disable-next-line @typescript-eslint/no-explicit-any\n",
    "Привет, мир: пароль = «секрет»; 密码 = '密码密码密码密码密码密码'\n",
)


def self_check() -> list[str]:
    """What is wrong with the rules as shipped, by their examples; empty when all is well.

    No problem quotes a value.
    """
    problems: list[str] = []
    seen: Counter[str] = Counter()
    for number, (rule, text, secret) in enumerate(_examples()):
        assert text.count(secret) == 1
        seen[rule] += 1
        clean, counts = redact(text)
        if secret in clean:
            problems.append(f"example {number}, of {rule}: not found")
        elif counts != {rule: 1}:
            problems.append(f"example {number}, of {rule}: found as {counts}")
        else:
            before, after = text.split(secret)
            placeholder = next(r.placeholder for r in RULES if r.name == rule)
            if clean != before + placeholder + after:
                problems.append(f"example {number}, of {rule}: more or less than the value went")
        if redact(clean) != (clean, {}):
            problems.append(f"example {number}, of {rule}: the clean text has findings")
    problems += [
        f"{rule.name}: {seen[rule.name]} examples, two needed"
        for rule in RULES
        if seen[rule.name] < 2
    ]
    for number, text in enumerate(_INNOCENT):
        clean, counts = redact(text)
        if clean is not text or counts:
            problems.append(f"innocent code {number} is changed: {counts}")
    return problems
