"""TypeScript: tsc checks types and makes JavaScript, which runs behind JavaScript's guard.

A type error fails, as in MultiPL-E, whose harness runs `tsc --target esnext`. Node's own way of
leaving types out would let them pass, and is another score.
"""

from __future__ import annotations

import re

from .. import guards
from ..language import GIB, Language, Step

# Solution and tests are scripts of one global scope: an export would make the solution a module.
_EXPORT = re.compile(r"^export\s+(?:default\s+)?(?=\w)", re.MULTILINE)
# The compiled files come with their names, in order: solution.js, tests.js.
_GUARD = guards.JS_GUARD.replace(
    "const solution = part(), tests = part();",
    "part();\n  const solution = part();\n  part();\n  const tests = part();",
)


def _files(source: str, tests: str) -> dict[str, str]:
    return {
        "solution.ts": _EXPORT.sub("", source),
        "tests.ts": tests,
        "guard.js": _GUARD,
    }


TYPESCRIPT = Language(
    name="typescript",
    title="TypeScript",
    tools=("tsc", "node"),
    version=("--version",),
    aliases=("ts",),
    files=_files,
    kept=(("guard.js", "guard.js"),),
    fed_folder="out",
    compile=(
        Step(
            argv=(
                *("{node}", "--max-old-space-size=768", "{tsc}", "--target", "esnext"),
                *("--skipLibCheck", "--pretty", "false", "--types", "", "--outDir", "{build}/out"),
                *("{build}/solution.ts", "{build}/tests.ts"),
            ),
            wall_s=30.0,
            address_bytes=4 * GIB,
        ),
    ),
    run=Step(
        argv=(
            *("{node}", "--max-old-space-size={heap_mb}", "--no-addons"),
            *("--stack-trace-limit=5", "{run}/guard.js"),
        ),
        address_bytes=4 * GIB,  # V8 reserves what it may never use
    ),
    readable=("/etc/ssl/openssl.cnf",),
    sample=(
        "function one(): number { return 1; }",
        "if (one() + one() !== 2) { throw new Error('wrong'); }",
    ),
)
