"""A resolved stage, and carrying it out in a run folder: started, resumed, extended or replaced."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from codecria.core import machine
from codecria.core.checkpoints.adapters.folder import PUBLISHED_ADAPTER
from codecria.data.errors import UserError
from codecria.data.files import atomic_write, locked, remove_leftovers, require_free_space
from codecria.data.rows.dialog_shards import DialogReport
from codecria.data.rows.mixture import Mixture
from codecria.data.rows.shards import ShardSet

from . import resume
from .initial import initial_model
from .mesh import AUTO, Mesh, check_mesh, parse_mesh
from .run import (
    METRICS_NAME,
    PUBLISHED,
    RUN_NAME,
    RunConfig,
    Standing,
    mesh_warning,
    record,
    standing,
)
from .settle import MEMORY_SHARE, Settings, memory_share
from .spread import PEAK_FLOPS, Machines, Way, accumulates, choose_way
from .start import Start
from .trainer import Outcome, Report, Trainer
from .vocabulary import Vocabulary
from .world import ALONE, World

# What --force removes, the record last: a kill in between leaves a run that can be replaced again.
OF_A_RUN = ("checkpoints", PUBLISHED, PUBLISHED_ADAPTER, METRICS_NAME, RUN_NAME)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A resolved stage: the run, and the opened things it needs.

    Attributes:
        run: what will be done.
        start: what it starts from.
        mixture: the training data.
        validation: (source path, validation split) where there is one.
        vocabulary: what it encodes with, and which embedding rows are new.
        settings: how this machine computes it.
        dialogs: what the files of dialogs held, in a stage that has them.
        too_long: dialogs left out, as no row holds them whole.
        mesh: how several processes share the work, as it was asked for.
        extend: the run in the folder may get more steps.
        force: the run in the folder is replaced.
    """

    run: RunConfig
    start: Start
    mixture: Mixture
    validation: tuple[tuple[str, ShardSet], ...]
    vocabulary: Vocabulary
    settings: Settings
    dialogs: tuple[DialogReport, ...] = ()
    too_long: int = 0
    mesh: str = AUTO
    extend: bool = False
    force: bool = False

    def standing(self, out: Path) -> Standing:
        """What carrying it out in `out` does: start, resume, extend or replace a run.

        Raises:
            UserError: the folder holds another run, or something else.
        """
        init = self.start.checkpoint
        if self.force and init is not None and out.resolve() in init.folder.resolve().parents:
            raise UserError(
                f"--force would remove {init.folder}, which the run starts from",
                hint="choose another --out",
            )
        return standing(out, self.run, extend=self.extend, force=self.force)


def agreed(stage: Stage, world: World) -> tuple[Stage, World]:
    """A stage as the main process settled it, after a check that the others have the same.

    What each process measured on its machine may differ (type, compilation): the main process
    decides, and how the processes share the work. What the run is may not differ.

    Returns:
        the stage, and the processes arranged for it.

    Raises:
        UserError: a process has other data or another checkpoint, or the work cannot be shared as
            asked.
    """
    if world.size == 1:
        parse_mesh(stage.mesh, 1)
        return stage, world
    world.require_alike(run_facts(stage.run), what="would train another run than process 0")
    run = world.from_main(stage.run)

    def choose() -> tuple[Mesh, bool]:
        mesh = parse_mesh(stage.mesh, world.size) or _chosen_mesh(run, stage.settings, world.size)
        check_mesh(mesh, run.recipe, run.model)
        way = Way(
            mesh=mesh,
            micro_batch_size=run.micro_batch_size,
            recompute=run.recompute,
            dtype=run.dtype,
        )
        memory = MEMORY_SHARE * memory_share(stage.settings.device)
        return mesh, accumulates(run.model, run.recipe, way, int(memory))

    mesh, accumulate = world.on_main(choose)
    settings = replace(stage.settings, device=world.device, accumulate=accumulate)
    return replace(stage, run=run, settings=settings), world.arranged(mesh)


