"""Whether a value looks like a password that a person chose.

Such values are words, changed so that nobody guesses them: `tr33h0use`, `Summer2024!`,
`Tiger-Cloud-Piano-42`. Chance does not explain them, so `randomness` misses them; names in code
(`oauth2client`, `DB_PASSWORD_2`, `client-secret`) resemble them. So this is asked only of values
whose name or place is certain, and in doubt a value stays.
"""

from __future__ import annotations

import re

from .findings import words
from .randomness import is_example, is_public, is_regex

LEAST_CHOSEN, MOST_CHOSEN = 8, 64  # characters

# Names whose value is a password or a secret itself: `db_password`, `JWT_SECRET`, `root_pwd_2`.
_SURE_NAME = re.compile(
    r"(?:pass_?w(?:or)?[dt]|passphrase|pass_?code|pwd|(?:^|_)(?:pass|pw)|(?:db|sql|user|root|ssh)pass"
    r"|^(?:requirepass|masterauth|bindpw|rootpw)|secret|secret_?key(?:_base)?|secret_?access_?key)"
    r"(?:_?\d{1,2}|_(?:prod|production|dev|development|staging|live|default))?$"
)
# What a program fills in, wherever it stands in a value.
_FILLED_IN = re.compile(
    r"\$\{|\{\{|\$\(|#\{|<%|%\(\w|\[\[|^%?\$[A-Za-z_]\w*$|\$[A-Z_][A-Z_0-9]{2}|\$env:|^%.*%$|^@.*@$"
    r"|<[A-Za-z][\w .:-]*>|^__.*__$|\{[A-Za-z_]?[\w.]{2,40}\}|\{\d?\}|\\[ux][0-9a-fA-F]{2}"
    r"|^[%:&*!][A-Za-z_]\w*$|%[sdr](?![A-Za-z0-9])"
)
# Expressions, paths, fields of a header, names in capitals or with points.
_CODE = re.compile(
    r"^[A-Z][A-Z0-9]*(?:[_-][A-Z0-9]+)*$|^[A-Za-z_][\w]*(?:\.[A-Za-z_]\w*)+\(?|^X-|::|->|=>|&&|\|\||[=!<>]="
    r"|\w\((?:\w*\)|['\"])|^[\w.-]*/[\w.-]*/|^/|\\|^#[0-9a-fA-F]{6,8}$|^[\w.-]+@[\w.-]+\.\w+$|\w\[['\"\w]+\]|^[a-z_]+(?:[|:][a-z_0-9,]+)+$"
)
_DOTTED_WORDS = re.compile(r"(?:[A-Za-z]{3,12}\.){2,6}\d{1,6}\W?")
# Words that name the thing, in place of being one; and what examples and tests call it.
_PLAIN_WORDS = re.compile(
    r"pass[_-]?(?:wor[dt]|wd|phrase|code)|pass|pwd|secret|private|token|test(?:ing)?|user(?:name)?|admin"
    r"|root|login|auth|key|name|client|default|sample|dummy|demo|fake|mock|guest|change|wrong|right"
    r"|invalid|valid|correct|new|old|bad|good|field|param|value|input|string|text|type|none|null|true"
    r"|false|hash|salt|crypt|cipher|config|setting|foo|bar|baz|qux|abc|xyz|the|some|any|not|real|this"
    r"|that|hello|world|required|optional|public|server|service|access|account|database|form|api",
    re.IGNORECASE,
)
# Names of formats and programs that have a digit within or at their end.
_TECHNICAL = re.compile(
    r"(?<![A-Za-z])(?:md[45]|sha-?\d{1,3}|s3(?=bucket|client|path|[^A-Za-z0-9]|$)|ec2|web3|log4|mp[34]|ipv?[46]|v\d{1,2}|https?\d?|py[23]\d?"
    r"|python[23]|x11|x509|l10n|i18n|a11y|k[38]s|oauth2?|utf-?\d{1,2}|base\d\d|u?int\d{1,2}|float\d\d"
    r"|p\d{3}|x\d{3,5}|aes-?\d{3}|rsa-?\d{3,4}|[qg]tk?[345]|html5|css3|es[56]|php[5-8]|route53|tls\d"
    r"|log[24]j|bs4|win(?:32|64)|amd64|x86|arm64|pbkdf2|argon2\w?|bcrypt|scrypt|hs\d{3}|rs\d{3}|es\d{3})"
    r"(?![0-9])",
    re.IGNORECASE,
)
_THINGS = words("password passwd passphrase pass pwd secret token key")
_BRACKET = re.compile(r"[\[\](){}\\]")
_LETTERS = re.compile(r"[A-Za-z]+")
_IN_WORD = re.compile(r"(?<=[A-Za-z])(?:([01345789@$!])\1?|[01345789@$!]{2})(?=[A-Za-z])")
_READ_AS = str.maketrans("01345$@!", "oieassai")
_MARK = re.compile(r"[!@#$%^&*+?~|=()\[\]{}<>;,:]")
_WORDS = re.compile(r"[A-Za-z]*[a-z][A-Za-z]*|[A-Z]+")
_PHRASE = re.compile(r"[A-Za-z0-9]+(?:[-_.~+][A-Za-z0-9]+){2,8}\W?")
_WORD_AND_NUMBER = re.compile(r"[A-Za-z]{3,40}\d{2,8}|\d{2,8}[A-Za-z]{4,40}")
_FRAMEWORK = re.compile(r"django-insecure-")


