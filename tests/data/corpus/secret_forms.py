# ruff: noqa: E501 - a form a line
"""Forms that secrets are written in, with values drawn at random, and innocent look-alikes.

The values are drawn, and the prefixes put together, when this runs, so that no scanner finds it.
"""

from __future__ import annotations

import base64
import json
import random
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from xml.sax.saxutils import escape

LOWER_HEX = "0123456789abcdef"
BASE62 = string.ascii_letters + string.digits
BASE64 = BASE62 + "+/"
URL_SAFE = BASE62 + "-_"
UPPER = string.ascii_uppercase + "234567"
LOWER_DIGITS = string.ascii_lowercase + string.digits
DJANGO = LOWER_DIGITS + "!@#$%^&*(-_=+)"  # django.core.management.utils.get_random_secret_key
PUNCTUATION = BASE62 + "".join(sorted(set(string.punctuation) - set("\"'`\\")))
SHELL = BASE62 + "!@#%^*-_=+.,:?~"

Draw = random.Random


_NOUNS = """
    amber anchor banjo basket breeze candle canyon cobalt copper dragon ember falcon flower forest
    garden ginger hammer harbor hunter island jungle kitten lemon lotus maple marble meadow monkey
    ocean orange panda pepper pirate planet purple rabbit river rocket saffron silver spring
    summer sunset thunder tiger tulip velvet violet walnut whisky willow winter wizard yellow
    zephyr
"""
_CHANGED = str.maketrans({"a": "4", "e": "3", "i": "1", "o": "0", "s": "5"})


