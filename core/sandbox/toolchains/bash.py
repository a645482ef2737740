"""Bash: tests run in one shell, and each call of a function in another that has the solution alone.

A shell keeps nothing from the code it runs, so what the tests say and the key cannot be in the same
process as a solution. What crosses is what MultiPL-E's tests use anyway: arguments, and what was
printed. So passes are confirmed, and a function that is called in `$( )` sees what it would see.

Programs may start others (sed, awk, bc), all in one group that is counted and killed whole.
"""

from __future__ import annotations

import re

from ..guards import KEY_CHARACTERS, LENGTH_CHARACTERS
from ..language import Language, Step

_GUARD = r"""
codecria_take() {
    local LC_ALL=C
    codecria_taken=
    (($1 == 0)) || IFS= read -r -d '' -N "$1" codecria_taken || exit 71
}
codecria_part() { codecria_take LENGTH; codecria_take "$((codecria_taken))"; }
codecria_take SIZE; codecria_key=$codecria_taken
codecria_part
codecria_part
codecria_solution='codecria_call=("$@"); set --; exec 3>&1 >/dev/null'$'\n'"$codecria_taken"
codecria_solution+=$'\nexec >&3 3>&-\n'
codecria_part; codecria_tests=$codecria_taken
exec </dev/null
codecria_ask() {
    "$BASH" --norc --noprofile -c "$codecria_solution"'"${codecria_call[@]}"' solution "$@"
}
# The solution's functions that the tests name are called in its own shell.
codecria_names=$(codecria_ask compgen -A function)
for codecria_name in $codecria_names; do
    [[ $codecria_name =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || continue
    [[ $codecria_name != codecria_* ]] || continue
    codecria_word="(^|[^A-Za-z0-9_])$codecria_name([^A-Za-z0-9_]|\$)"
    [[ $codecria_tests =~ $codecria_word ]] || continue
    [[ $(type -t "$codecria_name") != @(builtin|keyword|alias) ]] || continue
    eval "$codecria_name() { codecria_ask $codecria_name \"\$@\"; }"
done
if [[ -z $codecria_tests ]]; then codecria_ask true || exit; fi
set -E
trap '((BASH_SUBSHELL)) || printf "Assertion failed: %s\n" "$BASH_COMMAND" >&2' ERR
eval "$codecria_tests"
trap - ERR
printf %s "$codecria_key"
""".replace("SIZE", str(KEY_CHARACTERS)).replace("LENGTH", str(LENGTH_CHARACTERS))
_CLOSER = re.compile(r"\A\s*\}[ \t]*(?:\n|\Z)")


def _fed(source: str, tests: str) -> tuple[str, ...]:
    """Solution and tests; what closes the solution's function at the tests' start goes to it."""
    closer = _CLOSER.match(tests)
    if closer is None:
        return source, tests
    return f"{source}\n}}\n", tests[closer.end() :]


BASH = Language(
    name="bash",
    title="Bash",
    tools=("bash",),
    version=("-c", 'echo "$BASH_VERSION"'),
    aliases=("sh", "shell"),
    files=lambda _source, _tests: {"guard.sh": _GUARD},
    kept=(("guard.sh", "guard.sh"),),
    fed=_fed,
    splits=True,
    run=Step(argv=("{bash}", "--norc", "--noprofile", "{run}/guard.sh"), processes=True),
    sample=("one() { echo 1; }", "set -e\n[[ $(($(one) + $(one))) = 2 ]]"),
)
