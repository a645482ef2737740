"""Solution and tests in two processes: what crosses is plain, and nothing cheats its way over."""

from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict, namedtuple
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codecria.core.evaluation.benchmarks.humaneval import parse
from codecria.core.evaluation.benchmarks.references import check
from codecria.core.sandbox import plain as data
from codecria.core.sandbox.config import Confirm
from codecria.core.sandbox.sandbox import Sandbox, choose_tier
from codecria.core.sandbox.verdict import Limits, Outcome, Program
from codecria.data.errors import UserError
from tests.core.sandbox.common import ENOUGH_S, short

LIMITS = Limits(wall_s=ENOUGH_S, memory_bytes=512 << 20)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    try:
        choose_tier()
    except UserError as error:
        pytest.skip(str(error))
    with Sandbox(confirm=Confirm.ALL, limits=LIMITS) as opened:
        yield opened


atoms = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
)
hashable = st.recursive(
    atoms, lambda below: st.tuples(below, below) | st.frozensets(below, max_size=3), max_leaves=6
)
plain = st.recursive(
    hashable,
    lambda below: (
        st.lists(below, max_size=4)
        | st.tuples(below)
        | st.sets(hashable, max_size=4)
        | st.dictionaries(hashable, below, max_size=4)
    ),
    max_leaves=12,
)


def exact(value: object) -> object:
    """A value with the types of all its parts, as 1 == True == 1.0."""
    if isinstance(value, list | tuple):
        return type(value), [exact(part) for part in value]
    if isinstance(value, dict):
        return dict, [(exact(k), exact(v)) for k, v in value.items()]
    if isinstance(value, set | frozenset):
        return type(value), sorted(repr(exact(part)) for part in value)
    return type(value), value.hex() if isinstance(value, float) else value


@given(plain)
def test_plain_data_arrives_as_it_was(value: Any) -> None:
    assert exact(data.unpack(json.loads(json.dumps(data.pack(value))))) == exact(value)


