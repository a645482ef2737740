"""Between a solution's process and its tests': plain data crosses, and calls to all else.

    tests                                            solution
    f([3, 1])          -- call f, [3, 1] ->          runs it
    [1, 3]             <- [1, 3] --
    next(numbers())    -- call numbers ->            a generator, kept there under a number
                       <- number 7 --
                       -- next of 7 ->
    1                  <- 1 --

Plain are None, bool, int, float, complex, str, bytes, bytearray, range, list, tuple, dict, set,
frozenset, deque, Decimal, Fraction, and dates and times. What arrives is built anew and is exactly
of these types, whatever the other side said it was, so an object that is equal to everything cannot
cross. Anything else stays where it is; what stands for it on the other side is equal to no data,
and in no sum with it.

This module is read by the fork-server with nothing but the standard library at hand.
"""

from __future__ import annotations

import builtins
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

MOST_BYTES = 64 << 20  # of one message
DEEPEST = 200  # nesting
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
    "__exit__": lambda thing, *told: thing.__exit__(*told),
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


class NotPlainError(Exception):
    """A value is no plain data."""


def pack(value: object, other: Callable[[object], object] | None = None, depth: int = 0) -> object:
    """Plain data as JSON values; of a subclass, what it is one of.

    Args:
        value: to be packed.
        other: packs what is no plain data.
        depth: of what it lies in.

    Raises:
        NotPlainError: the value, or one in it, is something else.
    """
    if depth > DEEPEST:
        raise NotPlainError("data nested too deep")
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return {"i": hex(int.__index__(value))}
    if isinstance(value, float):
        return {"f": float.__repr__(value)}
    if isinstance(value, complex):
        return {"c": [repr(value.real), repr(value.imag)]}
    if isinstance(value, bytes | bytearray):
        return {"B" if isinstance(value, bytearray) else "b": bytes(value).hex()}
    if isinstance(value, range):
        return {"r": [hex(value.start), hex(value.stop), hex(value.step)]}
    for kind, letter in _HOLDERS:
        if isinstance(value, kind):
            parts = [pack(part, other, depth + 1) for part in kind.__iter__(value)]
            return parts if letter == "l" else {letter: parts}
    if isinstance(value, dict):
        pairs = dict.items(value)
        return {"d": [[pack(part, other, depth + 1) for part in pair] for pair in pairs]}
    if (told := _told(value)) is not None:
        return told
    if other is not None:
        return other(value)
    raise NotPlainError(f"a value of the type {type(value).__name__} is no plain data")


_HOLDERS: tuple[tuple[Any, str], ...] = (
    *((list, "l"), (tuple, "t"), (set, "s"), (frozenset, "z"), (deque, "q")),
)


def _told(value: object) -> object:
    """Numbers and times that modules define, by what makes them again; else None."""
    decimal, fractions = sys.modules.get("decimal"), sys.modules.get("fractions")
    datetime = sys.modules.get("datetime")
    if decimal is not None and isinstance(value, decimal.Decimal):
        return {"m": ["decimal", "Decimal", [decimal.Decimal.__str__(value)]]}
    if fractions is not None and isinstance(value, fractions.Fraction):
        whole = [hex(operator.index(part)) for part in (value.numerator, value.denominator)]
        return {"m": ["fractions", "Fraction", [{"i": part} for part in whole]]}
    if datetime is None:
        return None
    for name, parts in _TIMES:
        if isinstance(value, getattr(datetime, name)) and getattr(value, "tzinfo", None) is None:
            numbers = [hex(operator.index(getattr(value, part))) for part in parts]
            return {"m": ["datetime", name, [{"i": number} for number in numbers]]}
    return None


_DAY, _TIME = ("year", "month", "day"), ("hour", "minute", "second", "microsecond")
_TIMES = (
    ("datetime", _DAY + _TIME),
    ("date", _DAY),
    ("time", _TIME),
    ("timedelta", ("days", "seconds", "microseconds")),
)
_MADE = {("decimal", "Decimal"), ("fractions", "Fraction"), *(("datetime", n) for n, _ in _TIMES)}


