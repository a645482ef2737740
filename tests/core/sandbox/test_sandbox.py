"""Honest programs in the sandbox, and what a verdict tells."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from codecria.core.sandbox import sandbox
from codecria.core.sandbox.sandbox import Sandbox, choose_tier
from codecria.core.sandbox.verdict import Limits, Outcome, Program, Tier
from codecria.data.errors import UserError
from tests.core.sandbox.common import ENOUGH_S, TIERS

LIMITS = Limits(wall_s=ENOUGH_S)


@pytest.fixture(scope="module", params=TIERS)
def opened(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with Sandbox(request.param, limits=LIMITS) as box:
        yield box


HONEST = {
    "an assertion": "assert 1 + 1 == 2",
    "nothing": "",
    "a temporary file": "import tempfile\nwith tempfile.NamedTemporaryFile('w+') as f:\n"
    "    f.write('x'); f.seek(0); assert f.read() == 'x'",
    "a temporary folder": "import os, tempfile\nwith tempfile.TemporaryDirectory() as d:\n"
    "    open(os.path.join(d, 'x'), 'w').close()",
    "a file beside it": "open('x', 'w').write('x')\nassert open('x').read() == 'x'",
    "a thread": "import threading\nfound = []\n"
    "t = threading.Thread(target=found.append, args=(1,))\nt.start(); t.join()\nassert found",
    "a pool of threads": "from concurrent.futures import ThreadPoolExecutor\n"
    "with ThreadPoolExecutor(4) as p: assert sum(p.map(len, ['a'] * 9)) == 9",
    "an event loop": "import asyncio\nasync def f(): await asyncio.sleep(0.01); return 1\n"
    "assert asyncio.run(f()) == 1",
    "recursion": "def f(n): return n and 1 + f(n - 1)\nassert f(900) == 900",
    "100 MB": "x = bytearray(100 << 20)\nassert len(x) == 100 << 20",
    "warnings": "import warnings, sys\nwarnings.warn('careful')\nprint('failed', file=sys.stderr)",
    "the word failed": "print('failed: AssertionError')",
    "modules": "import bz2, csv, decimal, hashlib, json, random, re, secrets, string, zlib\n"
    "import xml.etree.ElementTree, urllib.parse, html.parser, logging, pathlib, pprint\n"
    "secrets.token_hex(4); hashlib.sha256(b'').digest(); random.random()",
    "a database": "import sqlite3\ndb = sqlite3.connect('x.db')\ndb.execute('create table t (a)')",
    "the future": "from __future__ import annotations\ndef f(x: Missing) -> None: ...",
    "a dataclass": "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\n"
    "assert A(1) == A(1)",
    "typing": "from typing import NamedTuple, List\nclass P(NamedTuple):\n    x: int\n"
    "def f(x: List[int]) -> int: return 1",
    "logging frames": "import logging\nlogging.basicConfig()\nlogging.warning('x')",
    "a closed stdout": "import sys\nsys.stdout = open('log', 'w')\nprint('x')",
    "a signal to itself": "import signal\nfound = []\n"
    "signal.signal(signal.SIGUSR1, lambda *_: found.append(1))\n"
    "signal.raise_signal(signal.SIGUSR1)\nassert found",
    "an alarm": "import signal\nsignal.signal(signal.SIGALRM, lambda *_: None)\nsignal.alarm(5)",
    "unittest": "import unittest\nclass T(unittest.TestCase):\n"
    "    def test(self): self.assertEqual(1, 1)\n"
    "r = unittest.TextTestRunner().run(unittest.defaultTestLoader.loadTestsFromTestCase(T))\n"
    "assert r.wasSuccessful()",
    "the time": "import time, datetime\ntime.sleep(0.01)\ndatetime.datetime.now()",
}


@pytest.mark.parametrize("source", HONEST.values(), ids=HONEST)
def test_honest_programs_pass(opened: Sandbox, source: str) -> None:
    verdict = opened.run(Program(source=source))
    assert verdict.outcome is Outcome.PASSED, verdict
    assert verdict.exit_status == 0
    assert (verdict.tier, verdict.detail) == (opened.tier, "")


def test_tests_see_what_the_solution_made(opened: Sandbox) -> None:
    solution = "import math\ndef area(r): return math.pi * r * r\n"
    passing = Program(source=solution, tests="assert abs(area(1) - 3.14159) < 1e-3")
    failing = Program(source=solution, tests="assert area(1) == 0")
    assert opened.run(passing).outcome is Outcome.PASSED
    verdict = opened.run(failing)
    assert (verdict.outcome, verdict.detail) == (Outcome.FAILED, "AssertionError")
    assert 'File "<tests>", line 1' in verdict.stderr


WRONG = {
    "an assertion": ("assert 1 == 2, 'no'", Outcome.FAILED, "AssertionError: no"),
    "an error": ("x = 1\n\n1 / 0", Outcome.FAILED, "ZeroDivisionError: division by zero"),
    "no Python": ("def (:", Outcome.FAILED, "SyntaxError: invalid syntax"),
    "a zero byte": ("x = '\0'", Outcome.FAILED, "null bytes"),
    "recursion": ("def f(): f()\nf()", Outcome.FAILED, "RecursionError"),
    "an exit": ("raise SystemExit(3)", Outcome.FAILED, "exit status 3"),
    "an early exit": ("raise SystemExit", Outcome.FAILED, "exit status 1"),
    "a signal": ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", Outcome.CRASHED, "SIG"),
    "memory": ("x = bytearray(1 << 35)", Outcome.RESOURCE, "MemoryError"),
}


@pytest.mark.parametrize(("source", "outcome", "detail"), WRONG.values(), ids=WRONG)
def test_a_verdict_says_what_went_wrong(
    opened: Sandbox, source: str, outcome: Outcome, detail: str
) -> None:
    verdict = opened.run(Program(source=source))
    assert verdict.outcome is outcome
    assert detail in verdict.detail


def test_standard_input_and_output_are_the_programs(opened: Sandbox) -> None:
    source = "if __name__ == '__main__':\n    n = int(input())\n    print(sum(range(n)))\n"
    verdict = opened.run(Program(source=source, stdin="10\nmore"))
    assert (verdict.outcome, verdict.stdout) == (Outcome.PASSED, "45\n")
    large = opened.run(
        Program(source="import sys\nprint(len(sys.stdin.read()))", stdin="x" * 10**6)
    )
    assert large.stdout == "1000000\n"


def test_many_programs_come_back_each_once(opened: Sandbox) -> None:
    programs = [Program(source=f"assert {n} % 3") for n in range(40)]
    found = dict(opened.run_many(programs))
    assert sorted(found) == list(range(40))
    passed = {n for n, verdict in found.items() if verdict.outcome is Outcome.PASSED}
    assert passed == {n for n in range(40) if n % 3}


def test_a_timeout_is_judged_again_alone(opened: Sandbox) -> None:
    # The first run of each is slow; a file beyond the box would be needed to know it is the second,
    # so what is seen here is the time: twice the limit, and other verdicts first.
    limits = [Limits(wall_s=0.5), *[LIMITS] * 6]
    programs = [Program(source="while True: pass"), *[Program(source="pass")] * 6]
    order = [n for n, _ in opened.run_many(programs, limits)]
    assert order[-1] == 0
    assert sorted(order) == list(range(7))


def test_nothing_runs_unconfined_unless_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.jail, "landlock_abi", lambda: 0)
    monkeypatch.setattr(sandbox.bwrap, "bwrap_problem", lambda: "no bubblewrap")
    for requested in ("auto", "native"):
        with pytest.raises(UserError, match="cannot be confined here: the kernel's Landlock"):
            choose_tier(requested)
    assert choose_tier("none") is Tier.NONE
    with pytest.raises(UserError, match="no bubblewrap"):
        choose_tier("bwrap")
    with pytest.raises(UserError, match="no sandbox tier 'docker'"):
        Sandbox("docker")