def test_of_subclasses_what_they_hold_arrives_and_not_what_they_say() -> None:
    class Same(list[int]):
        def __eq__(self, other: object) -> bool:
            return True

        def __iter__(self) -> Iterator[int]:
            return iter([9])

        __hash__ = None  # type: ignore[assignment]

    class Whole(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    class Words(Counter[str]):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    for value, expected in (
        (Same([1, 2]), [1, 2]),
        (Whole(5), 5),
        (Words("aab"), Counter("aab")),
    ):
        arrived = data.unpack(data.pack(value))
        assert type(arrived) is type(expected)
        assert arrived == expected
    assert math.isnan(data.unpack(data.pack(float("nan"))))


@pytest.mark.parametrize(
    "value",
    [
        namedtuple("pair", "a b")(1, [2]),
        Counter("aab"),
        OrderedDict([(2, 1), (1, 2)]),
        [-0.0, float("inf"), True, 1, 1.0, 2**63, -(2**63)],
    ],
)
def test_types_that_are_told_apart_by_more_than_their_values_arrive_as_such(value: Any) -> None:
    arrived = data.unpack(json.loads(json.dumps(data.pack(value))))
    assert repr(arrived) == repr(value)
    assert arrived == value


@pytest.mark.parametrize("value", [object(), len, iter([1]), [object()], {1: print}])
def test_what_is_not_plain_does_not_cross(value: object) -> None:
    with pytest.raises(data.NotPlainError, match="no plain data"):
        data.pack(value)


def test_numbers_too_long_to_be_written_in_tens_arrive() -> None:
    assert data.unpack(json.loads(json.dumps(data.pack([-(10**5000)])))) == [-(10**5000)]


def test_a_circle_does_not_cross() -> None:
    circle: list[object] = []
    circle.append(circle)
    with pytest.raises(data.NotPlainError, match="deep"):
        data.pack(circle)


RUNS = {
    "a function": ("def f(a): return sorted(a)", "assert f([3, 1]) == [1, 3]", Outcome.PASSED),
    "a check": (
        "def f(a): return a + 1",
        "def check(candidate):\n    assert candidate(1) == 2\ncheck(f)",
        Outcome.PASSED,
    ),
    "two functions": (
        "def g(a): return -a\ndef f(a): return g(a)",
        "assert f(g(1)) == 1",
        Outcome.PASSED,
    ),
    "a module": ("import math\ndef f(): return math.pi", "assert f() == math.pi", Outcome.PASSED),
    "data": ("LIMIT = [1]\ndef f(): return 1", "assert f() in LIMIT", Outcome.PASSED),
    "an error": (
        "def f(): raise ValueError('no')",
        "try:\n    f()\nexcept ValueError as e:\n    assert str(e) == 'no'\nelse:\n    assert 0",
        Outcome.PASSED,
    ),
    "named arguments": (
        "def f(*, a): return a",
        "assert f(a=(1, {2})) == (1, {2})",
        Outcome.PASSED,
    ),
    "a generator": (
        "def f(n):\n    yield from range(n)",
        "assert list(f(3)) == [0, 1, 2] and sum(f(4)) == 6\ng = f(1)\nassert next(g) == 0\n"
        "assert next(g, None) is None and 2 in f(3)",
        Outcome.PASSED,
    ),
    "an endless one": (
        "import itertools\ndef f(): return itertools.count(1)",
        "assert next(f()) == 1 and [n for n, _ in zip(f(), 'ab')] == [1, 2]",
        Outcome.PASSED,
    ),
    "an object": (
        "class Stack:\n    def __init__(self): self.items = []\n"
        "    def push(self, x): self.items.append(x)\n    def pop(self): return self.items.pop()\n"
        "    def __len__(self): return len(self.items)\n"
        "    def __eq__(self, o): return self.items == o.items\n",
        "s = Stack()\ns.push((1, 'a'))\nassert len(s) == 1 and isinstance(s, Stack)\n"
        "t = Stack()\nassert s != t\nt.items = s.items\nassert s == t and s.pop() == (1, 'a')\n"
        "assert not s and s.items == []",
        Outcome.PASSED,
    ),
    "an argument changed in place": (
        "def f(a, b):\n    a.sort()\n    b['n'] = 1\n    return a",
        "a, b = [3, 1], {}\nassert f(a, b) is a and a == [1, 3] and b == {'n': 1}",
        Outcome.PASSED,
    ),
    "a function handed in": (
        "def f(g, xs): return [g(x) for x in xs]",
        "assert f(lambda x: x + 1, [1, 2]) == [2, 3] and f(str, [1]) == ['1']",
        Outcome.PASSED,
    ),
    "a function handed out": (
        "def f(n):\n    def g(x): return x + n\n    return g",
        "assert f(1)(2) == 3",
        Outcome.PASSED,
    ),
    "an object handed in": (
        "def f(pair): return pair.a + pair.b()",
        "class Pair:\n    a = 1\n    def b(self): return 2\nassert f(Pair()) == 3",
        Outcome.PASSED,
    ),
    "an error of its own": (
        "class Own(ValueError): pass\ndef f(): raise Own('no')",
        "try: f()\nexcept ValueError as e: assert str(e) == 'no'\nelse: assert 0",
        Outcome.PASSED,
    ),
    "fractions and dates": (
        "from fractions import Fraction as F\nfrom decimal import Decimal as D\nimport datetime\n"
        "from collections import deque, Counter\n"
        "def f(): return F(1, 2), D('0.5'), datetime.date(2020, 1, 2), deque([1]), Counter('aa')",
        "from collections import deque\nfrom datetime import date\n"
        "assert f() == (0.5, 0.5, date(2020, 1, 2), deque([1]), {'a': 2})",
        Outcome.PASSED,
    ),
    "a wrong answer": ("def f(): return 1", "assert f() == 2", Outcome.FAILED),
    "claims of every kind": (
        "class E:\n"
        "    def __eq__(self, o): return True\n"
        "    __lt__ = __gt__ = __le__ = __ge__ = __contains__ = __eq__\n"
        "    def __sub__(self, o): return 0\n    __rsub__ = __sub__\n"
        "    def __abs__(self): return 0\n    def __float__(self): return 2.0\n"
        "def f(): return E()",
        "def fails(t):\n    try: assert t()\n    except (AssertionError, TypeError): return True\n"
        "assert all(map(fails, (lambda: f() == 2, lambda: 2 == f(), lambda: f() in [2],\n"
        "    lambda: abs(f() - 2) < 1e-6, lambda: f() > 1, lambda: 2 in f(),\n"
        "    lambda: [f()] == [2], lambda: {'a': f()} == {'a': 2}, lambda: float(f()) == 2,\n"
        "    lambda: f() <= 2)))",
        Outcome.PASSED,
    ),
    "looking into the tests": (
        "def f(g):\n"
        "    for name in ('__globals__', '__code__', 'expected', '__closure__', '__self__'):\n"
        "        try: getattr(g, name)\n"
        "        except Exception: continue\n"
        "        return 'seen'\n"
        "    return 'nothing'",
        "expected = 7\nassert f(lambda: expected) == 'nothing'",
        Outcome.PASSED,
    ),
    "the tests in its frames": (
        "import sys\ndef f():\n    frame, found = sys._getframe(), []\n    while frame:\n"
        "        found.append(repr(frame.f_locals) + repr(frame.f_globals) "
        "+ repr(frame.f_code.co_consts))\n        frame = frame.f_back\n"
        "    return chr(115) + 'ecret word' in ''.join(found)",
        "assert f() is False\nexpected = 'secret word'",
        Outcome.PASSED,
    ),
    "no function": ("def g(): return 1", "assert f() == 1", Outcome.FAILED),
    "no Python": ("def f(:", "assert f() == 1", Outcome.FAILED),
    "equal to everything": (
        "class E:\n    def __eq__(self, other): return True\ndef f(): return E()",
        "assert f() == 2",
        Outcome.FAILED,
    ),
    "a number equal to everything": (
        "class E(int):\n    def __eq__(self, other): return True\ndef f(): return E(1)",
        "assert f() == 2",
        Outcome.FAILED,
    ),
    "its own abs": (
        "def abs(x): return 0\ndef f(): return 1.5",
        "assert abs(f() - 2) < 1e-6",
        Outcome.FAILED,
    ),
    "another all": (
        "import builtins\nbuiltins.all = lambda x: True\ndef f(): return 1",
        "assert all([f() == 2])",
        Outcome.FAILED,
    ),
    "a patched module": (
        "import math\nmath.isclose = lambda *a: True\ndef f(): return 1",
        "import math\nassert math.isclose(f(), 2)",
        Outcome.FAILED,
    ),
    "its own math": (
        "class math:\n    isclose = lambda *a: True\ndef f(): return 1",
        "assert math.isclose(f(), 2)",
        Outcome.FAILED,
    ),
    "leaves at once": ("import os\nos._exit(0)", "assert f() == 2", Outcome.FAILED),
    "leaves when asked": ("import os\ndef f(): os._exit(0)", "assert f() == 2", Outcome.FAILED),
    "the key": (
        "import os\ndef f():\n    os.write(201, os.read(200, 32))\n    os._exit(0)",
        "assert f() == 2",
        Outcome.FAILED,
    ),
    "false messages": (
        "import os\nfor fd in range(202, 210):\n    try: os.write(fd, b'\\xff' * 99)\n"
        "    except OSError: pass\ndef f(): return 2",
        "assert f() == 2",
        Outcome.FAILED,
    ),
    "a loop": ("def f():\n    while True: pass", "f()", Outcome.TIMEOUT),
    "memory": ("def f(): return bytearray(1 << 33)", "f()", Outcome.RESOURCE),
    "a crash": ("import os\nos.kill(os.getpid(), 11)", "f()", Outcome.CRASHED),
    "output": ("def f():\n    while True: print('x' * 999)", "f()", Outcome.RESOURCE),
}


@pytest.mark.parametrize(("source", "tests", "outcome"), RUNS.values(), ids=RUNS)
def test_two_processes_judge(sandbox: Sandbox, source: str, tests: str, outcome: Outcome) -> None:
    limits = short(LIMITS) if outcome is Outcome.TIMEOUT else LIMITS
    verdict = sandbox._once(Program(source=source, tests=tests), limits)
    assert verdict.outcome is outcome, verdict
    assert verdict.isolated


def test_without_tests_apart_there_is_one_process(sandbox: Sandbox) -> None:
    verdict = sandbox.run(Program(source="assert True"))
    assert (verdict.outcome, verdict.isolated) == (Outcome.PASSED, False)


def test_a_reference_decides_whether_tests_fit_and_a_solution_does_not(sandbox: Sandbox) -> None:
    record = {
        "task_id": "Own/0",
        "prompt": "class One:\n    value = 1\n\n\ndef ones():\n",
        "entry_point": "ones",
        "canonical_solution": "    return [One()]\n",
        "test": "def check(f):\n    assert type(f()[0]).__name__ == 'One'\n",
    }
    special = parse(record)
    function = parse(
        record
        | {
            "task_id": "Own/1",
            "canonical_solution": "    return [1]\n",
            "test": "def check(f):\n    assert next(iter(f())) == 1\n",
        }
    )
    function_tests = function.tests + "\n# another"
    other = type(function)(
        task_id="Own/1",
        language="python",
        before=function.before,
        tests=function_tests,
        reference=function.reference,
    )
    found = check([special, other], sandbox, folder=None)
    assert [(r.passed, r.isolated) for r in found.values()] == [(True, False), (True, True)]
    source = "class E:\n    def __eq__(self, _): return True\n"
    cheat = Program(source=f"{source}def ones(): return [E()]\n", tests=function_tests)
    assert sandbox.run(cheat).outcome is Outcome.FAILED
    shared = sandbox.run(
        Program(source=special.source("    return [One()]\n"), tests=special.tests)
    )
    assert (shared.outcome, shared.isolated) == (Outcome.PASSED, False)
