"""`codecria evaluate TASK`: programs that a model writes, run with their tests, and counted."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from . import render
from .options import ConfirmMode
from .signals import ending_in_order

if TYPE_CHECKING:
    from codecria.core.evaluation.benchmarks.evaluate import Request

HELPS = {
    "humaneval": """Score functions completed from their heads: HumanEval, or problems like it.

The prompt is continued as published, greedily unless --preset says otherwise. --chat also asks as a
question, for models tuned on instructions. Reference solutions run first.

Example: codecria evaluate humaneval --problems HumanEval.jsonl.gz --model run --out he.jsonl
""",
    "mbpp": """Score small programs written from a sentence and three tests: MBPP.

Tasks 11 to 510 with three others shown; --form tagged asks without any.

Example: codecria evaluate mbpp --problems mbpp.jsonl --model run --out mbpp.out.jsonl
""",
    "infilling": """Score what is filled into functions: HumanEval infilling.

Example: codecria evaluate infilling --problems HumanEval-SingleLineInfilling.jsonl.gz --model run
""",
    "humaneval-x": """Score functions in C++, Java, JavaScript or Python: HumanEval-X.

Example: codecria evaluate humaneval-x --problems humaneval_java.jsonl.gz --model run
""",
    "multipl-e": """Score functions in many languages: MultiPL-E. It has no reference solutions.

Example: codecria evaluate multipl-e --problems humaneval-cpp.jsonl --model run
""",
    "exercises": """Score exercises of your own: questions with tests, as self-instruct writes them.

Their heads are completed; --form chat asks the questions.

Example: codecria evaluate exercises --problems made/dialogs.jsonl --form chat --model run
""",
}
COMPARE_HELP = """Tell whether one result is better than another, task by task.

With one sample a task by McNemar's exact test, else by a bootstrap over the pairs.

Example: codecria evaluate compare before.jsonl after.jsonl
"""
PERPLEXITY_HELP = """Measure the loss on text: in nats a token, as perplexity, in bits a byte.

Of the validation split of shards, source by source, or of files; read in windows of the context.

