"""What a solution can reach of the tests' process: what it was handed, and no more.

The solutions here speak the bridge's language themselves, as a hostile one may: they find the
pipes by their numbers and ask for whatever they like. Beside each stands honest work of its kind.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import pytest

from codecria.core.sandbox.config import Confirm
from codecria.core.sandbox.sandbox import Sandbox
from codecria.core.sandbox.verdict import Limits, Outcome, Program, Verdict
from tests.core.sandbox.common import ENOUGH_S, TIERS, short

LIMITS = Limits(wall_s=ENOUGH_S)


@pytest.fixture(scope="module", params=TIERS)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with Sandbox(request.param, workers=1, confirm=Confirm.ALL, limits=LIMITS) as it:
        yield it


def run(sandbox: Sandbox, source: str, tests: str, limits: Limits = LIMITS) -> Verdict:
    program = Program(source=textwrap.dedent(source), tests=textwrap.dedent(tests))
    verdict = sandbox.run(program, limits)
    assert verdict.isolated
    return verdict


# A solution's part: whatever question it likes about the first thing that it was handed.
RAW = """
import json, os, struct
def raw(question):
    data = json.dumps(question).encode()
    os.write(203, struct.pack("<I", len(data)) + data)
    length = struct.unpack("<I", os.read(202, 4))[0]
    return json.loads(os.read(202, length))
def asks(what, of=0, *values):
    return raw({"ask": what, "of": of, "values": list(values), "named": {}})
"""
# Tests hand in a function of their own; what they expect is a global of theirs.
SECRET = """
SECRET = 'a value that only the tests know'
class Holder:
    __slots__ = ('value',)
    def __init__(self): self.value = 1
    def method(self): return 2
def function(x): return x
def generator():
    yield SECRET[:0]
    yield SECRET
