"""Tokens that can be known by their own form, as vendors document it.

A vendor is one line of `VENDORS`. Most have a prefix; where the form alone says too little, a word
that must occur in the document stands with it.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .findings import KEY, Document, Finding, Redaction, has_any
from .randomness import entropy, is_example, randomness


def _no_example(match: re.Match[str]) -> bool:
    """The form says enough, but manuals show the form with words in it."""
    value = match["secret"] if "secret" in match.re.groupindex else match[0]
    return not is_example(value) and entropy(value[:400]) >= 2.5 and randomness(value) > -len(value)


def _holds_json(match: re.Match[str]) -> bool:
    """The header of a JSON Web Token is an object."""
    try:
        return isinstance(json.loads(_decoded(match["header"])), dict)
    except (ValueError, RecursionError):
        return False


def _holds_number(match: re.Match[str]) -> bool:
    """The first part of a Discord bot's token is its number in base64."""
    return _decoded(match["bot"]).isdigit()


def _decoded(text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        return b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendor:
    """One kind of token.

    Attributes:
        rule: what it is counted under.
        pattern: the token; its group `secret`, if there is one, is what is replaced.
        keywords: literals of which one must occur in the document's long runs.
        context: literals in lower case of which one must occur anywhere in the document.
        check: whether a match is one.
    """

    rule: str
    pattern: re.Pattern[str]
    keywords: tuple[str, ...] = ()
    context: tuple[bytes, ...] = ()
    check: Callable[[re.Match[str]], bool] = _no_example


# A token stands by itself: neither more letters nor digits on either side.
_OPEN = r"(?<![A-Za-z0-9])"
_CLOSE = r"(?![A-Za-z0-9])"


def _vendor(
    rule: str,
    keywords: str,
    body: str,
    *,
    context: str = "",
    check: Callable[[re.Match[str]], bool] = _no_example,
) -> Vendor:
    return Vendor(
        rule=rule,
        pattern=re.compile(f"{_OPEN}(?:{body}){_CLOSE}"),
        keywords=tuple(keywords.split()),
        context=tuple(word.encode() for word in context.lower().split()),
        check=check,
    )


_HEX = "[0-9a-f]"
_UUID = rf"{_HEX}{{8}}-(?:{_HEX}{{4}}-){{3}}{_HEX}{{12}}"

VENDORS: tuple[Vendor, ...] = (
    # Clouds and where programs run
    _vendor("aws_key_id", "AKIA ASIA ABIA ACCA", r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}"),
    _vendor("aws_key", "ABSK", r"ABSK[A-Za-z0-9+/]{109,269}={0,2}"),
    _vendor(
        "azure_key",
        "AccountKey= dAccessKey=",
        r"(?:AccountKey|SharedAccessKey)=(?P<secret>[A-Za-z0-9+/]{43,86}={1,2})(?![A-Za-z0-9+/=])",
    ),
    # Entra ID client secrets; the signed keys of Azure services; Azure DevOps.
    _vendor("azure_key", "", r"[\w~.]{3}\dQ~[\w~.-]{31,34}", context="Q~"),
    _vendor(
        "azure_key",
        "JQQJ9 AZDO +ASt +AMC +ARm +ACR AzFu AzSe AzCa ACDb APIM",
        r"[A-Za-z0-9]{52}JQQJ9[9DH][A-Za-z0-9]{26,32}|[A-Za-z0-9]{76}AZDO[A-Za-z0-9]{4}"
        r"|[A-Za-z0-9+/]{76}\+(?:ASt|AMC|ARm|ACR)[A-Za-z0-9+/]{5,8}={0,2}"
        r"|[A-Za-z0-9_/+-]{42,52}(?:AzFu|AzSe|AzCa|ACDb|APIM)[A-Za-z0-9_/+-]{5,10}={0,2}",
    ),
    _vendor("google_api_key", "AIza", r"AIza[\w-]{35}"),
    _vendor("google_oauth", "GOCSPX- ya29.", r"GOCSPX-[\w-]{28}|ya29\.[\w-]{30,400}"),
    _vendor("alibaba_key", "LTAI", r"LTAI[A-Za-z0-9]{12,20}"),
    _vendor("digitalocean_token", "_v1_", r"do[opr]_v1_[a-f0-9]{64}"),
    _vendor("heroku_key", "HRKU-", rf"HRKU-AA[\w-]{{58}}|HRKU-{_UUID}"),
    _vendor(
        "vercel_token",
        "vcp_ vci_ vca_ vcr_ vck_ vercel_blob_rw_",
        r"vc[aciprk]_[A-Za-z0-9]{24,60}|vercel_blob_rw_[A-Za-z0-9]{16}_[A-Za-z0-9]{30}",
    ),
    _vendor(
        "fly_token",
        "fo1_ fm1a_ fm1r_ fm2_",
        r"fo1_[\w-]{43}|fm1[ar]_[A-Za-z0-9+/]{100,2000}={0,3}|fm2_[A-Za-z0-9+/]{100,2000}={0,3}",
    ),
    _vendor("netlify_token", "nfp_ nfc_", r"nf[pc]_[A-Za-z0-9]{36}"),
    _vendor(
        "cloudflare_key",
        "v1.0- cfk_ cfut_ cfat_",
        r"v1\.0-[a-f0-9]{24}-[a-f0-9]{146}|cf(?:k|ut|at)_[A-Za-z0-9_-]{40,60}",
    ),
    # Code hosting, registries and builds
    _vendor(
        "github_token",
        "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_",
        r"gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255}",
    ),
    _vendor(
        "gitlab_token",
        "glpat- gldt- glrt- glrtr- glcbt- glptt- glft- glsoat- glimt- glagent- gloas- glwt- "
        "GR1348941",
        r"gl(?:pat|dt|rt|rtr|cbt|ptt|ft|soat|imt|agent|oas|wt)-[\w-]{20,300}"
        r"(?:\.[0-9a-z]{2}\.[0-9a-z]{9})?|GR1348941[\w-]{20}",
    ),
    _vendor(
        "atlassian_token",
        "",
        r"AT[AC]TT3[A-Za-z0-9_=-]{100,220}",
        context="atatt3 atctt3",
    ),
    _vendor(
        "atlassian_token",
        "ATBB ATOA",
        r"ATBB[A-Za-z0-9]{24,36}|ATOA[A-Za-z0-9_=-]{40,220}",
    ),
    _vendor("npm_token", "npm_", r"npm_[A-Za-z0-9]{36}"),
    _vendor("pypi_token", "pypi-AgE", r"pypi-AgE[IN][\w-]{50,1000}"),
    _vendor("docker_token", "dckr_", r"dckr_pat_[\w-]{27}|dckr_oat_[\w-]{32}"),
    _vendor("terraform_token", "atlasv1.", r"[A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_=-]{60,70}"),
    _vendor("sonar_token", "sqp_ sqa_ squ_", r"sq[pau]_[a-f0-9]{40}"),
    _vendor(
        "buildkite_token",
        "bkua_ bkur_ bkaa_ bkat_ bkct_ bkcqt_ bkpt_ bkps_ bkpat_ bkrt_ bktr_ bktx_ bkaj_ bkar_ "
        "bkjat_",
        r"bk[a-z]{2,3}_[A-Za-z0-9._-]{32,400}",
    ),
    _vendor(
        "circleci_token",
        "CCIPAT_ CCIPRJ_",
        r"CCIP(?:AT|RJ)_[A-Za-z0-9]{20,24}_[A-Za-z0-9]{40}|CCIP(?:AT|RJ)_[A-Za-z0-9]{40}",
    ),
    _vendor("sourcegraph_token", "sgp_", r"sgp_(?:[a-f0-9]{16}_|local_)?[a-f0-9]{40}"),
    _vendor("artifactory_key", "AKCp cmVmd", r"AKCp[A-Za-z0-9]{69}|cmVmd[A-Za-z0-9]{59}"),
    # Secrets, settings, networks, monitoring
    _vendor("age_key", "AGE-SECRET-KEY-1", r"AGE-SECRET-KEY-1[0-9A-Z]{58}"),
    _vendor(
        "doppler_token",
        "dp.pt. dp.st. dp.ct. dp.sa. dp.scim. dp.audit. dp.said.",
        r"dp\.(?:pt|st|ct|sa|scim|audit|said)\.(?:[a-z0-9_-]{2,35}\.)?[A-Za-z0-9]{40,44}",
    ),
    _vendor("vault_token", "hvs. hvb. hvr.", r"hv[sbr]\.[\w-]{24,400}"),
    _vendor("onepassword_token", "ops_eyJ", r"ops_eyJ[A-Za-z0-9+/]{250,2000}={0,3}"),
    _vendor(
        "tailscale_key",
        "tskey-",
        r"tskey-(?:[a-z]{2,10}-)?[A-Za-z0-9]{6,24}(?:CNTRL)?-[A-Za-z0-9]{16,48}",
    ),
    _vendor("dynatrace_token", "dt0", r"dt0[a-z]\d\d\.[A-Za-z0-9]{8,24}\.[A-Za-z0-9]{64}"),
    _vendor(
        "monitoring_token",
        "glsa_ glc_ NRAK- NRII- NRJS- sntrys_ sntryu_",
        r"glsa_[A-Za-z0-9]{32}_[A-Fa-f0-9]{8}|glc_[A-Za-z0-9+/]{32,400}={0,3}|NRAK-[A-Z0-9]{27}"
        r"|NRII-[\w-]{32}|NRJS-[a-f0-9]{19}|sntrys_[A-Za-z0-9+/_=]{60,400}|sntryu_[a-f0-9]{64}",
    ),
    # Messages and payment
    _vendor(
        "slack_token",
        "xoxa- xoxb- xoxc- xoxd- xoxe- xoxe. xoxo- xoxp- xoxr- xoxs- xapp-",
        r"xox[abcdeoprs][-.](?=[A-Za-z0-9-]{0,20}[0-9])[A-Za-z0-9-]{18,400}"
        r"|xapp-\d-[A-Z0-9]{8,20}-\d{8,20}-[a-z0-9]{32,128}",
    ),
    Vendor(
        rule="webhook",
        context=(b"hooks.slack.com/", b"/webhooks/", b"webhook.office.com/"),
        pattern=re.compile(
            r"(?:hooks\.slack\.com/(?:services|workflows|triggers)/"
            r"|discord(?:app)?\.com/api/(?:v\d{1,2}/)?webhooks/|webhook\.office\.com/webhookb2/)"
            r"(?P<secret>[TEA]\w{6,14}/[\w/]{24,80}|\d{16,20}/[\w-]{50,90}"
            r"|[\w-]{36}@[\w-]{36}/IncomingWebhook/\w{32}/[\w-]{36})(?![\w/-])"
        ),
    ),
    _vendor("telegram_token", ":AA", r"[0-9]{8,10}:AA[\w-]{33}"),
    _vendor(
        "discord_token",
        "",
        r"(?P<bot>[MNO][A-Za-z0-9_-]{22,27})\.[\w-]{6}\.[\w-]{27,40}",
        context="discord",
        check=_holds_number,
    ),
    _vendor("sendgrid_key", "SG.", r"SG\.[\w-]{22}\.[\w-]{43}"),
    _vendor("twilio_key", "SK", r"SK[0-9a-fA-F]{32}", context="twilio"),
    _vendor("mailgun_key", "key-", r"key-[0-9a-f]{32}"),
    _vendor(
        "mailgun_key",
        "",
        rf"{_HEX}{{32}}-{_HEX}{{8}}-{_HEX}{{8}}",
        context="mailgun",
    ),
    _vendor("mail_key", "xkeysib-", r"xkeysib-[a-f0-9]{64}-[A-Za-z0-9]{16}"),
    _vendor("mail_key", "", rf"{_HEX}{{32}}-us\d{{1,2}}", context="mailchimp"),
    _vendor(
        "stripe_key",
        "k_live_ k_test_ whsec_",
        r"[sr]k_(?:live|test)_[A-Za-z0-9]{16,247}|whsec_[A-Za-z0-9+/]{32,64}={0,2}",
    ),
    _vendor("square_token", "sq0 EAAA", r"sq0[a-z]{3}-[\w-]{22,43}|EAAA[\w-]{60}"),
    _vendor("shopify_token", "shpat_ shpca_ shppa_ shpss_", r"shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}"),
    # Models
    _vendor("anthropic_key", "sk-ant-", r"sk-ant-[a-z0-9]{3,12}-[\w-]{32,200}"),
    _vendor(
        "openai_key",
        "sk-",
        r"sk-(?:proj|svcacct|admin|None)-[\w-]{20,250}|sk-or-v1-[0-9a-f]{64}|sk-[A-Za-z0-9]{32,64}",
    ),
    _vendor("huggingface_token", "hf_ api_org_", r"(?:hf|api_org)_[A-Za-z0-9]{34}"),
    _vendor(
        "langsmith_key", "lsv2_ ls__", r"lsv2_(?:pt|sk)_[a-f0-9]{32}_[a-f0-9]{10}|ls__[a-f0-9]{32}"
    ),
    _vendor(
        "model_key",
        "gsk_ xai- pplx- r8_ nvapi- pcsk_ fw_",
        r"gsk_[A-Za-z0-9]{52}|xai-[A-Za-z0-9]{80}|pplx-[A-Za-z0-9]{48}|r8_[A-Za-z0-9]{37}"
        r"|nvapi-[\w-]{60,70}|pcsk_[A-Za-z0-9]{5,8}_[A-Za-z0-9]{50,70}|fw_[A-Za-z0-9]{22,24}",
    ),
    # Data bases, offices, maps
    _vendor(
        "supabase_key", "sbp_ sb_secret_", r"sbp_(?:oauth_|v0_)?[a-f0-9]{40}|sb_secret_[\w-]{20,60}"
    ),
    _vendor("planetscale_token", "pscale_", r"pscale_(?:tkn|pw|oauth|api)_[\w=.-]{32,64}"),
    _vendor("neon_key", "napi_", r"napi_[a-z0-9]{60,70}"),
    _vendor("databricks_token", "dapi", r"dapi[a-f0-9]{32}(?:-\d)?"),
    _vendor("airtable_token", "pat", r"pat[A-Za-z0-9]{14}\.[a-f0-9]{64}"),
    _vendor("airtable_token", "", r"key[A-Za-z0-9]{14}", context="airtable"),
    _vendor("notion_token", "ntn_ secret_", r"ntn_[A-Za-z0-9]{40,50}|secret_[A-Za-z0-9]{43}"),
    _vendor("hubspot_token", "pat-", rf"pat-[a-z]{{2}}\d-{_UUID}"),
    _vendor("figma_token", "figd_ figu_ figo_ figor_ figoh_", r"fig(?:d|u|o|or|oh)_[\w-]{40}"),
    _vendor("mapbox_token", "k.eyJ", r"[spt]k\.eyJ[A-Za-z0-9_=-]{40,200}\.[A-Za-z0-9_=-]{20,44}"),
    _vendor("linear_key", "lin_api_ lin_oauth_", r"lin_(?:api_[A-Za-z0-9]{40}|oauth_[a-f0-9]{64})"),
    _vendor("postman_key", "PMAK-", r"PMAK-[a-f0-9]{24}-[a-f0-9]{34}"),
    _vendor(
        "other_token",
        "rubygems_ pul- CFPAT- pnu_ tfp_ EZAK EZTK rdme_ duffel_ fio-u- shippo_ sha256~ dnkey- "
        "p8e- oy2 ico- cio rpa_",
        r"rubygems_[a-f0-9]{48}|pul-[a-f0-9]{40}|CFPAT-[\w-]{43}|pnu_[A-Za-z0-9]{36}"
        r"|tfp_[\w.=-]{59}|EZ[AT]K[A-Za-z0-9]{54}|rdme_[a-z0-9]{70}|duffel_(?:test|live)_[\w=-]{43}"
        r"|fio-u-[\w=-]{64}|shippo_(?:live|test)_[a-fA-F0-9]{40}|sha256~[\w-]{43}"
        r"|dnkey-[a-z0-9=_-]{26}-[a-z0-9=_-]{52}|p8e-[A-Za-z0-9]{32}|oy2[a-z0-9]{43}"
        r"|ico-[A-Za-z0-9]{32}|cio[A-Za-z0-9]{32}|rpa_[A-Z0-9]{40,44}",
    ),
    Vendor(
        rule="jwt",
        keywords=("eyJ",),
        pattern=re.compile(
            r"(?<![\w-])(?P<header>eyJ[\w-]{10,2000})\.[\w-]{4,8000}\.[\w-]{10,2000}(?![\w-])"
        ),
        check=_holds_json,
    ),
)


def find(document: Document, _: Redaction) -> Iterator[Finding]:
    """The tokens of every vendor."""
    text, runs = document.text, document.runs
    for vendor in VENDORS:
        if vendor.keywords and not has_any(runs, vendor.keywords):
            continue
        if vendor.context and not document.holds_any(vendor.context):
            continue
        for match in vendor.pattern.finditer(text):
            if vendor.check(match):
                group = "secret" if "secret" in match.re.groupindex else 0
                yield Finding(*match.span(group), vendor.rule, KEY)
