"""Redaction: forms with random values, laws over texts put together at random, hostile texts.

The values below are put together or drawn when the tests run, so that no scanner finds this file.
"""

from __future__ import annotations

import os
import random
import string
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codecria.data.corpus.redact import DEFAULT, Redaction, entropy, redact
from codecria.data.corpus.redact.chosen import looks_chosen
from codecria.data.corpus.redact.findings import Document, words
from codecria.data.corpus.redact.vendors import VENDORS
from tests.data.corpus import secret_forms as forms

PEM = "-----BEGIN {0}-----\n{1}\n-----END {0}-----"
KEY = "PRIVATE " + "KEY"
BODY = "\n".join(
    "MIIEpAIBAAKCAQEA7" + "bX3qLw9Zt5Rk2Vn8Yc4Pd6Hf1Jg0Ms+uTaEiOyWxKzBvN/" for _ in range(6)
)
JOE = "joe" + "@" + "kernel-mail.org"
GITHUB = "gh" + "p_" + "q7Rz2LkXw9TbV4nYc8PdH6fJ1gMs0uKaEiBo"
RANDOM = "q7Rz2LkXw9" + "TbV4nYc8Pd"


ALL_FORMS = (*forms.FORMS, *forms.CHOSEN_FORMS)


@pytest.mark.parametrize("form", ALL_FORMS, ids=lambda form: form.name)
def test_of_the_drawn_values_in_a_form_hardly_any_is_missed(form: forms.Form) -> None:
    draw = random.Random(form.name)
    tried = 80
    missed = [text for text, value in map(form.example, [draw] * tried) if value in redact(text)[0]]
    assert len(missed) <= 0.02 * tried + 3, missed[:5]  # 3: what chance adds to 2 % of 80


@pytest.mark.parametrize("form", ALL_FORMS, ids=lambda form: form.name)
def test_around_a_value_in_a_form_everything_stays(form: forms.Form) -> None:
    draw = random.Random(form.name)
    exact = 0
    for text, value in map(form.example, [draw] * 20):
        before, after = text.split(value)
        clean, counts = redact(text)
        exact += (
            clean.startswith(before[:-16])
            and clean.endswith(after[1:])
            and sum(counts.values()) == 1
        )
    assert exact >= 17, f"{20 - exact} of 20 values took something with them"


AROUND = ("client = Client('{}')\n", "# was {}, rotate it\n", "TOKEN={}\n", '{{"x": "{}"}}\n')


@pytest.mark.parametrize("around", AROUND)
def test_every_vendors_token_is_found_and_counted_by_its_rule(around: str) -> None:
    draw = random.Random(20230824)
    wrong: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for _ in range(15):
        for rule, token in forms.vendor_tokens(draw):
            text = around.format(token)
            seen[rule] += 1
            wrong[rule] += redact(text) != (text.replace(token, "<KEY>"), {rule: 1})
    over = {rule: n for rule, n in wrong.items() if n > 0.02 * seen[rule] + 2}
    assert over == {}


def test_tokens_that_need_their_vendors_name_and_key_blocks_are_found() -> None:
    draw = random.Random(20230824)
    for number in range(20):
        found = [*forms.contextual_tokens(draw), *(forms.key_blocks(draw) if number < 5 else ())]
        for rule, text, value in found:
            clean, counts = redact(text)
            assert value not in clean, rule
            assert counts == {rule: 1}
            before, after = text.split(value)
            assert clean.startswith(before)
            assert clean.endswith(after)


def test_every_rule_of_a_vendor_has_an_example() -> None:
    draw = random.Random(0)
    named = {rule for rule, _ in forms.vendor_tokens(draw)}
    named |= {rule for rule, _, _ in forms.contextual_tokens(draw)}
    untried = {vendor.rule for vendor in VENDORS} - named
    assert untried <= {
        *("alibaba_key", "aws_key", "netlify_token", "sourcegraph_token", "artifactory_key"),
        *("onepassword_token", "neon_key", "linear_key", "postman_key", "other_token"),
    }


@pytest.mark.parametrize("text", forms.INNOCENT, ids=range(len(forms.INNOCENT)))
def test_innocent_code_stays_the_same_object(text: str) -> None:
    clean, counts = redact(text)
    assert counts == {}, clean
    assert clean is text


