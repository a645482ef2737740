"""The record of what a run is, so that another run is refused in its folder.

Settings, prompts, files and limits are fixed when a run begins. Who answers a stage is fixed when
that stage is first asked: the large model that wrote the questions need not be there any more when
a small one answers them.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from codecria.core.sandbox.config import Confirm, SandboxConfig
from codecria.core.sandbox.verdict import Limits
from codecria.data.corpus.decontaminate import Index
from codecria.data.errors import UsageError, UserError
from codecria.data.files import atomic_write_json, digest_file, read_json
from codecria.data.identity import differences, require_same

from .models import Absent, Model
from .request import Request

FORMAT = 3
PAGE, REPORT = "self-instruct.json", "report.json"


def open_models(request: Request) -> dict[str, Model]:
    """The model of each stage that needs one.

    A stage whose model is not named again reuses the recorded replies and asks nothing new.

    Raises:
        UsageError: a stage has no model, now or before.
        UserError: the folder holds something else, or another model answered a stage.
    """
    old = _page(request.out) if (request.out / PAGE).is_file() else None
    before: Mapping[str, Mapping[str, Any]] = old["models"] if old is not None else {}
    found: dict[str, Model] = {}
    changed: list[str] = []
    for stage in request.asked:
        known, model = before.get(stage), request.models.get(stage)
        if model is None and known is None:
            raise UsageError(
                f"no model is named for the {stage}",
                hint="give --model CKPT, or --endpoint URL --endpoint-model NAME",
            )
        if model is not None and known is not None:
            changed += [f"{stage}.{line}" for line in differences(dict(known), _facts(model))]
        found[stage] = model if model is not None else _absent(known or {})
    _require_same(request.out, changed)
    return found


def record(request: Request, models: Mapping[str, Model], index: Index | None) -> dict[str, Any]:
    """Record what the run is, or check that the folder holds the same run.

    Args:
        request: what is asked for.
        models: as `open_models` found them.
        index: of the problems that no item may hold.

    Returns:
        what names the models of all stages so far.

    Raises:
        UserError: the folder holds another run, or something else.
    """
    page = request.out / PAGE
    identity = _identity(request, index)
    facts = {stage: _facts(models[stage]) for stage in sorted(models)}
    if page.is_file():
        old = _page(request.out)
        _require_same(request.out, differences(old["identity"], identity))
        known: dict[str, Any] = old["models"]
        if facts.keys() - known.keys():
            known = dict(sorted((known | facts).items()))
            atomic_write_json(page, old | {"models": known})
        return known
    if any(path.name != ".lock" for path in request.out.iterdir()):
        raise UserError(
            f"{request.out} is not empty and holds no run of self-instruct",
            hint="choose another --out, or remove it",
        )
    atomic_write_json(
        page,
        {
            "format": FORMAT,
            "identity": identity,
            "models": facts,
            "prompts": {name: t.turns for name, t in request.prompts.templates.items()},
            "files": {
                "questions": str(request.questions_file or ""),
                "tests": str(request.tests_file or ""),
                "decontaminate": [str(path) for path in request.decontaminate],
            },
            "environment": {
                "codecria": importlib.metadata.version("codecria"),
                "python": platform.python_version(),
                "machine": platform.machine(),
            },
        },
    )
    return facts


def _require_same(out: Path, changed: list[str]) -> None:
    require_same(out, changed, hint="give the same options to resume it, or choose another --out")


def _facts(model: Model) -> dict[str, Any]:
    """What names a model, and how it is asked; in the order in which the page has it."""
    return dict(sorted({**model.facts, "form": model.form}.items()))


def _absent(facts: Mapping[str, Any]) -> Absent:
    return Absent(
        {name: value for name, value in facts.items() if name != "form"}, form=facts["form"]
    )


def _identity(request: Request, index: Index | None) -> dict[str, Any]:
    """The flat facts that must be the same to resume."""
    flat: dict[str, Any] = {f"settings.{k}": v for k, v in request.settings.as_json().items()}
    flat["prompts"] = request.prompts.digest()
    for name in ("questions_file", "tests_file"):
        path = getattr(request, name)
        flat[name] = _digest(path) if path is not None else ""
    flat["decontaminate"] = index.digest if index is not None else ""
    flat |= {f"limits.{name}": value for name, value in asdict(request.sandbox.limits).items()}
    flat["confirm"] = str(request.sandbox.confirm)
    versions = request.sandbox.allowed().versions
    flat |= {f"packages.{name}": version for name, version in versions.items()}
    return flat


def _digest(path: Path) -> str:
    try:
        return digest_file(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _page(out: Path) -> dict[str, Any]:
    """The page of a run.

    Raises:
        UserError: there is none, or it is of another version.
    """
    page = out / PAGE
    if not page.is_file():
        raise UserError(f"{out} is not a folder of self-instruct: it has no {PAGE}")
    old = read_json(page)
    if not isinstance(old, dict) or old.get("format") != FORMAT:
        raise UserError(f"{page} is of another version", hint="choose another --out")
    return old


def execution_of(out: Path, sandbox: SandboxConfig) -> tuple[SandboxConfig, bool]:
    """How a run's programs are executed here.

    Args:
        out: folder of the run.
        sandbox: the tier and the workers of this machine.

    Returns:
        the same with the run's limits, confirmation and packages, and whether passes run again.

    Raises:
        UserError: the folder is no run, or its packages are not installed here as they are there.
    """
    identity = _page(out)["identity"]
    packages = _below(identity, "packages.")
    config = replace(
        sandbox,
        limits=Limits(**_below(identity, "limits.")),
        confirm=Confirm(identity["confirm"]),
        packages=tuple(packages),
    )
    if changed := differences(packages, dict(config.allowed().versions)):
        raise UserError(
            "packages of the run have other versions here: " + "; ".join(changed),
            hint="install the versions of the run",
        )
    return config, identity["settings.drop_flaky"]


def _below(identity: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {k.removeprefix(prefix): v for k, v in identity.items() if k.startswith(prefix)}


def report_of(out: Path) -> dict[str, Any]:
    """The report that a finished run wrote.

    Raises:
        UserError: the folder is no run, or it is not finished.
    """
    _page(out)
    if not (out / REPORT).is_file():
        raise UserError(
            f"{out} has no {REPORT} yet", hint="rerun the command that started it to resume"
        )
    report = read_json(out / REPORT)
    if not isinstance(report, dict):
        raise UserError(f"{out / REPORT} is not a report", hint="remove it and rerun the command")
    return report
