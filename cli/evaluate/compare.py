"""`codecria evaluate compare`: is one result better than another?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .. import options, render

HELP = """Test whether one result is better than another, task by task.

With one sample a task by McNemar's exact test, else by a bootstrap over the pairs; of a single task
by Fisher's exact test.

Example: codecria evaluate compare before.jsonl after.jsonl
"""


def compare(
    a: Annotated[Path, typer.Argument(help="Result of one model.")],
    b: Annotated[Path, typer.Argument(help="Result of another on the same tasks.")],
    k: options.Ks = None,
    as_json: options.AsJson = False,
) -> None:
    """Read two results and print the comparison."""
    from codecria.core.evaluation.benchmarks.compare import compare_results

    summary = compare_results(a, b, **({} if k is None else {"ks": options.ks_of(k)}))
    if as_json:
        render.emit_json(summary)
    else:
        _show_comparison(summary)
    for warning in summary["warnings"]:
        render.warn(warning)


def _show_comparison(summary: dict[str, Any]) -> None:
    rows = []
    for name, found in summary["pass"].items():
        alone = "-" if found["only_a"] is None else f"{found['only_a']} | {found['only_b']}"
        rows.append(
            (
                name,
                f"{found['a']:.1%}",
                f"{found['b']:.1%}",
                f"{found['difference']:+.1%} [{found['low']:+.1%}, {found['high']:+.1%}]",
                alone,
                f"{found['p']:.3g} ({found['test']})",
            )
        )
    columns = ["", "A", "B", "B - A, 95%", "solved by A | B alone", "p"]
    render.table(
        f"{summary['tasks']} tasks: {summary['a']} | {summary['b']}", columns, rows, to_stdout=True
    )
    if any(summary["unconfirmed"].values()):
        render.output(
            f"unconfirmed passes: A {summary['unconfirmed']['a']}, B {summary['unconfirmed']['b']}"
        )
