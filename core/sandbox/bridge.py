"""Between a solution's process and its tests': plain data crosses, and calls to all else.

    tests                                            solution
    f([3, 1])          -- call f, [3, 1] ->          runs it
    [1, 3]             <- [1, 3] --
    next(numbers())    -- call numbers ->            a generator, kept there under a number
                       <- number 7 --
                       -- next of 7 ->
    1                  <- 1 --

Plain data (`plain.py`) is built anew in exact types. Anything else stays where it is; what stands
for it on the other side is equal to no data, and in no sum with it.

Tests may do with a solution's things as they like. A solution may do with things of the tests what
`_offer` lists for each, and nothing else: call a function that it was handed, go through an
iterator, use the methods of an object whose class the tests define. It reads no attribute of a
function, a module or a builtin, and functions of the standard library cross by their names, so
that a solution calls its own.

This module is read by the fork-server with nothing but the standard library at hand.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import json
import operator
import os
import struct
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from .plain import NotPlainError, pack, unpack

# What is defined below uses these, whatever a solution makes of the builtins.
globals()["__builtins__"] = dict(vars(builtins))
MOST_BYTES = 64 << 20  # of one message
TESTS_FILE = "<tests>"  # where functions and classes of the tests are defined
TESTS_NAMES = ("solution", "__main__")  # what their module is called
HELD = (list, dict, set, bytearray, deque)  # what a call may change in place
# What may be asked of a thing that stays on the other side, by its method's name.
UNARY = {
    "__len__": len,
    "__iter__": iter,
    "__next__": next,
    "__reversed__": reversed,
    "__bool__": bool,
    "__str__": str,
    "__repr__": repr,
    "__hash__": hash,
    "__enter__": lambda thing: thing.__enter__(),
}
ITEMS = {
    "__getitem__": operator.getitem,
    "__setitem__": operator.setitem,
    "__delitem__": operator.delitem,
    "__exit__": lambda thing, *ending: thing.__exit__(*ending),
}
# Between two things of the other side alone: data is compared and reckoned with by Python itself.
# Whether a thing holds some data is found out by going through it, too.
BINARY = {
    f"__{name.strip('_')}__": getattr(operator, name)
    for name in (
        *("eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv", "mod"),
        *("and_", "or_", "xor", "pow", "matmul"),
    )
}
OPERATIONS = {**UNARY, **ITEMS, **BINARY}
_ERRORS = {
    name: part
    for name, part in vars(builtins).items()
    if isinstance(part, type) and issubclass(part, Exception)
}


def send(to: int, message: Mapping[str, object]) -> None:
    """Write one message to a pipe."""
    data = json.dumps(message).encode()
    data = struct.pack("<I", len(data)) + data
    while data:
        data = data[os.write(to, data) :]


def receive(source: int) -> Any:
    """The next message.

    Raises:
        EOFError: the other side has gone.
        ValueError: it is too long, or no message.
    """
    (length,) = struct.unpack("<I", _exactly(source, 4))
    if length > MOST_BYTES:
        raise ValueError("a message is too long")
    message = json.loads(_exactly(source, length))
    if type(message) is not dict:
        raise ValueError("no message")
    return message


def _exactly(source: int, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = os.read(source, min(count - len(parts), 1 << 20))
        if not part:
            raise EOFError("the solution's process has ended")
        parts += part
    return bytes(parts)


# --- what stands for a thing that stays on the other side -----------------------------------------


class Distant:
    """Something of the other side's, which is asked there.

    Args:
        peer: who asks.
        number: it is kept under there.
    """

    def __init__(self, peer: Peer, number: int) -> None:
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_number", number)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call it."""
        return _peer(self).call(self, arguments, named)

    def __getattr__(self, name: str) -> Any:
        """An attribute of it."""
        if name.startswith("__") and name not in ("__name__", "__qualname__", "__doc__"):
            raise AttributeError(name)
        return _peer(self).ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute of it."""
        _peer(self).ask("set", self, name, value)

    def __instancecheck__(self, thing: object) -> bool:
        """Whether another is an instance of it, where it is a class."""
        return _is_distant(thing) and _peer(self).ask("isinstance", self, thing) is True

    def __bool__(self) -> bool:
        """Whether it is true."""
        return _peer(self).ask("__bool__", self) is True

    def __hash__(self) -> int:
        """Its hash."""
        return int(_peer(self).ask("__hash__", self))

    def __str__(self) -> str:
        """It as text."""
        return str(_peer(self).ask("__str__", self))

    def __repr__(self) -> str:
        """It as Python writes it."""
        return str(_peer(self).ask("__repr__", self))

    def __eq__(self, other: object) -> Any:
        """Equal to another thing of its side, where that says so; to no data."""
        return _peer(self).ask("__eq__", self, other) is True if _is_distant(other) else False

    def __ne__(self, other: object) -> Any:
        """Not equal."""
        return not self == other


def _is_distant(thing: object) -> bool:
    return isinstance(type(thing), type) and issubclass(type(thing), Distant)


def _peer(thing: Distant) -> Peer:
    peer: Peer = object.__getattribute__(thing, "_peer")
    return peer


def _number(thing: Distant) -> int:
    number: int = object.__getattribute__(thing, "_number")
    return number


def _operation(name: str) -> Callable[..., Any]:
    def operate(self: Distant, *others: Any) -> Any:
        if name in BINARY and not all(map(_is_distant, others)):
            return NotImplemented
        return _peer(self).ask(name, self, *others)

    return operate


# --- what a solution may do with a thing of the tests' --------------------------------------------

_ITERATORS = (
    *(types.GeneratorType, map, filter, zip, enumerate, reversed),
    *(type(iter(part)) for part in ([0], (0,), "0", b"0", {0: 0}, {0}, range(1))),
    *(type(iter(part)) for part in ({0: 0}.values(), {0: 0}.items())),
)
_VIEWS = (type({0: 0}.keys()), type({0: 0}.values()), type({0: 0}.items()))


def _offer(thing: object) -> frozenset[str]:
    """The operations on a thing of the tests' that a solution may ask for."""
    kind = type(thing)
    if kind is types.MethodType:
        return _offer(thing.__func__)  # type: ignore[attr-defined]
    if kind is functools.partial:
        return _offer(thing.func)  # type: ignore[attr-defined]
    if kind is types.FunctionType:
        return _CALL if thing.__code__.co_filename == TESTS_FILE else _NOTHING  # type: ignore[attr-defined]
    if kind in _ITERATORS:
        return frozenset({"__iter__", "__next__"})
    if kind in _VIEWS:
        return frozenset({"__iter__", "__len__"})
    if kind is type:
        return _CALL if _is_of_tests(thing) else _NOTHING
    if not _is_of_tests(kind):
        return _NOTHING
    own = {
        name
        for name in OPERATIONS
        if any(_is_method(vars(part).get(name)) for part in kind.__mro__)
    }
    if any(_is_method(vars(part).get("__call__")) for part in kind.__mro__):
        own |= _CALL
    return frozenset({"get", *own})


