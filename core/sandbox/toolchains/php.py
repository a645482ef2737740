"""PHP: a guard evaluates the solution, then the tests, each in a scope of its own.

The key is a local variable of a function that neither calls with it nor is bound to anything, so no
name leads there; the functions that show the frames above are not given out.
"""

from __future__ import annotations

import re

from ..guards import KEY_CHARACTERS, LENGTH_CHARACTERS
from ..language import GIB, Language, Step

_GUARD = r"""<?php
(static function () {
    $take = static function (int $size): string {
        $taken = '';
        while (strlen($taken) < $size) {
            $got = fread(STDIN, $size - strlen($taken));
            if ($got === false || $got === '') exit(71);
            $taken .= $got;
        }
        return $taken;
    };
    $part = static fn (): string => $take((int) trim($take(LENGTH)));
    $key = $take(SIZE);
    $part();
    $codecria = '?>' . $part();
    $checks = $part();
    // Texts come by a reference that is emptied, not by an argument, which a trace would show.
    $run = static function () use (&$codecria) {
        return eval((static function () use (&$codecria) {
            $taken = $codecria;
            $codecria = '';
            return $taken;
        })());
    };
    try {
        ob_start();
        $run();
        ob_end_flush();
        $codecria = $checks;
        $checks = '';
        $run();
    } catch (\Throwable $error) {
        while (ob_get_level()) ob_end_flush();
        fwrite(STDERR, "\n" . get_class($error) . ': ' . $error->getMessage()
            . ' (line ' . $error->getLine() . ")\n");
        exit(1);
    }
    while (ob_get_level()) ob_end_flush();
    fwrite(STDOUT, $key);
})();
""".replace("SIZE", str(KEY_CHARACTERS)).replace("LENGTH", str(LENGTH_CHARACTERS))
_CLOSED = re.compile(r"\s*\?>\s*\Z")


def _fed(source: str, tests: str) -> tuple[str, ...]:
    """Solution and tests; together where the tests begin within the solution's function."""
    text = source if source.lstrip().startswith("<?") else f"<?php\n{source}"
    text = _CLOSED.sub("\n", text)
    if tests.lstrip().startswith("}"):
        return f"{text}\n{tests}", ""
    return text, tests.lstrip().removeprefix("<?php")


PHP = Language(
    name="php",
    title="PHP",
    tools=("php",),
    version=("-r", "echo PHP_VERSION;"),
    files=lambda _source, _tests: {"guard.php": _GUARD},
    kept=(("guard.php", "guard.php"),),
    fed=_fed,
    run=Step(
        argv=(
            *("{php}", "-d", "memory_limit={heap_mb}M", "-d", "ffi.enable=0"),
            *("-d", "display_errors=stderr", "-d", "log_errors=0", "-d", "html_errors=0"),
            *("-d", "opcache.enable_cli=0", "-d", "pcre.jit=0"),
            *("-d", "disable_functions=debug_backtrace,debug_print_backtrace,dl"),
            "{run}/guard.php",
        ),
        address_bytes=GIB,
    ),
    readable=("/etc/php", "/etc/php*", "/usr/share/php"),
    sample=(
        "<?php\nfunction one() { return 1; }",
        "if (one() + one() !== 2) { throw new Exception('wrong'); }",
    ),
)
