"""What an evaluation of a repository has found so far, in a journal, so that it can be resumed.

The journal holds first what decides the result, then a line for each answer, for the tests of each
span and for each verdict. `evaluate repo` has it beside its result file OUT, as OUT.part, until it
ends; `adapt` keeps its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from codecria.data.errors import UserError
from codecria.data.identity import differences, require_same
from codecria.data.journal import Journal, open_journal
from codecria.data.progress import Progress

from .measure import Answer, answers
from .spans import Span

SUFFIX = ".part"


class Kept:
    """Values by kind and key; without a file, nothing outlives the process.

    Args:
        journal: opened, its entries read; None keeps nothing.
        values: read from it.
    """

    def __init__(self, journal: Journal | None, values: dict[tuple[str, str], Any]) -> None:
        self._journal = journal
        self._values = values

    def __bool__(self) -> bool:
        """Whether anything was found so far."""
        return bool(self._values)

    def of(self, kind: str) -> dict[str, Any]:
        """The values of a kind, by key."""
        return {key: value for (each, key), value in self._values.items() if each == kind}

    def add(self, kind: str, values: Mapping[str, Any]) -> None:
        """Keep values.

        Raises:
            UserError: the file cannot be written.
        """
        self._values |= {(kind, key): value for key, value in values.items()}
        if self._journal is not None:
            self._journal.append(
                {"kind": kind, "key": key, "value": value} for key, value in values.items()
            )


@contextmanager
def open_kept(out: Path | None, identity: Mapping[str, Any]) -> Iterator[Kept]:
    """What an earlier call left beside a result file; removed when the block ends well, or has
    found nothing.

    Args:
        out: the result file; None keeps nothing.
        identity: what decides the result.

    Raises:
        UserError: another evaluation is under way there, or it cannot be written.
    """
    if out is None:
        yield Kept(None, {})
        return
    path = out.with_name(out.name + SUFFIX)
    with open_lasting(path, identity) as kept:
        ended = False
        try:
            yield kept
            ended = True
        finally:
            if ended or not kept:
                path.unlink()


@contextmanager
def open_lasting(path: Path, identity: Mapping[str, Any]) -> Iterator[Kept]:
    """What earlier calls left in a journal, which stays.

    Args:
        path: of the journal; made if it is missing.
        identity: what decides what it may hold.

    Raises:
        UserError: it is of another evaluation, another process has it, or it cannot be written.
    """
    with open_journal(path) as journal:
        values: dict[tuple[str, str], Any] = {}
        begun: Any = None
        for entry in journal.entries():
            if entry.error:
                raise UserError(f"line {entry.number} of {path} is damaged", hint="remove it")
            if begun is None:
                begun = entry.value["identity"]
            else:
                values[entry.value["kind"], entry.value["key"]] = entry.value["value"]
        if begun is None:
            journal.append([{"identity": identity}])
        else:
            require_same(
                path,
                differences(begun, identity),
                what="an unfinished evaluation",
                hint=f"repeat its options, or remove {path}",
            )
        yield Kept(journal, values)


def answered(
    kept: Kept,
    kind: str,
    model: Path,
    spans: Sequence[Span],
    *,
    progress: Callable[[Progress], None],
    **options: Any,
) -> list[Answer]:
    """A model's answers: those that were kept, and the others, which are kept as they are made.

    Args:
        kept: by an earlier call.
        kind: of its values; it stands for the model.
        model, spans, progress, options: as `answers` takes them.

    Raises:
        UserError: the model cannot be loaded, or the journal cannot be written.
    """
    return answers(
        model,
        spans,
        known={name: Answer(**value) for name, value in kept.of(kind).items()},
        keep=lambda new: kept.add(kind, {answer.id: asdict(answer) for answer in new}),
        progress=progress,
        **options,
    )
