"""What the sandbox offers on this machine, for `doctor`: tiers, languages, the cost of a run."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from codecria.data.errors import UserError

from . import boxes, bwrap, jail, languages
from .sandbox import Sandbox, choose_tier
from .verdict import Limits, Outcome, Program, Tier

SPELLS = 3  # runs of a program, of which the fastest counts
LIMITS = Limits(wall_s=20.0)
PROBE_S = 10.0
# In a process of its own: it forks, which this one, with its threads, should not.
_PROBE = """
import sys, types
package = sys.modules["sandbox"] = types.ModuleType("sandbox")
package.__path__ = [sys.argv[1]]
from sandbox import namespaces
print(namespaces.problem(sys.argv[2]))
"""


def sample(language: str) -> tuple[Program, Program]:
    """A program that passes and one that fails, of Python or a language of `LANGUAGES`."""
    source, tests = "def one(): return 1", "assert one() + one() == 2"
    if language != "python":
        source, tests = languages.LANGUAGES[language].sample
    right = Program(language=language, source=source, tests=tests)
    return right, Program(language=language, source=source, tests=tests.replace("2", "3"))


def survey() -> dict[str, Any]:
    """Tiers, the one that `auto` takes, and each language's readiness, as JSON values.

    The cost of a run is in milliseconds, compiling apart included, measured with one program at a
    time in the tier that `auto` takes; it wavers on a machine that others use.
    """
    why = ""
    tier: Tier | None = None
    try:
        tier = choose_tier()
    except UserError as error:
        why = str(error)
    found: dict[str, Any] = {
        "tier": None if tier is None else str(tier),
        "why": why,
        "tiers": {
            "bwrap": bwrap.bwrap_problem() or "ready",
            "native": jail.problem() or "ready",
            "command": "when named, with --sandbox-command",
            "none": "when named; no sandbox at all",
        },
        "landlock": jail.landlock_abi(),
        "namespaces": namespaces_problem() or "ready",
        "languages": {},
    }
    if tier is None:
        return found
    with Sandbox(tier, workers=1, limits=LIMITS) as sandbox:
        for name in ("python", *languages.LANGUAGES):
            found["languages"][name] = _language(sandbox, name)
    return found


def namespaces_problem() -> str:
    """Why servers of the native tier run without namespaces here, empty where they have them."""
    if why := jail.problem():
        return why
    try:
        folder = boxes.Boxes()
    except OSError as error:
        return f"there is no folder for programs: {error}"
    try:
        here = str(Path(__file__).parent)
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _PROBE, here, folder.make()],
            capture_output=True, timeout=PROBE_S, check=True, env={}, text=True, errors="replace",
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        return f"the probe failed: {error}"
    finally:
        folder.close()
    return done.stdout.strip()


def _language(sandbox: Sandbox, name: str) -> dict[str, Any]:
    version = platform.python_version() if name == "python" else languages.version(name)
    why = "" if name == "python" else languages.missing(name)
    found: dict[str, Any] = {"ready": False, "version": version, "why": why, "ms": None}
    if why:
        return found
    right, wrong = sample(name)
    times = []
    for _ in range(SPELLS if name == "python" else 1):
        start = time.perf_counter()
        verdict = sandbox.run(right)
        times.append(1e3 * (time.perf_counter() - start))
        if verdict.outcome is not Outcome.PASSED:
            return found | {"why": f"a right program: {verdict.outcome}, {verdict.detail}"}
    verdict = sandbox.run(wrong)
    if verdict.outcome is not Outcome.FAILED:
        return found | {"why": f"a wrong program: {verdict.outcome}, {verdict.detail}"}
    return found | {"ready": True, "ms": round(min(times), 1)}
