"""Values that are secret by the name they are given to: `db_password`, `apiKey`, `APP_KEY`.

Every name that says so is found first; what follows it is then read as the languages write it:

    quoted    name = "value", "name": 'value', define('NAME', 'value'), {\\"name\\": \\"value\\"}
    paired    name: NAME, value: value; variable "name" { default = "value" }
    element   <name>value</name>, <string name="name">value</string>, <key>name</key><string>...
    bare      NAME=value, name: value # comment, {name: value}, ...;Name=value;..., ?name=value&
              --name value, "Name: value", machine HOST login USER password value

A value fills its quotes, or ends where what it stands in ends. It is a finding if it looks random
(`randomness.looks_secret`), whatever characters it holds, or if the name is certain and a person
could have chosen it (`chosen.looks_chosen`).
"""

from __future__ import annotations

import ast
import functools
import re
import string
import warnings
from collections.abc import Iterator

from .chosen import is_sure_name, looks_chosen
from .findings import KEY, PASSWORD, Document, Finding, Redaction, words
from .randomness import UUID, entropy, looks_secret, randomness

# ------------------------------------------------------------------------------------------- names

_KEYWORDS = (
    *(b"key", b"token", b"secret", b"pass", b"pw", b"cred", b"auth", b"salt", b"psk", b"_pat"),
    b"bearer",
)
_NAME_CHARACTERS = string.ascii_letters + string.digits + "_$.-"
_NAME_LENGTH = 60
_REST_OF_NAME = re.compile(r"[\w$.-]{0,60}")
_AFTER_NAME = frozenset("=:\"'`\\)]>,( \t<;?\r\n")