Example: codecria evaluate perplexity --model run --data shards
"""
# Options that only some tasks have.
ONLY = {
    "form": ("mbpp", "humaneval", "exercises"),
    "chat": ("mbpp", "humaneval", "exercises"),
    "extract": ("mbpp", "humaneval", "exercises"),
    "split": ("mbpp",),
    "order": ("infilling",),
    "strip_prompt": ("humaneval", "humaneval-x", "multipl-e", "exercises"),
}


def register_tasks(group: typer.Typer) -> None:
    """Add the tasks with tests, the comparison and the perplexity to the `evaluate` group."""
    for name, told in HELPS.items():
        group.command(name, help=told)(_command(name))
    group.command("perplexity", help=PERPLEXITY_HELP)(perplexity)
    group.command("compare", help=COMPARE_HELP)(compare)


def _command(task: str) -> Callable[..., None]:
    """`evaluate_task` for one task, without the options that it does not have."""
    signature = inspect.signature(evaluate_task)
    hints = get_type_hints(evaluate_task, include_extras=True)
    kept = [
        parameter.replace(annotation=hints[name])
        for name, parameter in signature.parameters.items()
        if name != "task" and task in ONLY.get(name, (task,))
    ]

    def command(**options: Any) -> None:
        evaluate_task(task=task, **options)

    command.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in kept}
    return command


def evaluate_task(
    *,
    task: str,
    problems: Annotated[Path, typer.Option(help="The suite's file, as published; .gz or not.")],
    model: Annotated[Path | None, typer.Option(help="Checkpoint or run folder to ask.")] = None,
    samples: Annotated[
        Path | None,
        typer.Option(help="Score these instead: JSON lines of task_id and completion or solution."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Run the reference solutions alone, and stop.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Results, a JSON line a sample; the same command goes on with them."),
    ] = None,
    generate_only: Annotated[
        bool, typer.Option("--generate-only", help="Write --model's samples to --out, run nothing.")
    ] = False,
    preset: Annotated[
        str,
        typer.Option(
            help="How samples are drawn: paper-greedy, paper-sampled, table5, sweep-0.1, -0.4,"
            " -0.6, -0.8."
        ),
    ] = "paper-greedy",
    form: Annotated[
        str | None,
        typer.Option(help="How to ask. HumanEval: completion, chat. MBPP: few-shot, tagged, chat."),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask in the chat form too, and report both.")
    ] = False,
    extract: Annotated[
        Literal["best", "simple"],
        typer.Option(
            help="Code of a chat answer: the block that defines the tested function (best), or the"
            " first code block (simple)."
        ),
    ] = "best",
    order: Annotated[
        Literal["psm", "spm", "both"], typer.Option(help="Prefix first, or suffix first.")
    ] = "psm",
    split: Annotated[
        Literal["test", "validation", "train", "prompt", "all"],
        typer.Option(help="Which tasks: test is 11 to 510."),
    ] = "test",
    tasks: Annotated[str | None, typer.Option(metavar="ID,ID", help="These tasks alone.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first N tasks alone.")] = None,
    samples_per_task: Annotated[
        int | None, typer.Option(min=1, help="[default: the preset's]")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 is greedy. [default: the preset's]")
    ] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus. [default: the preset's]")] = None,
    seed: Annotated[int, typer.Option(help="Repeats the same samples.")] = 0,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest completion. [default: 512]")
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Window in tokens [default: what it was trained on].")
    ] = None,
    strip_prompt: Annotated[
        bool, typer.Option("--strip-prompt", help="Leave out white space at the prompt's end.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, help="Samples decoded side by side.")] = 16,
    sandbox: Annotated[
        Literal["auto", "bwrap", "native", "command", "none"],
        typer.Option(metavar="TIER", help="Where programs run; none is no sandbox at all."),
    ] = "auto",
    sandbox_command: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND",
            help="For --sandbox command: as 'podman run --rm -i --network none IMAGE'.",
        ),
    ] = None,
    confirm: ConfirmMode = "passes",
    workers: Annotated[int | None, typer.Option(min=1, help="Programs side by side.")] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            help="Seconds of one program, or 4 times its reference if that is more."
            " [default: 4; 15 where a compiler runs]"
        ),
    ] = None,
    memory_mb: Annotated[int, typer.Option(min=16, help="Of one program.")] = 1_024,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder of what is known of references. [default: the user's cache]"),
    ] = None,
    leave_out_failing: Annotated[
        bool,
        typer.Option("--leave-out-failing", help="Score without tasks whose reference fails here."),
    ] = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="Score --samples that do not cover all tasks.")
    ] = False,
    fail_under: Annotated[
        float | None, typer.Option(metavar="PASS@1", help="Exit with 3 below this, as 0.3.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto (as stored where that is fast), float32, bfloat16.")
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; one when cores are busy.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Parse, evaluate, show."""
    from codecria.data.errors import UsageError

    if fail_under is not None and not 0 <= fail_under <= 1:
        raise UsageError(f"--fail-under {fail_under:g} is a share from 0 to 1", hint="as 0.3")
    if fail_under is not None and generate_only:
        raise UsageError("--generate-only scores nothing", hint="leave out --fail-under")
    if timeout is not None and not 0 < timeout <= 3600:
        raise UsageError(f"--timeout {timeout:g} must be from 0 to 3600 seconds")

    import torch

    from codecria.core.evaluation.benchmarks import evaluate as evaluation
    from codecria.core.evaluation.benchmarks.protocol import Changes
    from codecria.core.evaluation.benchmarks.references import cache_folder
    from codecria.core.sandbox.config import Confirm, SandboxConfig

    if threads is not None:
        torch.set_num_threads(threads)
    request = evaluation.Request(
        task=task,
        problems=problems,
        model=model,
        samples=samples,
        forms=_forms(task, form, chat=chat, order=order),
        preset=preset,
        changes=Changes(
            temperature=temperature,
            top_p=top_p,
            samples=samples_per_task,
            seed=seed,
            max_tokens=max_tokens,
            context=context,
            strip_prompt=strip_prompt,
            extraction=extract,
        ),
        split=split,
        ids=tuple(part.strip() for part in tasks.split(",") if part.strip()) if tasks else (),
        limit=limit,
        out=out,
        generate_only=generate_only,
        sandbox=SandboxConfig(
            tier=sandbox,
            command=sandbox_command or "",
            confirm=Confirm(confirm),
            workers=workers,
        ),
        timeout_s=timeout,
        memory_bytes=memory_mb << 20,
        cache=cache or cache_folder(),
        leave_out_failing=leave_out_failing,
        partial=partial,
        batch=batch,
        device=device,
        dtype=dtype,
    )
    if check:
        _check_references(request, as_json=as_json)
        return
    with ending_in_order("stopped: without --out nothing is kept"), render.stages() as show:
        told = evaluation.evaluate(request, note=render.note, show=show)
    if as_json:
        render.emit_json(told[0] if len(told) == 1 else {"forms": told})
    else:
        _show(told)
    if out is not None:
        render.note(f"written: {out}")
    if fail_under is not None:
        _gate(told, fail_under)


