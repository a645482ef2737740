"""Names, builtins and modules that tests find when they run in one process with a solution.

Tests have names and builtins of their own, and modules are put back before they run, so a solution
that defines `abs` or changes `math` by accident does not change what the tests mean. This is no
defence against a solution that means to: whatever runs in one process can be changed in it. A pass
counts when two processes confirm it (`bridge.py`).

This module is read by the fork-server with nothing but the standard library at hand.
"""

from __future__ import annotations

import builtins
import sys
import types
from collections.abc import Callable, Collection, Iterable
from typing import Any

# What is defined below uses these, whatever a solution makes of the builtins.
PRIVATE = dict(vars(builtins))
globals()["__builtins__"] = PRIVATE
BUILTINS = frozenset(vars(builtins))

Pristine = tuple[tuple[str, dict[str, Any], tuple[Any, ...], tuple[int, ...], tuple[int, ...]], ...]


def snapshot(names: Iterable[str]) -> Pristine:
    """What loaded modules hold, to compare with and to restore.

    Args:
        names: of modules that are loaded.
    """
    found = []
    for name in names:
        held = vars(sys.modules[name])
        keys, values = tuple(map(id, held)), tuple(map(id, held.values()))
        found.append((name, held, tuple(held.items()), keys, values))
    return tuple(found)


def restorer(clean: Pristine, packages: frozenset[str]) -> Callable[[], None]:
    """A function that puts modules, and how they are found, back as they are now.

    Args:
        clean: what the modules held.
        packages: names of installed packages. Where one is loaded, every module stays loaded: many
            packages with compiled code cannot be loaded a second time.
    """
    modules, same = sys.modules, id
    known = tuple(modules.items())
    searched: tuple[list[Any], ...] = (sys.meta_path, sys.path_hooks, sys.path)
    lists = tuple((part, tuple(part)) for part in searched)

    def restore() -> None:
        for _, held, items, keys, values in clean:
            # What is as it was is not written to: memory is shared until then. By identity, as a
            # program's own objects may be equal to anything.
            if tuple(map(same, held)) != keys or tuple(map(same, held.values())) != values:
                held.clear()
                held.update(items)
        if packages.isdisjoint(modules):
            modules.clear()
        modules.update(known)
        for part, found in lists:
            part.clear()
            part.extend(found)

    return restore


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


class TestNamespace:
    """The names at the top level of tests that follow a solution in the same process.

    Modules that the tests import the solution sees too, as if both were one file, and what it
    defines while they run they see.

    Args:
        names: that the tests see where the solution has them.
        theirs: the solution's own names.
    """

    __test__ = False  # not pytest's

    def __init__(self, names: Collection[str], theirs: dict[str, Any]) -> None:
        self._names = names
        self._theirs = theirs
        self._own: set[str] = set()  # names that the tests define
        self.globals: dict[str, Any] = {
            "__builtins__": PRIVATE,
            "__name__": theirs.get("__name__"),
            **{name: theirs[name] for name in names if name in theirs},
        }

    def __getitem__(self, name: str) -> Any:
        if name in self._names and name not in self._own and name in self._theirs:
            self.globals[name] = self._theirs[name]
        return self.globals[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._own.add(name)
        self.globals[name] = value
        if type(value) is types.ModuleType:
            self._theirs[name] = value

    def __delitem__(self, name: str) -> None:
        del self.globals[name]
        self._own.discard(name)
