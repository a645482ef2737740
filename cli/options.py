"""Options that several verbs read alike."""

from __future__ import annotations


def tier_of(sandbox: str, command: str | None, *, isolate: bool) -> str:
    """The tier as the sandbox takes it.

    Raises:
        UsageError: a command is given for another tier, or none for this, or it is to isolate.
    """
    from codecria.data.errors import UsageError

    if (sandbox == "command") != (command is not None):
        raise UsageError(
            "--sandbox command and --sandbox-command go together",
            hint="--sandbox command --sandbox-command 'podman run --rm -i --network none IMAGE'",
        )
    if command is not None:
        if isolate:
            raise UsageError("--isolate is not for the tier command", hint="leave one out")
        return f"{sandbox}: {command}"
    return f"{sandbox}+isolate" if isolate else sandbox


def pairs_of(changes: list[str]) -> dict[str, str]:
    """`--set` values as a mapping.

    Raises:
        UsageError: one is not FIELD=VALUE.
    """
    from codecria.data.errors import UsageError

    pairs = [change.partition("=") for change in changes]
    for name, equals, _ in pairs:
        if not name or not equals:
            raise UsageError(
                f"--set {name}{equals} is not FIELD=VALUE", hint="for example --set peak_lr=1e-3"
            )
    return {name.replace("-", "_"): value for name, _, value in pairs}
