"""One function as the command of many tasks, each with the options that it has."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_args, get_type_hints


def command_of(
    function: Callable[..., None],
    task: str,
    *,
    forms: Any,
    only: Mapping[str, tuple[str, ...]],
    required: Mapping[str, Any] | None = None,
) -> Callable[..., None]:
    """A function as one task's command, without the options that the task does not have.

    Args:
        function: takes `task` and, by keyword, the options of all tasks.
        task: its name.
        forms: the type of `--prompt-form`; None for a task without it.
        only: an option's parameter -> the tasks that have it; all have the others.
        required: a parameter that this task cannot do without -> its type.
    """
    required = required or {}
    signature = inspect.signature(function)
    hints = get_type_hints(function, include_extras=True)
    types = dict(required) if forms is None else {"prompt_form": forms | None, **required}
    for name, type_ in types.items():
        hints[name] = Annotated[type_, *get_args(hints[name])[1:]]
    kept = []
    for name, parameter in signature.parameters.items():
        if name == "task" or task not in only.get(name, (task,)):
            continue
        default = inspect.Parameter.empty if name in required else parameter.default
        kept.append(parameter.replace(annotation=hints[name], default=default))

    def command(**given: Any) -> None:
        function(task=task, **given)

    command.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in kept}
    return command
