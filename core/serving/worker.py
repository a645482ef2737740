"""The engine's thread: tasks of many clients side by side, each of which may go away at any time.

    worker = Worker(new_engine)
    ticket = worker.submit(task, deliver)      # deliver(event) is called in the worker's thread
    worker.cancel(ticket)                      # its sequences are dropped before the next step

The engine belongs to this thread alone. Clients' threads put commands into a queue, which is read
between two steps.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from codecria.core.inference.decoding import Completion, Limits
from codecria.core.inference.engine import Engine
from codecria.data.errors import UserError

from .tasks import Event, Failed, Finished, Piece, Task

Deliver = Callable[[Event], None]


@dataclass(slots=True, eq=False)
class Ticket:
    """A task under way.

    Attributes:
        task: what was asked.
        deliver: takes its events.
        numbers: sample numbers by the engine's number of the sequence.
        prompt_until: clock when the time for the prompt is over.
        shown: scores that were delivered, by the engine's number.
    """

    task: Task
    deliver: Deliver
    numbers: dict[int, int] = field(default_factory=dict)
    prompt_until: float | None = None
    shown: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Load:
    """How busy the worker is: tasks that were submitted and have not ended."""

    tasks: int
    sequences: int


class Worker:
    """Runs tasks on an engine.

    Args:
        new_engine: makes the engine; called again after an internal error.
        on_finish: called for each completion.
    """

    def __init__(
        self,
        new_engine: Callable[[], Engine],
        *,
        on_finish: Callable[[Completion], None] = lambda _: None,
    ) -> None:
        self._new_engine = new_engine
        self._engine = new_engine()
        self._on_finish = on_finish
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._tickets: set[Ticket] = set()
        self._owners: dict[int, Ticket] = {}  # by the engine's number
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def load(self) -> Load:
        """How busy it is now."""
        return Load(len(self._tickets), len(self._owners))

    def submit(self, task: Task, deliver: Deliver) -> Ticket:
        """Begin a task; its events come until every sample is finished, or it has failed."""
        ticket = Ticket(task, deliver)
        self._commands.put(lambda: self._begin(ticket))
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Drop a task; one that has ended already is none."""
        self._commands.put(lambda: self._drop(ticket))

    def end(self, ticket: Ticket, sample: int) -> None:
        """Finish one sample with what there is."""
        self._commands.put(lambda: self._end(ticket, sample, timed_out=False))

    def stop(self) -> None:
        """Drop all tasks and end the thread."""
        self._stopping = True
        self._commands.put(None)
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping:
            try:
                if self._obey():
                    self._step()
            except UserError as error:  # such as scores that are not finite
                self._fail_all(Failed(error))
            except Exception as error:  # whoever waits must hear of it, and the next be served
                self._fail_all(
                    Failed(
                        UserError(f"internal error: {type(error).__name__}: {error}"), internal=True
                    )
                )
        self._fail_all(Failed(UserError("the server stops")))

    def _obey(self) -> bool:
        """Carry out the commands that wait; waits for one while there is nothing else to do."""
        block = not self._engine.busy
        while True:
            try:
                command = self._commands.get(block=block)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()
            block = not self._engine.busy and self._commands.empty()
            if self._stopping:
                return False

    def _begin(self, ticket: Ticket) -> None:
        task = ticket.task
        limits = Limits(max_tokens=max(1, task.max_tokens), stops=task.stops, context=task.context)
        self._tickets.add(ticket)
        if task.prompt_s is not None:
            ticket.prompt_until = time.perf_counter() + task.prompt_s
        try:
            for sample in range(task.samples):
                number = self._engine.add(
                    task.prompt,
                    sampling=task.sampling,
                    limits=limits,
                    ends=task.ends,
                    sample=sample,
                    opening=task.opening,
                    sources=task.sources,
                    top_scores=task.top_scores,
                    read_only=task.max_tokens == 0,
                )
                ticket.numbers[number] = sample
                self._owners[number] = ticket
        except UserError as error:
            self._drop(ticket)
            ticket.deliver(Failed(error))

    def _drop(self, ticket: Ticket) -> None:
        for number in list(ticket.numbers):
            self._engine.cancel(number)
            self._owners.pop(number, None)
        ticket.numbers.clear()
        self._tickets.discard(ticket)

    def _end(self, ticket: Ticket, sample: int, *, timed_out: bool) -> None:
        for number in [n for n, s in ticket.numbers.items() if s == sample]:
            for _, event in self._engine.end(number):
                self._pass_on(number, event, timed_out=timed_out)

    def _step(self) -> None:
        for number, event in self._engine.step():
            self._pass_on(number, event)
        now = time.perf_counter()
        for ticket in list(self._tickets):
            self._keep_time(ticket, now)

    def _keep_time(self, ticket: Ticket, now: float) -> None:
        task = ticket.task
        if task.predict_s is None and ticket.prompt_until is None:
            return
        for number, sample in list(ticket.numbers.items()):
            began = self._engine.first_at(number)
            if began is None:
                over = ticket.prompt_until is not None and now >= ticket.prompt_until
            else:
                over = task.predict_s is not None and now >= began + task.predict_s
            if over:
                self._end(ticket, sample, timed_out=True)

    def _pass_on(self, number: int, event: str | Completion, *, timed_out: bool = False) -> None:
        ticket = self._owners.get(number)
        if ticket is None:
            return
        sample = ticket.numbers[number]
        if isinstance(event, str):
            known, tokens = self._engine.scores(number)  # none of a sequence that has ended
            before = ticket.shown.get(number, 0)
            ticket.shown[number] = max(before, len(known))
            ticket.deliver(Piece(sample, event, known[before:], tokens))
            return
        rest = event.scores[ticket.shown.pop(number, 0) :]
        if rest:
            ticket.deliver(Piece(sample, "", rest, len(event.ids)))
        del self._owners[number], ticket.numbers[number]
        if not ticket.numbers:
            self._tickets.discard(ticket)
        self._on_finish(event)
        ticket.deliver(Finished(sample, event, timed_out))

    def _fail_all(self, failure: Failed) -> None:
        for ticket in list(self._tickets):
            ticket.deliver(failure)
        self._tickets.clear()
        self._owners.clear()
        if not self._stopping:
            self._engine = self._new_engine()
