"""A group of verbs that answers help quickly."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup


class QuickGroup(TyperGroup):
    """A group of verbs that leaves options which were not given alone.

    Typer would load pydantic to validate them, and so double the time of every verb's help.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the options before the verb."""
        for parameter in self.get_params(ctx):
            _leave_absent(parameter)
        return super().parse_args(ctx, args)


def _leave_absent(parameter: Any) -> None:
    """Let an option's own default pass its validation by, to its callback if it has one."""
    validate = parameter.process_value

    def process(context: Any, value: Any) -> Any:
        if parameter.required or value is not parameter.default:
            return validate(context, value)
        return parameter.callback(context, parameter, value) if parameter.callback else value

    parameter.process_value = process