def test_the_standard_library_holds_no_secret() -> None:
    folder = Path(os.__file__).parent
    found: dict[str, dict[str, int]] = {}
    for path in sorted(folder.glob("*.py"))[::2]:
        _, counts = redact(path.read_text(encoding="utf-8"), replace(DEFAULT, emails=False))
        if counts:
            found[path.name] = counts
    assert found == {}


@pytest.mark.parametrize(
    ("text", "clean", "rules"),
    [
        (f"# {JOE}\n", "# <EMAIL>\n", "email"),
        (f"a <{JOE}>, b <{JOE}>", "a <<EMAIL>>, b <<EMAIL>>", "email email"),
        (f'print("to:\\n{JOE}")', 'print("to:\\n<EMAIL>")', "email"),
        (f"login('{GITHUB}')", "login('<KEY>')", "github_token"),
        (f"{GITHUB} {JOE}", "<KEY> <EMAIL>", "github_token email"),
        (f'x = """{PEM.format(KEY, BODY)}"""', 'x = """<PRIVATE_KEY>"""', "private_key"),
        (f"ftp://joe:{RANDOM}@kernel.org/x", "ftp://joe:<PASSWORD>@kernel.org/x", "url_password"),
        (f'password = "{RANDOM}"', 'password = "<PASSWORD>"', "password"),
        (f'{{"api_key":"{RANDOM}"}}', '{"api_key":"<KEY>"}', "secret"),
        (f'if user["token"] == "{RANDOM}":', 'if user["token"] == "<KEY>":', "secret"),
        (
            f"f(a='1', password='{RANDOM}', b='2')",
            "f(a='1', password='<PASSWORD>', b='2')",
            "password",
        ),
        (f"API_TOKEN={RANDOM}1\r\nB=2\r\n", "API_TOKEN=<KEY>\r\nB=2\r\n", "secret"),
    ],
)
def test_the_value_goes_and_all_around_it_stays(text: str, clean: str, rules: str) -> None:
    assert redact(text) == (clean, dict(Counter(rules.split())))


@pytest.mark.parametrize(
    "text",
    [
        f'label = "{RANDOM}"',  # a random literal, but nothing says it is secret
        f'password_hash = "{RANDOM}"',
        f'author = "{RANDOM}"',
        'password = "q7Rz2"',  # short
        'password = "password1234"',
        'secret = "client-secret-number-22"',
        f"{GITHUB}{RANDOM * 12}",  # no token is as long
        PEM.format(KEY, "..."),
        PEM.format("CERTIFICATE", BODY),
        "x = a@b.T",
        "y = rows@weights.t()",
        "icon@2x.png",
    ],
)
def test_what_only_looks_like_a_finding_stays_the_same_object(text: str) -> None:
    clean, counts = redact(text)
    assert clean is text
    assert counts == {}


def test_the_recipe_chooses() -> None:
    text = f"{JOE} {GITHUB}"
    assert redact(text, Redaction(emails=False)) == (f"{JOE} <KEY>", {"github_token": 1})
    assert redact(text, Redaction(secrets=False)) == (f"<EMAIL> {GITHUB}", {"email": 1})
    assert redact(text, Redaction(emails=False, secrets=False)) == (text, {})
    for kept in (JOE.upper(), "@kernel-mail.org"):
        assert redact(JOE, replace(DEFAULT, keep_emails=(kept,)))[0] is JOE
    assert redact(JOE, replace(DEFAULT, keep_emails=("oe@kernel-mail.org",)))[0] == "<EMAIL>"
    literal = f'password = "{RANDOM}"'
    assert redact(literal, Redaction(min_length=21, chosen=False))[0] is literal
    assert redact(literal, Redaction(min_entropy=5.0, chosen=False))[0] is literal
    by_a_person = 'password = "' + "Tiger" + '2024!"'
    assert redact(by_a_person) == ('password = "<PASSWORD>"', {"password": 1})
    assert redact(by_a_person, Redaction(chosen=False))[0] is by_a_person


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('db: {user: app, password: "@@", host: h}\n', "hunter2-" + "Zq8!xK"),
        ("  secret: @@ # comment\n", "s3cr3t-" + "Value-With-Space"),
        ("curl https://u:@@@x.example.com/\n", "pa55" + "w0rd"),
        ("<c>Server=db;Database=x;User Id=sa;Password=@@;</c>\n", "Pa$$" + "w0rd!99"),
        ('SECRET_KEY = "django-insecure-@@"\n', "x(1)$a{b}%%[" + "!@#^&*()_+=-9"),
        ("DB_PASSWORD=@@\nDB_HOST=x\n", "Winter" + "2024!"),
        ("db_passwd: @@\n", "Liverpool" + "#1"),
        ('{"userPassword": "@@"}\n', "correct-horse-" + "battery-staple"),
    ],
)
def test_a_password_that_a_person_chose_goes_where_the_place_is_certain(
    text: str, value: str
) -> None:
    assert value not in redact(text.replace("@@", value))[0]