def _chosen_mesh(run: RunConfig, settings: Settings, size: int) -> Mesh:
    """What --mesh auto means here."""
    return choose_way(
        run.model,
        run.recipe,
        Machines(
            devices=size,
            memory=int(memory_share(settings.device)),
            per_machine=machine.local_processes(),
            peak_flops=settings.peak_flops or PEAK_FLOPS,
        ),
        mesh=None,
        micro_batch_size=run.micro_batch_size,
        dtype=run.dtype,
        recompute=run.recompute,
    ).mesh


def run_facts(run: RunConfig) -> dict[str, Any]:
    """What decides the weights of a run, without what a machine's speed decides."""
    settled = ("dtype", "compiled", "attention")
    return {key: value for key, value in run.identity().items() if key not in settled}


def run_stage(
    stage: Stage,
    out: Path,
    *,
    report: Report,
    warn: Callable[[str], None],
    started: Callable[[Trainer], None],
    world: World = ALONE,
) -> Outcome:
    """Train in the run folder `out`, from its beginning or from where it stopped.

    Args:
        stage: what to do.
        out: the run folder, locked while this runs.
        report: called with each metrics record, in the main process.
        warn: called, in the main process, with what may change the last bits of a resumed run, or
            its schedule.
        started: called with the trainer before its first step, so that a signal can stop it.
        world: the processes that train together; each calls this.

    Raises:
        UserError: the folder holds another run or is in use, the disk is too small, or training
            failed.
    """
    with contextlib.ExitStack() as held:
        world.on_main(lambda: held.enter_context(locked(out)))
        now = world.on_main(lambda: stage.standing(out))
        if now.action == "resume" and world.on_main(lambda: _is_finished(stage.run, out)):
            return Outcome(stage.run.recipe.steps, finished=True, trained=0)
        if world.is_main:
            goes_on = now.action in ("resume", "extend")
            for warning in now.warnings + (mesh_warning(out, str(world.mesh)) if goes_on else ()):
                warn(warning)
        begin = functools.partial(_begin, stage, now, out, mesh=str(world.mesh))
        stage = replace(stage, run=world.on_main(begin))
        vocabulary = stage.vocabulary
        if vocabulary.content is not None:
            content = vocabulary.content
            world.on_main(lambda: atomic_write(vocabulary.path, content))
        trainer = Trainer(
            stage.run,
            initial_model(
                stage.run,
                stage.start,
                known_rows=vocabulary.known_rows,
                device=stage.settings.device,
                world=world,
                restored=world.on_main(lambda: resume.newest_step(out) > 0),
            ),
            stage.mixture,
            validation=stage.validation,
            folder=out,
            tokenizer=vocabulary.path,
            peak_flops=stage.settings.peak_flops,
            report=report,
            infilling=vocabulary.infilling,
            world=world,
            accumulate=stage.settings.accumulate,
        )
        started(trainer)
        return trainer.fit()


def _is_finished(run: RunConfig, out: Path) -> bool:
    """Whether the run folder has the last step and the published model; no weights are read."""
    return resume.newest_step(out) >= run.recipe.steps and (out / run.published).is_dir()


def _begin(stage: Stage, now: Standing, out: Path, *, mesh: str) -> RunConfig:
    """Bring the run folder to where training begins; the run, with its extensions."""
    run = stage.run
    _require_space(run, out)
    if now.action == "replace":
        for name in OF_A_RUN:
            path = out / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    if now.action == "extend":
        # Before the new length is recorded: a run killed in between does its decay once more.
        resume.drop_after(out, now.rewind)
        run = replace(run, extended=(*run.extended, resume.newest_step(out)))
    if now.action != "resume":
        record(out, run, mesh=mesh, init_stamp=stage.start.stamp())
    return run


def _require_space(run: RunConfig, out: Path) -> None:
    """Check that the run's checkpoints will fit before it starts.

    Raises:
        UserError: the disk is too small.
    """
    (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    remove_leftovers(out / "checkpoints")
    saved = resume.step_folders(out)
    saves = -(-run.recipe.steps // run.save_every)
    # One more while a save is under way, before the oldest goes.
    kept = min(run.keep + 1, saves) + (run.recipe.schedule == "wsd")
    checkpoints = max(0, kept - len(saved))
    size = 0 if (out / run.published).is_dir() else 4 * run.model.parameters
    if run.recipe.lora_rank:
        size = 0
    require_free_space(out, checkpoints * resume.size_bytes(run) + size)
