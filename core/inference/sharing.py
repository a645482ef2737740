"""How work for a model is shared over processes: the seam between what asks and what computes.

    work      a function of a loaded model and one item: a batch of prompts, a text
    sharing   runs it on many items, here or in the other processes of a torchrun launch

What comes of an item depends on the model and on the item alone, so results do not depend on the
number of processes. `ALONE` is one process; `core/ranks/` is several. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from codecria.core.checkpoints.checkpoint import Checkpoint

    from .generator import Generator
    from .loading import Compute
    from .runner import Runner

Stopped = Callable[[], bool]
Item_contra = TypeVar("Item_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)
Item = TypeVar("Item")
Result = TypeVar("Result")


def never() -> bool:
    """Whether to stop: no."""
    return False


class Work(Protocol[Item_contra, Result_co]):
    """A function at the top level of a module, which other processes find by its name."""

    def __call__(self, generator: Generator, item: Item_contra, stopped: Stopped, /) -> Result_co:
        """Do the work for one item; once `stopped` is true, what it returns is not looked at."""
        ...


class Sharing(Protocol):
    """The processes that share a model's work."""

    @property
    def dp(self) -> int:
        """How many share the items of work: processes, or teams of those that share layers."""
        ...

    @property
    def tp(self) -> int:
        """How many processes share each layer; with more than one, PyTorch computes."""
        ...

    @property
    def neighbours(self) -> int:
        """How many processes of this machine share its cores and its memory, this one included."""
        ...

    def map(
        self,
        generator: Generator,
        work: Work[Item, Result],
        items: Iterable[Item],
        stopped: Stopped,
        *,
        together: bool,
    ) -> Iterator[Result]:
        """See `Generator.map`."""
        ...

    def split(self, checkpoint: Checkpoint, compute: Compute) -> Runner:
        """Load a checkpoint, each process of those that share its layers a part of every one."""
        ...


def in_turn(
    do: Callable[[Item], Result], items: Iterable[Item], stopped: Stopped
) -> Iterator[Result]:
    """What comes of each item, one after the other, until `stopped` is true."""
    for item in items:
        found = do(item)
        if stopped():
            return
        yield found


class Alone:
    """One process, which does everything."""

    dp = 1
    tp = 1
    neighbours = 1

    def map(
        self,
        generator: Generator,
        work: Work[Item, Result],
        items: Iterable[Item],
        stopped: Stopped,
        *,
        together: bool,  # noqa: ARG002 - there is nobody else
    ) -> Iterator[Result]:
        """One item after the other."""
        return in_turn(lambda item: work(generator, item, stopped), items, stopped)

    def split(self, checkpoint: Checkpoint, compute: Compute) -> Runner:  # noqa: ARG002
        """Not asked of one process."""
        raise AssertionError("nobody shares the layers")


ALONE = Alone()


@dataclass(frozen=True, slots=True)
class Loaded:
    """What another process loads to have the same model.

    Attributes:
        path: of the checkpoint; MODEL+ADAPTER with an adapter.
        compute: with everything decided that "auto" leaves open.
        facts: what must be the same there: how it is computed, names and sizes of its files.
    """

    path: Path
    compute: Compute
    facts: tuple[str, ...]
