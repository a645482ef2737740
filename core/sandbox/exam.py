"""What tests see of a solution that runs in their own process.

Tests have names and builtins of their own, so what a solution makes of `abs`, `math` or the
builtins does not change what they mean. What it answers is looked at as it passes: plain data is
compared by Python itself, anything else may claim to be equal to everything. That is no failure,
since honest solutions answer with generators and objects too. It is told as a doubt, upon which the
program is judged again in two processes (`bridge.py`).

This module is read by the fork-server with nothing but the standard library at hand.
"""

from __future__ import annotations

import _thread
import builtins
import functools
import sys
import types
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Any

# What is defined below keeps to these, whatever a solution makes of the builtins.
PRIVATE = dict(vars(builtins))
globals()["__builtins__"] = PRIVATE
DEEPEST = 50  # nesting of data that is looked at
SCALARS = frozenset({type(None), bool, int, float, complex, str, bytes, bytearray, range})
HOLDERS = frozenset({list, tuple, set, frozenset, deque})
FUNCTIONS = frozenset(
    {
        types.FunctionType,
        types.BuiltinFunctionType,
        types.MethodType,
        functools.partial,
        type(functools.lru_cache(len)),
    }
)
ERRORS = frozenset(
    part
    for part in vars(builtins).values()
    if isinstance(part, type) and issubclass(part, BaseException)
)
BUILTINS = frozenset(vars(builtins))
# Modules of which tests import a copy: they hold functions, and no state that a solution shares.
COPIED = (
    "bisect", "cmath", "collections", "functools", "heapq", "itertools", "math", "operator", "re",
    "string",
)  # fmt: skip

Pristine = tuple[tuple[str, dict[str, Any], tuple[Any, ...], tuple[int, ...], tuple[int, ...]], ...]


def is_plain(value: Any, depth: int = 0) -> bool:
    """Whether a value is data, of exact types that Python itself compares."""
    kind = type(value)
    if kind in SCALARS:
        return True
    if depth > DEEPEST:
        return False
    if kind is dict:
        return _all_plain(value.keys(), depth) and _all_plain(value.values(), depth)
    return kind in HOLDERS and _all_plain(value, depth)


def _all_plain(values: Iterable[Any], depth: int) -> bool:
    kinds = set(map(type, values))
    if kinds <= SCALARS:
        return True
    return all(is_plain(value, depth + 1) for value in values)


def snapshot(names: Iterable[str]) -> Pristine:
    """What loaded modules hold, to compare with and to restore.

    Tuples all the way: frames lead a program to it, and it can read it and no more.
    """
    found = []
    for name in names:
        held = vars(sys.modules[name])
        keys, values = tuple(map(id, held)), tuple(map(id, held.values()))
        found.append((name, held, tuple(held.items()), keys, values))
    return tuple(found)


def names_of(code: types.CodeType) -> set[str]:
    """The names that code, and the functions in it, may look up."""
    inner = (names_of(part) for part in code.co_consts if isinstance(part, types.CodeType))
    return set(code.co_names).union(*inner)


def needs_modules(tests: str, names: Iterable[str]) -> bool:
    """Whether tests import, or name a module: these are put back for them then."""
    return "import" in tests or any(name in sys.stdlib_module_names for name in names)


def visible(names: Iterable[str], entry: Iterable[str]) -> set[str]:
    """Of names that tests may look up, those that they take from a solution where it has them."""
    return {
        name
        for name in names
        if name in entry or (name not in BUILTINS and not name.startswith("__"))
    }


HEAP_TYPE = 1 << 9  # CPython's flag of types that are made as a program runs


def _held_by(kind: type) -> tuple[tuple[int, ...], tuple[int, ...]]:
    held = kind.__dict__
    return tuple(map(id, held)), tuple(map(id, held.values()))


