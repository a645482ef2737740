"""What the training verbs print beside progress: plans, examples, what is about to happen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import render

if TYPE_CHECKING:
    from codecria.core.training.plan import Plan
    from codecria.core.training.request import StageRequest
    from codecria.core.training.run import Standing
    from codecria.core.training.spread import Machines, SpreadPlan
    from codecria.core.training.stage import Stage


def show_plan(
    request: StageRequest,
    out: Path | None,
    *,
    as_json: bool,
    machines: Machines | None = None,
) -> None:
    """Print what a run will take, and what it would do to the run folder.

    Args:
        request: of the run.
        out: its folder, if any.
        as_json: print one JSON document.
        machines: the devices to plan for, beside this machine.
    """
    from codecria.core.training.planner import plan_paper, plan_stage
    from codecria.core.training.resolve import resolve
    from codecria.core.training.spread import plan_spread

    if not (request.data or request.dialogs):
        plan, now = plan_paper(request), None
    else:
        stage = resolve(request, out=out, plan=True)
        now = stage.standing(out) if out is not None else None
        plan = plan_stage(stage, out)
    spread = None
    if machines is not None:
        spread = plan_spread(
            plan.recipe,
            plan.model,
            machines,
            mesh=request.mesh,
            micro_batch_size=request.micro_batch_size,
            dtype="float32" if request.dtype == "float32" else "bfloat16",
            recompute=None if request.recompute == "auto" else request.recompute == "on",
        )
    if as_json:
        found = plan.as_json() | {"action": now.action if now is not None else None}
        render.emit_json(found | ({} if spread is None else {"spread": spread.as_json()}))
        return
    _render_plan(plan, here=spread is None)
    if spread is not None:
        _render_spread(spread, plan.recipe.steps)
    if out is not None and now is not None:
        _note_standing(now, out)


def _note_standing(now: Standing, out: Path) -> None:
    """What the same command without --dry-run would do to the run folder."""
    from codecria.core.training.resume import newest_step

    for warning in now.warnings:
        render.warn(warning)
    done = newest_step(out)
    render.note(
        {
            "start": f"{out}: a new run",
            "resume": f"{out}: resumes after step {done:,}",
            "extend": f"{out}: extends the run after step {min(done, now.rewind):,}",
            "replace": f"{out}: replaces the run there",
        }[now.action]
    )


def _render_plan(plan: Plan, *, here: bool) -> None:
    """What a run takes.

    Args:
        plan: of the run.
        here: whether it is planned for this machine: how long it takes, what one device holds.
    """
    plain = plan.as_json()
    seconds = plain["seconds"]
    facts = [
        ("recipe", f"{plan.recipe.name} {plan.recipe.size} ({plan.recipe.source})"),
        ("parameters", f"{plain['parameters']:,}"),
        ("tokens", f"{plain['tokens']:,} in {plain['steps']:,} steps of {plain['batch_tokens']:,}"),
        ("context", f"{plain['context']:,}"),
        (
            "learning rate",
            f"{plain['peak_lr']:g} after {plain['warmup_steps']:,} warm-up steps,"
            f" {plan.recipe.schedule}",
        ),
        ("FLOPs", f"{plain['flops']:.3g}"),
    ]
    if here:
        facts.append(("time here", "unknown" if seconds is None else _time_here(plan)))
    if plan.recipe.rope_theta is not None or plan.recipe.rope_scale is not None:
        facts.append(("rotary base", f"{plain['rope_theta']:g}, scale {plain['rope_scale']:g}"))
    if here and plan.recompute:
        facts.append(("activations", "recomputed in backward (--recompute off keeps them)"))
    if plan.reach is not None:
        facts.append(
            ("see further than", f"{plan.reach.beyond:,} tokens: {plan.reach.share:.1%} of tokens")
        )
    if plain["infill"] is not None:
        facts += _infill_facts(plain["infill"])
    render.table("plan", ["", ""], facts, to_stdout=True)
    render.table(
        "data",
        ["source", "share", "tokens drawn", "tokens held", "epochs"],
        [
            (
                s["name"],
                f"{s['share']:.1%}",
                f"{s['tokens_drawn']:.4g}",
                f"{s['tokens_unique']:.4g}" if s["tokens_unique"] else "",
                f"{s['epochs']:.2f}" if s["tokens_unique"] else "",
            )
            for s in plain["sources"]
        ],
        to_stdout=True,
    )
    if here:
        _render_memory("memory on one device", plain["memory_bytes"])


def _render_memory(title: str, parts: dict[str, int]) -> None:
    rows = [(part, f"{size / 1e9:.2f}") for part, size in parts.items()]
    render.table(title, ["part", "GB"], rows, to_stdout=True)


def _render_spread(spread: SpreadPlan, steps: int) -> None:
    """Memory, traffic and time of each of several devices, and whether it fits them."""
    from codecria.core.training.spread import FILLED, LINK_BETWEEN, LINK_INSIDE

    way, machines = spread.way, spread.machines
    render.output(
        f"{machines.devices} devices: --mesh {way.mesh}, {way.dtype}, micro-batches of"
        f" {way.micro_batch_size} rows{', activations recomputed' if way.recompute else ''}"
    )
    _render_memory("memory on each", spread.as_json()["memory_bytes"])
    sent = {what: size for what, size in spread.links.items() if size}
    if sent:
        render.table(
            "sent or received by each, a step",
            ["what", "GB", "s"],
            [
                (what, f"{size / 1e9:.2f}", f"{spread.link_seconds[what]:.3g}")
                for what, size in sent.items()
            ],
            to_stdout=True,
        )
        render.output(
            f"at {LINK_INSIDE / 1e9:g} GB/s within a machine of {machines.per_machine} devices,"
            f" {LINK_BETWEEN / 1e9:g} GB/s between machines; weights and gradients are sent while"
            " it computes"
        )
    render.output(
        f"{spread.seconds:.3g} s a step, {render.duration(spread.seconds * steps)} in all, at"
        f" {machines.mfu:.0%} of {machines.peak_flops / 1e12:g} TFLOP/s on each device"
    )
    if machines.memory is None:
        return
    answer = "yes" if spread.fits else "no"
    advice = "" if spread.fits else "; use more devices, or devices with more memory"
    render.output(
        f"fits {machines.memory / 1e9:g} GB: {answer} (a plan fills at most {FILLED:.0%}){advice}"
    )


def _time_here(plan: Plan) -> str:
    assert plan.rate is not None, "a time comes from a rate"
    assert plan.seconds is not None, "a time comes from a rate"
    rate = plan.rate.tokens_per_s
    speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
    return f"{render.duration(plan.seconds)} ({speed} tokens/s, {plan.rate.source})"


def _infill_facts(infill: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [
        (
            "infilling",
            f"{infill['rate']:.0%} of eligible documents, {infill['spm_share']:.0%} of them SPM;"
            f" scope {infill['scope']}, cuts at {infill['spans']}",
        )
    ]
    if infill["effective_rate"] is not None:
        facts += [
            (
                "eligible",
                f"{infill['eligible_pieces']:,} of {infill['pieces']:,} document parts,"
                f" {infill['eligible_tokens']:,} of {infill['tokens']:,} tokens",
            ),
            ("effective rate", f"{infill['effective_rate']:.1%} of tokens"),
        ]
    return facts


def show_examples(request: StageRequest, count: int, *, as_json: bool) -> None:
    """Print examples of the run's own rows; the payload is stdout's."""
    from codecria.core.training.examples import examples
    from codecria.core.training.resolve import resolve

    number = 0
    for number, example in enumerate(
        examples(resolve(request, out=None, plan=True), count), start=1
    ):
        if as_json:
            render.emit_json_line(example.as_json())
            continue
        size = f"{len(example.ids):,} tokens"
        render.output(f"--- {number}: {example.order}, row {example.row}, {size}")
        render.output(example.marked)
        render.output("ids " + " ".join(map(str, example.ids)) + "\n")
    if number < count:
        render.note(f"the run holds {number} examples; --dry-run shows what is eligible")


LEAST_REACH = 0.1  # below, long-context training has little to learn from (DECISIONS)


def _announce_dialogs(stage: Stage) -> None:
    """What the files of dialogs held, and what was left out of them."""
    for report in stage.dialogs:
        refused = sum(report.refused.values())
        out = [f"{report.duplicates:,} duplicates"] if report.duplicates else []
        out += [f"{refused:,} that cannot be used"] if refused else []
        if report.contaminated_dialogs:
            out.append(f"{report.contaminated_dialogs:,} that hold an evaluation problem")
        render.note(
            f"{report.name}: {report.kept:,} dialogs, {report.held_out:,} of them for validation"
            + (f"; left out {' and '.join(out)}" if out else "")
        )
        for line in report.examples:
            render.warn(line)
        if refused > len(report.examples):
            render.note(f"... and {refused - len(report.examples):,} more")
        if report.unused:
            named = ", ".join(f"{name} {count:,}" for name, count in report.unused.items())
            render.note(f"{report.name}: fields not used, by records: {named}")
    if stage.too_long:
        context = stage.run.recipe.context
        render.warn(f"{stage.too_long:,} dialogs longer than {context:,} tokens are left out")
    if stage.dialogs and all(source.shards.dialogs for source in stage.mixture.sources):
        render.note(
            "no --replay: without some of the code it was trained on, a model unlearns it (Code"
            " Llama replays 8 %)"
        )


def announce(stage: Stage, out: Path) -> None:
    """What is about to happen, in a few lines on stderr."""
    from codecria.core.machine import compiler_problem
    from codecria.core.training.planner import reach_of

    run = stage.run
    render.note(
        f"{run.recipe.name} {run.recipe.size}: {run.model.parameters:,} parameters,"
        f" {run.recipe.steps:,} steps of {run.recipe.batch_tokens:,} tokens -> {out}"
    )
    render.note(
        f"{stage.settings.device}, {run.dtype}, {'compiled' if run.compiled else 'eager'},"
        f" {run.micro_batch_size} rows a pass"
        f"{', activations recomputed' if run.recompute else ''};"
        f" attention {run.attention}: {stage.settings.why_attention}"
    )
    if run.recipe.rope_theta is not None or run.recipe.rope_scale is not None:
        render.note(
            f"context {run.recipe.context:,}, rotary base {run.model.rope_theta:g}, positions"
            f" divided by {run.model.rope_scale:g}"
        )
    if (reach := reach_of(stage)) is not None:
        say = render.warn if reach.share < LEAST_REACH else render.note
        say(
            f"{reach.share:.1%} of tokens see further than {reach.beyond:,} tokens: attention stays"
            " within documents; --set document_mask=false lets it reach across the window"
        )
    _announce_dialogs(stage)
    if (infill := run.recipe.infill) is not None:
        render.note(
            f"infilling {infill.rate:.0%} of eligible documents, scope {infill.scope},"
            f" cuts at {infill.spans};"
            f" vocabulary {run.model.vocab_size:,}, of it"
            f" {run.model.vocab_size - stage.vocabulary.known_rows} new"
        )
    if problem := compiler_problem():
        render.note(f"{problem}: a long run is somewhat slower without torch.compile")
