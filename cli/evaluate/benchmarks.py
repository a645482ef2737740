"""`codecria evaluate TASK`: programs that a model writes, run with their tests, and counted."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_type_hints

import typer

from .. import options, render
from ..picture import Plot, check_picture, drawing
from ..signals import ending_in_order

if TYPE_CHECKING:
    from codecria.core.evaluation.benchmarks.evaluate import Request
    from codecria.core.evaluation.benchmarks.remote import Remote

HELPS = {
    "humaneval": """Score functions completed from their heads: HumanEval, or problems like it.

The prompt is continued as published, greedily unless --preset says otherwise. --also-chat asks as a
question too, for models tuned on instructions. Reference solutions run first.

Example: codecria evaluate humaneval --problems HumanEval.jsonl.gz --model run --out he.jsonl
""",
    "mbpp": """Score small programs written from a sentence and three tests: MBPP.

Tasks 11 to 510 with three others shown; --prompt-form tagged asks without any.

Example: codecria evaluate mbpp --problems mbpp.jsonl --model run --out mbpp.out.jsonl
""",
    "infilling": """Score what is filled into functions: HumanEval infilling.

Example: codecria evaluate infilling --problems HumanEval-SingleLineInfilling.jsonl.gz --model run
""",
    "humaneval-x": """Score functions in C++, Go, Java, JavaScript, Python or Rust: HumanEval-X.

Example: codecria evaluate humaneval-x --problems humaneval_java.jsonl.gz --model run
""",
    "multipl-e": """Score functions in many languages: MultiPL-E. It has no reference solutions.

Example: codecria evaluate multipl-e --problems humaneval-cpp.jsonl --model run
""",
    "apps": """Score programs for contest problems: APPS.

Two examples are shown; --prompt-form chat asks zero-shot, for models tuned on instructions. pass@5,
10 and 100 of 200 samples, by level. A folder in the original's layout is read too.

Example: codecria evaluate apps --problems test.jsonl --level introductory --model run -o apps.jsonl
""",
    "gsm8k-programs": """Score word problems of grade school, answered by a Python function: GSM8K.

Example: codecria evaluate gsm8k-programs --problems test.jsonl --model run
""",
    "humaneval-plus": """Score functions against many more inputs: HumanEval+ of EvalPlus.

Example: codecria evaluate humaneval-plus --problems HumanEvalPlus.jsonl.gz --model run
""",
    "mbpp-plus": """Score small programs against many more inputs: MBPP+ of EvalPlus.

Example: codecria evaluate mbpp-plus --problems MbppPlus.jsonl.gz --model run
""",
    "cruxeval-o": """Score predictions of what a function returns: CRUXEval, output.

Example: codecria evaluate cruxeval-o --problems cruxeval.jsonl --model run
""",
    "cruxeval-i": """Score inputs for which a function returns a given value: CRUXEval, input.

Example: codecria evaluate cruxeval-i --problems cruxeval.jsonl --model run
""",
    "livecodebench": """Score programs for contest problems of a span of dates: LiveCodeBench.

Example: codecria evaluate livecodebench --problems test.jsonl --since 2024-08-01 --model run
""",
    "safim": """Score blocks, conditions and API calls filled into programs: SAFIM.

Programs with unit tests run, in C++, Java, C# and Python; API calls must be the original's.

Example: codecria evaluate safim --problems block_completion.jsonl.gz --model run --form both
""",
    "exercises": """Score exercises of your own: questions with tests, as self-instruct writes them.

Their heads are completed; --prompt-form chat asks the questions.