class Hall:
    """What all exams of a server share, made once: a child need not copy its pages then.

    Args:
        clean: the modules as they were before anything ran.

    Attributes:
        builtins: of tests.
    """

    def __init__(self, clean: Pristine) -> None:
        self._modules = [(name, sys.modules[name], items) for name, _, items, _, _ in clean]
        self._copied: list[tuple[Any, Any, tuple[Any, ...]]] = []  # copy, module, what it holds
        # Classes made in Python, which can be changed in place.
        self._classes = tuple(
            (part, *_held_by(part))
            for name, _, items, _, _ in clean
            for _, part in items
            if name in COPIED and type(part) is type and part.__flags__ & HEAP_TYPE
        )
        self.builtins = {**PRIVATE, "__import__": self._import}

    def is_pristine(self, value: Any) -> bool:
        """Whether it is a module, or something of one's, such as a class, as it was."""
        return any(
            value is held or any(value is part for _, part in items)
            for _, held, items in self._modules
        )

    def copy(self, module: Any) -> Any:
        """A module as it was, where it is one to be copied."""
        for name, held, items in self._modules:
            if held is module and name in COPIED:
                copy = types.ModuleType(name)
                copy.__dict__.update(items)
                self._copied.append((copy, held, items))
                return copy
        return module

    def original(self, module: Any) -> Any:
        """The module that one given to the tests is a copy of, or is."""
        return next((held for copy, held, _ in self._copied if copy is module), module)

    def is_changed(self) -> bool:
        """Whether a class of a module that tests were given is not as it was."""
        given = {id(part) for _, _, items in self._copied for _, part in items}
        return any(
            id(part) in given and (names, values) != _held_by(part)
            for part, names, values in self._classes
        )

    def _import(
        self,
        name: str,
        globals: Any = None,
        locals: Any = None,
        fromlist: Any = (),
        level: int = 0,
    ) -> Any:
        return self.copy(PRIVATE["__import__"](name, globals, locals, fromlist, level))


class Exam:
    """The tests' view of one solution.

    Args:
        hall: where it takes place.
        names: that the tests see where the solution has them.
        doubt: called once, when a pass may be a cheat's.
    """

    def __init__(self, hall: Hall, names: Collection[str], doubt: Callable[[], object]) -> None:
        self._hall = hall
        self._names = names
        self._tell = doubt
        self._told = False
        self._theirs: dict[str, Any] = {}
        self._seen: dict[str, Any] = {"__builtins__": hall.builtins}
        self._own: set[str] = set()  # names that the tests define
        self._from: dict[str, Any] = {}  # of what was shown, what it was
        self._behind: dict[int, Any] = {}  # by the id of a function of ours, the solution's

    def begin(self, theirs: dict[str, Any]) -> tuple[dict[str, Any], Exam]:
        """The globals and the locals that the tests run with.

        Args:
            theirs: the solution's own names.
        """
        self._theirs = theirs
        self._seen["__name__"] = theirs.get("__name__")
        for name in self._names:
            if name in theirs:
                self._show(name)
        return self._seen, self

    def end(self) -> None:
        """Look back, when the tests have run."""
        if self._hall.is_changed():
            self.doubt()

    # The tests' names at their top level. Modules that they import the solution sees too, as if
    # both were one file, and what it defines while they run they see.

    def __getitem__(self, name: str) -> Any:
        if name in self._names and name not in self._own and name in self._theirs:
            self._show(name)
        return self._seen[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._own.add(name)
        self._seen[name] = value
        if type(value) is types.ModuleType:
            self._theirs[name] = self._hall.original(value)

    def __delitem__(self, name: str) -> None:
        del self._seen[name]
        self._own.discard(name)

    def _show(self, name: str) -> None:
        """Let the tests see a name of the solution's."""
        value = self._theirs[name]
        if name in self._seen and self._from.get(name) is value:
            return
        self._from[name] = value
        kind = type(value)
        if kind in FUNCTIONS:
            self._seen[name] = self._watched(value)
            return
        self._seen[name] = self._hall.copy(value) if kind is types.ModuleType else value
        if kind not in SCALARS and not self._hall.is_pristine(value):
            self.doubt()

    def _watched(self, function: Any) -> Callable[..., Any]:
        """A function that calls the solution's and looks at what comes of it."""

        def call(*arguments: Any, **named: Any) -> Any:
            try:
                result = function(
                    *[self._behind.get(id(part), part) for part in arguments],
                    **{word: self._behind.get(id(part), part) for word, part in named.items()},
                )
            except BaseException as error:
                if type(error) not in ERRORS or not is_plain(error.args):
                    self.doubt()
                raise
            if not (is_plain(result) and _thread._count() == 0):
                self.doubt()
            # Tests look at what was changed in place, too; a thread may go on to.
            for part in (*arguments, *named.values()):
                if (type(part) in HOLDERS or type(part) is dict) and not is_plain(part):
                    self.doubt()
            return result

        for word in ("__name__", "__qualname__", "__doc__", "cache_clear", "cache_info"):
            told = getattr(function, word, None)
            if type(told) in (str, types.BuiltinMethodType):
                setattr(call, word, told)
        self._behind[id(call)] = function
        return call

    def doubt(self) -> None:
        """Tell of a doubt, if that was not done."""
        if not self._told:
            self._told = True
            self._tell()
