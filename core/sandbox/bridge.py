"""Between a solution's process and its tests': calls and plain data, and nothing else.

Plain are None, bool, int, float, complex, str, bytes, bytearray, range, list, tuple, dict, set and
frozenset, of each other. What arrives is built anew and is exactly of these types, whatever the
other side says it was: an object that is equal to everything cannot cross.

This module is read by the fork-server with nothing but the standard library at hand.
"""

from __future__ import annotations

import builtins
import importlib
import json
import os
import struct
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

MOST_BYTES = 64 << 20  # of one message
DEEPEST = 200  # nesting


class NotPlainError(Exception):
    """A value is no plain data."""


def pack(value: object, depth: int = 0) -> object:
    """Plain data as JSON values; of a subclass, what it is one of.

    Raises:
        NotPlainError: the value, or one in it, is something else.
    """
    if depth > DEEPEST:
        raise NotPlainError("data nested too deep")
    below = depth + 1
    if value is None or value is True or value is False:
        return value
    if isinstance(value, int):
        return {"i": hex(int.__index__(value))}
    if isinstance(value, float):
        return {"f": float.__repr__(value)}
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, complex):
        return {"c": [repr(value.real), repr(value.imag)]}
    if isinstance(value, bytes | bytearray):
        return {"B" if isinstance(value, bytearray) else "b": bytes(value).hex()}
    if isinstance(value, range):
        return {"r": [hex(value.start), hex(value.stop), hex(value.step)]}
    if isinstance(value, list):
        return [pack(part, below) for part in list.__iter__(value)]
    if isinstance(value, tuple):
        return {"t": [pack(part, below) for part in tuple.__iter__(value)]}
    if isinstance(value, set):
        return {"s": [pack(part, below) for part in set.__iter__(value)]}
    if isinstance(value, frozenset):
        return {"z": [pack(part, below) for part in frozenset.__iter__(value)]}
    if isinstance(value, dict):
        return {"d": [[pack(k, below), pack(v, below)] for k, v in dict.items(value)]}
    raise NotPlainError(f"a value of the type {type(value).__name__} is no plain data")


def unpack(value: Any) -> Any:
    """What `pack` was given, in exact types.

    Raises:
        ValueError, TypeError, KeyError: it is nothing that `pack` makes.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, list):
        return [unpack(part) for part in value]
    if not isinstance(value, dict) or len(value) != 1:
        raise ValueError("no packed value")
    [(name, held)] = value.items()
    simple: dict[str, Callable[[Any], Any]] = {
        "i": lambda text: int(text, 16),
        "f": float,
        "b": bytes.fromhex,
        "B": bytearray.fromhex,
        "c": lambda pair: complex(float(pair[0]), float(pair[1])),
        "r": lambda ends: range(*(int(end, 16) for end in ends)),
        "t": lambda parts: tuple(unpack(part) for part in parts),
        "s": lambda parts: {unpack(part) for part in parts},
        "z": lambda parts: frozenset(unpack(part) for part in parts),
        "d": lambda pairs: {unpack(k): unpack(v) for k, v in pairs},
    }
    return simple[name](held)


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


# --- the solution's side --------------------------------------------------------------------------


def answer(namespace: dict[str, Any], requests: int, replies: int) -> None:
    """Tell what the solution defines, and answer calls until nobody is left to ask."""
    send(replies, {"names": {name: _kind(value) for name, value in namespace.items()}})
    while True:
        try:
            asked = receive(requests)
        except EOFError:
            return
        try:
            arguments = [unpack(part) for part in asked["arguments"]]
            named = {name: unpack(part) for name, part in asked["named"].items()}
            told = {"value": pack(namespace[asked["name"]](*arguments, **named))}
        except NotPlainError as error:
            told = {"not_plain": str(error)[:200]}
        except Exception as error:
            told = {"error": type(error).__name__, "told": _text(error)}
        send(replies, told)


def _text(error: Exception) -> str:
    try:
        return str(error)[:300]
    except Exception:
        return ""


def _kind(value: object) -> object:
    """How the tests' side may know a value: a module by its name, data, or something to call."""
    if isinstance(value, types.ModuleType):
        return {"module": value.__name__}
    if callable(value):
        return {"call": True}
    try:
        return {"data": pack(value)}
    except NotPlainError:
        return {"other": True}


# --- the tests' side ------------------------------------------------------------------------------


def proxies(requests: int, replies: int, wanted: Iterable[str]) -> dict[str, Any]:
    """What the tests find in place of what the solution defines.

    Args:
        requests, replies: pipes to and from the solution's process.
        wanted: names that the tests see of the solution; others stay where they are.

    Raises:
        EOFError: the solution ended first.
    """
    names = receive(replies)["names"]
    found: dict[str, Any] = {}
    for name in sorted(set(wanted) & set(names)):
        kind = names[name]
        if "call" in kind:
            found[name] = _proxy(name, requests, replies)
        elif "data" in kind:
            found[name] = unpack(kind["data"])
        elif kind.get("module") == name and name in sys.stdlib_module_names:
            found[name] = importlib.import_module(name)
    return found


def _proxy(name: str, requests: int, replies: int) -> Callable[..., Any]:
    def call(*arguments: object, **named: object) -> Any:
        send(
            requests,
            {
                "name": name,
                "arguments": [pack(part) for part in arguments],
                "named": {word: pack(part) for word, part in named.items()},
            },
        )
        told = receive(replies)
        if "value" in told:
            return unpack(told["value"])
        if "not_plain" in told:
            raise NotPlainError(str(told["not_plain"]))
        _fail(str(told["error"]), str(told["told"]))

    call.__name__ = call.__qualname__ = name
    return call


def _fail(name: str, told: str) -> NoReturn:
    """Raise what the solution raised, where Python itself has an error of that name."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            error = kind(told)
        except TypeError:
            error = RuntimeError(f"{name}: {told}")
        raise error
    raise RuntimeError(f"{name}: {told}")