Example: codecria evaluate exercises --problems made/dialogs.jsonl --prompt-form chat --model run
""",
}
# Options that only some tasks have.
ASKED_IN_CHAT = (
    *("mbpp", "humaneval", "exercises", "apps", "humaneval-plus", "mbpp-plus"),
    *("cruxeval-o", "cruxeval-i", "livecodebench", "humaneval-x", "multipl-e"),
)
ONLY = {
    "prompt_form": ASKED_IN_CHAT,
    "also_chat": ASKED_IN_CHAT,
    "extract": (
        "mbpp",
        "humaneval",
        "exercises",
        "apps",
        "humaneval-plus",
        "mbpp-plus",
        "livecodebench",
    ),
    "level": ("apps", "livecodebench"),
    "since": ("livecodebench",),
    "until": ("livecodebench",),
    "split": ("mbpp",),
    "form": ("infilling", "safim"),
    "strip_prompt": (
        *("humaneval", "humaneval-x", "multipl-e", "exercises", "humaneval-plus", "mbpp-plus"),
    ),
}
FORMS: dict[str, Any] = {
    "mbpp": Literal["few-shot", "tagged", "chat"],
    "humaneval": Literal["completion", "chat"],
    "exercises": Literal["completion", "chat"],
    "humaneval-plus": Literal["completion", "chat"],
    "humaneval-x": Literal["completion", "chat"],
    "multipl-e": Literal["completion", "chat"],
    "mbpp-plus": Literal["completion", "chat"],
    "apps": Literal["few-shot", "chat"],
    "cruxeval-o": Literal["few-shot", "chat"],
    "cruxeval-i": Literal["few-shot", "chat"],
    "livecodebench": Literal["few-shot", "chat"],
}
PresetName = Literal[
    "paper-greedy",
    "paper-sampled",
    "table5",
    "apps",
    "cruxeval",
    "livecodebench",
    "sweep-0.1",
    "sweep-0.4",
    "sweep-0.6",
    "sweep-0.8",
]


def register_tasks(group: typer.Typer) -> None:
    """Add the benchmarks to the `evaluate` group."""
    for name, text in HELPS.items():
        group.command(name, help=text)(_command(name))


def _command(task: str) -> Callable[..., None]:
    """`evaluate_task` for one task, without the options that it does not have."""
    signature = inspect.signature(evaluate_task)
    hints = get_type_hints(evaluate_task, include_extras=True)
    if task in FORMS:
        hints["prompt_form"] = Annotated[FORMS[task] | None, *get_args(hints["prompt_form"])[1:]]
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
    problems: Annotated[
        Path,
        typer.Option(
            help="Problems, in the file that the suite publishes, compressed or not.",
            rich_help_panel=options.INPUT,
        ),
    ],
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            "-m",
            help="Checkpoint or run folder to evaluate.",
            rich_help_panel=options.INPUT,
        ),
    ] = None,
    adapter: options.Adapter = None,
    endpoint: options.EndpointUrl = None,
    endpoint_model: options.EndpointModel = None,
    key_env: options.KeyEnv = "OPENAI_API_KEY",
    samples_file: Annotated[
        Path | None,
        typer.Option(
            help="Score these samples instead: JSON lines of task_id and completion or solution.",
            rich_help_panel=options.INPUT,
        ),
    ] = None,
    split: Annotated[
        Literal["test", "validation", "train", "prompt", "all"],
        typer.Option(
            help="Part of the suite; test is ids 11 to 510.", rich_help_panel=options.INPUT
        ),
    ] = "test",
    level: Annotated[
        str | None,
        typer.Option(
            metavar="LEVEL,LEVEL",
            help="Only these levels of difficulty, such as introductory (APPS) or easy.",
            rich_help_panel=options.INPUT,
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="DATE",
            help="Only problems published on this day or later, such as 2024-08-01.",
            rich_help_panel=options.INPUT,
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            metavar="DATE",
            help="Only problems published on this day or earlier.",
            rich_help_panel=options.INPUT,
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(metavar="ID,ID", help="Only these tasks.", rich_help_panel=options.INPUT),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Only the first N tasks.", rich_help_panel=options.INPUT),
    ] = None,
    partial: Annotated[
        bool,
        typer.Option(
            "--partial",
            help="Score a --samples-file that does not cover all tasks.",
            rich_help_panel=options.INPUT,
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Results, one JSON line per sample; rerun the same command to resume.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="T,T",
            help="Evaluate at each of these temperatures, such as 0.1,0.4,0.6,0.8; --out is a"
            " folder then.",
            rich_help_panel=options.SAMPLING,
        ),
    ] = None,
    plot: Plot = None,
    as_json: options.AsJson = False,
    preset: Annotated[
        PresetName | None,
        typer.Option(
            help="How samples are drawn [default: the suite's, else paper-greedy].",
            rich_help_panel=options.SAMPLING,
        ),
    ] = None,
    prompt_form: Annotated[
        str | None,
        typer.Option(
            help="How the model is asked [default: the first].", rich_help_panel=options.SAMPLING
        ),
    ] = None,
    also_chat: Annotated[
        bool,
        typer.Option(
            "--also-chat",
            help="Ask in the chat form as well, and report both.",
            rich_help_panel=options.SAMPLING,
        ),
    ] = False,
    extract: Annotated[
        Literal["best", "simple"],
        typer.Option(
            help="Code of a chat answer: the block that defines the tested function (best), or the"
            " first code block (simple).",
            rich_help_panel=options.SCORING,
        ),
    ] = "best",
    form: Annotated[
        Literal["psm", "spm", "both"],
        typer.Option(
            help="Order: psm (prefix, suffix, middle), spm (suffix, prefix, middle), or both.",
            rich_help_panel=options.SAMPLING,
        ),
    ] = "psm",
    samples_per_task: Annotated[
        int | None,
        typer.Option(
            "--samples-per-task",
            "-n",
            min=1,
            help="Samples of each task [default: the preset's].",
            rich_help_panel=options.SAMPLING,
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature",
            "-t",
            help="Sampling temperature; 0 is greedy [default: the preset's].",
            rich_help_panel=options.SAMPLING,
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Nucleus sampling [default: the preset's].", rich_help_panel=options.SAMPLING
        ),
    ] = None,
    seed: options.Seed = 0,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Longest completion, in tokens [default: 512].",
            rich_help_panel=options.SAMPLING,
        ),
    ] = None,
    context: options.Context = None,
    strip_prompt: Annotated[
        bool,
        typer.Option(
            "--strip-prompt",
            help="Remove white space at the end of the prompt.",
            rich_help_panel=options.SAMPLING,
        ),
    ] = False,
    k: options.Ks = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Run the reference solutions and stop.",
            rich_help_panel=options.SCORING,
        ),
    ] = False,
    generate_only: Annotated[
        bool,
        typer.Option(
            "--generate-only",
            help="Write the model's samples to --out and run nothing.",
            rich_help_panel=options.SCORING,
        ),
    ] = False,
    leave_out_failing: Annotated[
        bool,
        typer.Option(
            "--leave-out-failing",
            help="Score without the tasks whose reference solution fails here.",
            rich_help_panel=options.SCORING,
        ),
    ] = False,
    fail_under: Annotated[
        float | None,
        typer.Option(
            metavar="PASS@1",
            help="Exit with status 3 if pass@1 is below this, such as 0.3.",
            rich_help_panel=options.SCORING,
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results of reference solutions [default: the user's cache].",
            rich_help_panel=options.SCORING,
        ),
    ] = None,
    sandbox: options.Tier = "auto",
    sandbox_command: options.SandboxCommand = None,
    confirm: options.ConfirmMode = "passes",
    packages: options.Packages = None,
    workers: options.Workers = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            help="Time limit per program, seconds; 4 times the reference's own time if that is"
            " more [default: 4; 15 in other languages]. Per case where a suite limits each.",
            rich_help_panel=options.SANDBOX,
        ),
    ] = None,
    memory_mb: options.MemoryMb = 1_024,
    batch: options.Batch = 16,
    device: options.Device = "auto",
    engine: options.Engine = "auto",
    dtype: options.WeightsDtype = "auto",
    cache_dtype: options.CacheDtype = "auto",
    threads: options.EngineThreads = None,
) -> None:
    """Parse, evaluate, show."""
    from codecria.data.errors import UsageError

    if fail_under is not None and not 0 <= fail_under <= 1:
        raise UsageError(f"--fail-under {fail_under:g} is a share from 0 to 1", hint="as 0.3")
    if fail_under is not None and generate_only:
        raise UsageError("--generate-only scores nothing", hint="leave out --fail-under")
    if timeout is not None and not 0 < timeout <= 3600:
        raise UsageError(f"--timeout {timeout:g} must be from 0 to 3600 seconds")

    from codecria.core.evaluation.benchmarks import evaluate as evaluation
    from codecria.core.evaluation.benchmarks.protocol import Changes
    from codecria.core.evaluation.benchmarks.references import cache_folder
    from codecria.core.evaluation.benchmarks.sweep import sweep as sweep_over
    from codecria.core.evaluation.benchmarks.tasks import Choice
    from codecria.core.inference.loading import Compute
    from codecria.core.sandbox.config import Confirm, SandboxConfig

    if adapter is not None:
        if model is None:
            raise UsageError("--adapter belongs to a model", hint="name it with --model")
        model = options.adapted(model, adapter)
    request = evaluation.Request(
        task=task,
        problems=problems,
        model=model,
        remote=_remote(endpoint, endpoint_model, key_env, batch),
        samples=samples_file,
        forms=_forms(task, prompt_form, also_chat=also_chat, infilling=form),
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
            ks=None if k is None else options.ks_of(k),
        ),
        choice=Choice(
            split=split,
            ids=options.names_of(tasks),
            levels=_levels(task, level),
            since=_date("--since", since),
            until=_date("--until", until),
            limit=limit,
        ),
        out=out,
        generate_only=generate_only,
        sandbox=SandboxConfig(
            tier=sandbox,
            command=sandbox_command or "",
            confirm=Confirm(confirm),
            workers=workers,
            packages=options.names_of(packages),
        ),
        timeout_s=timeout,
        memory_bytes=memory_mb << 20,
        cache=cache or cache_folder(),
        leave_out_failing=leave_out_failing,
        partial=partial,
        batch=batch,
        compute=Compute(
            device=device, dtype=dtype, engine=engine, threads=threads, cache_dtype=cache_dtype
        ),
    )
    if check:
        _check_references(request, as_json=as_json)
        return
    temperatures = _temperatures(sweep, out=out, model=model, plot=plot)
    with ending_in_order("stopped: without --out nothing is kept"), render.stages() as show:
        if temperatures and out is not None:
            summaries = sweep_over(request, temperatures, out, note=render.note, show=show)
        else:
            summaries = evaluation.evaluate(request, note=render.note, show=show)
    if as_json:
        render.emit_json(summaries[0] if len(summaries) == 1 else {"forms": summaries})
    else:
        _show(summaries)
    if plot is not None:
        _draw(summaries, plot)
        render.note(f"written: {plot}")
    if out is not None:
        render.note(f"written: {out}")
    if fail_under is not None:
        _gate(summaries, fail_under)


def _forms(task: str, form: str | None, *, also_chat: bool, infilling: str) -> tuple[str, ...]:
    """The forms asked for, the plain one first; none for the task's own.

    Raises:
        UsageError: --also-chat and --prompt-form contradict each other.
    """
    from codecria.data.errors import UsageError

    if task in ONLY["form"]:
        return ("psm", "spm") if infilling == "both" else (infilling,)
    if not also_chat:
        return () if form is None else (form,)
    if form == "chat":
        raise UsageError(
            "--also-chat reports the chat form beside another",
            hint="leave out --also-chat or --prompt-form",
        )
    from codecria.core.evaluation.benchmarks.registry import TASKS

    return (form or TASKS[task].forms[0], "chat")


def _levels(task: str, given: str | None) -> tuple[str, ...]:
    """The levels asked for.

    Raises:
        UsageError: the suite has no such level.
    """
    from codecria.core.evaluation.benchmarks.registry import TASKS
    from codecria.data.errors import UsageError

    levels = options.names_of(given)
    for level in levels:
        if level not in TASKS[task].levels:
            raise UsageError(
                f"{TASKS[task].title} has no level {level!r}",
                hint="levels: " + ", ".join(TASKS[task].levels),
            )
    return levels


def _date(option: str, given: str | None) -> str:
    """A date as year-month-day; nothing where none is given.

    Raises:
        UsageError: it is no date.
    """
    from datetime import date

    from codecria.data.errors import UsageError

    if given is None:
        return ""
    try:
        return date.fromisoformat(given).isoformat()
    except ValueError as error:
        raise UsageError(f"{option} {given} is no date", hint="write it as 2024-08-01") from error


def _remote(
    endpoint: str | None, name: str | None, key_env: str, concurrency: int
) -> Remote | None:
    """The model at an endpoint, if one is named."""
    from codecria.core.endpoint import Access, key_from
    from codecria.core.evaluation.benchmarks.remote import Remote
    from codecria.data.errors import UsageError

    if endpoint is None:
        if name is not None:
            raise UsageError(
                "there is no --endpoint", hint="use a URL such as http://127.0.0.1:8012/v1"
            )
        return None
    if name is None:
        raise UsageError("there is no --endpoint-model", hint="name the model at the endpoint")
    access = Access(url=endpoint, key=key_from(key_env), concurrency=concurrency)
    if access.in_the_clear:
        render.warn(f"the key in {key_env} goes to {endpoint} unencrypted")
    return Remote(access=access, name=name)


def _temperatures(
    sweep: str | None, *, out: Path | None, model: Path | None, plot: Path | None
) -> list[float]:
    """The temperatures of a sweep; none where there is none.

    Raises:
        UsageError: one is no temperature, or an option that a sweep needs is missing.
    """
    from codecria.data.errors import UsageError

    if sweep is None:
        if plot is not None:
            raise UsageError("--plot draws pass@k over temperature", hint="add --sweep 0.1,0.8")
        return []
    if model is None or out is None:
        raise UsageError(
            "--sweep asks a model and keeps much", hint="give --model and --out FOLDER"
        )
    if plot is not None:
        check_picture(plot)
    try:
        found = [float(part) for part in sweep.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < temperature <= 2 for temperature in found):
        raise UsageError(
            f"--sweep {sweep}: temperatures are above 0 and at most 2", hint="as 0.1,0.4,0.6,0.8"
        )
    return found


def _draw(summaries: Sequence[dict[str, Any]], path: Path) -> None:
    """pass@k over temperature, a line for each k and form, with its intervals."""
    lines: dict[str, list[tuple[float, dict[str, Any]]]] = {}
    for summary in summaries:
        protocol = summary["protocol"]
        for name, found in summary["pass"].items():
            label = f"{name}, {protocol['form']}"
            lines.setdefault(label, []).append((protocol["temperature"], found))
    with drawing(path, width=6.0, height=4.5) as figure:
        axis = figure.subplots()
        for label, points in lines.items():
            over = [temperature for temperature, _ in points]
            [line] = axis.plot(over, [found["value"] for _, found in points], "o-", label=label)
            low, high = ([found[end] for _, found in points] for end in ("low", "high"))
            axis.fill_between(over, low, high, alpha=0.2, color=line.get_color())
        axis.set_xlabel("temperature")
        axis.set_ylabel("share of tasks solved, 95 % interval")
        axis.set_title(summaries[0]["title"])
        axis.legend()


def _check_references(request: Request, *, as_json: bool) -> None:
    """Run the references, and end with 1 where one fails.

    Raises:
        UserError: one fails.
    """
    from codecria.core.evaluation.benchmarks import evaluate as evaluation
    from codecria.core.evaluation.benchmarks.multilingual import WRONG_REFERENCES
    from codecria.data.errors import UserError

    with render.stages() as show:
        checked = evaluation.check_references(request, note=render.note, show=show)
    if as_json:
        render.emit_json(checked)
    else:
        render.output(
            f"{checked['passed']}/{checked['references']} reference solutions pass"
            f" (sandbox {checked['tier']}, slowest {checked['slowest_s']:g} s)"
        )
        if checked["unconfirmed"]:
            render.output(
                f"{len(checked['unconfirmed'])} of them pass with solution and tests in one process"
                " only; passes of these tasks are unconfirmed: "
                + ", ".join(checked["unconfirmed"][:5])
            )
    failed: dict[str, str] = {}
    for task_id, why in checked["not_passed"].items():
        if task_id in WRONG_REFERENCES:
            render.note(f"{task_id}: wrong as published ({WRONG_REFERENCES[task_id]})")
        elif not (why.startswith("skipped") and checked["passed"]):
            failed[task_id] = why
    if failed:
        first, why = next(iter(failed.items()))
        raise UserError(
            f"{len(failed)} reference solutions do not pass here, {first} first: {why}",
            hint="--leave-out-failing scores the others; the sandbox's languages: docs/sandbox.md",
        )


def _gate(summaries: Sequence[dict[str, Any]], least: float) -> None:
    """End with 3 where a score is below the threshold."""
    from codecria.data.errors import ExitStatus

    for summary in summaries:
        found = summary["pass"].get("pass@1")
        if found is None or found["value"] < least:
            value = "unknown" if found is None else f"{found['value']:.1%}"
            render.note(f"pass@1 is {value}, --fail-under asks for {least:.1%}")
            raise typer.Exit(ExitStatus.GATE)


# --- what is shown --------------------------------------------------------------------------------


def _show(summaries: Sequence[dict[str, Any]]) -> None:
    """The summaries as a table, with what qualifies them."""
    rows = []
    for summary in summaries:
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
        for level, found in summary.get("by_level", {}).items():
            scores += [
                f"{level} {name} {one['value']:.1%} [{one['low']:.1%}, {one['high']:.1%}]"
                for name, one in found["pass"].items()
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
    render.table(f"{summaries[0]['problems']['file']}", columns, rows, to_stdout=True)
    for summary in summaries:
        for reason in summary["partial"]:
            render.note(f"partial: {reason}")
        for label in summary["labels"]:
            render.note(f"note: {label}")


def _tasks(summary: dict[str, Any]) -> str:
    scored = summary.get("scored_tasks", summary["tasks"])
    known = f"{summary['tasks']:,}"
    return known if scored == summary["tasks"] else f"{scored:,} of {known}"
