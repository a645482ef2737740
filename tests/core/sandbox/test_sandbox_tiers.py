"""Tiers around the jail: bubblewrap with and without Landlock, and a user's command."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from codecria.core.sandbox import bwrap, jail, languages, sandbox
from codecria.core.sandbox.config import SandboxConfig
from codecria.core.sandbox.sandbox import Sandbox, choose_tier
from codecria.core.sandbox.survey import namespaces_problem, sample
from codecria.core.sandbox.verdict import Limits, Outcome, Program, Tier
from codecria.data.errors import UsageError, UserError
from tests.core.sandbox.common import ENOUGH_S, short

LIMITS = Limits(wall_s=ENOUGH_S, output_bytes=1 << 16, disk_bytes=8 << 20)
wrapped = pytest.mark.skipif(bool(bwrap.bwrap_problem()), reason=bwrap.bwrap_problem())


def test_auto_takes_the_strongest_that_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.jail, "problem", lambda: "")
    monkeypatch.setattr(sandbox.bwrap, "bwrap_problem", lambda: "")
    assert choose_tier("auto") is Tier.BWRAP
    assert choose_tier("native") is Tier.NATIVE
    monkeypatch.setattr(sandbox.bwrap, "bwrap_problem", lambda: "no bubblewrap")
    assert choose_tier("auto") is Tier.NATIVE
    monkeypatch.setattr(sandbox.jail, "problem", lambda: "no Landlock")
    with pytest.raises(UserError, match="no Landlock; no bubblewrap") as refused:
        choose_tier("auto")
    assert "--sandbox command" in str(refused.value.hint)
    monkeypatch.setattr(sandbox.bwrap, "bwrap_problem", lambda: "")
    assert choose_tier("auto") is Tier.BWRAP, "it holds without Landlock too"


def test_without_bubblewrap_the_line_that_installs_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    bwrap._probe.cache_clear()
    try:
        assert "apt install bubblewrap" in bwrap.bwrap_problem()
    finally:
        bwrap._probe.cache_clear()


@wrapped
def test_bubblewrap_holds_where_the_kernel_has_no_landlock(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(jail, "landlock_abi", lambda: 0)
    monkeypatch.setenv("CODECRIA_TEST_SECRET", "secret")
    secret = tmp_path / "secret"
    secret.write_text("secret")
    attacks = {
        "the secret": f"open({str(secret)!r}).read()",
        "the system": "open('/usr/lib/new', 'w')",
        "passwd": "open('/etc/passwd').read()",
        "processes": "open('/proc/self/environ').read()",
        "memory of the server": "open('/proc/1/mem', 'r+b')",
        "a socket": "import socket\nsocket.socket()",
        "a process": "import os\nos.fork()",
        "a file of a run before": "assert open('/boxes/left').read()",
        "another in memory": "assert open('/dev/shm/left').read()",
    }
    leaves = """
        open('/boxes/left', 'w').write('x')
        open('/dev/shm/left', 'w').write('x')
    """
    with Sandbox("bwrap", workers=1, limits=LIMITS) as opened:
        assert opened.run(Program(source=leaves.replace("    ", ""))).outcome is Outcome.PASSED
        for name, attack in attacks.items():
            verdict = opened.run(Program(source=f"{attack}\nprint('escaped')"))
            assert verdict.outcome is Outcome.FAILED, (name, verdict)
            assert "escaped" not in verdict.stdout, name
        assert opened.run(Program(source="import os\nos._exit(0)")).outcome is Outcome.FAILED
    assert secret.read_text() == "secret"


@pytest.mark.skipif(bool(jail.problem()), reason="no jail here")
def test_the_survey_reports_the_namespaces_that_native_servers_get() -> None:
    with Sandbox("native", workers=1, limits=LIMITS) as opened:
        process = opened._servers[0].process.pid
        inner = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        lines = [Path(f"/proc/{pid}/status").read_text() for pid in inner]
    depths = [line.split()[1:] for text in lines for line in text.splitlines() if "NSpid" in line]
    own = Path("/proc/self/status").read_text().partition("NSpid:")[2].splitlines()[0].split()
    nested = any(len(depth) > len(own) for depth in depths)
    assert (namespaces_problem() == "") is nested, (depths, namespaces_problem())


@wrapped
def test_a_bubblewrap_server_ends_with_what_it_runs() -> None:
    with Sandbox("bwrap", workers=1, limits=LIMITS) as opened:
        process = opened._servers[0].process
        inner = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert inner
    assert process.poll() is not None
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in inner) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(Path(f"/proc/{pid}").exists() for pid in inner)


@wrapped
@pytest.mark.parametrize("name", languages.LANGUAGES)
def test_other_languages_run_in_bubblewrap_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if why := languages.missing(name):
        pytest.skip(why)
    right, wrong = sample(name)
    for without_landlock in (False, True):
        if without_landlock:
            monkeypatch.setattr(jail, "landlock_abi", lambda: 0)
        with Sandbox("bwrap", workers=1, limits=Limits(wall_s=ENOUGH_S)) as opened:
            if without_landlock and languages.LANGUAGES[name].run.maps:
                assert "needs /proc" in opened.run(right).detail
                continue
            assert opened.run(right).outcome is Outcome.PASSED
            assert opened.run(wrong).outcome is Outcome.FAILED


@pytest.mark.parametrize(
    ("tier", "command"),
    [("command", ""), ("command", "  "), ("auto", "podman"), ("jail", ""), ("command", "'open")],
)
def test_a_tier_and_a_command_go_together(tier: str, command: str) -> None:
    with pytest.raises(UsageError):
        SandboxConfig(tier=tier, command=command)


# --- a command ------------------------------------------------------------------------------------

COMMANDS = {
    "assert 1 + 1 == 2": Outcome.PASSED,
    "assert 1 + 1 == 3": Outcome.FAILED,
    "import os\nos._exit(0)": Outcome.FAILED,
    "raise SystemExit(0)": Outcome.FAILED,
    "import os\nos.write(201, os.read(200, 32))\nos._exit(0)": Outcome.FAILED,
    "while True: print('x' * 1000)": Outcome.RESOURCE,
    "while True: pass": Outcome.TIMEOUT,
    "print('passed')\nassert input() == ''": Outcome.FAILED,
}


@pytest.mark.skipif(shutil.which("python3") is None, reason="there is no python3 on PATH")
def test_a_command_judges_as_the_other_tiers_do() -> None:
    with Sandbox(
        "command", command="env -i PATH=/usr/bin:/bin", workers=2, limits=LIMITS
    ) as opened:
        programs = [Program(source=source) for source in COMMANDS]
        slow = [outcome is Outcome.TIMEOUT for outcome in COMMANDS.values()]
        limits = [short(LIMITS) if never_ends else LIMITS for never_ends in slow]
        found = dict(opened.run_many(programs, limits))
        assert {p.source: found[n].outcome for n, p in enumerate(programs)} == COMMANDS
        assert {verdict.tier for verdict in found.values()} == {Tier.COMMAND}
        apart = Program(source="def f(): return 1", tests="assert f() == 1")
        assert opened.run(apart).outcome is Outcome.PASSED
        echo = opened.run(Program(source="print(input())", stdin="hello"))
        assert (echo.outcome, echo.stdout) == (Outcome.PASSED, "hello\n")
        other = opened.run(Program(language="java", source=""))
        assert other.outcome is Outcome.SKIPPED
        assert "java" in other.detail


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("no-such-command-here", "does not start"),
        ("false", "does not run Python programs"),
    ],
)
def test_a_command_that_does_not_work_is_refused_at_once(command: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        Sandbox("command", command=command, workers=1, limits=LIMITS)