def _forms(task: str, form: str | None, *, chat: bool, order: str) -> tuple[str, ...]:
    """The forms asked for, the plain one first; none for the task's own.

    Raises:
        UsageError: --chat and --form contradict each other.
    """
    from codecria.data.errors import UsageError

    if task == "infilling":
        return ("psm", "spm") if order == "both" else (order,)
    if not chat:
        return () if form is None else (form,)
    if form == "chat":
        raise UsageError("--chat reports the chat form beside another", hint="leave one out")
    from codecria.core.evaluation.benchmarks.tasks import TASKS

    return (form or TASKS[task].forms[0], "chat")


def _check_references(request: Request, *, as_json: bool) -> None:
    """Run the references, and end with 1 where one fails.

    Raises:
        UserError: one fails.
    """
    from codecria.core.evaluation.benchmarks import evaluate as evaluation
    from codecria.core.evaluation.benchmarks.multilingual import WRONG_REFERENCES
    from codecria.data.errors import UserError

    with render.stages() as show:
        told = evaluation.check_references(request, note=render.note, show=show)
    if as_json:
        render.emit_json(told)
    else:
        render.output(
            f"{told['passed']}/{told['references']} reference solutions pass"
            f" (sandbox {told['tier']}, slowest {told['slowest_s']:g} s)"
        )
        if told["unconfirmed"]:
            render.output(
                f"{len(told['unconfirmed'])} of them fail with solution and tests in two processes,"
                " so passes of these tasks are unconfirmed: " + ", ".join(told["unconfirmed"][:5])
            )
    failed: dict[str, str] = {}
    for task_id, why in told["not_passed"].items():
        if task_id in WRONG_REFERENCES:
            render.note(f"{task_id}: wrong as published ({WRONG_REFERENCES[task_id]})")
        elif not (why.startswith("skipped") and told["passed"]):
            failed[task_id] = why
    if failed:
        first, why = next(iter(failed.items()))
        raise UserError(
            f"{len(failed)} reference solutions do not pass here, {first} first: {why}",
            hint="--leave-out-failing scores the others; the sandbox's languages: docs/sandbox.md",
        )


def _gate(told: Sequence[dict[str, Any]], least: float) -> None:
    """End with 3 where a score is below the threshold."""
    from codecria.data.errors import ExitStatus

    for summary in told:
        found = summary["pass"].get("pass@1")
        if found is None or found["value"] < least:
            value = "unknown" if found is None else f"{found['value']:.1%}"
            render.note(f"pass@1 is {value}, --fail-under asks for {least:.1%}")
            raise typer.Exit(ExitStatus.GATE)


# --- what is shown --------------------------------------------------------------------------------


def _show(told: Sequence[dict[str, Any]]) -> None:
    """The summaries as a table, with what qualifies them."""
    rows = []
    for summary in told:
        protocol = summary.get("protocol") or {}
        how = "samples of a file"
        if protocol:
            drawn = (
                "greedy"
                if protocol["temperature"] == 0
                else f"T {protocol['temperature']:g}, p {protocol['top_p']:g}"
            )
            how = f"{protocol['form']}, {drawn}"
        scores = [
            f"{name} {found['value']:.1%} [{found['low']:.1%}, {found['high']:.1%}]"
            for name, found in summary["pass"].items()
        ] + [
            f"{name} {found['value']:.1%} with unconfirmed"
            for name, found in summary.get("pass_with_unconfirmed", {}).items()
        ]
        ends = ", ".join(f"{n} {word}" for word, n in summary.get("results", {}).items())
        rows.append(
            (
                summary["title"],
                how,
                _tasks(summary),
                f"{summary['samples']:,}",
                "\n".join(scores) or "-",
                ends or "not run",
            )
        )
    columns = ["", "how", "tasks", "samples", "score, 95%", "results"]
    render.table(f"{told[0]['problems']['file']}", columns, rows, to_stdout=True)
    for summary in told:
        for reason in summary["partial"]:
            render.note(f"partial: {reason}")
        for label in summary["labels"]:
            render.note(f"note: {label}")