def is_sure_name(plain: str) -> bool:
    """Whether a name, in lower case with `_`, says that its value is a password or secret."""
    return _SURE_NAME.search(plain) is not None


def looks_chosen(value: str, *, phrases: bool = True) -> bool:
    """Whether a value in a certain place is rather a password than a word, name or template.

    Args:
        value: the value, without its quotes.
        phrases: whether words in lower case with hyphens or points are a password
            (`tiger-cloud-piano-42`); where a secret stands they may be its name.
    """
    generated = _FRAMEWORK.match(value)
    own = value[generated.end() :] if generated else value
    if (
        not LEAST_CHOSEN <= len(own) <= MOST_CHOSEN
        or len(set(own.lower())) < 5
        or any(map(str.isspace, own))
        or not own.isascii()
        or _FILLED_IN.search(own)
        or is_example(own)
        or (is_regex(own) and _BRACKET.search(own))  # `panda-zephyr` is no range
    ):
        return False
    if generated:
        return len(_MARK.findall(own)) >= 3
    if is_public(own) or (_CODE.search(own) and not _DOTTED_WORDS.fullmatch(own)):
        return False
    return _is_changed(own, phrases)


def _covered(text: str) -> int:
    """How many characters of a text are plain words."""
    return sum(map(len, _PLAIN_WORDS.findall(text)))


def _is_changed(own: str, phrases: bool) -> bool:
    """Whether the words of a value are changed, or put together, as passwords are."""
    plain = _TECHNICAL.sub("", own)
    letters = sum(map(len, _LETTERS.findall(plain)))
    digits = sum(map(str.isdigit, plain))
    if letters < 3:
        return False
    left = _LETTERS.findall(_PLAIN_WORDS.sub(" ", plain))
    rest = sum(map(len, left))
    in_words = _IN_WORD.findall(plain)
    if len(in_words) >= 2 or (in_words and rest and (digits >= 2 or _MARK.search(plain))):
        return True
    if in_words and _covered(plain.translate(_READ_AS)) > _covered(plain):
        return True  # `passw0rd`
    marks = len(_MARK.findall(plain))
    upper = any(map(str.isupper, plain)) and any(map(str.islower, plain))
    if marks and digits and (upper or rest >= 3) and letters + digits >= 5:
        return True
    if marks >= 2 and upper and letters >= 4:
        return True
    kept = sum(len(word) for word in left if len(word) >= 3)
    if _WORD_AND_NUMBER.fullmatch(plain):
        return kept >= 4
    if in_words and letters >= 6 and plain.isalnum():
        return kept >= 3
    parts = _WORDS.findall(plain)
    named = [word.lower() for word in parts if _PLAIN_WORDS.fullmatch(word)]
    others = sum(len(word) >= 3 for word in parts) - len(named)
    if others < 3 or len(named) > 1 or not _THINGS.isdisjoint(named):
        return False
    if max(map(len, parts)) > 12 or not _PHRASE.fullmatch(plain):
        return False
    if upper:
        return digits > 0 or all(word[0].isupper() for word in parts)
    return phrases and "_" not in plain and (digits > 0 or len(parts) >= 4)