_SECRET_NAME = re.compile(
    r"secret|token|api_?key|(?:access|auth|private|encryption|encrypt|decryption|signing|signature"
    r"|master|account|app|application|client|consumer|customer|service|hmac|aes|crypto|cipher|session"
    r"|jwt|deploy|storage|shared|subscription|license|admin|aws|bot|cookie|salt|nonce|logged_in"
    r"|secure|machine|function|host|webhook|license|preshared|role|primary|secondary)_?key"
    r"|credential|(?:^|_)auth(?:_?code)?$|bearer|(?:auth|nonce|logged_in)_salt|authorization"
    r"|(?:^|_)psk$|[a-z]_pat$|(?:^|_)key_?(?:secret|base)"
)
_PASSWORD_NAME = re.compile(
    r"pass_?w(?:or)?[dt]|passphrase|pass_?code|(?:^|_)(?:pwd|pass|pw)(?:_|$)|(?:db|sql|user|root|ssh)pass$"
    r"|pwd$|^(?:requirepass|masterauth|bindpw|rootpw)$"
)
# Names of what goes with a secret but is none, and of what everybody may see.
_OPEN_NAME = re.compile(
    r"public|publish|spdx|(?:^|_)(?:test_?)?(?:hash|sha\d*|digest|md5|checksum|fingerprint|ids?|name|url"
    r"|uri|path|file|dir|type|regex|pattern|re|field|header|param|prefix|suffix|label|class|format"
    r"|length|size|algorithm|alg|method|endpoint|scope|version|placeholder|message|msg|error|hint"
    r"|kind|list|index|manager|count|position|pos|text|str_?hash|arn|etag|expir\w*|addr(?:ess)?"
    r"|contract|mint|integrity|model|selector|icon|image|img|title|description|comment|help)$"
    r"|tokeni[sz]|token_?type|token_?addr|contract_?addr"
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SURE_NAME = re.compile(r"api_?key|secret|passw|pwd|access_?key|private|auth_?token|credential")


def _plain(name: str) -> str:
    """A name in the form that the expressions above read: `clientSecret` as `client_secret`."""
    return _CAMEL.sub("_", name).replace("-", "_").replace(".", "_").strip("_$").lower()


@functools.lru_cache(maxsize=4096)
def _rule_of(name: str) -> str | None:
    """`password` or `secret` for a name that says so, None for another."""
    plain = _plain(name)
    if _OPEN_NAME.search(plain):
        return None
    if _PASSWORD_NAME.search(plain):
        return "password"
    return "secret" if _SECRET_NAME.search(plain) else None


def _names(document: Document) -> Iterator[tuple[int, int]]:
    """The spans of names that hold a keyword and that something may be assigned to."""
    text, lower = document.text, document.lower
    size = len(text)
    seen: set[int] = set()
    for keyword in filter(document.may_hold, _KEYWORDS):
        at = lower.find(keyword)
        while at >= 0:
            match = _REST_OF_NAME.match(text, at)
            end = match.end() if match else at
            if end < size and text[end] in _AFTER_NAME and end not in seen:
                seen.add(end)
                while end > at and text[end - 1] in ".-$":
                    end -= 1
                head = text[max(0, at - _NAME_LENGTH) : at]
                start = at - len(head) + len(head.rstrip(_NAME_CHARACTERS))
                if end - start <= _NAME_LENGTH and text[max(0, start - 2) : start] != "::":
                    yield start, end
            at = lower.find(keyword, max(end, at + 1))


# ------------------------------------------------------------------------------------------ values

_STRING = (
    r"""(?P<quote>["'`])(?P<secret>(?:[^\\\n"'`]|\\.|(?!(?P=quote))["'`]){8,1000})(?P=quote)"""
)
_QUOTED = re.compile(
    rf"""(?P<close>["'`]?)\)?\]?
    (?P<sign>\s{{0,8}}(?:={{1,3}}>?|!==?|:=|\?=|\+=|\|\|=|\?\?=
         |<-|[ ](?:\*?string|\[\]byte)[ ]{{0,4}}=(?!=)
         |:(?!:)(?:\s{{0,4}}[&A-Za-z][\w.<>\[\]|&' ?]{{0,40}}=(?!=))?)
       |,[ ]{{0,4}}|\(|[ \t]{{1,4}}\|[ \t]{{1,4}}|[ \t]{{1,4}})
    \s{{0,40}}(?:[$@A-Za-z]{{1,2}}(?=["'`]))?\(?{_STRING}""",
    re.VERBOSE,
)
_ESCAPED = re.compile(
    r"""(?:\\+["'])?[ ]{0,4}(?::|=>|=|,)[ ]{0,4}
    (?P<quote>\\+["'])(?P<secret>[^\s"']{8,1000}?)(?P=quote)""",
    re.VERBOSE,
)
_PAIRED = re.compile(
    rf"""["'`]?(?:\s{{0,4}}[,;]?\s{{0,40}}["'`]?(?:[Pp]arameter|default|Default)?_?[Vv]alue["'`]?\s{{0,4}}[:=]
      |\s{{0,4}}\{{[^{{}}]{{0,200}}?\bdefault\s{{0,8}}=
      |[ ]{{0,4}}:[ ]{{0,4}}[>|][-+]?[ ]{{0,4}}\n[ ]{{1,40}})
    \s{{0,4}}(?:{_STRING}|(?P<bare>[^\s"'`<>,;{{}}]{{8,1000}}))""",
    re.VERBOSE,
)
_ELEMENT = re.compile(
    r"""(?:["'][^<>\n]{0,80})?>\s{0,40}(?:<value>\s{0,40})?(?:<!\[CDATA\[(?P<data>[^\s]{8,1000}?)\]\]>|(?P<secret>[^\s<>]{8,1000}))\s{0,40}</"""
)
_PLIST = re.compile(
    r"</(?:key|name)>\s{0,40}<(?:string|value)>\s{0,40}(?P<secret>[^\s<>]{8,1000})\s{0,40}</", re.I
)
_BARE = re.compile(
    r"""(?P<close>["'`]?\)?\]?)
    (?P<sign>[ \t]{0,8}(?:=>|:=|\?=|=(?!=[\s=])|:(?!:))[ \t]{0,8}|[ \t]{1,4})
    (?P<secret>\S{8,1000})(?P<rest>[^\n]{0,2}(?:[^\n]{0,80}$)?)""",
    re.VERBOSE | re.MULTILINE,
)
_ARGUMENT = re.compile(r"(?P<close>)(?P<sign>=|[ \t]{1,4})(?P<secret>\S{8,1000})(?P<rest>)")
_SETS = re.compile(
    r"\b(?:ENV|ARG|setx?|setenv|export|set -[a-zA-Z]+|config set|secret set)\s{1,4}$"
)
_DIRECTIVES = words("requirepass masterauth bindpw rootpw")  # of Redis, LDAP, kickstart
_ACCOUNT = re.compile(r"\b(?:machine|login|default|account)\s")
_LINE_HEAD = re.compile(
    r"[\s>#/*;|!:-]*(?:(?:export|ENV|ARG|setx?|const|let|var|val|final|static|public|private|def"
    r"|declare|local|readonly)\s{1,4})*[\"'`:$@]?(?:env:)?"
)
_COMMENT = re.compile(r"\s*(?:$|#|;|//|--|\\$|,\s*$|<!--)")


def _quoted(text: str, start: int, end: int) -> tuple[int, int] | None:
    match = _QUOTED.match(text, end)
    if match is None:
        match = _ESCAPED.match(text, end) if text[end] in "\\:= " else None
        return match.span("secret") if match else None
    sign = match["sign"]
    # A quoted name and a value after a comma are a call's two arguments, or items of any list.
    if sign[0] == "," and not (match["close"] and text[max(0, start - 2) : start - 1] == "("):
        return None
    if sign[0] == "(" and match["close"]:
        return None
    if sign.isspace() and (match["close"] or text[start:end].lower() == "pass"):
        return None
    return match.span("secret")


def _marked(text: str, start: int, end: int) -> tuple[int, int] | None:
    """A value beside its name: as a pair of name and value, or as an element's content."""
    opening = text.rfind("<", max(0, start - 120), start)
    within = opening >= 0 and text.find(">", opening, start) < 0
    for pattern, applies in (
        (_PAIRED, True),
        (_ELEMENT, within),
        (_PLIST, text.startswith("</", end)),
    ):
        if applies and (match := pattern.match(text, end)):
            group = next(
                name for name, value in match.groupdict().items() if value and name != "quote"
            )
            return match.span(group)
    return None


def _bare(text: str, start: int, end: int) -> tuple[int, int] | None:
    """A value without quotes, to where what it stands in ends; None where none may stand."""
    name = text[start:end]
    line = text.rfind("\n", max(0, start - 400), start) + 1 or max(0, start - 400)
    prefix = text[line:start]
    before = prefix[-1:]
    flag = name.startswith("-") and (not before or before.isspace() or before in "\"'")
    account = name in _DIRECTIVES and not prefix.strip()
    if name in ("password", "passwd"):
        account = _ACCOUNT.search(text, max(0, start - 200), start) is not None
    match = (_ARGUMENT if flag or account else _BARE).match(text, end)
    if match is None or match["secret"][:1] in "\"'`":
        return None
    sign = match["sign"].strip()
    low, high = match.span("secret")
    value = match["secret"]
    quote = next((q for q in "\"'`" if prefix.count(q) % 2), "")
    if match["close"][:1] in ('"', "'", "`") and match["close"][:1] == quote:
        quote = ""  # the name's own
    if not sign:
        if not (flag or account or _SETS.search(prefix)):
            return None
    elif match["sign"] in ("=", ":", ":=", "=>"):
        pass  # `name=value` anywhere
    else:
        head = _LINE_HEAD.fullmatch(prefix) is not None
        if head and not quote and not _COMMENT.match(match["rest"]):
            return None
        if not head and not quote and prefix.rstrip()[-1:] not in ("{", ",", "[", ":", ".", ""):
            return None
    end_of = _ends(value, before=before, prefix=prefix, sign=sign, quote=quote)
    return low, low + end_of if end_of else high


_NEXT_SETTING = re.compile(r";\s?(?:[A-Za-z][\w ]{1,30}=|[\"'`]|$)")
_NEXT_PARAMETER = re.compile(r"[&#\"'`<>)]|\\[nrt\"']")
_NEXT_ITEM = re.compile(r",[\w.\"'-]+[=:]|[},\])]+$|\}")


def _ends(value: str, *, before: str, prefix: str, sign: str, quote: str) -> int:
    """How much of a run without white space is the value."""
    cuts = [len(value)]
    if quote and (at := value.find(quote)) >= 0:
        cuts.append(at)
    if quote and (found := re.search(r"\\[nrt\"'](?![\w])|\\n", value)):
        cuts.append(found.start())
    if before in ("?", "&") or prefix.endswith(("&amp;", "\\u0026")):
        found = _NEXT_PARAMETER.search(value)
        cuts += [found.start()] if found else []
    if found := _NEXT_SETTING.search(value):
        cuts.append(found.start())
    opened = prefix.rstrip()[-1:]
    if opened in ("{", ",", "[", "("):
        found = re.search(r"[,}\]]", value) if ":" in sign else _NEXT_ITEM.search(value)
        cuts += [found.start()] if found else []
    elif found := re.compile(r",[A-Za-z][\w.-]{1,30}=").search(value, 8):
        cuts.append(found.start())
    if (at := value.find("</")) >= 0:
        cuts.append(at)
    end = min(cuts)
    return len(value[:end].rstrip(",;"))


_CALL = re.compile(r"[!&*~@$]{0,2}(?P<name>[A-Za-z_][\w.]*(?:(?:->|::|\?\.)\w+)*)[(\[{]")
_PLAIN = re.compile(r"[\w+/.~=-]+")
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")


def _is_code(value: str) -> bool:
    """Whether a value without quotes is rather an expression: a call, an index, arithmetic."""
    if _PLAIN.fullmatch(value):
        return False
    call = _CALL.match(value)
    if call and len(call["name"]) >= 3 and randomness(call["name"]) < 0:
        return True
    if "#" in value or sum(map(randomness, _IDENTIFIER.findall(value))) > 0:
        return False  # the names of expressions are words
    plain = value.rstrip(",;:").replace("->", ".").replace("::", ".").replace("?.", ".")
    plain = plain.replace("&&", "&").replace("||", "|").replace("!", "~").replace("$", "")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(plain.strip("~"), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


# ----------------------------------------------------------------------------------------- findings


def _is_chosen(document: Document, name: str, rule: str, span: tuple[int, int], bare: bool) -> bool:
    """Whether a value is a person's password; the names of an expression occur elsewhere too."""
    value = document.text[slice(*span)]
    before = document.text[max(0, span[0] - len(name) - 2) : span[0]]
    if bare and before == f":{name}:":
        return False  # a part of a longer name, as ARNs have: `arn:aws:...:secret:Name-a1b2c3`
    if not is_sure_name(_plain(name)) or not looks_chosen(value, phrases=rule == "password"):
        return False
    if not bare or not (_IDENTIFIER.fullmatch(value) or _is_code(value)):
        return True
    names = _IDENTIFIER.findall(value)
    return not _CALL.match(value) and all(document.names[name] == 1 for name in names)


def find(document: Document, recipe: Redaction) -> Iterator[Finding]:
    """Every value that looks random, or chosen, and is assigned to a name that is a secret's."""
    text = document.text
    for start, end in _names(document):
        name = text[start:end]
        rule = _rule_of(name)
        if rule is None:
            continue
        found = _quoted(text, start, end) or _marked(text, start, end)
        bare = None if found else _bare(text, start, end)
        span = found or bare
        if span is None:
            continue
        value = text[slice(*span)]
        if UUID.fullmatch(value):  # mostly no secret, but keys of older services are UUIDs
            secret = _SURE_NAME.search(_plain(name)) and entropy(value) >= recipe.min_entropy
        else:
            secret = looks_secret(
                value,
                min_length=recipe.min_length,
                min_entropy=recipe.min_entropy,
                bits=2.0 if bare else 0.0,
            )
            secret = secret and not (bare and _is_code(value))
            secret = secret or (
                recipe.chosen and _is_chosen(document, name, rule, span, bool(bare))
            )
        if not secret or any(map(str.isspace, value)):
            continue
        if value.startswith("base64:"):
            span = (span[0] + 7, span[1])
        yield Finding(*span, rule, PASSWORD if rule == "password" else KEY)