def _tasks(summary: dict[str, Any]) -> str:
    scored = summary.get("scored_tasks", summary["tasks"])
    known = f"{summary['tasks']:,}"
    return known if scored == summary["tasks"] else f"{scored:,} of {known}"


def compare(
    a: Annotated[Path, typer.Argument(help="Result of one model.")],
    b: Annotated[Path, typer.Argument(help="Result of another on the same tasks.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Read, compare, show."""
    from codecria.core.evaluation.benchmarks.compare import compare_results

    told = compare_results(a, b)
    if as_json:
        render.emit_json(told)
    else:
        _show_comparison(told)
    for warning in told["warnings"]:
        render.warn(warning)


def _show_comparison(told: dict[str, Any]) -> None:
    rows = []
    for name, found in told["pass"].items():
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
    render.table(f"{told['tasks']} tasks: {told['a']} | {told['b']}", columns, rows, to_stdout=True)
    if any(told["unconfirmed"].values()):
        render.output(
            f"unconfirmed passes: A {told['unconfirmed']['a']}, B {told['unconfirmed']['b']}"
        )


def perplexity(
    model: Annotated[Path, typer.Option(help="Checkpoint or run folder.")],
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Shard folder made by prepare-data.")
    ] = None,
    file: Annotated[
        list[Path] | None, typer.Option(help="A text file instead; repeatable.")
    ] = None,
    split: Annotated[
        Literal["train", "validation"], typer.Option(help="Of --data.")
    ] = "validation",
    rows: Annotated[
        int, typer.Option(min=1, help="Windows of each source, at most; spread evenly.")
    ] = 256,
    context: Annotated[
        int | None, typer.Option(min=2, help="Window in tokens [default: what it was trained on].")
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Let tokens see earlier documents of their window.")
    ] = False,
    fail_over: Annotated[
        float | None, typer.Option(metavar="PERPLEXITY", help="Exit with 3 above this.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Windows of one forward pass.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto (as stored where that is fast), float32, bfloat16.")
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; one when cores are busy.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the result to a JSON file too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Parse, measure, show."""
    from codecria.data.errors import ExitStatus, UsageError

    if (data is None) == (not file):
        raise UsageError("one thing is read: shards or files", hint="give --data DIR or --file F")

    import torch

    from codecria.core.evaluation.likelihood.by_source import Reading, measure

    if threads is not None:
        torch.set_num_threads(threads)
    reading = Reading(
        data=data,
        files=tuple(file or ()),
        split=split,
        rows=rows,
        context=context,
        document_mask=not plain,
        batch_rows=batch,
    )
    with render.stages() as show:
        told = measure(model, reading, device=device, dtype=dtype, show=show)
    if as_json:
        render.emit_json(told)
    else:
        _show_perplexity(told)
    if out is not None:
        from codecria.data.files import atomic_write_json

        atomic_write_json(out, told)
        render.note(f"written: {out}")
    if fail_over is not None and not told["total"]["perplexity"] <= fail_over:
        render.note(
            f"the perplexity is {told['total']['perplexity']:.4g}, --fail-over asks for"
            f" {fail_over:g} at most"
        )
        raise typer.Exit(ExitStatus.GATE)


def _show_perplexity(told: dict[str, Any]) -> None:
    found = [*told["sources"].items(), ("all", told["total"])]
    rows = [
        (
            name,
            f"{one['tokens']:,}",
            f"{one['bytes']:,}",
            f"{one['nats']:.4f}",
            f"{one['perplexity']:.4g}",
            "-" if one["bits_per_byte"] is None else f"{one['bits_per_byte']:.4f}",
        )
        for name, one in found
    ]
    columns = ["source", "tokens", "bytes", "nats a token", "perplexity", "bits a byte"]
    render.table(f"windows of {told['context']:,} tokens", columns, rows, to_stdout=True)
