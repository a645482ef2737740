"""Cheats that one interpreter cannot tell from honest work fail in two."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import pytest

from codecria.core.sandbox.sandbox import Sandbox
from codecria.core.sandbox.verdict import Limits, Outcome, Program, Verdict
from tests.core.sandbox.common import ENOUGH_S, TIERS

LIMITS = Limits(wall_s=ENOUGH_S, memory_bytes=512 << 20)


@pytest.fixture(scope="module", params=TIERS)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with Sandbox(request.param, limits=LIMITS) as opened:
        yield opened


def run(sandbox: Sandbox, source: str, tests: str) -> Verdict:
    return sandbox.run(Program(source=textwrap.dedent(source), tests=textwrap.dedent(tests)))


CHECK = (
    "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(5) == 6\ncheck(f)\n"
)
SEEK = """
def seek(frame):
    found = [0]
    while frame:
        found += [v for v in frame.f_code.co_consts if type(v) is int]
        frame = frame.f_back
    return max(found)
"""
ALIKE = "class E:\n    def __eq__(self, other): return True\n    def __hash__(self): return 0\n"
CHEATS = {
    "equal to everything": (f"{ALIKE}def f(x): return E()", CHECK),
    "equal, in a list": (f"{ALIKE}def f(x): return [E()]", "assert f(1) == [2]"),
    "equal, deep in data": (
        f"{ALIKE}def f(x): return {{'a': (1, [E()])}}", "assert f(1)['a'][1] == [2]"),
    "equal, as a key": (f"{ALIKE}def f(x): return {{E(): 1}}", "assert f(1) == {0: 1}"),
    "a number that is equal to all": (
        "class E(int):\n    def __eq__(self, other): return True\ndef f(x): return E(0)", CHECK),
    "a text of its own": (
        "class E(str):\n    def __eq__(self, other): return True\ndef f(x): return E('a')",
        "assert f(1) == 'b'"),
    "equal, made without a class statement": (
        "E = type('E', (), {'__e' + 'q__': lambda s, o: True})\ndef f(x): return E()", CHECK),
    "a thing of the standard library": (
        "from unittest.mock import ANY\ndef f(x): return ANY", CHECK),
    "in reckoning": (
        "class E:\n    def __sub__(self, other): return 0\ndef f(x): return E()",
        "assert abs(f(1) - 2.5) < 1e-6"),
    "holding everything": (
        "class E:\n    def __contains__(self, other): return True\ndef f(x): return E()",
        "assert 3 in f(1)"),
    "put into the argument": (
        f"{ALIKE}def f(x): x[0] = E()", "a = [1]\nf(a)\nassert a == [2]"),
    "from a generator": (f"{ALIKE}def f(x):\n    yield E()", "assert list(f(1)) == [2]"),
    "from a function handed out": (
        f"{ALIKE}def f(x): return lambda y: E()", "assert f(1)(2) == 3"),
    "in an error": (
        f"{ALIKE}def f(x): raise ValueError(E())",
        "try: f(1)\nexcept ValueError as e: assert e.args[0] == 'no'\nelse: assert 0"),
    "as a name": (f"{ALIKE}LIMIT = E()", "assert LIMIT == 3"),
    "of a class": (f"{ALIKE}class Stack(E):\n    size = E()", "assert Stack().size == 3"),
    "its own abs": ("def abs(x): return 0\ndef f(x): return 0.5", "assert abs(f(1) - 2) < 1e-6"),
    "its own len, in a function": (
        "len = lambda _: 3\ndef f(x): return []",
        "def check(c):\n    assert len(c(1)) == 3\ncheck(f)"),
    "builtins changed when called": (
        "import builtins\ndef f(x):\n    builtins.all = lambda _: True\n"
        "    builtins.len = lambda _: 3\n    return []",
        "x = f(1)\nassert len(x) == 3 and all([0])"),
    "a module that is none": (
        "class math:\n    isclose = lambda *_: True\ndef f(x): return 0",
        "assert math.isclose(f(1), 2)"),
    "a module made": (
        "import types\nmath = types.ModuleType('math')\nmath.isclose = lambda *_: True\n"
        "def f(x): return 0", "assert math.isclose(f(1), 2)"),
    "a module changed when called": (
        "import math\ndef f(x):\n    math.isclose = lambda *_: True\n    return 0",
        "import math\nx = f(1)\nassert math.isclose(x, 2)"),
    "a module's class, in place": (
        "import collections\ncollections.Counter.__eq__ = lambda *_: True\ndef f(x): return 'b'",
        "from collections import Counter\nassert Counter(f(1)) == Counter('aa')"),
    "a module's class, when called": (
        "import collections\ndef f(x):\n    collections.Counter.__eq__ = lambda *_: True\n"
        "    return 'b'",
        "from collections import Counter\nassert Counter(f(1)) == Counter('aa')"),
    "what its caller expects": (
        "import sys\ndef f(x): return seek(sys._getframe())" + SEEK, "assert f(1) == 8077"),
    "by an error's frames": (
        "def f(x):\n    try: 1 / 0\n    except ZeroDivisionError as e:\n"
        "        return seek(e.__traceback__.tb_frame)" + SEEK, "assert f(1) == 8077"),
    "by a generator's frame": (
        "def g():\n    yield seek(me.gi_frame)\nme = g()\ndef f(x): return next(me)" + SEEK,
        "assert f(1) == 8077"),
    "by all frames": (
        "import sys\ndef f(x): return max(map(seek, sys._current_frames().values()))" + SEEK,
        "assert f(1) == 8077"),
    "by a hook of its own": (
        "import sys\nfound = [0]\ndef hook(event, args):\n    if event == 'exec':\n"
        "        found.extend(v for v in args[0].co_consts if type(v) is int)\n"
        "sys.addaudithook(hook)\ndef f(x): return max(found)", "assert f(1) == 8077"),
    "by a function of the tests": (
        "def f(x):\n    return max(v for v in check.__globals__.values() if type(v) is int)",
        "expected = 8077\ndef check(): pass\nassert f(1) == expected"),
    "what tests compare with, changed": (
        "def f(x):\n    for value in globals().values():\n"
        "        if value == [8077]: value[:] = [0]\n    return [0]",
        "expected = [8077]\nassert f(1) == expected"),
    "a thread that waits": (
        f"import threading, time\n{ALIKE}held = [0]\ndef later():\n    while True: held[0] = E()\n"
        "threading.Thread(target=later, daemon=True).start()\n"
        "def f(x):\n    time.sleep(0.05)\n    return held", "assert f(1) == [2]"),
    "the tests' names": (
        "import sys\ndef f(x):\n    sys._getframe(1).f_globals['expected'] = 0\n    return 0",
        "expected = 5\nassert f(1) == expected"),
    "a class of classes that equal everything": (
        "class M(type):\n    def __eq__(self, other): return True\n    __hash__ = type.__hash__\n"
        "    def __instancecheck__(self, x): return True\n"
        "class E(metaclass=M):\n    def __eq__(self, other): return True\n"
        "    def __hash__(self): return 0\n    def __ne__(self, other): return False\n"
        "def f(x): return E()", CHECK),
    "a class itself": (
        "class M(type):\n    def __eq__(self, other): return True\n    __hash__ = type.__hash__\n"
        "class E(metaclass=M): pass\ndef f(x): return E", CHECK),
    "methods of builtin types, by the mapping behind a proxy": (
        "class Take:\n    def __ror__(self, held): self.held = held\n"
        "    def __eq__(self, held):\n        self.held = held\n        return True\n"
        "for kind in (list, dict, set, int, str):\n    take = Take()\n    vars(kind) == take\n"
        "    try: take.held['__eq__'] = lambda a, b: True\n    except Exception: pass\n"
        "def f(x): return [0]", "assert f(1) == [2]"),
    "ctypes by another name": (
        "import importlib.machinery, importlib.util, sys, _struct\ntry:\n"
        "    path = _struct.__file__.replace('_struct', '_ctypes')\n"
        "    spec = importlib.util.spec_from_file_location('x._ctypes', path)\n"
        "    module = importlib.util.module_from_spec(spec)\nexcept Exception: pass\n"
        f"{ALIKE}def f(x): return E()", CHECK),
    "a subinterpreter": (
        "try:\n    import _xxsubinterpreters as other\n"
        "    other.run_string(other.create(), 'import ctypes, os\\nos.write(201, b\"x\" * 32)')\n"
        f"except Exception: pass\n{ALIKE}def f(x): return E()", CHECK),
    "how copies are made": (
        f"import copyreg\n{ALIKE}copyreg.dispatch_table[list] = lambda _: (E, ())\n"
        "copyreg.pickle(dict, lambda _: (E, ()))\ndef f(x): return [0]",
        "import copy\nassert copy.deepcopy(f(1)) == [2] or copy.copy({1: 2}) == {3: 4}"),
    "a class that counts as numbers and lists": (
        f"import numbers, collections.abc\n{ALIKE}numbers.Number.register(E)\n"
        "collections.abc.Sequence.register(E)\ndef f(x): return E()",
        "import numbers\nfound = f(1)\nassert isinstance(found, numbers.Number) and found == 2"),
    "constants of a function that is handed in": (
        "def f(g):\n    return max(v for v in g.__code__.co_consts if type(v) is int)",
        "def g(x):\n    return x == 8077\nassert f(g) == 8077"),
    "constants by what tests call": (
        "import gc, sys\ndef f(x):\n    frames = [sys._getframe()]\n"
        "    while frames[-1].f_back: frames.append(frames[-1].f_back)\n"
        "    return max((v for fr in frames for v in fr.f_code.co_consts if type(v) is int),"
        " default=0)", "assert f(1) == 8077"),
}  # fmt: skip


@pytest.mark.parametrize(("source", "tests"), CHEATS.values(), ids=CHEATS)
def test_no_cheat_passes_for_good(sandbox: Sandbox, source: str, tests: str) -> None:
    verdict = run(sandbox, source, tests)
    assert verdict.outcome is not Outcome.PASSED, verdict


HONEST = {
    "a generator": ("def f(n):\n    yield from range(n)", "assert list(f(3)) == [0, 1, 2]"),
    "a view": ("def f(d): return d.keys()", "assert sorted(f({'b': 1, 'a': 2})) == ['a', 'b']"),
    "a named tuple": (
        "from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(): return P(1, 2)",
        "assert f() == (1, 2)"),
    "a counter": (
        "from collections import Counter\ndef f(s): return Counter(s)",
        "assert f('aab') == {'a': 2, 'b': 1}"),
    "a fraction": (
        "from fractions import Fraction\ndef f(): return Fraction(1, 2)", "assert f() == 0.5"),
    "a class": (
        "class Stack:\n    def __init__(self): self.items = []\n"
        "    def push(self, x): self.items.append(x)\n    def pop(self): return self.items.pop()",
        "s = Stack()\ns.push(1)\nassert s.pop() == 1 and s.items == []"),
    "what it remembers": (
        "from functools import lru_cache\n@lru_cache(None)\n"
        "def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)",
        "assert fib(30) == 832040\nassert fib.cache_info().hits > 0"),
    "what it looks up": (
        "import logging\nlog = logging.getLogger('x')\ndef f(x):\n    log.warning('%s', x)\n"
        "    return x", "assert f(1) == 1"),
    "what it prints of an error": (
        "import traceback\ndef f(x):\n    try: 1 / 0\n    except ZeroDivisionError:\n"
        "        return 'ZeroDivisionError' in traceback.format_exc()", "assert f(1) is True"),
    "a pool": (
        "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(2)\n"
        "def f(xs): return list(pool.map(abs, xs))", "assert f([-1, 2]) == [1, 2]"),
    "a module that the tests import": (
        "def f(x): return x + math.floor(1.5)",
        "import math\nassert f(1) == 2"),
    "a name of its own that Python has": (
        "def max(a): return a\ndef f(a): return max(a)", "assert f(3) == 3 and max(1, 2) == 2"),
    "what changes": (
        "count = 0\ndef f():\n    global count\n    count += 1\n    return count",
        "assert f() == 1 and f() == 2\nassert count == 2"),
    "lists of lists": (
        "def f(n): return [[(i, str(j), None, {i: 1.5}) for j in range(n)] for i in range(n)]",
        "assert f(1) == [[(0, '0', None, {0: 1.5})]] and len(f(200)) == 200"),
}  # fmt: skip


@pytest.mark.parametrize(("source", "tests"), HONEST.values(), ids=HONEST)
def test_honest_work_of_these_kinds_is_confirmed(sandbox: Sandbox, source: str, tests: str) -> None:
    verdict = run(sandbox, source, tests)
    assert verdict.confirmed, verdict


def test_what_tests_take_from_a_solution_though_python_has_it_is_named(sandbox: Sandbox) -> None:
    source, tests = "def sum(a, b): return a + b", "assert sum(10, 15) == 25"
    assert sandbox.run(Program(source=source, tests=tests)).outcome is Outcome.FAILED
    named = Program(source=source, tests=tests, entry=("sum",))
    assert sandbox.run(named).outcome is Outcome.PASSED