def unpack(value: Any, other: Callable[[Any], Any] | None = None) -> Any:
    """What `pack` was given, in exact types.

    Args:
        value: as it arrived.
        other: unpacks what is no plain data.

    Raises:
        ValueError, TypeError, KeyError: it is nothing that `pack` makes.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, list):
        return [unpack(part, other) for part in value]
    if not isinstance(value, dict) or len(value) != 1:
        raise ValueError("no packed value")
    [(letter, held)] = value.items()

    def parts() -> list[Any]:
        return [unpack(part, other) for part in held]

    simple: dict[str, Callable[[], Any]] = {
        "i": lambda: int(held, 16),
        "f": lambda: float(held),
        "b": lambda: bytes.fromhex(held),
        "B": lambda: bytearray.fromhex(held),
        "c": lambda: complex(float(held[0]), float(held[1])),
        "r": lambda: range(*(int(end, 16) for end in held)),
        "t": lambda: tuple(parts()),
        "s": lambda: set(parts()),
        "z": lambda: frozenset(parts()),
        "q": lambda: deque(parts()),
        "d": lambda: {unpack(k, other): unpack(v, other) for k, v in held},
        "m": lambda: _made(*held),
    }
    if letter in simple:
        return simple[letter]()
    if other is None:
        raise ValueError("no packed value")
    return other(value)


def _made(module: str, name: str, arguments: list[Any]) -> Any:
    if (module, name) not in _MADE:
        raise ValueError("no packed value")
    return getattr(importlib.import_module(module), name)(*map(unpack, arguments))


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
    return json.loads(_exactly(source, length))


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
        return _peer(self).ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute of it."""
        _peer(self).ask("set", self, name, value)

    def __instancecheck__(self, thing: object) -> bool:
        """Whether another is an instance of it, where it is a class."""
        found = _is_distant(thing) and _peer(self).ask("isinstance", thing, self)
        return found is True

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


