"""Many prompts through one engine, which never waits for a batch to end: a sequence that ends makes
room for the next one at once.

    for group in completions(generator, groups, request, is_missing=..., batch=16):
        for item, completion in group: ...

Groups come back whole and in their order, each when it and those before it are done, so what is
written down of them has one order. At most so much is lost by a kill as `batch` sequences take.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from .decoding import Completion, Limits
from .generator import Generator
from .sampling import Sampling
from .sharing import Stopped

# Groups that are decoded side by side where scores depend on their neighbours: such a window is
# made anew with the same members, or not at all. The longer, the less waits at its end.
WINDOW = 8
SHARES = 8  # so many windows at least, if there are as many groups: for processes to share
T = TypeVar("T")


def window_of(groups: int) -> int:
    """Groups of a window where there are so many of them.

    It depends on what is asked alone: not on how many processes share it, nor on what is known.
    """
    return max(1, min(WINDOW, groups // SHARES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What `Engine.add` takes for one sequence."""

    prompt: Sequence[int]
    sampling: Sampling
    limits: Limits
    ends: frozenset[int]
    sample: int = 0


def completions(
    generator: Generator,
    groups: Iterable[Sequence[T]],
    request: Callable[[T], Request | None],
    *,
    is_missing: Callable[[T], bool] = lambda _: True,
    batch: int,
    window: int = WINDOW,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[list[tuple[T, Completion | None]]]:
    """The completions of items that are missing, group by group.

    The native engine's scores do not depend on what is decoded beside a sequence: there, only what
    is missing is decoded. PyTorch's do, in their last bits, so a window of groups in which an item
    is missing is decoded whole, as it was before it was stopped. Processes that share the model's
    work (`sharing.py`) take a window each.

    Args:
        generator: the model.
        groups: of items, read as there is room for them.
        request: what is asked for an item; None where the model cannot be asked.
        is_missing: whether an item is wanted.
        batch: most sequences side by side.
        window: groups that share a batch on PyTorch, and that a process takes; 1 lets no two do so.
        stopped: looked at after every step; once it is true, nothing more comes.

    Yields:
        (item, its completion) of each group's missing items in order; groups without any are left
        out.
    """
    checked = ([(item, is_missing(item)) for item in group] for group in groups)
    parts = iter(lambda: list(itertools.islice(checked, window)), [])
    windows = (part for part in parts if any(pair[1] for group in part for pair in group))
    if generator.runner.tolerance == 0:
        windows = ([[pair for pair in group if pair[1]] for group in part] for part in windows)
    if generator.sharing.dp > 1:
        decoded = _shared(generator, windows, request, batch, stopped)
    elif generator.runner.tolerance == 0:
        every = itertools.chain.from_iterable(windows)
        decoded = _decoded(generator, every, request, batch, stopped)
    else:
        decoded = itertools.chain.from_iterable(
            _decoded(generator, one, request, batch, stopped)
            for one in itertools.takewhile(lambda _: not stopped(), windows)
        )
    for group in decoded:
        found = [(item, said) for (item, missing), said in group if missing]
        if found:
            yield found


_Asked = tuple[int, list[list[Request | None]]]  # a batch, and what is asked in each group


def _shared(
    generator: Generator,
    windows: Iterable[list[list[tuple[T, bool]]]],
    request: Callable[[T], Request | None],
    batch: int,
    stopped: Callable[[], bool],
) -> Iterator[list[tuple[tuple[T, bool], Completion | None]]]:
    """As `_decoded`, each window by the process that is free."""
    begun: deque[list[list[tuple[T, bool]]]] = deque()

    def asked() -> Iterator[_Asked]:
        for one in windows:
            begun.append(one)
            yield batch, [[request(item) for item, _ in group] for group in one]

    for said in generator.map(_window, asked(), stopped=stopped):
        for items, completed in zip(begun.popleft(), said, strict=True):
            yield list(zip(items, completed, strict=True))


def _window(generator: Generator, asked: _Asked, stopped: Stopped) -> list[list[Completion | None]]:
    """The completions of a window's groups; the work of one process."""
    batch, groups = asked
    wanted = ([(each, True) for each in group] for group in groups)
    return [
        [said for _, said in group]
        for group in _decoded(generator, wanted, lambda each: each, batch, stopped)
    ]


@dataclass(slots=True)
class _Group(Generic[T]):
    """Items that are returned together; `left` of them have not ended."""

    items: list[tuple[T, bool]]
    said: list[Completion | None] = field(init=False)
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.said = [None] * len(self.items)
        self.left = len(self.items)


def _decoded(
    generator: Generator,
    groups: Iterable[list[tuple[T, bool]]],
    request: Callable[[T], Request | None],
    batch: int,
    stopped: Callable[[], bool],
) -> Iterator[list[tuple[tuple[T, bool], Completion | None]]]:
    """All items of the groups with their completions, the engine being full while there are any."""
    engine = generator.engine(batch=batch)
    begun: deque[_Group[T]] = deque()  # in order, not returned yet
    places: dict[int, tuple[_Group[T], int]] = {}  # by the engine's numbers

    def following() -> Iterator[tuple[_Group[T], int]]:
        for items in groups:
            group = _Group(items)
            begun.append(group)
            yield from ((group, place) for place in range(len(items)))

    fresh = following()
    while True:
        taken = list(itertools.islice(fresh, batch - len(places)))
        for group, place in taken:
            asked = request(group.items[place][0])
            if asked is None:
                group.left -= 1
                continue
            number = engine.add(
                asked.prompt,
                sampling=asked.sampling,
                limits=asked.limits,
                ends=asked.ends,
                sample=asked.sample,
            )
            places[number] = group, place
        while begun and not begun[0].left:
            group = begun.popleft()
            yield list(zip(group.items, group.said, strict=True))
        if not places and not taken:
            return
        for number, event in engine.step() if places else ():
            if isinstance(event, Completion):
                group, place = places.pop(number)
                group.said[place] = event
                group.left -= 1
        if stopped():
            return