_CALL, _NOTHING = frozenset({"call"}), frozenset[str]()


def _is_method(part: object) -> bool:
    return type(part) is types.FunctionType and part.__code__.co_filename == TESTS_FILE


def _is_of_tests(kind: object) -> bool:
    """Whether the tests define a class: no solution's code is in their process."""
    return type(kind) is type and kind.__module__ in TESTS_NAMES


def _attribute(thing: Any, name: object) -> Any:
    """A public attribute of an object whose class the tests define: its data, or a method.

    Raises:
        AttributeError: it has none of this name, or a solution may not see it.
    """
    if type(name) is not str or not name.isidentifier() or name.startswith("_"):
        raise AttributeError(str(name))
    if name in (held := vars(thing) if hasattr(thing, "__dict__") else {}):
        return held[name]
    for part in type(thing).__mro__:
        found: Any = vars(part).get(name)
        if _is_method(found):
            return types.MethodType(found, thing)
        getter = found.fget if type(found) is property else None
        if getter is not None and _is_method(getter):
            return getter(thing)
        if type(found) is types.MemberDescriptorType:
            return found.__get__(thing)
        if found is not None:
            if hasattr(type(found), "__get__"):
                break  # what else makes attributes, the tests have not listed
            return found
    raise AttributeError(name)


def _public_name(thing: object) -> list[str] | None:
    """Module and name of a function or a class of the standard library; None of anything else."""
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if type(module) is not str or type(name) is not str or not name.isidentifier():
        return None
    if module not in sys.stdlib_module_names or module not in sys.modules:
        return None
    return [module, name] if vars(sys.modules[module]).get(name) is thing else None


# --- a side ---------------------------------------------------------------------------------------


