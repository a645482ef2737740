"""`codecria evaluate`: what a model can do, a module for each kind of evaluation."""

from __future__ import annotations

import typer

from ..commands import QuickGroup
from . import benchmarks, compare, long_context, perplexity, repo, report, stages, text

HELP = "Measure what a model can do."


def register(app: typer.Typer) -> None:
    """Add the verb and its evaluations to the command line."""
    group = typer.Typer(help=HELP, no_args_is_help=True, cls=QuickGroup)
    group.command("long-context", help=long_context.HELP)(long_context.long_context)
    benchmarks.register_tasks(group)
    text.register_tasks(group)
    group.command("perplexity", help=perplexity.HELP)(perplexity.perplexity)
    group.command("repo", help=repo.HELP)(repo.repo)
    group.command("compare", help=compare.HELP)(compare.compare)
    group.command("report", help=report.HELP)(report.report)
    group.command("correlation", help=report.CORRELATION_HELP)(report.correlation)
    group.command("stages", help=stages.HELP)(stages.stages)
    app.add_typer(group, name="evaluate")