CHOSEN = sorted(
    words(
        "Tr0ub4dor&3 letmein123 qwerty12345 Welcome1! S3cur3P@ss! SuperSecret123! "
        "Admin@123 dbPass!2023 n0t-a-r3al-p@ss B3rlin_2019 C0ffee#Time Qwerty!23 "
        "rosebud1941 P@$$w0rd Gr33nTea Th1sIsMyPw! iLoveCats<3 horse.battery.staple.9 "
        "Sommer24! 4ever-Young! kubernetes4life Kaffee&Kuchen7 x9!Rover-Bone zaq1@WSX "
        "Acme.2024! elastic-s3arch! "
    )
)

NOT_CHOSEN = sorted(
    words(
        "password password1234 secret123 test1234 mypassword user_password_2 oauth2client "
        "sha256-digest DB_PASSWORD_2 reset-password-form current-password client-secret-2 "
        "my-app-secret-key {password} ${PW} $PASSWORD %(password)s user.password2 "
        "self.cfg['pw1'] getpass() /etc/secret2 ./run/pw1 X-Api-Secret-Key aes-256-gcm "
        "v1.2.3-beta app-tls-secret-2 placeholder123 changeme1 xxxxxxxx1 PasswordInput2 "
        "password2! text/password utf8mb4_bin input[type=password] #password2 "
        "md5(password) password=password1 http2_server mysql_native_password "
        "caching_sha2_password scram-sha-256 pbkdf2_sha256 BCryptPasswordEncoder2 "
        "secp256k1 form.password1.data AES/CBC/PKCS5Padding foo1bar2 "
        "required|string|min:8|confirmed [REDACTED1] s3://bucket2 k8s-secret-1 kms-key-2 "
        "<your-password> None changeme example os.environ['PW2'] String "
    )
)


@pytest.mark.parametrize("value", CHOSEN)
def test_a_word_that_is_changed_counted_or_joined_looks_chosen(value: str) -> None:
    assert looks_chosen(value)


@pytest.mark.parametrize("value", NOT_CHOSEN)
def test_a_name_a_template_an_example_or_code_does_not_look_chosen(value: str) -> None:
    assert not looks_chosen(value)
    text = f'password = "{value}"\npassword: {value}\n'
    assert redact(text) == redact(text, Redaction(chosen=False))


@given(
    st.lists(st.text(string.ascii_lowercase, min_size=1, max_size=10), min_size=1, max_size=6),
    st.sampled_from(["_", "-", ""]),
    st.sampled_from(["{}", "${{{}}}", "<{}>", "{{{{ {} }}}}", "$({})", "%({})s"]),
)
def test_names_and_templates_of_lower_letters_are_never_a_secret_chosen(
    parts: list[str], sign: str, template: str
) -> None:
    assert not looks_chosen(template.format(sign.join(parts)), phrases=False)


def test_a_variable_that_is_used_elsewhere_is_no_password() -> None:
    used = "tiger4711 = load()\nconnect(password=tiger4711)\n"
    assert redact(used)[0] is used
    assert redact("password: tiger4711\n")[1] == {"password": 1}


@given(st.text(st.sampled_from("abK é1:\u212a\ud800 "), max_size=40), st.text("abk1: ", max_size=6))
def test_a_word_that_a_document_holds_is_never_ruled_out(text: str, word: str) -> None:
    document = Document(text)
    within = word.encode() in document.lower
    assert document.may_hold(word.encode()) or not within
    assert document.holds_any((b"no such word", word.encode())) == within


def test_entropy_is_that_of_a_fair_choice() -> None:
    assert entropy("") == 0
    assert entropy("aaaa") == 0
    assert entropy("abcd" * 5) == pytest.approx(2)
    assert entropy(string.hexdigits[:16]) == pytest.approx(4)


def test_a_comment_in_a_key_block_goes_with_the_block() -> None:
    text = PEM.format(f"PGP {KEY} BLOCK", f"Comment: {JOE}\n\n{BODY}")
    assert redact(f"{text}\n{JOE}\n") == (
        "<PRIVATE_KEY>\n<EMAIL>\n",
        {"private_key": 1, "email": 1},
    )