class Peer:
    """One side of the bridge: it asks, and answers what it is asked meanwhile.

    Args:
        source, to: pipes from and to the other side.
        trusts: whether the other side may do with things of this one as it likes. Tests do not let
            a solution do more than `_offer` lists.
    """

    def __init__(self, source: int, to: int, *, trusts: bool) -> None:
        self._source, self._to = source, to
        self._trusts = trusts
        self._things: list[object] = []
        self._offers: list[frozenset[str]] = []  # of each thing, unless the other side is trusted
        self._numbers: dict[int, int] = {}
        self._kinds: dict[tuple[str, ...], type[Distant]] = {}
        self._distant: dict[int, Distant] = {}

    # Packing.

    def pack(self, value: object) -> object:
        """A value as JSON values: data, or the number of a thing."""
        return pack(value, self._pack_other)

    def _pack_other(self, value: object) -> object:
        if _is_distant(value):
            assert isinstance(value, Distant)
            return {"y": _number(value)}
        if not self._trusts and (name := _public_name(value)) is not None:
            return {"p": name}
        number = self._numbers.get(id(value))
        if number is None:
            number = self._numbers[id(value)] = len(self._things)
            self._things.append(value)
            self._offers.append(_NOTHING if self._trusts else _offer(value))
        if self._trusts:
            kind = type(value)
            return {"o": [number, [name for name in OPERATIONS if hasattr(kind, name)]]}
        return {"o": [number, sorted(self._offers[number] & OPERATIONS.keys())]}

    def unpack(self, value: Any) -> Any:
        """What the other side has packed."""
        return unpack(value, self._unpack_other)

    def _unpack_other(self, value: Any) -> Any:
        if "y" in value:
            return self._thing(value["y"])
        if "p" in value and self._trusts:  # tests name it to a solution, which has its own
            module, name = value["p"]
            return getattr(importlib.import_module(module), name)
        number, names = value["o"]
        if number in self._distant:
            return self._distant[number]
        offered = tuple(name for name in OPERATIONS if name in names)
        kind = self._kinds.get(offered)
        if kind is None:
            own = {name: _operation(name) for name in offered if name not in vars(Distant)}
            kind = self._kinds[offered] = type("Distant", (Distant,), own)
        return self._distant.setdefault(int(number), kind(self, int(number)))

    def _thing(self, number: Any) -> Any:
        if type(number) is not int or number < 0:
            raise ValueError("no thing's number")
        return self._things[number]

    # Asking.

    def ask(self, what: str, thing: Distant | None, *values: Any) -> Any:
        """The answer to a question about a thing of the other side's.

        Raises:
            EOFError: it has gone.
            Exception: what the other side raised, as Python's error of that kind.
        """
        of = None if thing is None else _number(thing)
        send(self._to, {"ask": what, "of": of, "values": [self.pack(value) for value in values]})
        return self.unpack(self._reply()["value"])

    def call(self, thing: Distant, arguments: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """Call something of the other side's; what it changes in place is changed here.

        Raises:
            EOFError: it has gone.
            Exception: what the other side raised, as Python's error of that kind.
        """
        question = {
            "ask": "call",
            "of": _number(thing),
            "values": [self.pack(part) for part in arguments],
            "named": {word: self.pack(part) for word, part in named.items()},
        }
        send(self._to, question)
        reply = self._reply()
        for place, value in reply.get("changed", {}).items():
            _become(arguments[int(place)], self.unpack(value))
        if "same" in reply:
            return arguments[int(reply["same"])]
        return self.unpack(reply["value"])

    def _reply(self) -> Any:
        while True:
            message = receive(self._source)
            if "ask" in message:
                self._answer(message)
            elif "error" in message:
                _fail(message["error"], str(message["text"]))
            else:
                return message

    # Answering.

    def serve(self, names: Callable[[str, Sequence[Any]], Any]) -> None:
        """Answer until nobody is left to ask.

        Args:
            names: answers questions that are about no thing.
        """
        while True:
            try:
                message = receive(self._source)
            except EOFError:
                return
            try:
                if message.get("of") is None:
                    work = functools.partial(_named, names, message)
                    send(self._to, self._guarded(work))
                else:
                    self._answer(message)
            except BrokenPipeError:  # who asked has ended, and says why
                return

    def _answer(self, message: Any) -> None:
        send(self._to, self._guarded(lambda: self._done(message)))

    def _guarded(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What work answers, or the error that it raises."""
        try:
            return work()
        except NotPlainError as error:
            return {"error": ["TypeError"], "text": str(error)[:200]}
        except Exception as error:
            names = [kind.__name__ for kind in type(error).__mro__ if kind in _ERRORS.values()]
            return {"error": names, "text": _text(error)}

    def _done(self, message: Any) -> dict[str, Any]:
        what, number = message["ask"], message["of"]
        thing = self._thing(number)
        if not self._trusts and what not in self._offers[number]:
            raise ValueError("this is not for the other side")
        values = [self.unpack(value) for value in message["values"]]
        if what == "call":
            return self._called(thing, values, message.get("named", {}))
        if what in OPERATIONS:
            return {"value": self.pack(OPERATIONS[what](thing, *values))}
        if what == "get":
            found = getattr(thing, values[0]) if self._trusts else _attribute(thing, values[0])
            return {"value": self.pack(found)}
        if what == "set" and self._trusts:
            setattr(thing, values[0], values[1])
            return {"value": None}
        if what == "isinstance" and self._trusts:
            return {"value": isinstance(values[0], thing)}
        raise ValueError("this is not for the other side")

    def _called(
        self, function: Any, arguments: list[Any], named: Mapping[str, Any]
    ) -> dict[str, Any]:
        before = [self.pack(part) if type(part) in HELD else None for part in arguments]
        result = function(*arguments, **{word: self.unpack(part) for word, part in named.items()})
        changed = {}
        for place, (was, part) in enumerate(zip(before, arguments, strict=True)):
            if type(part) in HELD and (now := self.pack(part)) != was:
                changed[str(place)] = now
        answer: dict[str, Any] = {"changed": changed} if changed else {}
        for place, part in enumerate(arguments):
            if result is part and type(part) in HELD:
                return answer | {"same": place}
        return answer | {"value": self.pack(result)}


def _named(names: Callable[[str, Sequence[Any]], Any], message: Any) -> dict[str, Any]:
    return {"value": names(message["ask"], message["values"])}


def _become(mine: Any, theirs: Any) -> None:
    """Let data hold what other data of its kind holds."""
    if type(mine) is not type(theirs) or type(mine) not in HELD:
        return
    mine.clear()
    if isinstance(mine, dict | set):
        mine.update(theirs)
    else:
        mine.extend(theirs)


def _text(error: Exception) -> str:
    try:
        return str(error)[:300]
    except Exception:
        return ""


def _fail(names: list[str], text: str) -> NoReturn:
    """Raise what the other side raised, as the nearest of Python's own errors."""
    for name in names:
        kind = _ERRORS.get(name)
        if kind is None:
            continue
        try:
            error = kind(text)
        except TypeError:
            continue
        raise error
    raise RuntimeError(text)


# --- the two sides --------------------------------------------------------------------------------


def answer(namespace: dict[str, Any], source: int, to: int) -> None:
    """Be the solution's side: answer what is asked of its names, until nobody asks.

    Args:
        namespace: of the solution, which has run.
        source, to: pipes from and to the tests' side.
    """
    peer = Peer(source, to, trusts=True)

    def names(what: str, values: Sequence[Any]) -> Any:
        if what == "module":  # that the tests import: both are as one file
            name, module = values
            namespace[name] = importlib.import_module(module)
            return None
        found = {}
        for name in values:
            if name not in namespace:
                continue
            value = namespace[name]
            is_module = isinstance(value, types.ModuleType)
            found[name] = ["module", value.__name__] if is_module else ["value", peer.pack(value)]
        return peer.pack(json.dumps(found))

    peer.serve(names)


class SharedNamespace:
    """The names at the top level of tests whose solution runs in another process.

    Modules that the tests import the solution sees too, as if both were one file. Data of the
    solution's is looked up anew each time: a call may have changed it.

    Args:
        source, to: pipes from and to the solution's process.
        names: that the tests see of the solution; others stay where they are.

    Raises:
        EOFError: the solution ended first.
    """

    def __init__(self, source: int, to: int, names: Iterable[str]) -> None:
        self._peer = Peer(source, to, trusts=False)
        self._own: set[str] = set()  # names that the tests define
        self.globals: dict[str, Any] = {}
        self._look_up(sorted(names))
        self._data = {name for name, value in self.globals.items() if _is_data(value)}

    def _look_up(self, names: list[str]) -> None:
        for name, (kind, value) in json.loads(self._peer.ask("names", None, *names)).items():
            is_module = name in sys.stdlib_module_names
            if kind == "value":
                found = self._peer.unpack(value)
                # What is called as a module is may be called, and is no module.
                distant = is_module and _is_distant(found)
                self.globals[name] = _callable_alone(found) if distant else found
            elif value == name and is_module:
                self.globals[name] = importlib.import_module(name)

    def __getitem__(self, name: str) -> Any:
        if name in self._data and name not in self._own:
            self._look_up([name])
        return self.globals[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._own.add(name)
        self.globals[name] = value
        if type(value) is types.ModuleType and value.__name__ in sys.stdlib_module_names:
            self._peer.ask("module", None, name, value.__name__)

    def __delitem__(self, name: str) -> None:
        del self.globals[name]
        self._own.discard(name)


def _is_data(value: object) -> bool:
    return not _is_distant(value) and not callable(value) and type(value) is not types.ModuleType


def _callable_alone(thing: Distant) -> Callable[..., Any]:
    return lambda *arguments, **named: thing(*arguments, **named)