def chosen_password(draw: Draw, signs: list[str], phrases: bool) -> str:
    """A password as people choose them: words changed, counted, joined; `signs` may be in it."""
    one, two, three, four = draw.sample(_NOUNS.split(), 4)
    sign, number = (
        draw.choice(signs),
        draw.choice((str(draw.randrange(1950, 2030)), "99", "123", "42")),
    )
    changed = (one + two).translate(_CHANGED)
    between = draw.choice("-._")
    joined = (
        f"{one}-{two}-{three}-{number}",
        f"{one}-{two}-{three}-{four}",
        f"{one}.{two}.{three}.{number}",
    )
    return draw.choice(
        (
            *(joined if phrases else ()),
            f"{one.title()}{number}{sign}",
            f"{one}{sign}{number}",
            f"{one}{two.title()}{number}",
            f"{one}{two}{number}",
            f"{changed[:10]}x{sign}",
            f"{changed}",
            f"{changed.capitalize()}{sign}{number}",
            f"{one}{number}-{two.title()}{sign}",
            f"{one.title()}{between}{two.title()}{between}{three.title()}{between}{number}",
            f"{one.title()}{sign}{two.title()}{sign}{number}",
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A way to write a secret.

    Attributes:
        name: what a report calls it.
        text: with `@@` where the value stands.
        alphabet: what values are drawn from.
        size: how many characters are drawn.
        chosen: the value is drawn as people choose passwords, see `chosen_password`.
        phrases: words in lower case with hyphens are drawn too; of a secret they may be the name.
        written: the value as the text writes it, escaped for instance.
    """

    name: str
    text: str
    alphabet: str = BASE62
    size: int = 20
    chosen: bool = False
    phrases: bool = True
    written: Callable[[str], str] = str

    def example(self, draw: Draw) -> tuple[str, str]:
        """A text and the value in it, as it is written there."""
        if self.chosen:
            signs = [sign for sign in "!#$%&*+?@^~" if sign in self.alphabet] or ["!"]
            value = self.written(chosen_password(draw, signs, self.phrases))
        else:
            value = self.written("".join(draw.choices(self.alphabet, k=self.size)))
        return self.text.replace("@@", value), value


def _base64(value: str) -> str:
    return base64.b64encode(value.encode()).decode()


def _json(value: str) -> str:
    return json.dumps(value)[1:-1]


def _python(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "\\'")


PW = "pass" + "word"
FORMS: tuple[Form, ...] = (
    # assignments of the languages
    Form(name="django SECRET_KEY", text="SECRET_KEY = '@@'\n", alphabet=DJANGO, size=50),
    Form(name="django insecure", text="SECRET_KEY = 'django-insecure-@@'\n", alphabet=DJANGO, size=50),
    Form(name="python password", text=f"db_{PW} = \"@@\"\n"),
    Form(name="python password 12", text=f"{PW.upper()} = '@@'\n", size=12),
    Form(name="python password 16", text=f"{PW.upper()} = '@@'\n", size=16),
    Form(name="python full punctuation", text=f"{PW} = '@@'\n", alphabet=PUNCTUATION),
    Form(name="python full punctuation 16", text=f"{PW} = \"@@\"\n", alphabet=PUNCTUATION, size=16),
    Form(
        name="python escaped",
        text=f"{PW} = '@@'\n",
        alphabet=BASE62 + string.punctuation,
        written=_python,
    ),
    Form(
        name="json escaped",
        text=f'{{"user": "joe", "{PW}": "@@"}}\n',
        alphabet=BASE62 + string.punctuation,
        written=_json,
    ),
    Form(name="javascript object", text=f"const c = {{ host: 'h', {PW}: '@@', port: 1 }};\n", alphabet=PUNCTUATION),
    Form(name="typescript const", text="const clientSecret: string = '@@';\n", size=32),
    Form(name="java string", text='private static final String API_KEY = "@@";\n', size=32),
    Form(name="java setter", text='config.setPassword("@@");\n', alphabet=PUNCTUATION),
    Form(name="kotlin gradle", text='    keyPassword = "@@"\n', alphabet=PUNCTUATION),
    Form(name="groovy gradle", text="    storePassword '@@'\n", alphabet=PUNCTUATION),
    Form(name="go short", text="\tapiToken := `@@`\n", size=40),
    Form(name="c define", text='#define WIFI_PASSWORD "@@"\n', alphabet=PUNCTUATION),
    Form(name="php array", text="    'password' => '@@',\n", alphabet=PUNCTUATION),
    Form(name="php define", text="define('DB_PASSWORD', '@@');\n", alphabet=PUNCTUATION),
    Form(name="wordpress salt", text="define('AUTH_KEY',         '@@');\n", alphabet=PUNCTUATION, size=64),
    Form(name="ruby symbol", text="  :secret_key => '@@'\n", size=40),
    Form(name="rails secret_key_base", text="production:\n  secret_key_base: @@\n", alphabet=LOWER_HEX, size=128),
    Form(name="python environ", text='os.environ["MY_SECRET"] = "@@"\n', size=32),
    Form(name="python setdefault", text='os.environ.setdefault("API_TOKEN", "@@")\n', size=32),
    Form(name="python getenv default", text='x = os.getenv("API_TOKEN", "@@")\n', size=32),
    Form(name="comparison", text='if user["token"] == "@@":\n'),
    Form(name="keyword argument", text=f"connect(host='h', {PW}='@@', port=1)\n", alphabet=PUNCTUATION),
    Form(name="bytes", text="ENCRYPTION_KEY = b'@@'\n", size=32),
    Form(name="next line", text='let access_token =\n    "@@";\n', size=32),
    Form(name="hex", text='api_key = "@@"\n', alphabet=LOWER_HEX, size=32),
    Form(name="json in a string", text='body = "{\\"user\\":\\"joe\\",\\"' + PW + '\\":\\"@@\\"}"\n'),
    Form(name="terraform variable", text='variable "db_password" {\n  type = string\n  default = "@@"\n}\n', alphabet=PUNCTUATION),
    Form(name="terraform value", text='  master_password = "@@"\n', alphabet=PUNCTUATION),
    # settings without quotes
    Form(name="laravel APP_KEY", text="APP_NAME=Laravel\nAPP_KEY=base64:@@\nAPP_DEBUG=true\n", size=32, written=_base64),
    Form(name="env", text="SMTP_PASSWORD=@@\n"),
    Form(name="env 16", text="SMTP_PASSWORD=@@\nA=b\n", size=16),
    Form(name="env punctuation", text="DB_PASSWORD=@@\nDB_HOST=x\n", alphabet=SHELL),
    Form(name="env trailing comment", text="API_KEY=@@ # rotate me\n", size=32),
    Form(name="env quoted, comment", text='API_KEY="@@"   # production\n', alphabet=PUNCTUATION, size=32),
    Form(name="export", text="export API_TOKEN=@@\n", size=32),
    Form(name="export and command", text="export API_TOKEN=@@ && make deploy\n", size=32),
    Form(name="command prefix", text="PGPASSWORD=@@ psql -h db -U joe\n", alphabet=SHELL),
    Form(name="dockerfile ENV", text="FROM x\nENV DB_PASSWORD @@\n", alphabet=SHELL),
    Form(name="dockerfile ENV=", text="ENV DB_PASSWORD=@@ OTHER=1\n", alphabet=SHELL),
    Form(name="fish", text="set -gx API_TOKEN @@\n", size=32),
    Form(name="powershell", text='$env:API_TOKEN = "@@"\n', size=32),
    Form(name="setx", text='setx API_TOKEN "@@"\n', size=32),
    Form(name="ini", text=f"[mysql]\nuser = joe\n{PW} = @@\n", alphabet=SHELL),
    Form(name="ini comment", text=f"{PW} = @@ ; do not share\n"),
    Form(name="properties", text="spring.datasource.password=@@\n", alphabet=SHELL),
    Form(name="properties spaced", text="spring.datasource.password = @@\n"),
    Form(name="yaml", text=f"db:\n  user: joe\n  {PW}: @@\n", alphabet=BASE62 + "!#$%^&*()-_=+;<>?~"),
    Form(name="yaml quoted", text=f"  {PW}: '@@'\n", alphabet=PUNCTUATION),
    Form(name="yaml comment", text=f"  {PW}: @@  # prod\n"),
    Form(name="yaml inline map", text=f"db: {{host: h, user: joe, {PW}: @@, port: 1}}\n"),
    Form(name="yaml inline map last", text=f"db: {{host: h, {PW}: @@}}\n", alphabet=BASE62 + "!#$%^&*()-_=+;<>?~"),
    Form(name="yaml inline map quoted", text=f"db: {{ {PW}: \"@@\", user: x }}\n", alphabet=PUNCTUATION),
    Form(name="compose list", text="    environment:\n      - POSTGRES_PASSWORD=@@\n", alphabet=SHELL),
    Form(name="kubernetes env", text="  - name: DB_PASSWORD\n    value: \"@@\"\n", alphabet=PUNCTUATION),
    Form(name="kubernetes env bare", text="  - name: DB_PASSWORD\n    value: @@\n"),
    Form(name="kubernetes secret", text=f"kind: Secret\ndata:\n  {PW}: @@\n", written=_base64),
    Form(name="ecs environment", text='{"name": "DB_PASSWORD", "value": "@@"}\n', alphabet=PUNCTUATION),
    Form(name="helm set", text="helm install x --set auth.password=@@ --wait\n"),
    Form(name="comment", text=f"# {PW}: @@\n"),
    Form(name="ansible inventory", text="web1 ansible_host=10.0.0.1 ansible_password=@@ ansible_port=22\n"),
    Form(name="wireguard", text="[Interface]\nPrivateKey = @@\n", size=32, written=_base64),
    Form(name="aws secret", text="aws_" + "secret_access_key = @@\n", alphabet=BASE64, size=40),
    Form(name="aws secret json", text='  "Secret' + 'AccessKey": "@@",\n', alphabet=BASE64, size=40),
    # connection strings
    Form(name="ado.net", text='"Server=db;Database=x;User Id=sa;Password=@@;Encrypt=true"\n', alphabet=BASE62 + "!@#$%^&*()-_+.?"),
    Form(name="ado.net last", text='cs = "Server=db;User Id=sa;Password=@@"\n', alphabet=BASE62 + "!@#$%^&*()-_+.?"),
    Form(name="ado.net Pwd", text='cs = "Server=db;Uid=sa;Pwd=@@;"\n'),
    Form(name="ado.net env", text="CONNECTION=Server=db;User Id=sa;Password=@@;Encrypt=true\n", alphabet=SHELL.replace(",", "")),
    Form(name="libpq", text='"host=db user=joe password=@@ dbname=x"\n', alphabet=SHELL),
    Form(name="jdbc query", text="jdbc:mysql://db:3306/x?user=joe&password=@@&useSSL=false\n"),
    Form(name="query parameter", text='get("https://api.shop.io/v1/x?api_key=@@&page=2")\n', size=32),
    Form(name="azure storage", text='"DefaultEndpointsProtocol=https;AccountName=x;Account' + 'Key=@@;EndpointSuffix=core"\n', alphabet=BASE62, size=64, written=_base64),
    # URLs
    Form(name="url", text='DATABASE_URL = "postgres://shop:@@@db.shop.io:5432/x"\n', size=12),
    Form(name="url punctuation", text='u = "mysql://shop:@@@db.shop.io/x"\n', alphabet=BASE62 + "!$%^&*()-_=+,;~."),
    Form(name="url localhost", text='u = "postgres://shop:@@@localhost:5432/x"\n'),
    Form(name="url in shell", text="curl -sS https://joe:@@@git.shop.io/x.tar.gz | tar xz\n", alphabet=BASE62 + "!$%^&*-_=+,~."),
    Form(name="url clone", text="git clone https://oauth2:@@@gitlab.shop.io/a/b.git\n"),
    Form(name="url env", text="REDIS_URL=redis://:@@@cache.shop.io:6379/0\n"),
    Form(name="url token as user", text="git clone https://@@@git.shop.io/a/b.git\n", size=40),
    # XML
    Form(name="xml element", text=f"<server>\n  <{PW}>@@</{PW}>\n</server>\n", alphabet=PUNCTUATION, written=escape),
    Form(name="xml cdata", text=f"<{PW}><![CDATA[@@]]></{PW}>\n", alphabet=BASE62 + "!#$%&*()-_=+<>"),
    Form(name="xml attribute", text=f'<user name="joe" {PW}="@@"/>\n', alphabet=PUNCTUATION, written=escape),
    Form(name="xml add key", text='<add key="AdminPassword" value="@@" />\n', alphabet=PUNCTUATION, written=escape),
    Form(name="xml property", text=f'<property name="connection.{PW}">@@</property>\n', alphabet=PUNCTUATION, written=escape),
    Form(name="xml property value", text=f'<property name="{PW}" value="@@"/>\n', alphabet=PUNCTUATION, written=escape),
    Form(name="android string", text='<string name="api_key">@@</string>\n', size=32),
    Form(name="plist", text="<key>ApiToken</key>\n\t<string>@@</string>\n", size=32),
    Form(name="nuget", text='<add key="ClearTextPassword" value="@@" />\n'),
    # command lines
    Form(name="--password=", text="mysqldump --user=joe --password=@@ shop > x.sql\n", alphabet=SHELL),
    Form(name="--password ", text="tool login --password @@ --user joe\n", alphabet=SHELL),
    Form(name="--token quoted", text="vault login --token '@@'\n", alphabet=PUNCTUATION, size=32),
    Form(name="-D property", text="java -Ddb.password=@@ -jar x.jar\n"),
    Form(name="-e variable", text="docker run -e MYSQL_ROOT_PASSWORD=@@ mysql:8\n", alphabet=SHELL),
    Form(name="-e quoted", text="docker run -e \"MYSQL_ROOT_PASSWORD=@@\" mysql:8\n", alphabet=PUNCTUATION),
    Form(name="--from-literal", text=f"kubectl create secret generic x --from-literal={PW}=@@\n"),
    Form(name="curl -u", text="curl -u joe:@@ https://api.shop.io/x\n", alphabet=SHELL),
    Form(name="curl --user quoted", text="curl --user 'joe:@@' https://api.shop.io\n", alphabet=PUNCTUATION),
    Form(name="sshpass", text="sshpass -p '@@' ssh joe@shop\n", alphabet=PUNCTUATION),
    Form(name="mysql -p", text="mysql -u root -p@@ shop\n", alphabet=SHELL),
    Form(name="docker login -p", text="docker login -u joe -p @@ registry.shop.io\n"),
    Form(name="password-stdin", text='echo "@@" | docker login -u joe --password-stdin\n'),
    Form(name="chpasswd", text='echo "joe:@@" | chpasswd\n', alphabet=PUNCTUATION),
    Form(name="sql identified by", text="CREATE USER joe IDENTIFIED BY '@@';\n", alphabet=PUNCTUATION),
    Form(name="sql password", text="ALTER USER joe WITH PASSWORD '@@';\n", alphabet=PUNCTUATION),
    # headers
    Form(name="bearer", text='headers = {"Authorization": "Bearer @@"}\n', size=40),
    Form(name="bearer 20", text="curl -H 'Authorization: Bearer @@' https://x.io\n"),
    Form(name="token header", text="curl -H 'X-Auth: Token @@' x\n", alphabet=LOWER_HEX, size=40),
    Form(name="header flag", text='curl -H "X-Api-Key: @@" https://x.io\n', size=32),
    Form(name="header flag private", text='curl --header "PRIVATE-TOKEN: @@" https://x.io\n', size=20),
    Form(name="http request", text="GET / HTTP/1.1\nX-Auth-Token: @@\n\n", size=32),
    Form(name="basic", text="Authorization: Basic @@\n", size=16, written=lambda value: _base64(f"joe:{value}")),
    # files of accounts
    Form(name="netrc", text="machine api.shop.io login joe password @@\n", alphabet=SHELL),
    Form(name="netrc lines", text="machine api.shop.io\n  login joe\n  password @@\n", alphabet=SHELL),
    Form(name="npmrc", text="//registry.npmjs.org/:_authToken=@@\n", size=36),
    Form(name="npmrc _auth", text="_auth=@@\n", size=24, written=_base64),
    Form(name="npmrc _password", text="//r.shop.io/:_password=@@\n", size=24, written=_base64),
    Form(name="yarnrc", text='npmAuthToken: "@@"\n', size=36),
    Form(name="pypirc", text=f"[pypi]\nusername = joe\n{PW} = @@\n"),
    Form(name="docker config", text='{"auths": {"https://index.docker.io/v1/": {"auth": "@@"}}}\n', size=20, written=_base64),
    Form(name="gem credentials", text=":rubygems_api_key: @@\n", alphabet=LOWER_HEX, size=40),
    Form(name="cargo", text='[registry]\ntoken = "@@"\n', size=32),
    Form(name="maven settings", text=f"<server><id>x</id><username>joe</username><{PW}>@@</{PW}></server>\n"),
    Form(name="composer", text='{"http-basic": {"r.io": {"username": "joe", "password": "@@"}}}\n', alphabet=PUNCTUATION.replace("\\", "")),
    Form(name="heroku legacy", text="HEROKU_API_KEY=@@\n", alphabet=LOWER_HEX, size=32, written=lambda v: "-".join((v[:8], v[8:12], v[12:16], v[16:20], v[20:]))),
    # more languages and files
    Form(name="go var", text='var dbPassword string = "@@"\n'),
    Form(name="redis requirepass", text="port 6379\nrequirepass @@\n"),
    Form(name="ldap bindpw", text="binddn cn=joe\nbindpw @@\n"),
    Form(name="rust const", text='const API_TOKEN: &str = "@@";\n', size=32),
    Form(name="r arrow", text=f'{PW} <- "@@"\n', alphabet=PUNCTUATION),
    Form(name="c# interpolated", text='string ApiKey = $"@@";\n', size=32),
    Form(name="yaml block", text=f"{PW}: >-\n  @@\n", size=32),
    Form(name="markdown table", text=f"| {PW} | `@@` |\n", size=24),
    Form(name="spring value", text=f'<property name="{PW}"><value>@@</value></property>\n', size=24),
    Form(name="requests auth", text="requests.get(url, auth=('joe', '@@'))\n", size=24),
    Form(name="basic auth object", text="HTTPBasicAuth('joe', '@@')\n", size=24),
    Form(name="smtp login", text="server.login('joe', '@@')\n", size=24),
    Form(name="composer oauth", text='{"github-oauth": {"github.com": "@@"}}\n', size=40),
    Form(name="htpasswd", text="htpasswd -b .htpasswd joe @@\n", size=24),
    Form(name="pgpass", text="db.shop.io:5432:shop:joe:@@\n", size=24),
)  # fmt: skip

# Places that are certain: what stands there is a password even if it is made of words.
_CERTAIN = frozenset(
    """
    python password|python password 12|json escaped|javascript object|java setter|groovy gradle
    |c define|php array|php define|keyword argument|terraform value|env|env punctuation
    |command prefix|dockerfile ENV|dockerfile ENV=|ini|ini comment|properties
    |properties spaced|yaml|yaml quoted|yaml comment|yaml inline map|yaml inline map last
    |yaml inline map quoted|compose list|kubernetes env|ecs environment|helm set|ansible inventory
    |ado.net|ado.net last|ado.net Pwd|ado.net env|libpq|jdbc query|url|url localhost|url in shell
    |xml element|xml attribute|xml add key|xml property|xml property value|maven settings
    |--password=|--password |-e variable|-e quoted|--from-literal|curl -u|curl --user quoted|sshpass
    |mysql -p|docker login -p|sql identified by|sql password|basic|netrc|netrc lines|pypirc|composer
    |r arrow|htpasswd|pgpass|requests auth|basic auth object
    |go var|redis requirepass|ldap bindpw
    """.replace("\n    ", "")
    .strip("\n")
    .split("|")
)
CHOSEN_FORMS: tuple[Form, ...] = (
    *(replace(form, name=f"chosen, {form.name}", chosen=True) for form in FORMS if form.name in _CERTAIN),
    Form(name="chosen, secret in YAML", text="  secret: @@ # comment\n", chosen=True, phrases=False),
    Form(name="chosen, SECRET_KEY", text='SECRET_KEY = "@@"\n', chosen=True, phrases=False, alphabet=PUNCTUATION),
    Form(name="chosen, clientSecret", text='{"clientSecret": "@@"}\n', chosen=True, phrases=False),
    Form(name="chosen, URL at an example's host", text="curl https://u:@@@x.example.com/\n", chosen=True),
    Form(name="chosen, XML in a connection", text="<connection>Server=db;User Id=sa;Password=@@;</connection>\n", chosen=True, alphabet=SHELL.replace(",", "")),
)  # fmt: skip


def vendor_tokens(draw: Draw) -> Iterator[tuple[str, str]]:
    """(rule, token): one of each form that vendors document."""

    def some(size: int, alphabet: str = BASE62) -> str:
        return "".join(draw.choices(alphabet, k=size))

    def encoded(value: str) -> str:
        return base64.urlsafe_b64encode(value.encode()).decode().rstrip("=")

    def uuid() -> str:
        return "-".join(some(n, LOWER_HEX) for n in (8, 4, 4, 4, 12))

    yield "age_key", "AGE-SECRET-" + "KEY-1" + some(58, UPPER)
    for kind in ("AKIA", "ASIA"):
        yield "aws_key_id", kind + some(16, UPPER)
    for kind in "pousr":
        yield "github_token", f"gh{kind}_" + some(36)
    yield "github_token", "github_" + "pat_" + some(22) + "_" + some(59)
    for kind in ("pat", "dt", "rt", "ptt"):
        yield "gitlab_token", f"gl{kind}-" + some(20)
    yield "gitlab_token", "gl" + "pat-" + some(27) + ".01." + some(9, LOWER_HEX)
    for kind in "bpar":
        yield "slack_token", f"xox{kind}-{draw.randrange(10**10, 10**11)}-{some(24)}"
    yield "slack_token", f"xa{'pp'}-1-A0{some(9, UPPER)}-123450987654-{some(64, LOWER_HEX)}"
    for kind in ("sk_live", "rk_live", "sk_test"):
        yield "stripe_key", f"{kind}_" + some(24)
    yield "stripe_key", "wh" + "sec_" + some(32)
    yield "google_api_key", "AI" + "za" + some(35)
    yield "google_oauth", "GOC" + "SPX-" + some(28)
    yield "google_oauth", "ya" + "29." + some(60)
    yield "anthropic_key", "sk-" + "ant-api03-" + some(93) + "AA"
    yield "anthropic_key", "sk-" + "ant-admin01-" + some(93) + "AA"
    yield "openai_key", "sk-" + "proj-" + some(64)
    yield "openai_key", "sk-" + some(20) + "T3Blbk" + "FJ" + some(20)
    yield "openai_key", "sk-" + some(32, LOWER_HEX)
    yield "huggingface_token", "h" + "f_" + some(34, string.ascii_letters)
    yield "npm_token", "np" + "m_" + some(36)
    yield "pypi_token", "py" + "pi-AgEI" + some(90)
    yield "sendgrid_key", "S" + "G." + some(22) + "." + some(43)
    yield "mailgun_key", "ke" + "y-" + some(32, LOWER_HEX)
    yield "telegram_token", "712345098:A" + "A" + some(33)
    for kind in "por":
        yield "digitalocean_token", f"do{kind}_" + "v1_" + some(64, LOWER_HEX)
    for kind in ("at", "ca", "pa", "ss"):
        yield "shopify_token", f"shp{kind}_" + some(32, LOWER_HEX)
    yield "square_token", "sq0" + "atp-" + some(22)
    yield "square_token", "sq0" + "csp-" + some(43)
    yield "square_token", "EA" + "AA" + some(60)
    yield "docker_token", "dckr_" + "pat_" + some(27, URL_SAFE)
    yield "docker_token", "dckr_" + "oat_" + some(32, URL_SAFE)
    yield "model_key", "gs" + "k_" + some(52)
    yield "databricks_token", "da" + "pi" + some(32, LOWER_HEX)
    for header in ('{"alg":"HS256","typ":"JWT"}', '{"typ":"JWT","alg":"RS256"}'):
        yield "jwt", ".".join((encoded(header), encoded('{"sub":"1234"}'), some(43)))
    yield "supabase_key", "sb" + "p_" + some(40, LOWER_HEX)
    yield "supabase_key", "sb" + "_secret_" + some(22, URL_SAFE) + "_" + some(8)
    yield "figma_token", "fig" + "d_" + some(40, URL_SAFE)
    yield "notion_token", "nt" + "n_" + some(11, string.digits) + some(35)
    yield "notion_token", "sec" + "ret_" + some(43)
    yield "atlassian_token", "AT" + "ATT3" + some(186, URL_SAFE + "=")
    yield "atlassian_token", "AT" + "BB" + some(32)
    yield "planetscale_token", "psc" + "ale_tkn_" + some(43, URL_SAFE)
    yield "planetscale_token", "psc" + "ale_pw_" + some(43, URL_SAFE)
    yield "terraform_token", some(14) + ".atlas" + "v1." + some(67)
    yield "tailscale_key", "tsk" + "ey-auth-" + some(11) + "CNTRL-" + some(32)
    yield "tailscale_key", "tsk" + "ey-api-" + some(12) + "-" + some(32)
    yield "dynatrace_token", "dt" + "0c01." + some(24, UPPER) + "." + some(64, UPPER)
    yield "doppler_token", "dp" + ".pt." + some(43)
    yield "doppler_token", "dp" + ".st.prd." + some(43)
    yield "fly_token", "fo" + "1_" + some(43, URL_SAFE)
    yield "fly_token", "fm" + "2_" + some(300, BASE64) + "=="
    yield "airtable_token", "pa" + "t" + some(14) + "." + some(64, LOWER_HEX)
    yield "hubspot_token", "pa" + "t-na1-" + uuid()
    yield "mapbox_token", "s" + "k.ey" + "J" + some(80) + "." + some(22)
    yield "heroku_key", "HRK" + "U-AA" + some(58, URL_SAFE)
    yield "azure_key", some(3) + "8Q" + "~" + some(34, BASE62 + "~._-")
    yield "azure_key", some(52) + "JQQ" + "J99" + some(26)
    yield "langsmith_key", "ls" + "v2_pt_" + some(32, LOWER_HEX) + "_" + some(10, LOWER_HEX)
    yield "vercel_token", "vc" + "p_" + some(56)
    yield "vercel_token", "vercel" + "_blob_rw_" + some(16) + "_" + some(30)
    for kind in "pau":
        yield "sonar_token", f"sq{kind}_" + some(40, LOWER_HEX)
    yield "buildkite_token", "bk" + "ua_" + some(40, LOWER_HEX)
    yield "buildkite_token", "bk" + "ct_" + some(50)
    yield "circleci_token", "CCI" + "PAT_" + some(22) + "_" + some(40, LOWER_HEX)
    yield "cloudflare_key", "cf" + "ut_" + some(48)
    yield "vault_token", "hv" + "s." + some(95, URL_SAFE)
    yield "monitoring_token", "gl" + "sa_" + some(32) + "_" + some(8, LOWER_HEX)


def contextual_tokens(draw: Draw) -> Iterator[tuple[str, str, str]]:
    """(rule, text, token): tokens that are known only with their vendor's name beside them."""

    def some(size: int, alphabet: str = BASE62) -> str:
        return "".join(draw.choices(alphabet, k=size))

    def encoded(value: str) -> str:
        return base64.urlsafe_b64encode(value.encode()).decode().rstrip("=")

    for service, rule, value in (
        ("twilio", "twilio_key", "S" + "K" + some(32, LOWER_HEX)),
        ("mailgun", "mailgun_key", f"{some(32, LOWER_HEX)}-{some(8, LOWER_HEX)}-0a1b2c3d"),
        ("mailchimp", "mail_key", f"{some(32, LOWER_HEX)}-us14"),
        ("discord", "discord_token", f"{encoded('902873645019283746')}.G{some(5)}.{some(38)}"),
        ("airtable", "airtable_token", "ke" + "y" + some(14)),
    ):
        yield rule, f"import {service}\nconnect('{value}')\n", value
    value = "T0" + some(8, UPPER) + "/B0" + some(8, UPPER) + "/" + some(24)
    yield "webhook", f'post("https://hooks.slack.com/services/{value}")\n', value
    value = "902873645019283746/" + some(68)
    yield "webhook", f"URL: https://discord.com/api/webhooks/{value}\n", value
    for name, size in (("Account", 86), ("SharedAccess", 43)):
        value = some(size, BASE64) + "=" * (-size % 4)
        yield "azure_key", f'"Endpoint=https://n.net/;{name}' + f'Key={value};Suffix=x"\n', value


def key_blocks(draw: Draw) -> Iterator[tuple[str, str, str]]:
    """(rule, text, block): private keys as files and programs hold them."""

    def some(size: int, alphabet: str = BASE64) -> str:
        return "".join(draw.choices(alphabet, k=size))

    def block(kind: str, end: str = "\n", lines: int = 8, note: str = "") -> str:
        body = end.join(some(64) for _ in range(lines))
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
        body = "\n".join(some(64) for _ in range(count))
        yield "putty_key", f"Private-Lines: {count}\n{body}\nPrivate-MAC: 00\n", body


# What has the look of a secret or an address and is none: it must come through unchanged.
INNOCENT: tuple[str, ...] = (
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
    # protocols' names, digests, addresses, identifiers
    "Ciphers chacha20-poly1305@openssh.com,aes128-gcm@openssh.com,aes256-gcm@openssh.com\n",
    "KexAlgorithms curve25519-sha256@libssh.org,sntrup761x25519-sha512@openssh.com\n",
    "MACs hmac-sha2-256-etm@openssh.com,umac-128-etm@openssh.com\n",
    "request('keepalive@openssh.com'); 'rijndael-cbc@lysator.liu.se'\n",
    "Message-ID: <20230824.123456.789@mail.shop.io>\nIn-Reply-To: <a1b2c3@mail.shop.io>\n",
    "Link: https://lore.kernel.org/r/20230407-b4-v2-1-abcdef@kernel-mail.org/\n",
    "References: <CAHk-8x=q7Rz2LkXw9TbV4nYc8PdH6fJ1gMs0@mail.gmail.com>\n",
    'token = "0xdAC17F958D2ee523a2206206994597C13D831ec7"\n',
    'USDC_TOKEN: "0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48"\n',
    'tokenAddress = "a0b86991c6218b36c1d19d4a2e9eb0ce3606eb48"\n',
    'session_token_id = "123e4567-e89b-12d3-a456-426614174000"\n',
    'token: "123e4567-e89b-12d3-a456-426614174000"\n',
    "js-tokens@^4.0.0:\n  integrity sha512-RdJUflcE3cUzKiMqQgsCu06FPu9UdIJO0beYbPhHN4k6apgJtif==\n",
    "github.com/x/token v1.0.0 h1:a1B2c3D4e5F6g7H8i9J0a1B2c3D4e5F6g7H8i9J0k1L2=\n",
    '[[package]]\nname = "secrecy"\nchecksum = "9bd1c54ea06cfd2f6b63219704de0b9b4f72dcc2b8fdef820be6cd799780e91e"\n',
    # templates and references
    "DB_PASSWORD=${DB_PASSWORD_2_PROD}\nAPI_KEY=$API_KEY_2\nTOKEN=$(cat /run/secrets/t0ken2)\n",
    "password: \"{{ lookup('env', 'DB_PASSWORD2') }}\"\n",
    "  password: ${{ secrets.DEPLOY_PASSWORD2 }}\n",
    "<password>${env.MAVEN_PASSWORD2}</password>\n<password>@DB_PASSWORD2@</password>\n",
    "Password=<your-password-2>;Server=x\n",
    "Server=x;Password=%DB_PASSWORD2%;\n",
    "password = \"#{ENV['DB_PASSWORD2']}\"\n",
    'f"https://{user}:{password2}@{host}/" + f"Bearer {token_1_of_2}"\n',
    'curl -u $USER1:$PASSWORD2 https://x.io -H "Authorization: Bearer ${TOKEN_2}"\n',
    'mysql -u root -p${MYSQL_ROOT_PASSWORD1} x; sshpass -p "$SSHPASS_2" ssh x\n',
    "--password=<PASSWORD_1_HERE> --token $GITHUB_TOKEN_2\n",
    "machine api.shop.io login joe password $NETRC_PASSWORD_2\n",
    "token: process.env.NPM_TOKEN_2_PROD,\n",
    'secret = config["app"]["secret_key_2"]\nsecret = os.environ.get("SECRET_2")\n',
    'password=getpass.getpass("Password2: ")\n',
    "token = self._tokens[index1][index2].value3\n",
    'key=hashlib.pbkdf2_hmac("sha256", b, c, 100000)\n',
    'token_pattern = r"[A-Za-z0-9_]{20,40}"\nTOKEN = r"(?P<a1>[a-z]+)\\.(\\d+)"\n',
    "  password: str = Field(min_length=8, max_length=128)\n",
    '"ARN": "arn:aws:secretsmanager:us-west-2:123456789012:secret:MyTestDatabaseSecret-a1b2c3"\n',
    "should_pass(\"WinDLL('./_sqlite3.dll')\")\n",
    '"adminPassword": "[parameters(\'publicKey\')]"\n',
    "Pass `verbosity=0` to get a table with a single row per repo\n",
    "docker run -u 1000:1000 --user root:root x\n",
)