class Peer:
    """One side of the bridge: it asks, and answers what it is asked meanwhile.

    Args:
        source, to: pipes from and to the other side.
        trusts: whether the other side may do with things of this one as it likes. Tests do not let
            a solution look into theirs: it calls what it is given, and goes through it.
    """

    def __init__(self, source: int, to: int, *, trusts: bool) -> None:
        self._source, self._to = source, to
        self._trusts = trusts
        self._things: list[object] = []
        self._numbers: dict[int, int] = {}
        self._kinds: dict[tuple[str, ...], type[Distant]] = {}
        self._distant: dict[int, Distant] = {}

    # Packing.

    def _pack(self, value: object) -> object:
        return pack(value, self._pack_other)

    def _pack_other(self, value: object) -> object:
        """A thing by its number: one of ours, or theirs again."""
        if _is_distant(value):
            assert isinstance(value, Distant)
            return {"y": _number(value)}
        number = self._numbers.get(id(value))
        if number is None:
            number = self._numbers[id(value)] = len(self._things)
            self._things.append(value)
        kind = type(value)
        return {"o": [number, [name for name in OPERATIONS if hasattr(kind, name)]]}

    def _unpack(self, value: Any) -> Any:
        return unpack(value, self._unpack_other)

    def _unpack_other(self, value: Any) -> Any:
        if "y" in value:
            return self._things[int(value["y"])]
        number, names = value["o"]
        if number in self._distant:
            return self._distant[number]
        offered = tuple(name for name in OPERATIONS if name in names)
        kind = self._kinds.get(offered)
        if kind is None:
            own = {
                name: _operation(name)
                for name in offered
                if name not in vars(Distant) and name in OPERATIONS
            }
            kind = self._kinds[offered] = type("Distant", (Distant,), own)
        return self._distant.setdefault(int(number), kind(self, int(number)))

    # Asking.

    def ask(self, what: str, *values: Any) -> Any:
        """The answer to a question about a thing of the other side's.

        Raises:
            EOFError: it has gone.
            Exception: what the other side raised, as Python's error of that kind.
        """
        send(self._to, {"ask": what, "values": [self._pack(value) for value in values]})
        return self._unpack(self._reply()["value"])

    def call(self, thing: Any, arguments: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """Call something of the other side's; what it changes in place is changed here.

        Raises:
            EOFError: it has gone.
            Exception: what the other side raised, as Python's error of that kind.
        """
        told = {
            "ask": "call",
            "values": [self._pack(part) for part in (thing, *arguments)],
            "named": {word: self._pack(part) for word, part in named.items()},
        }
        send(self._to, told)
        reply = self._reply()
        for place, value in reply.get("changed", {}).items():
            _become(arguments[int(place)], self._unpack(value))
        if "same" in reply:
            return arguments[int(reply["same"])]
        return self._unpack(reply["value"])

    def _reply(self) -> Any:
        while True:
            message = receive(self._source)
            if "ask" in message:
                self._answer(message)
            elif "error" in message:
                _fail(message["error"], str(message["told"]))
            else:
                return message

    # Answering.

    def serve(self) -> None:
        """Answer until nobody is left to ask."""
        while True:
            try:
                message = receive(self._source)
            except EOFError:
                return
            self._answer(message)

    def _answer(self, message: Any) -> None:
        try:
            told = self._done(message)
        except NotPlainError as error:
            told = {"error": ["TypeError"], "told": str(error)[:200]}
        except Exception as error:
            names = [kind.__name__ for kind in type(error).__mro__ if kind in _ERRORS]
            told = {"error": names, "told": _text(error)}
        send(self._to, told)

    def _done(self, message: Any) -> dict[str, Any]:
        what = message["ask"]
        values = [self._unpack(value) for value in message["values"]]
        if what == "call":
            return self._called(values, message.get("named", {}))
        if what in OPERATIONS:
            return {"value": self._pack(OPERATIONS[what](*values))}
        if what == "get" and (self._trusts or _is_open(values[0], values[1])):
            return {"value": self._pack(getattr(values[0], values[1]))}
        if what == "set" and self._trusts:
            setattr(values[0], values[1], values[2])
            return {"value": None}
        if what == "isinstance" and self._trusts:
            return {"value": isinstance(values[0], values[1])}
        raise ValueError("this is not for the other side")

    def _called(self, values: list[Any], named: Mapping[str, Any]) -> dict[str, Any]:
        function, *arguments = values
        before = [self._pack(part) if type(part) in HELD else None for part in arguments]
        result = function(*arguments, **{word: self._unpack(part) for word, part in named.items()})
        changed = {}
        for place, (was, part) in enumerate(zip(before, arguments, strict=True)):
            if type(part) in HELD and (now := self._pack(part)) != was:
                changed[str(place)] = now
        told: dict[str, Any] = {"changed": changed} if changed else {}
        for place, part in enumerate(arguments):
            if result is part and type(part) in HELD:
                return told | {"same": place}
        return told | {"value": self._pack(result)}


def _become(mine: Any, theirs: Any) -> None:
    """Let data hold what other data of its kind holds."""
    if type(mine) is not type(theirs) or type(mine) not in HELD:
        return
    mine.clear()
    if isinstance(mine, dict | set):
        mine.update(theirs)
    else:
        mine.extend(theirs)


_CLOSED = (types.FunctionType, types.MethodType, types.GeneratorType, types.ModuleType, type)


def _is_open(thing: object, name: str) -> bool:
    """Whether a solution may have an attribute of the tests': an object's public ones."""
    return not name.startswith("_") and not isinstance(thing, _CLOSED)


_ERRORS = frozenset(
    part
    for part in vars(builtins).values()
    if isinstance(part, type) and issubclass(part, Exception)
)


def _text(error: Exception) -> str:
    try:
        return str(error)[:300]
    except Exception:
        return ""


def _fail(names: list[str], told: str) -> NoReturn:
    """Raise what the other side raised, as the nearest of Python's own errors."""
    for name in names:
        kind = getattr(builtins, str(name), None)
        if not isinstance(kind, type) or not issubclass(kind, Exception):
            continue
        try:
            error = kind(told)
        except TypeError:
            continue
        raise error
    raise RuntimeError(told)


# --- the two sides --------------------------------------------------------------------------------


def answer(namespace: dict[str, Any], source: int, to: int) -> None:
    """Be the solution's side: tell what is asked of its names, until nobody asks.

    Args:
        namespace: of the solution, which has run.
        source, to: pipes from and to the tests' side.
    """
    peer = Peer(source, to, trusts=True)
    for name in receive(source)["names"]:
        if name not in namespace:
            send(to, {})
            continue
        value = namespace[name]
        if isinstance(value, types.ModuleType):
            send(to, {"module": value.__name__})
        else:
            send(to, {"value": peer._pack(value)})
    peer.serve()


def proxies(source: int, to: int, wanted: Iterable[str]) -> dict[str, Any]:
    """What the tests find in place of what the solution defines.

    Args:
        source, to: pipes from and to the solution's process.
        wanted: names that the tests see of the solution; others stay where they are.

    Raises:
        EOFError: the solution ended first.
    """
    peer = Peer(source, to, trusts=False)
    names = sorted(wanted)
    send(to, {"names": names})
    found: dict[str, Any] = {}
    for name in names:
        told = receive(source)
        is_module = name in sys.stdlib_module_names
        if "value" in told:
            value = peer._unpack(told["value"])
            # Who is called as a module is may be called, and is no module.
            found[name] = _callable_alone(value) if is_module and _is_distant(value) else value
        elif told.get("module") == name and is_module:
            found[name] = importlib.import_module(name)
    return found


def _callable_alone(thing: Distant) -> Callable[..., Any]:
    return lambda *arguments, **named: thing(*arguments, **named)
