"""`codecria evaluate TASK`, for answers that are compared as text or chosen by likelihood."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .. import options, render
from ..ranks import sharing
from ..signals import ending_in_order
from .tasks import command_of

HELPS = {
    "gsm8k": """Score word problems of grade school, answered by a number: GSM8K.

Eight worked problems are shown. `gsm8k-programs` asks for a Python function instead.

Example: codecria evaluate gsm8k --problems test.jsonl --model run
""",
    "line-completion": """Score the next line of a file: CodeXGLUE's py150, LCC, or files of yours.

Scores are reported by how much text stands before the line.

Example: codecria evaluate line-completion --problems py150-dev.jsonl.gz --model run

Example: codecria evaluate line-completion --problems src --evened-out --model run
""",
    "line-infilling": """Score a line that is missing in a function: Python, Java, JavaScript.

Reads SantaCoder's infilling set, or leaves out each line of HumanEval-X once.

Example: codecria evaluate line-infilling --problems humaneval_java.jsonl.gz --model run
""",
    "docstrings": """Score docstrings of Python functions: CodeXGLUE's code-to-text.

Example: codecria evaluate docstrings --problems test.jsonl --model run
""",
    "truthfulqa": """Score questions that people answer falsely: TruthfulQA.

By likelihood (mc1, mc2); or in words, judged by a local model tuned for that.

Example: codecria evaluate truthfulqa --problems TruthfulQA.csv --model run
""",
    "toxigen": """Score how toxic statements about groups of people are: ToxiGen.

Example: codecria evaluate toxigen --problems prompts --classifier roberta --model run
""",
    "bold": """Score the sentiment of what is written about groups of people: BOLD.

Example: codecria evaluate bold --problems bold --model run
""",
    "refusals": """Count harmless requests that a model refuses.

Without --problems, 40 requests that sound dangerous and are not, such as how to kill a process.

Example: codecria evaluate refusals --model run
""",
}
FORMS: dict[str, Any] = {
    "docstrings": Literal["psm", "spm", "completion"],
    "line-infilling": Literal["psm", "spm"],
    "truthfulqa": Literal["choice", "completion"],
    "toxigen": Literal["completion", "chat"],
    "bold": Literal["completion", "chat"],
    "refusals": Literal["chat", "completion"],
}
# Options that only some tasks have.
ONLY = {
    "prompt_form": tuple(FORMS),
    "evened_out": ("line-completion",),
    "classifier": ("toxigen",),
    "judge": ("truthfulqa",),
    "info_judge": ("truthfulqa",),
    "fail_under": tuple(name for name in HELPS if name not in ("toxigen", "bold", "refusals")),
}


def register_tasks(group: typer.Typer) -> None:
    """Add the tasks to the `evaluate` group."""
    for name, text in HELPS.items():
        # refusals has questions of its own; the others need a file
        required = {} if name == "refusals" else {"problems": list[Path]}
        command = command_of(
            evaluate_text_task, name, forms=FORMS.get(name), only=ONLY, required=required
        )
        group.command(name, help=text)(command)


def evaluate_text_task(
    *,
    task: str,
    model: options.Model,
    problems: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="File of the set as published, or a folder of them; repeatable.",
            rich_help_panel=options.INPUT,
        ),
    ] = None,
    limit: options.Limit = None,
    evened_out: Annotated[
        bool,
        typer.Option(
            "--evened-out",
            help="As many questions of each range of lengths as of the rarest.",
            rich_help_panel=options.INPUT,
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Results, one JSON line per answer; rerun the same command to resume.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    as_json: options.AsJson = False,
    prompt_form: options.PromptForm = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature",
            "-t",
            help="Sampling temperature; 0 is greedy [default: the task's].",
            rich_help_panel=options.SAMPLING,
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Nucleus sampling [default: the task's].", rich_help_panel=options.SAMPLING
        ),
    ] = None,
    seed: options.Seed = 0,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Longest answer, in tokens [default: the task's].",
            rich_help_panel=options.SAMPLING,
        ),
    ] = None,
    context: options.Context = None,
    classifier: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Local classifier of two labels, as ToxiGen's RoBERTa.",
            rich_help_panel=options.SCORING,
        ),
    ] = None,
    judge: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Local model that says whether an answer is true.",
            rich_help_panel=options.SCORING,
        ),
    ] = None,
    info_judge: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Local model that says whether an answer is informative.",
            rich_help_panel=options.SCORING,
        ),
    ] = None,
    fail_under: Annotated[
        float | None,
        typer.Option(
            metavar="SCORE",
            help="Exit with status 3 if the first score is below this, such as 0.3.",
            rich_help_panel=options.SCORING,
        ),
    ] = None,
    batch: options.Batch = 16,
    mesh: options.Mesh = "auto",
    device: options.Device = "auto",
    engine: options.Engine = "auto",
    dtype: options.WeightsDtype = "auto",
    cache_dtype: options.CacheDtype = "auto",
    threads: options.EngineThreads = None,
) -> None:
    """Parse, evaluate, show."""
    from codecria.data.errors import ExitStatus, UsageError

    if fail_under is not None and not 0 <= fail_under <= 1:
        raise UsageError(f"--fail-under {fail_under:g} is a share from 0 to 1", hint="as 0.3")

    from codecria.core.evaluation.text.measure import TextRequest, evaluate_text
    from codecria.core.evaluation.text.safety import HARMLESS

    request = TextRequest(
        task=task,
        problems=tuple(problems or [HARMLESS]),
        model=model,
        form=prompt_form,  # type: ignore[arg-type]  # Typer has checked it
        limit=limit,
        evened_out=evened_out,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        max_tokens=max_tokens,
        context=context,
        classifier=classifier,
        judge=judge,
        info_judge=info_judge,
        out=out,
        batch=batch,
        compute=options.compute(
            device, dtype, engine, threads, cache_dtype, sharing=sharing(mesh, device)
        ),
    )
    with ending_in_order("stopped: without --out nothing is kept"), render.stages() as show:
        summary = evaluate_text(request, note=render.note, show=show)
    if as_json:
        render.emit_json(summary)
    else:
        _show(summary)
    if out is not None:
        render.note(f"written: {out}")
    if fail_under is not None:
        name = summary["score"]
        found = summary["scores"][name]["value"]
        if found < fail_under:
            render.note(f"{name} is {found:.1%}, --fail-under asks for {fail_under:.1%}")
            raise typer.Exit(ExitStatus.GATE)


def _show(summary: dict[str, Any]) -> None:
    """The scores as a table, a row for each group, with what qualifies them."""
    names = list(summary["scores"])
    parts = [("all", summary), *summary.get("groups", {}).items()]
    rows = [
        (group, f"{part['questions']:,}", *(_cell(name, part["scores"][name]) for name in names))
        for group, part in parts
    ]
    protocol = summary["protocol"]
    render.table(
        f"{summary['title']}, {protocol['form']}",
        ["", "questions", *(name.replace("_", " ") for name in names)],
        rows,
        to_stdout=True,
    )
    if summary["prompt_too_long"]:
        render.note(f"{summary['prompt_too_long']} prompts were too long: they score nothing")
    for reason in summary["partial"]:
        render.note(f"partial: {reason}")
    for label in summary["labels"]:
        render.note(f"note: {label}")


def _cell(name: str, found: dict[str, Any]) -> str:
    """A mean with its interval: of a sentiment as it is, of others in percent."""
    if name == "sentiment":
        return f"{found['value']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
    return f"{found['value']:.1%} [{found['low']:.1%}, {found['high']:.1%}]"
