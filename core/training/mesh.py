"""How the processes of a run share its work: along the batch, the row and the width of the model.

    dp  data parallel     each holds a share of every batch's rows
    cp  context parallel  each holds a share of every row's tokens
    tp  tensor parallel   each computes a share of every layer, of the same tokens

Processes that differ in dp or cp alone see other tokens and use the same weights: each holds a
part of them and gathers the rest (FSDP). Those that differ in tp alone see the same tokens.

    rank = (dp_rank * cp + cp_rank) * tp + tp_rank       dp=2, cp=2, tp=2 on two machines of four:

             machine 0                   machine 1
    dp          0     0     0     0        1     1     1     1
    cp          0     0     1     1        0     0     1     1
    tp          0     1     0     1        0     1     0     1

Neighbours in tp have neighbouring ranks, as they send most: keep them on one machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from codecria.core.model.config import ModelConfig
from codecria.data.errors import UsageError

from .recipes import Recipe

AUTO = "auto"
AXES = ("dp", "cp", "tp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """How many processes share each kind of work.

    Attributes:
        dp: share the rows of a batch.
        cp: share the tokens of a row.
        tp: share the heads and widths of a layer.
    """

    dp: int = 1
    cp: int = 1
    tp: int = 1

    @property
    def size(self) -> int:
        """How many processes there are."""
        return self.dp * self.cp * self.tp

    @property
    def token_parts(self) -> int:
        """How many processes share the tokens of a batch, and with them the weights."""
        return self.dp * self.cp

    def place(self, rank: int) -> tuple[int, int, int]:
        """The (dp, cp, tp) rank of a process.

        >>> Mesh(dp=2, cp=2, tp=2).place(5)
        (1, 0, 1)
        """
        tokens, tp = divmod(rank, self.tp)
        dp, cp = divmod(tokens, self.cp)
        return dp, cp, tp

    def __str__(self) -> str:
        """As the option spells it."""
        return ",".join(f"{axis}={getattr(self, axis)}" for axis in AXES)


ONE = Mesh()


def parse_mesh(text: str, size: int) -> Mesh | None:
    """The mesh that an option asks for; None for "auto".

    Without dp, it is what the other two leave of the processes.

    Args:
        text: "auto", or such as "dp=2,tp=4".
        size: how many processes there are.

    Raises:
        UsageError: it cannot be read, or needs another number of processes.
    """
    if text == AUTO:
        return None
    found: dict[str, int] = {}
    for word in text.split(","):
        axis, equals, count = word.strip().partition("=")
        if axis not in AXES or not equals or not count.isdecimal() or int(count) < 1:
            raise UsageError(
                f"--mesh {text}: {word.strip()!r} is not one of dp=N, tp=N, cp=N with N from 1",
                hint="for example --mesh dp=8,tp=2, or --mesh auto",
            )
        if axis in found:
            raise UsageError(f"--mesh {text}: {axis} is there twice", hint="give it once")
        found[axis] = int(count)
    others = found.get("tp", 1) * found.get("cp", 1)
    mesh = Mesh(**({"dp": max(1, size // others)} | found))
    if mesh.size != size:
        raise UsageError(
            f"--mesh {text} is for {mesh.size} processes, and there are {size}"
            if "dp" in found
            else f"--mesh {text}: {others} does not divide {size} processes",
            hint="torchrun --nproc-per-node N sets how many there are; the product of dp, tp and cp"
            " must equal it",
        )
    return mesh


def check_split(config: ModelConfig, tp: int) -> None:
    """Check that a shape can be split over so many processes.

    Heads are never cut, and key-value heads never copied: with fewer of them than processes, each
    would compute and send what its neighbours do. The vocabulary may be any: all parts but the last
    have V / tp ids, rounded up.

    Raises:
        UsageError: naming every number that does not fit.
    """
    problems = [
        f"{name} {value}"
        for name, value in (
            ("n_heads", config.n_heads),
            ("n_kv_heads", config.n_kv_heads),
            ("hidden_dim", config.hidden_dim),
        )
        if value % tp
    ]
    if (tp - 1) * -(-config.vocab_size // tp) >= config.vocab_size:
        problems.append(f"vocab_size {config.vocab_size}")  # one would have no id
    if problems:
        raise UsageError(
            f"tp={tp} does not divide the model's {' and '.join(problems)}",
            hint="choose a smaller tp in --mesh",
        )


def check_mesh(mesh: Mesh, recipe: Recipe, model: ModelConfig) -> None:
    """Check that a run's work can be shared so.

    Raises:
        UsageError: rows, tokens or the model's widths cannot be divided.
    """
    if recipe.rows % mesh.dp:
        raise UsageError(
            f"a batch of {recipe.rows} rows cannot be shared equally by dp={mesh.dp}",
            hint=f"use a dp that divides {recipe.rows} (--mesh), other processes, or --set"
            " batch_tokens",
        )
    if mesh.cp > 1 and recipe.context % (2 * mesh.cp * mesh.tp):
        raise UsageError(
            f"rows of {recipe.context} tokens cannot be cut for cp={mesh.cp} and tp={mesh.tp}:"
            f" {2 * mesh.cp * mesh.tp} does not divide them",
            hint="choose a smaller cp in --mesh, or --set context",
        )
    if recipe.context % mesh.tp:
        raise UsageError(
            f"rows of {recipe.context} tokens cannot be shared equally by tp={mesh.tp}",
            hint="choose a smaller tp in --mesh, or --set context",
        )
    if recipe.qlora and mesh.tp > 1:
        raise UsageError(
            f"--qlora cannot be split by tp={mesh.tp}: every process has the whole base in 4 bits",
            hint="use --mesh dp=N or cp=N, or leave --qlora away",
        )
    check_split(model, mesh.tp)
