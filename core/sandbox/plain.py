"""Plain data as JSON, and back: what crosses between a solution's process and its tests'.

Plain are None, bool, int, float, complex, str, bytes, bytearray, range, list, tuple, dict, set,
frozenset, deque, named tuples, Counter, OrderedDict, Decimal, Fraction, and dates and times without
a zone; with NumPy among the allowed packages, its numbers, as Python's, and its arrays of numbers.
What arrives is built anew and is exactly of these types, whatever the other side calls it,
so an object that is equal to everything cannot cross.

This module is read by the fork-server with nothing but the standard library at hand.
"""

from __future__ import annotations

import importlib
import keyword
import operator
import re
import sys
from collections import Counter, OrderedDict, deque, namedtuple
from collections.abc import Callable
from functools import lru_cache
from typing import Any

DEEPEST = 200  # nesting
MOST_FIELDS = 64  # of a named tuple
_ARRAY_KIND = re.compile(r"[<>|=]?[biufc][0-9]{1,2}")
_WORD = 1 << 63  # JSON's numbers up to here; longer ones are written in hexadecimal
_DIRECT = frozenset({type(None), bool, str, float})
_SIMPLE = _DIRECT | {int}

Other = Callable[[Any], Any]


class NotPlainError(Exception):
    """A value is no plain data."""


def pack(value: object, other: Other | None = None, depth: int = 0) -> object:
    """Plain data as JSON values; of a subclass, what it is one of.

    Args:
        value: to be packed.
        other: packs what is no plain data.
        depth: of what it lies in.

    Raises:
        NotPlainError: the value, or one in it, is something else.
    """
    kind = type(value)
    if kind in _DIRECT:
        return value
    if depth > DEEPEST:
        raise NotPlainError("data nested too deep")
    if isinstance(value, int):
        if isinstance(value, bool):
            return bool(value)
        number = int.__index__(value)
        return number if -_WORD < number < _WORD else {"i": hex(number)}
    if isinstance(value, list):
        return _pack_all(list.__iter__(value), other, depth)
    for kind_, letter in _HOLDERS:
        if isinstance(value, kind_):
            fields = _fields(value) if letter == "t" else None
            parts = _pack_all(kind_.__iter__(value), other, depth)
            return {letter: parts} if fields is None else {"n": [kind.__name__, fields, parts]}
    if isinstance(value, dict):
        letter = "k" if isinstance(value, Counter) else "O" if kind is OrderedDict else "d"
        pairs = dict.items(value)
        return {letter: [_pack_all(iter(pair), other, depth) for pair in pairs]}
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        return float(float.__repr__(value))
    if isinstance(value, complex):
        return {"c": [value.real, value.imag]}
    if isinstance(value, bytes | bytearray):
        return {"B" if isinstance(value, bytearray) else "b": bytes(value).hex()}
    if isinstance(value, range):
        return {"r": [hex(value.start), hex(value.stop), hex(value.step)]}
    if (described := _describe(value)) is not None:
        return described
    if other is not None:
        return other(value)
    raise NotPlainError(f"a value of the type {kind.__name__} is no plain data")


_HOLDERS: tuple[tuple[Any, str], ...] = ((tuple, "t"), (set, "s"), (frozenset, "z"), (deque, "q"))


def _pack_all(given: Any, other: Other | None, depth: int) -> list[object]:
    values: list[object] = list(given)
    kinds = set(map(type, values))
    if kinds <= _DIRECT:
        return values
    if kinds <= _SIMPLE and all(-_WORD < part < _WORD for part in values if isinstance(part, int)):
        return values
    return [pack(part, other, depth + 1) for part in values]


def _fields(value: object) -> list[str] | None:
    """The names of a named tuple's fields, None where it is none that can be made anew."""
    fields = getattr(type(value), "_fields", None)
    if type(fields) is not tuple or len(fields) != tuple.__len__(value):  # type: ignore[arg-type]
        return None
    return list(fields) if _are_names((type(value).__name__, *fields)) else None


def _are_names(names: Any) -> bool:
    return len(names) <= MOST_FIELDS + 1 and all(
        type(name) is str
        and name.isidentifier()
        and not keyword.iskeyword(name)
        and not name.startswith("_")
        for name in names
    )


