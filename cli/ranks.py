"""The processes that torchrun started, for the verbs whose work they share beside training."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import typer

from codecria.data.errors import UsageError

from . import render
from .signals import ending_in_order

if TYPE_CHECKING:
    from codecria.core.inference.sharing import Sharing
    from codecria.core.ranks.launch import Ranks

VERBS = ("evaluate", "self-instruct", "generate")
_joined: Ranks | None = None  # the launch that the main process leads


def launched() -> bool:
    """Whether torchrun started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def take_part(stack: contextlib.ExitStack) -> None:
    """Join the launch; processes other than the main one do what it asks, and end here.

    Args:
        stack: left when the verb ends.

    Raises:
        typer.Exit: in the other processes, with the status of the main one.
    """
    from codecria.core.ranks import launch

    stack.enter_context(ending_in_order(""))
    if os.environ.get("RANK") != "0":
        raise typer.Exit(launch.helping())
    _set(stack.enter_context(launch.leading()))
    stack.callback(_set, None)


def _set(ranks: Ranks | None) -> None:
    global _joined
    _joined = ranks


def sharing(mesh: str, device: str) -> Sharing:
    """How the processes of the launch share a model, as --mesh says; all by themselves if alone.

    Args:
        mesh: "auto" lets every process load the model and share problems; or such as "dp=2,tp=2".
        device: as --device says.

    Raises:
        UsageError: the mesh is for another number of processes, or asks for cp.
    """
    from codecria.core.inference.sharing import ALONE

    ranks = _joined
    if ranks is None and mesh == "auto":
        return ALONE
    from codecria.core.training.mesh import Mesh, parse_mesh

    size = 1 if ranks is None else ranks.size
    asked = parse_mesh(mesh, size) or Mesh(dp=size)
    if asked.cp > 1:
        raise UsageError(
            f"--mesh {mesh}: cp shares the tokens of a row, in training alone",
            hint="use dp and tp, such as --mesh tp=2",
        )
    if ranks is None:
        return ALONE
    from codecria.core import machine

    ranks.arrange(asked, machine.choose_device(device))
    return ranks


def sharing_layers(mesh: str, device: str) -> Sharing:
    """As `sharing`, for one prompt: by layers, or the main process answers alone.

    Raises:
        UsageError: the mesh shares prompts.
    """
    from codecria.core.inference.sharing import ALONE

    if mesh == "auto":
        if launched():
            render.note(
                f"process 0 of {os.environ['WORLD_SIZE']} answers alone; --mesh tp=N shares the"
                " model's layers"
            )
        return ALONE
    from codecria.core.training.mesh import parse_mesh

    asked = parse_mesh(mesh, int(os.environ.get("WORLD_SIZE", "1")))
    if asked is not None and asked.dp > 1:
        raise UsageError(
            f"--mesh {mesh}: dp shares prompts, and there is one",
            hint="use tp for all processes, such as --mesh tp=2",
        )
    return sharing(mesh, device)
