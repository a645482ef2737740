"""How a score is made, frozen: every result carries the whole of it.

A preset says how samples are drawn; the task says what the model is shown and where a completion
ends. What the paper does not say is a field with a default of ours, and stands in the result too.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from codecria.data.errors import UsageError
from codecria.data.formats.answers import Rule

Form = Literal["completion", "chat", "few-shot", "tagged", "psm", "spm"]
MAX_TOKENS = 512  # of a completion; the paper does not say


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """How samples are drawn, and what is estimated from them.

    Attributes:
        temperature: 0 is greedy.
        top_p: nucleus.
        samples: of a task.
        ks: of pass@k.
        source: where the numbers come from.
    """

    temperature: float
    top_p: float
    samples: int
    ks: tuple[int, ...]
    source: str


_SAMPLED = (1, 10, 100)
PRESETS: dict[str, Preset] = {
    "paper-greedy": Preset(
        temperature=0.0,
        top_p=1.0,
        samples=1,
        ks=(1,),
        source="Code Llama, tables 2 and 4: pass@1 with greedy decoding",
    ),
    "paper-sampled": Preset(
        temperature=0.8,
        top_p=0.95,
        samples=200,
        ks=_SAMPLED,
        source="Code Llama, table 2: pass@10 and pass@100 from 200 samples at T 0.8, p 0.95",
    ),
    "table5": Preset(
        temperature=0.1,
        top_p=0.95,
        samples=200,
        ks=_SAMPLED,
        source="Code Llama, table 5: T 0.1; p and the number of samples are table 2's",
    ),
    "apps": Preset(
        temperature=0.6,
        top_p=0.95,
        samples=200,
        ks=(5, 10, 100),
        source="Code Llama, table 3: pass@5, 10 and 100 at T 0.6, p 0.95; the number of samples is"
        " table 2's",
    ),
    "cruxeval": Preset(
        temperature=0.2,
        top_p=0.95,
        samples=10,
        ks=(1, 5),
        source="Gu et al. 2024: T 0.2, p 0.95, 10 samples",
    ),
    "livecodebench": Preset(
        temperature=0.2,
        top_p=0.95,
        samples=10,
        ks=(1, 5),
        source="Jain et al. 2024: T 0.2, p 0.95, 10 samples",
    ),
} | {
    f"sweep-{temperature}": Preset(
        temperature=temperature,
        top_p=0.95,
        samples=200,
        ks=_SAMPLED,
        source="Code Llama, figure 6: the temperature sweep at p 0.95; samples as in table 2",
    )
    for temperature in (0.1, 0.4, 0.6, 0.8)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """Everything that decides a model's completions beside the model and the problems.

    Attributes:
        task: its name.
        form: how the model is asked.
        preset: its name, and
        changed: the fields that were set otherwise than it says.
        temperature, top_p, samples, ks: as in `Preset`.
        seed: of the samples; sample n of a task is a function of it, the task's id and n.
        max_tokens: longest completion.
        context: longest sequence of prompt and completion; None for what the model was trained on.
        strip_prompt: whether white space at the prompt's end is left out.
        extraction: how code is found in an answer of the chat form (`data.formats.answers`).
        eos_ends: whether the end of a document ends a completion, besides what the form ends with.
        shots: ids of the tasks shown in the prompt.
        labels: what a reader of the score must know.
        sources: where the numbers and the prompt come from.
    """

    task: str
    form: Form
    preset: str
    changed: tuple[str, ...] = ()
    temperature: float
    top_p: float
    samples: int
    ks: tuple[int, ...]
    seed: int = 0
    max_tokens: int = MAX_TOKENS
    context: int | None = None
    strip_prompt: bool = False
    extraction: Rule = "best"
    eos_ends: bool = True
    shots: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The protocol as JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What a user sets otherwise than the preset; None leaves it."""

    temperature: float | None = None
    top_p: float | None = None
    samples: int | None = None
    seed: int | None = None
    max_tokens: int | None = None
    context: int | None = None
    strip_prompt: bool | None = None
    extraction: Rule | None = None
    ks: tuple[int, ...] | None = None


def freeze(
    task: str,
    form: Form,
    preset: str,
    changes: Changes,
    *,
    eos_ends: bool,
    shots: tuple[str, ...],
    labels: tuple[str, ...],
    source: str,
) -> Protocol:
    """The protocol of a preset with a user's changes, which it names.

    Args:
        task, form, eos_ends, shots, labels: see `Protocol`.
        preset: a name in `PRESETS`.
        changes: of a user.
        source: of the prompt.

    Raises:
        UsageError: there is no such preset, or a value makes no sense.
    """
    if preset not in PRESETS:
        raise UsageError(
            f"there is no preset {preset!r}", hint="presets: " + ", ".join(sorted(PRESETS))
        )
    chosen = PRESETS[preset]
    protocol = Protocol(
        task=task,
        form=form,
        preset=preset,
        temperature=chosen.temperature,
        top_p=chosen.top_p,
        samples=chosen.samples,
        ks=chosen.ks,
        eos_ends=eos_ends,
        shots=shots,
        labels=labels,
        sources=(chosen.source, source),
    )
    asked = {key: value for key, value in asdict(changes).items() if value is not None}
    changed = tuple(sorted(k for k, v in asked.items() if getattr(protocol, k) != v))
    protocol = replace(protocol, **asked, changed=changed)
    if protocol.samples < 1:
        raise UsageError(f"--samples-per-task {protocol.samples} must be at least 1")
    if protocol.samples > 1 and protocol.temperature == 0:
        raise UsageError(
            f"{protocol.samples} greedy samples of a task are all the same",
            hint="give a --temperature above 0, or one sample",
        )
    if changes.ks is not None and max(changes.ks) > protocol.samples:
        raise UsageError(
            f"pass@{max(changes.ks)} needs {max(changes.ks)} samples of a task, and"
            f" {protocol.samples} are drawn",
            hint="give --samples-per-task, or a smaller --k",
        )
    # pass@k needs k samples; which of the paper's were asked for shows in the preset's name.
    ks = tuple(k for k in protocol.ks if k <= protocol.samples)
    return replace(protocol, ks=ks)