holder = Holder()
"""
CHECK = SECRET + "assert f({}) == SECRET"
ATTACKS = {
    "an attribute of a function": "asks('get', 0, '__globals__')",
    "an attribute of a text": "raw({'ask': 'get', 'values': ['{0.__globals__}', 'format']})",
    "an attribute of data in a thing's place": "asks('get', '{0.__globals__}', 'format')",
    "a path of attributes": "asks('get', 0, 'method.__func__.__globals__')",
    "the class": "asks('get', 0, '__class__')",
    "the dictionary": "asks('get', 0, '__dict__')",
    "a private name": "asks('get', 0, '_peer')",
    "setting": "asks('set', 0, '__code__', None)",
    "setting an attribute": "asks('set', 0, 'value', 5)",
    "formatting": "asks('__format__', 0, '{0.__globals__}')",
    "remainder with a text": "asks('__mod__', 0, 'x')",
    "an operation of the class": "asks('__reduce__', 0)",
    "a pickle": "asks('__reduce_ex__', 0, 4)",
    "being an instance": "asks('isinstance', 0, {'y': 0})",
    "text of it": "asks('__repr__', 0)",
    "no thing": "asks('names', None, 'SECRET')",
    "a module": "asks('module', None, 'SECRET', 'os')",
    "a thing that was not handed in": "asks('call', 1)",
    "a thing before the first": "asks('call', -1)",
    "a thing of no number": "asks('call', True)",
    "a name of the standard library": "asks('call', 0, {'p': ['builtins', 'globals']})",
    "a class by its name": "asks('call', 0, {'m': ['os', 'system', ['true']]})",
}
HANDED = ("function", "holder", "generator()", "Holder", "holder.method", "str.format", "len")


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("handed", HANDED)
def test_a_solution_reaches_nothing_beyond_what_it_was_handed(
    sandbox: Sandbox, attack: str, handed: str
) -> None:
    source = RAW + f"def f(thing):\n    told = {attack}\n    return str(told)"
    tests = SECRET + f"found = f({handed})\nassert SECRET in found"
    verdict = run(sandbox, source, tests)
    assert verdict.outcome is Outcome.FAILED, verdict
    verdict = run(sandbox, source, SECRET + f"found = f({handed})\nassert '__builtins__' in found")
    assert verdict.outcome is Outcome.FAILED, verdict


ANSWERS = {
    "an error with a traceback": """
        class Mine(Exception):
            def __str__(self): return __import__('os').getpid
        def f(g): raise Mine(g)
    """,
    "an error of no kind": """
        def f(g):
            raw({'error': ['SystemExit', 'os', '__import__', {}], 'text': 'x'})
    """,
    "an answer equal to everything": """
        class E(str):
            def __eq__(self, other): return True
            def __hash__(self): return 0
        def f(g): return E('x')
    """,
    "a class equal to everything": """
        class M(type):
            def __eq__(self, other): return True
            def __hash__(self): return hash(str)
            def __instancecheck__(self, x): return True
            def __subclasscheck__(self, x): return True
        class E(metaclass=M):
            def __eq__(self, other): return True
        def f(g): return E()
    """,
    "hooks of pickles": """
        import copyreg
        class E:
            def __reduce_ex__(self, _): return (eval, ('SECRET',))
        copyreg.dispatch_table[str] = lambda _: (eval, ('SECRET',))
        def f(g): return [E(), E]
    """,
    "a value that says what it is made of": """
        def f(g):
            data = b'{"value": {"m": ["builtins", "eval", ["SECRET"]]}}'
            os.write(203, struct.pack('<I', len(data)) + data)
    """,
    "a named tuple of a class's words": """
        def f(g):
            data = b'{"value": {"n": ["x", ["__eq__"], [1]]}}'
            os.write(203, struct.pack('<I', len(data)) + data)
    """,
    "the place of an argument": """
        def f(g):
            data = b'{"same": -1, "changed": {"0": 5}}'
            os.write(203, struct.pack('<I', len(data)) + data)
    """,
    "no message": "def f(g): os.write(203, struct.pack('<I', 2) + b'[]')",
    "half a message": "def f(g): os.write(203, struct.pack('<I', 9)); os._exit(0)",
    "a message without end": "def f(g): os.write(203, struct.pack('<I', 0xffffffff))",
    "deep nesting": """
        def f(g):
            data = b'{"value": ' + b'[' * 10000 + b']' * 10000 + b'}'
            os.write(203, struct.pack('<I', len(data)) + data)
    """,
    "the builtins": """
        import builtins
        for name in list(vars(builtins)):
            if name[0] != '_' and name not in ('open', 'BaseException'):
                setattr(builtins, name, lambda *a, **k: True)
        def f(g): return True
    """,
    "modules of the standard library": """
        import json, struct
        json.dumps = lambda *_: '{"value": true}'
        def f(g): return True
    """,
}


@pytest.mark.parametrize("source", ANSWERS.values(), ids=ANSWERS)
def test_no_answer_passes_for_another(sandbox: Sandbox, source: str) -> None:
    whole = RAW + textwrap.dedent(source)
    verdict = run(sandbox, whole, CHECK.format("function"), limits=short(LIMITS))
    assert verdict.outcome is not Outcome.PASSED, verdict
    after = run(sandbox, "def f(x): return x", "assert f([1, (2, {3})]) == [1, (2, {3})]")
    assert after.outcome is Outcome.PASSED, after


HONEST = {
    "a function": ("def f(g): return g(2) + 1", "assert f(lambda x: 2 * x) == 5"),
    "a closure": (
        "def f(g): return [h(1) for h in g]",
        "assert f([(lambda x, n=n: x + n) for n in range(3)]) == [1, 2, 3]",
    ),
    "a builtin": ("def f(g): return g([3, 1])", "assert f(min) == 1 and f(sorted) == [1, 3]"),
    "a function of a module": (
        "def f(g): return g(1, 2)",
        "import operator\nassert f(operator.add) == 3",
    ),
    "a class of a module": (
        "def f(c): return c('aab')",
        "from collections import Counter\nassert f(Counter)['a'] == 2",
    ),
    "a generator": ("def f(g): return sum(g)", "assert f(n * n for n in range(4)) == 14"),
    "an iterator": ("def f(it): return next(it) + next(it)", "assert f(iter([1, 2])) == 3"),
    "views of a dict": (
        "def f(keys, items): return sorted(keys) + sorted(items)",
        "d = {1: 2}\nassert f(d.keys(), d.items()) == [1, (1, 2)]",
    ),
    "an object": (
        "def f(node): return node.value + node.next.value + node.total() + len(node)",
        """
        class Node:
            kind = 1
            def __init__(self, value, next=None): self.value, self.next = value, next
            def total(self): return 10
            def __len__(self): return 100
        assert f(Node(1, Node(2))) == 113
        """,
    ),
    "a dataclass": (
        "def f(p): return p.x + p.y",
        "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n    y: int = 2\n"
        "assert f(P(1)) == 3",
    ),
    "an object of a subclass": (
        "def f(b): return b.one() + b.two",
        "class A:\n    def one(self): return 1\nclass B(A):\n    @property\n"
        "    def two(self): return 2\nassert f(B()) == 3",
    ),
    "a class of the tests": (
        "def f(c): return c(3).n",
        "class C:\n    def __init__(self, n): self.n = n\nassert f(C) == 3",
    ),
    "an object that is handed back": (
        "def f(x): return [x, x]",
        "class X: pass\nx = X()\na, b = f(x)\nassert a is x and b is x",
    ),
    "a function that raises": (
        "def f(g):\n    try: return g()\n    except KeyError: return 'none'",
        "def g(): raise KeyError('x')\nassert f(g) == 'none'",
    ),
    "an error": (
        "def f(x):\n    if x < 0: raise ValueError('below')\n    return x",
        "try: f(-1)\nexcept ValueError as e: assert str(e) == 'below'\nelse: assert False",
    ),
    "a named tuple": (
        "from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(): return P(1, 2)",
        "assert f() == (1, 2) and f().y == 2",
    ),
    "what it changes": (
        "def f(xs, d):\n    xs.sort()\n    d['n'] = len(xs)",
        "xs, d = [2, 1], {}\nassert f(xs, d) is None\nassert xs == [1, 2] and d == {'n': 2}",
    ),
}


@pytest.mark.parametrize(("source", "tests"), HONEST.values(), ids=HONEST)
def test_honest_solutions_use_what_they_are_handed(
    sandbox: Sandbox, source: str, tests: str
) -> None:
    verdict = run(sandbox, source, tests)
    assert verdict.outcome is Outcome.PASSED, verdict


# --- traces of the tests in a solution's process --------------------------------------------------

READS_MEMORY = """
import re
wanted = rb"only[-]the[-]tests[-]know"  # which is not what it looks for
found = []
with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
    for line in maps:
        place, mode = line.split()[:2]
        if not mode.startswith("r") or "[v" in line:
            continue
        start, end = (int(part, 16) for part in place.split("-"))
        try:
            memory.seek(start)
            data = memory.read(end - start)
        except (OSError, ValueError, OverflowError):
            continue
        found += [data[m.start() - 40 : m.end() + 40] for m in re.finditer(wanted, data)]