def _describe(value: Any) -> object:
    """Numbers and times that modules define, by what makes them again; else None."""
    decimal, fractions = sys.modules.get("decimal"), sys.modules.get("fractions")
    datetime = sys.modules.get("datetime")
    if decimal is not None and isinstance(value, decimal.Decimal):
        return {"m": ["decimal", "Decimal", [decimal.Decimal.__str__(value)]]}
    if fractions is not None and isinstance(value, fractions.Fraction):
        whole = [hex(operator.index(part)) for part in (value.numerator, value.denominator)]
        return {"m": ["fractions", "Fraction", [{"i": part} for part in whole]]}
    if (numpy := sys.modules.get("numpy")) is not None:
        if isinstance(value, numpy.generic) and _is_number(value.dtype):
            return pack(value.item())
        if type(value) is numpy.ndarray and _is_number(value.dtype):
            return {"a": [value.dtype.str, list(value.shape), pack(value.ravel().tolist())]}
    if datetime is None:
        return None
    for name, parts in _TIMES:
        if isinstance(value, getattr(datetime, name)) and getattr(value, "tzinfo", None) is None:
            numbers = [operator.index(getattr(value, part)) for part in parts]
            return {"m": ["datetime", name, numbers]}
    return None


def _is_number(dtype: Any) -> bool:
    """Whether an array of this type holds numbers that Python has too."""
    return dtype.kind in "biufc" and dtype.char not in "gG"


_DAY, _TIME = ("year", "month", "day"), ("hour", "minute", "second", "microsecond")
_TIMES = (
    ("datetime", _DAY + _TIME),
    ("date", _DAY),
    ("time", _TIME),
    ("timedelta", ("days", "seconds", "microseconds")),
)
_MADE = {("decimal", "Decimal"), ("fractions", "Fraction"), *(("datetime", n) for n, _ in _TIMES)}


def unpack(value: Any, other: Other | None = None) -> Any:
    """What `pack` was given, in exact types.

    Args:
        value: as it arrived.
        other: unpacks what is no plain data.

    Raises:
        ValueError, TypeError, KeyError: it is nothing that `pack` makes.
    """
    kind = type(value)
    if kind is list:
        return _unpack_all(value, other)
    if kind is not dict:
        return value
    if len(value) != 1:
        raise ValueError("no packed value")
    [(letter, held)] = value.items()
    make = _MAKERS.get(letter)
    if make is not None:
        return make(held, other)
    if other is None:
        raise ValueError("no packed value")
    return other(value)


def _unpack_all(values: Any, other: Other | None) -> list[Any]:
    if not isinstance(values, list):
        raise ValueError("no packed value")
    if set(map(type, values)) <= _SIMPLE:
        return values
    return [unpack(part, other) for part in values]


def _pairs(held: Any, other: Other | None) -> list[tuple[Any, Any]]:
    return [(key, value) for key, value in (_unpack_all(pair, other) for pair in held)]


def _named(held: Any, other: Other | None) -> Any:
    name, fields, parts = held
    if not _are_names((name, *fields)):
        raise ValueError("no packed value")
    return _tuple_type(name, tuple(fields))._make(_unpack_all(parts, other))


@lru_cache(maxsize=64)
def _tuple_type(name: str, fields: tuple[str, ...]) -> Any:
    return namedtuple(name, fields)


def _made(held: Any, _other: Other | None) -> Any:
    module, name, arguments = held
    if (module, name) not in _MADE:
        raise ValueError("no packed value")
    return getattr(importlib.import_module(module), name)(*_unpack_all(arguments, None))


def _array(held: Any, _other: Other | None) -> Any:
    kind, shape, values = held
    if not _ARRAY_KIND.fullmatch(kind):
        raise ValueError("no packed value")
    try:
        numpy = importlib.import_module("numpy")
        return numpy.array(_unpack_all(values, None), dtype=kind).reshape([int(n) for n in shape])
    except (ImportError, OverflowError) as error:
        raise ValueError("no packed value") from error


_MAKERS: dict[str, Callable[[Any, Other | None], Any]] = {
    "i": lambda held, _: int(held, 16),
    "b": lambda held, _: bytes.fromhex(held),
    "B": lambda held, _: bytearray.fromhex(held),
    "c": lambda held, _: complex(float(held[0]), float(held[1])),
    "r": lambda held, _: range(*(int(end, 16) for end in held)),
    "t": lambda held, other: tuple(_unpack_all(held, other)),
    "n": _named,
    "s": lambda held, other: set(_unpack_all(held, other)),
    "z": lambda held, other: frozenset(_unpack_all(held, other)),
    "q": lambda held, other: deque(_unpack_all(held, other)),
    "d": lambda held, other: dict(_pairs(held, other)),
    "k": lambda held, other: Counter(dict(_pairs(held, other))),
    "O": lambda held, other: OrderedDict(_pairs(held, other)),
    "m": _made,
    "a": _array,
}
