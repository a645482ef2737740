"""E-mail addresses, as opposed to the many other things that are written with an `@`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .findings import EMAIL, Document, Finding, Redaction, words

_HOST = re.compile(
    r"@(?P<host>(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,18})"
    r"(?![\w(\[]|:[0-9])"
)


def find(document: Document, recipe: Redaction) -> Iterator[Finding]:
    """Every address that may be a person's."""
    text = document.text
    at = text.find("@")
    while at >= 0:
        if (match := _HOST.match(text, at)) and (span := _check_email(match, recipe)):
            yield Finding(*span, "email", EMAIL)
        at = text.find("@", at + 1)


# The general top-level domains that addresses in code are met under, and every country's. All of
# the 1,400 there are would let in `a@b.zip`, `x@y.map` and the like.
_TOP_LEVEL = words(
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
_EXTENSIONS = words("cc md ml mm pm ps py rs sh")
_LOCAL = re.compile(r"[A-Za-z0-9_+%-][A-Za-z0-9_.+%-]{0,63}")
_ROLE = re.compile(
    r"(?:.*[+._-])?(?:no|do)[._-]?not[._-]?reply|.*no[._-]?reply.*|git|hg|svn|cvs|gitolite|gitea|forgejo"
    r"|mailer-daemon|org-\d+|this|super|return|break|continue",
    re.IGNORECASE,
)
_CODE_HOST = words("self cls this np torch tf jnp model")


# SSH names its extensions `name@host` of who made them (RFC 4251, section 6).
_PROTOCOL_HOSTS = words(
    """
    openssh.com libssh.org libssh2.org ssh.com lysator.liu.se vandyke.com matt.ucc.asn.au
    putty.projects.tartarus.org tinyssh.org bitvise.com
    """
)
_MESSAGE_ID_FIELD = re.compile(
    r"(?:message-?id|in-reply-to|references|msg-?id|\bmid)[\"']?[:=]?[\s\"'(]{0,4}(?:<[^<>\n]{1,200}>\s{1,4}){0,20}(?:<[^<>\s]{0,80})?$"
    r"|https?://[^\s<>\"']{3,200}/$",
    re.IGNORECASE,
)
# As mail programs make them: a date of eight digits or more with a point, or a long random text.
_MESSAGE_ID = re.compile(
    r"(?=.*[.-])(?:.*[.-])?(?:19|20)\d{6,15}[.-].+|CA[\w+=-]{30,}|\d{9,}[.-]\d+.*|.+\.fsf(?:_-_)?"
    r"|[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|[0-9a-f]{24,}",
    re.IGNORECASE,
)


def _is_message_id(text: str, start: int, local: str) -> bool:
    """Whether an address is the identifier of a message (RFC 5322, 3.6.4) and not a mailbox."""
    if _MESSAGE_ID_FIELD.search(text[max(0, start - 240) : start]):
        return True
    return _MESSAGE_ID.fullmatch(local) is not None


_USER_INFO = re.compile(r"://[^\s/@:]{0,64}:[^\s/@]{0,10}$")


def is_reserved(host: str) -> bool:
    """Whether a host is one of RFC 2606 and RFC 6761, or by its name an example."""
    labels = host.rstrip(".").split(".")
    return labels[-1] in ("example", "invalid", "localhost", "test", "local") or (
        "example" in labels[-3:]
    )


def _check_email(match: re.Match[str], recipe: Redaction) -> tuple[int, int] | None:
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
        or is_reserved(host.lower())
        or "noreply" in host.lower()
        or host.lower() in _PROTOCOL_HOSTS
        or _is_message_id(text, start, local)
        or any(
            address.endswith(kept.lower()) if kept[:1] == "@" else address == kept.lower()
            for kept in recipe.keep_emails
        )
    ):
        return None
    return start, match.end()