def f(): return len(found) > 0
"""
READS_FRAMES = """
import sys
found = []
def look(value, depth=0):
    if isinstance(value, (str, bytes)):
        text = value if isinstance(value, str) else value.decode(errors="replace")
        found.append("only-the" + "-tests" in text)
    elif depth < 5 and isinstance(value, dict):
        for part in list(value.values()): look(part, depth + 1)
    elif depth < 5 and isinstance(value, (list, tuple, set)):
        for part in list(value): look(part, depth + 1)
    elif depth < 5 and hasattr(value, "__dict__"):
        look(vars(value), depth + 1)
    elif depth < 5 and hasattr(value, "__slots__"):
        for name in value.__slots__: look(getattr(value, name, None), depth + 1)
def f():
    frame = sys._getframe()
    while frame:
        look(dict(frame.f_locals)); look(frame.f_globals); look(frame.f_code.co_consts)
        frame = frame.f_back
    return any(found)
"""


@pytest.mark.parametrize("source", [READS_MEMORY, READS_FRAMES], ids=["memory", "frames"])
def test_a_solutions_process_has_no_trace_of_tests_or_of_other_programs(source: str) -> None:
    # Unconfined, so that it can read its own memory: what is not there cannot be found.
    # Kills: a solution forked from a server that has read the tests, now or for a program before.
    with Sandbox("none", workers=1, confirm=Confirm.ALL, limits=LIMITS) as opened:
        for tests in ("assert f() is False\n# only-the-tests-know", "assert f() is False"):
            for _ in range(3):
                verdict = opened.run(Program(source=source, tests=tests))
                assert verdict.confirmed, verdict
        before = Program(source="# only-the-tests-know\ndef f(): return False", tests=tests)
        assert opened.run(before).confirmed
        assert opened.run(before, confirm=Confirm.PASSES).confirmed
        assert opened.run(Program(source=source, tests=tests)).confirmed