PIECES = st.one_of(
    st.sampled_from(
        [
            JOE,
            GITHUB,
            RANDOM,
            PEM.format(KEY, BODY),
            'password = "',
            '"',
            "'",
            "\n",
            " ",
            "@",
            "://",
            f"http://joe:{RANDOM}@kernel.org",
            f"API_KEY={RANDOM}1",
            "Bearer ",
            "-----",
            "eyJ",
            ".",
            "<KEY>",
            "<EMAIL>",
            "aws secret: ",
            "def f(x):",
            "é",
            "密",
            "\ud800",
            "\\n",
            "=",
            "x",
        ]
    ),
    st.text(max_size=8),
)
TEXTS = st.lists(PIECES, max_size=12).map("".join)


@settings(deadline=None, max_examples=300)
@given(TEXTS)
def test_what_comes_out_has_no_findings(text: str) -> None:
    clean, counts = redact(text)
    again, none = redact(clean)
    assert again is clean
    assert none == {}
    assert (clean is text) == (counts == {})


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    (JOE, "<EMAIL>", "email"),
                    (GITHUB, "<KEY>", "github_token"),
                    ("x = 1", "x = 1", ""),
                ]
            ),
            st.sampled_from(["\n", " é ", " 密码 ", "'\n\t'", ", "]),
        )
    )
)
def test_counts_are_those_of_the_findings_put_in(
    parts: list[tuple[tuple[str, str, str], str]],
) -> None:
    text = "".join(value + gap for (value, _, _), gap in parts)
    expected = "".join(placeholder + gap for (_, placeholder, _), gap in parts)
    counts = Counter(rule for (_, _, rule), _ in parts if rule)
    assert redact(text) == (expected, dict(counts))


@settings(deadline=None)
@given(st.text(st.characters(blacklist_characters="@:=-_.'\"`")))
def test_a_text_without_the_signs_of_any_rule_is_the_same_object(text: str) -> None:
    assert redact(text)[0] is text


@given(st.integers(0, 400), st.integers(0, 400), st.sampled_from(" '\"=é密\n/,"))
def test_a_token_is_found_wherever_it_stands(before: int, after: int, edge: str) -> None:
    clean, counts = redact("y " * before + edge + GITHUB + edge + " z" * after)
    assert counts == {"github_token": 1}
    assert clean == "y " * before + edge + "<KEY>" + edge + " z" * after


HOSTILE = (
    *("password: tiger4711x\n", "password=Tiger2024!&", "secret=a+b4c+d;", "password='s3cr3t-a'"),
    *("a", "@", "A1b2C3d4", "-", "_", ".", "'", '"', "é", "密", "password=", 'password="', "=:=:"),
    *("a@a.", "a@b.com", "a.b@c-", "x@x@x@x@x@x@", "://a:", "://:@", "eyJ", "AKIA", "sk-ant-"),
    *("xoxb-1", "hvs.", '"a1B2c3D4e5F6g7H8"', "a1B2c3D4e5F6g7H8i9J0k1L2+", "aws_secret", "Basic "),
)
FULL_OF_FINDINGS = [
    'token="a1B2c3D4e5F6',
    "token=a1B2c3D4e5F6g7H8i9J0k1L2\n",
    "eyJhbGciOiJIUzI1NiJ9.",
    "discord M1N2o3P4q5R6s7T8u9V0w1X2y3.",
    "Private-Lines: 1\nabcdefghijklmnop12",
    f"{JOE} ",
    "-----BEGIN " + KEY + "-----",
    "-----BEGIN " + KEY + "-----\nMIIEpAIBAAKCAQEA7bX3qLw9Zt",
]


@pytest.mark.parametrize(
    ("piece", "size"),
    [*((piece, 3 * 10**5) for piece in HOSTILE), *((piece, 10**5) for piece in FULL_OF_FINDINGS)],
)
def test_a_hostile_text_takes_time_in_proportion_to_its_length(piece: str, size: int) -> None:
    # Ten times the length: ten times the time, not a hundred times, however fast the machine is.
    def seconds(size: int) -> float:
        start = time.process_time()
        redact(piece * (size // len(piece)))
        return time.process_time() - start

    short = min(seconds(size // 10) for _ in range(2))
    assert seconds(size) < 30 * short + 0.5
