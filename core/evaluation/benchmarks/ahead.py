"""The model writes the next samples while the sandbox judges the last: for models on a GPU.

On a CPU both would take the cores from each other, and programs would run into their time limits.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
Stopped = Callable[[], bool]


@contextlib.contextmanager
def one_ahead(make: Callable[[Stopped], Iterator[T]]) -> Iterator[Iterator[T]]:
    """What an iterator makes, the next item of it being made in a thread meanwhile.

    Args:
        make: gives the iterator; it gets a function that says whether the block has ended, and
            should end soon after.

    Yields:
        the items in order. What the iterator raises is raised here, after the items before it.
    """
    ended = threading.Event()
    source = make(ended.is_set)

    def following() -> list[T]:
        return list(itertools.islice(source, 1))

    with ThreadPoolExecutor(1, thread_name_prefix="codecria-samples") as thread:

        def items() -> Iterator[T]:
            waited = thread.submit(following)
            while found := waited.result():
                waited = thread.submit(following)
                yield from found

        try:
            yield items()
        finally:
            ended.set()
