"""PHP, TypeScript, C#, Bash, Go and Rust: honest programs pass, hostile ones reach nothing.

The same kinds of attack as in `test_sandbox_languages.py`, in each of these languages.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from codecria.core.sandbox.sandbox import Sandbox
from codecria.core.sandbox.survey import sample
from codecria.core.sandbox.verdict import Limits, Outcome, Program
from tests.core.sandbox.common import CONFINED, ENOUGH_S, NATIVE, assert_stopped, judged

pytestmark = pytest.mark.slow  # compilers run

LIMITS = Limits(wall_s=ENOUGH_S, memory_bytes=512 << 20, output_bytes=1 << 16, disk_bytes=8 << 20)
NAMES = ("php", "typescript", "csharp", "bash", "go", "rust")
MARK = "expected-by-the-tests-alone"

# A function `add` whose body is BODY and then the sum, with AHEAD before it; and tests of it, which
# hold MARK.
SOURCES = {
    "php": "<?php\nAHEAD\nfunction add($a, $b) {\nBODY\n    return $a + $b;\n}\n",
    "typescript": "AHEAD\nfunction add(a: number, b: number): number {\nBODY\n  return a + b;\n}\n",
    "csharp": "using System;\nusing System.Diagnostics;\nusing System.IO;\nusing System.Linq;\n"
    "using System.Collections.Generic;\nclass Problem {\nAHEAD\n"
    "    public static long Add(long a, long b) {\nBODY\n        return a + b;\n",
    "bash": "#!/bin/bash\nAHEAD\nadd() {\nBODY\n    echo $(($1 + $2))\n",
    "go": 'package main\nimport "testing"\nimport "github.com/stretchr/testify/assert"\nAHEAD\n'
    "func add(a, b int) int {\nBODY\n    return a + b\n}\n",
    "rust": "AHEAD\nfn add(a: i64, b: i64) -> i64 {\nBODY\n    a + b\n}\n",
}
TESTS = {
    "php": "function candidate(...$x) { return add(...$x); }\nfunction test(): void {\n"
    f'    if (candidate(1, 2) !== 3 || candidate(1, 1) === "{MARK}")'
    ' { throw new Exception("Test failed!"); }\n}\ntest();\necho "reached\\n";',
    "typescript": "declare var require: any;\nconst assert = require('node:assert');\n"
    f"function test() {{\n  assert.deepEqual(add(1, 2), 3);\n  const x = '{MARK}';\n}}\n"
    "test();\nconsole.log('reached');",
    "csharp": "    }\n    public static void Main(string[] args) {\n"
    f'    Debug.Assert(Add(1L, 2L) == 3L);\n    string x = "{MARK}";\n'
    '    if (x.Length > 0) Console.WriteLine("reached");\n    }\n}\n',
    "bash": '}\ncandidate() {\n    add "$@"\n}\nset -e\nrun_test() {\n'
    f'    [[ $(candidate 1 2) = "3" ]]\n    [[ $(candidate 1 1) != "{MARK}" ]]\n}}\n'
    "run_test\necho reached",
    "go": "func TestAdd(t *testing.T) {\n    assert := assert.New(t)\n"
    "    assert.Equal(3, add(1, 2))\n"
    f'    if add(1, 1) == 3 {{ println("{MARK}") }}\n    print("")\n}}\n',
    "rust": "#[cfg(test)]\nmod tests {\n    use super::*;\n    #[test]\n    fn test_add() {\n"
    f'        assert_eq!(add(1, 2), 3);\n        if add(1, 1) == 3 {{ panic!("{MARK}"); }}\n'
    '        println!("reached");\n    }\n}\n',
}


def program(language: str, body: str, ahead: str = "") -> Program:
    """The function `add` with this body, and its tests."""
    source = SOURCES[language].replace("BODY", body)
    if language == "go" and ahead.startswith("import"):
        imports, _, ahead = ahead.partition("\n\n")
        source = source.replace("AHEAD", f"{imports}\nAHEAD")
    source = source.replace("AHEAD", ahead)
    return Program(language=language, source=source, tests=TESTS[language])


@pytest.fixture(scope="module", params=CONFINED)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with Sandbox(request.param, limits=LIMITS) as opened:
        yield opened


@pytest.fixture(scope="module", params=[NATIVE])
def native(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with Sandbox(request.param, limits=LIMITS) as opened:
        yield opened


@pytest.mark.parametrize("language", NAMES)
def test_the_sample_is_judged_right_in_every_tier(sandbox: Sandbox, language: str) -> None:
    right, wrong = sample(language)
    assert judged(sandbox, right).outcome is Outcome.PASSED
    assert judged(sandbox, wrong).outcome is Outcome.FAILED


# --- honest programs ------------------------------------------------------------------------------

HONEST = {
    "php": (
        "file_put_contents('x', 'y'); if (file_get_contents('x') !== 'y') exit(3);"
        " fwrite(STDERR, 'failed'); $m = str_repeat('x', 60 << 20); ctype_digit('1');"
        " set_error_handler(fn () => true); $z = [2, 1]; usort($z, fn ($p, $q) => $p <=> $q);",
        "",
    ),
    "typescript": (
        "const m: number[] = new Array(1e6).fill(0).map((_, n) => n); m.sort();"
        " console.error('failed'); const s = new Map<string, number>([['a', 1]]);",
        "type Pair<T> = [T, T];\ninterface P { x: number }\nenum E { A, B }\n"
        "export function other(p: P): E { return E.A; }",
    ),
    "csharp": (
        'File.WriteAllText("x", "y"); if (File.ReadAllText("x") != "y") throw new Exception();'
        ' Console.Error.WriteLine("failed"); var m = new byte[60 << 20];'
        " var t = new System.Threading.Thread(() => {}); t.Start(); t.Join();"
        ' var s = new SortedDictionary<string, int>(); s["a"] = 1; var p = (1, 2);',
        "",
    ),
    "bash": (
        "echo y > x; [[ $(cat x) = y ]] || exit 3; echo failed >&2; local -A m=([a]=1);"
        " seq 1000 | sort -n | awk '{s += $1} END {exit s != 500500}' || exit 4;"
        ' while read -r l; do :; done < <(printf "1\\n2\\n"); local t=$(bc <<< "2^70") || exit 5',
        "declare -r K=1",
    ),
    "go": (
        'os.WriteFile("x", []byte("y"), 0600); d, _ := os.ReadFile("x")\n'
        'if string(d) != "y" { return 0 }\nprintln("failed")\nm := make([]byte, 60<<20); m[9] = 1\n'
        "c := make(chan int); go func() { c <- 1 }(); <-c",
        'import "os"\n\n',
    ),
    "rust": (
        'std::fs::write("x", "y").unwrap(); assert_eq!(std::fs::read_to_string("x").unwrap(), "y");'
        ' eprintln!("failed"); let m = vec![1u8; 60 << 20]; let n = m.len();'
        " std::thread::spawn(move || n).join().unwrap();",
        "use std::collections::{HashMap, HashSet};\nuse std::mem::replace;",
    ),
}


@pytest.mark.parametrize("language", NAMES)
def test_honest_programs_pass(native: Sandbox, language: str) -> None:
    body, ahead = HONEST[language]
    verdict = judged(native, program(language, body, ahead))
    assert verdict.outcome is Outcome.PASSED, verdict
    assert "reached" in verdict.stdout or language == "go"
    assert verdict.confirmed is (language == "bash")


@pytest.mark.parametrize("language", NAMES)
def test_what_does_not_compile_fails_with_the_compilers_words(
    native: Sandbox, language: str
) -> None:
    verdict = judged(native, program(language, ")(" if language == "bash" else "(((;"))
    assert verdict.outcome is Outcome.FAILED
    assert "rror" in verdict.detail or ".go:" in verdict.detail, verdict
    assert verdict.stderr


def test_types_are_checked(native: Sandbox) -> None:
    verdict = judged(native, program("typescript", "  const n: number = 'text';"))
    assert verdict.outcome is Outcome.FAILED
    assert "error TS2322" in verdict.detail


# --- to be counted as passed without passing ------------------------------------------------------

FALSE_PASSES = {
    "php: exits": ("php", "", "exit(0);"),
    "php: exits ahead": ("php", "exit(0);", ""),
    "php: at shutdown": ("php", "register_shutdown_function(fn () => exit(0));", "return 0;"),
    "php: catches all": ("php", "set_exception_handler(fn () => exit(0));", "return 0;"),
    "php: another test": ("php", "function test() { echo 'reached'; }", "return 0;"),
    "php: another candidate": ("php", "function candidate() { return 3; }", "return 0;"),
    "php: looks for the key": (
        "php",
        "",
        "foreach ([...$GLOBALS, ...get_defined_vars()] as $v) if (is_string($v)) echo $v;"
        " try { foreach ((new Exception)->getTrace() as $f) echo json_encode($f); }"
        " catch (Error $e) {} try { echo json_encode(debug_backtrace()); } catch (Error $e) {}"
        " exit(0);",
    ),
    "php: filters its output": (
        "php",
        "class F extends php_user_filter { function filter($in, $out, &$n, bool $c): int {"
        " while ($b = stream_bucket_make_writeable($in)) { $n += $b->datalen;"
        " stream_bucket_append($out, $b); } return PSFS_PASS_ON; } }"
        " stream_filter_register('f', 'F'); stream_filter_append(STDOUT, 'f');",
        "exit(0);",
    ),
    "php: reads standard input": ("php", "", "echo stream_get_contents(STDIN); exit(0);"),
    "php: native code": (
        "php",
        "",
        "try { FFI::cdef('void _exit(int);')->_exit(0); } finally { exit(0); }",
    ),
    "php: ends its text": ("php", "", "return 0; } exit(0); if (0) {"),
    "ts: exits": ("typescript", "declare var process: any;", "process.exit(0);"),
    "ts: catches all": (
        "typescript",
        "declare var process: any; process.on('uncaughtException', () => process.exit(0));",
        "return 0;",
    ),
    "ts: another assert": (
        "typescript",
        "declare var require: any;\nrequire('assert').deepEqual = () => {};",
        "return 0;",
    ),
    "ts: swallows the tests": ("typescript", "", "return 0; } /*"),
    "cs: exits": ("csharp", "", "Environment.Exit(0);"),
    "cs: ends itself": ("csharp", "", "Process.GetCurrentProcess().Kill();"),
    "cs: fails fast": ("csharp", "", 'Environment.FailFast("");'),
    "cs: before main": ("csharp", "static Problem() { Environment.Exit(0); }", ""),
    "cs: another Debug": (
        "csharp",
        "static class Debug { public static void Assert(bool x) { } }",
        "return 0;",
    ),
    "cs: no listeners": (
        "csharp",
        "",
        "Debug.Listeners.Clear(); Trace.Listeners.Clear(); return 0;",
    ),
    "cs: another main": (
        "csharp",
        "",
        "return 0; } public static void Main() { } void X() { if (true) { }",
    ),
    "cs: a thread": (
        "csharp",
        "",
        "new System.Threading.Thread(() => Environment.Exit(0)).Start(); return 0;",
    ),
    "cs: reflection": (
        "csharp",
        "",
        "foreach (var t in typeof(Problem).Assembly.GetTypes()) Console.Write(t); return 0;",
    ),
    "cs: reflection in disguise": (
        "csharp",
        "",
        "typeof(Problem).\\u0041ssembly.ToString(); return 0;",
    ),
    "cs: native code": (
        "csharp",
        '[System.Runtime.InteropServices.DllImport("libc")] static extern void _exit(int n);',
        "_exit(0);",
    ),
    "cs: reads the key": (
        "csharp",
        "",
        "var i = Console.OpenStandardInput(); var b = new byte[64]; i.Read(b, 0, 64);"
        " Console.OpenStandardOutput().Write(b, 0, 64); Environment.Exit(0);",
    ),
    "bash: exits": ("bash", "", "exit 0"),
    "bash: exits ahead": ("bash", "exit 0", ""),
    "bash: traps": ("bash", "trap 'exit 0' EXIT ERR DEBUG", "return 1"),
    "bash: kills the tests": ("bash", "", "kill -9 $PPID; kill -TERM -- -$PPID; return 0"),
    "bash: another test": ("bash", "run_test() { :; }; candidate() { echo 3; }", "return"),
    "bash: another [[": (
        "bash",
        "function [[ { return 0; }; alias set=true; set() { :; }",
        "return",
    ),
    "bash: another printf": ("bash", "printf() { :; }; eval() { :; }", "return"),
    "bash: looks for the key": (
        "bash",
        "",
        "set; declare -p; declare -f; env; cat /proc/$PPID/environ /proc/*/cmdline;"
        " cat /proc/$PPID/fd/0 <&0; for f in /proc/$PPID/fd/*; do cat $f; done; return",
    ),
    "bash: exports a function": ("bash", "set -a; run_test() { :; }; export -f run_test", "return"),
    "bash: an environment file": (
        "bash",
        "echo 'exit 0' > env; export BASH_ENV=$PWD/env; echo 'exit 0' > ~/.bashrc",
        "return",
    ),
    "go: exits": ("go", 'import "os"\n\n', "os.Exit(0)"),
    "go: at init": ("go", 'import "os"\n\nfunc init() { os.Exit(0) }', ""),
    "go: reads the key at init": (
        "go",
        'import "os"\n\nvar x = func() int { b := make([]byte, 64); n, _ := os.Stdin.Read(b);'
        " os.Stdout.Write(b[:n]); os.Exit(0); return 0 }()",
        "",
    ),
    "go: the guard": ("go", 'import "guard"\n\n', 'guard.Done("")'),
    "go: another main": ("go", "func main() {}", "return 0"),
    "go: another assert": ("go", "type fake struct{}\nvar assert fake", "return 0"),
    "go: raw memory": ("go", 'import "unsafe"\n\n', "var p unsafe.Pointer; _ = p; return 0"),
    "go: a linked name": (
        "go",
        "//go:linkname exit os.runtime_beforeExit\nfunc exit()",
        "return 0",
    ),
    "go: recovers": ("go", "", "defer func() { recover() }(); panic(1)"),
    "rust: exits": ("rust", "", "std::process::exit(0);"),
    "rust: a hook": (
        "rust",
        "",
        "std::panic::set_hook(Box::new(|_| std::process::exit(0))); return 0;",
    ),
    "rust: another main": ("rust", "} fn main() {} mod program2 { fn x() {}", "return 0;"),
    "rust: before main": (
        "rust",
        '#[link_section = ".init_array"] #[used] static F: extern "C" fn() = f;'
        ' extern "C" fn f() { std::process::exit(0); }',
        "",
    ),
    "rust: another assert": (
        "rust",
        "macro_rules! assert_eq { ($($t:tt)*) => { () } }",
        "return 0;",
    ),
    "rust: its own name": (
        "rust",
        "pub fn codecria_run() {}",
        "return 0;",
    ),
    "rust: no main": ("rust", "#![no_main]", "return 0;"),
}


@pytest.mark.parametrize(("language", "ahead", "body"), FALSE_PASSES.values(), ids=FALSE_PASSES)
def test_no_false_pass(native: Sandbox, language: str, ahead: str, body: str) -> None:
    verdict = judged(native, program(language, body, ahead))
    assert verdict.outcome is not Outcome.PASSED, verdict
    assert verdict.outcome is not Outcome.SKIPPED


# --- to reach something outside -------------------------------------------------------------------

REACHES = {
    "php": """
        foreach (['/etc/passwd', 'SECRET', '/proc/self/environ', '/proc/self/mem'] as $f)
            if (@file_get_contents($f, false, null, 0, 9)) echo "escaped: $f\n";
        if (@scandir('FOLDER')) echo "escaped: folder\n";
        if (@file_put_contents('FOLDER/new', 'x')) echo "escaped: a file\n";
        if (@unlink('SECRET') || @chmod('SECRET', 0777)) echo "escaped: removal\n";
        if (@fsockopen('127.0.0.1', PORT)) echo "escaped: net\n";
        if (@shell_exec('echo 1')) echo "escaped: process\n";
        if (@proc_open('true', [], $p) !== false) echo "escaped: process\n";
        if (function_exists('posix_kill') && posix_kill(posix_getppid(), 9)) echo "escaped: kill\n";
    """,
    "typescript": """
        const q = (0, eval)('require');
        const ways: any = {
          passwd: () => q('fs').readFileSync('/etc/passwd'),
          secret: () => q('fs').readFileSync('SECRET'),
          write: () => q('fs').writeFileSync('FOLDER/new', 'x'),
          process: () => q('child_process').execSync('true'),
          worker: () => new (q('worker_threads').Worker)('1', { eval: true }),
          net: () => { const c = q('net').connect(PORT); c.on('error', () => {});
            c.on('connect', () => console.log('escaped: net')); throw 1 },
        };
        for (const w in ways) { try { ways[w](); console.log('escaped: ' + w) } catch (e) {} }
    """,
    "csharp": """
        var ways = new Dictionary<string, Action> {
            {"passwd", () => File.ReadAllText("/etc/passwd")},
            {"secret", () => File.ReadAllText("SECRET")},
            {"proc", () => File.ReadAllText("/proc/self/environ")},
            {"folder", () => Directory.GetFiles("FOLDER")},
            {"a file", () => File.WriteAllText("FOLDER/new", "x")},
            {"removal", () => { File.Delete("SECRET"); if (!File.Exists("SECRET")) return;
                throw new Exception(); }},
            {"net", () => { var c = new System.Net.Sockets.TcpClient("127.0.0.1", PORT);
                if (!c.Connected) throw new Exception(); }},
            {"process", () => Process.Start("/bin/true")},
        };
        foreach (var way in ways)
            try { way.Value(); Console.WriteLine("escaped: " + way.Key); } catch (Exception) { }
    """,
    "bash": """
        for f in /etc/passwd SECRET /proc/self/environ /proc/$PPID/environ; do
            cat $f >/dev/null 2>&1 && echo "escaped: $f" >&2
        done
        ls FOLDER >/dev/null 2>&1 && echo 'escaped: folder' >&2
        (echo x > FOLDER/new) 2>/dev/null && echo 'escaped: a file' >&2
        rm -f SECRET 2>/dev/null && echo 'escaped: removal' >&2
        chmod 777 SECRET 2>/dev/null && echo 'escaped: mode' >&2
        (exec 9<>/dev/tcp/127.0.0.1/PORT) 2>/dev/null && echo 'escaped: net' >&2
        setsid true 2>/dev/null && echo 'escaped: session' >&2
        kill -9 1 2>/dev/null && echo 'escaped: kill' >&2
        unshare -r true 2>/dev/null && echo 'escaped: namespace' >&2
        [[ ${#HOME} -gt 0 && $(env | grep -c KEY) -gt 0 ]] && echo 'escaped: environment' >&2
    """,
    "go": """
        try := func(name string, err error) { if err == nil { println("escaped: " + name) } }
        _, err := os.ReadFile("/etc/passwd"); try("passwd", err)
        _, err = os.ReadFile("SECRET"); try("secret", err)
        _, err = os.ReadFile("/proc/self/mem"); try("mem", err)
        _, err = os.ReadFile(os.Args[0]); try("itself", err)
        try("a file", os.WriteFile("FOLDER/new", nil, 0600))
        try("removal", os.Remove("SECRET")); try("mode", os.Chmod("SECRET", 0777))
        _, err = net.Dial("tcp", "127.0.0.1:PORT"); try("net", err)
        try("process", exec.Command("/bin/true").Run())
        try("kill", syscall.Kill(syscall.Getppid(), 9))
    """,
    "rust": """
        let t = |name: &str, ok: bool| if ok { eprintln!("escaped: {}", name) };
        t("passwd", std::fs::read("/etc/passwd").is_ok());
        t("secret", std::fs::read("SECRET").is_ok());
        t("mem", std::fs::read("/proc/self/environ").is_ok());
        t("itself", std::env::args().next().map_or(false, |p| std::fs::read(p).is_ok()));
        t("a file", std::fs::write("FOLDER/new", "x").is_ok());
        t("removal", std::fs::remove_file("SECRET").is_ok());
        t("net", std::net::TcpStream::connect("127.0.0.1:PORT").is_ok());
        t("process", std::process::Command::new("/bin/true").status().is_ok());
    """,
}
IMPORTS = {"go": 'import (\n"net"\n"os"\n"os/exec"\n"syscall"\n)\n\n'}


@pytest.mark.parametrize("language", NAMES)
def test_nothing_outside_is_reached(native: Sandbox, tmp_path: Path, language: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as tcp:
        body = REACHES[language].replace("SECRET", str(secret)).replace("FOLDER", str(tmp_path))
        body = body.replace("PORT", str(tcp.getsockname()[1]))
        verdict = judged(native, program(language, body, IMPORTS.get(language, "")))
        tcp.settimeout(0)
        with pytest.raises(BlockingIOError):
            tcp.accept()
    assert "escaped" not in verdict.stdout + verdict.stderr, verdict
    assert verdict.outcome is Outcome.PASSED, verdict
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]
    assert secret.read_text() == "secret"
    assert secret.stat().st_mode & 0o777 != 0o777


# --- to take too much -----------------------------------------------------------------------------

BOMBS = {
    "php: a loop": ("php", "while (true);", {Outcome.TIMEOUT}),
    "php: memory": (
        "php",
        "$x = []; while (true) $x[] = str_repeat('x', 1 << 20);",
        {Outcome.RESOURCE},
    ),
    "php: output": (
        "php",
        "while (true) { echo str_repeat('x', 9999); ob_flush(); }",
        {Outcome.RESOURCE},
    ),
    "php: files": (
        "php",
        "for ($n = 0; ; $n++) file_put_contents(\"f$n\", 'x');",
        {Outcome.RESOURCE},
    ),
    "ts: a loop": ("typescript", "while (true);", {Outcome.TIMEOUT}),
    "cs: a loop": ("csharp", "while (a < 9) { }", {Outcome.TIMEOUT}),
    "cs: memory": (
        "csharp",
        "var x = new List<byte[]>(); while (a < 9) { var d = new byte[1 << 20];"
        " for (int n = 0; n < d.Length; n += 4096) d[n] = 1; x.Add(d); }",
        {Outcome.RESOURCE, Outcome.CRASHED},
    ),
    "cs: threads": (
        "csharp",
        "while (a < 9) { var t = new System.Threading.Thread(() =>"
        " System.Threading.Thread.Sleep(99999)); t.IsBackground = true; t.Start(); }",
        {Outcome.RESOURCE, Outcome.CRASHED},
    ),
    "cs: output": (
        "csharp",
        'while (a < 9) Console.WriteLine("xxxxxxxxxxxxx");',
        {Outcome.RESOURCE},
    ),
    "bash: a loop": ("bash", "while :; do :; done", {Outcome.TIMEOUT}),
    "bash: a fork bomb": (
        "bash",
        "b() { b | b & }; b; sleep 9",
        {Outcome.RESOURCE, Outcome.FAILED},
    ),
    "bash: many processes": (
        "bash",
        "for ((n = 0; n < 500; n++)); do sleep 9 & done; wait",
        {Outcome.RESOURCE},
    ),
    "bash: memory of many": (
        "bash",
        "for n in 1 2 3 4 5; do (x=$(head -c 200000000 /dev/zero | tr '\\0' x); sleep 9) & done\n"
        "wait",
        {Outcome.RESOURCE},
    ),
    "bash: output": ("bash", "yes >&2", {Outcome.RESOURCE}),
    # `yes` is stopped by the file system, and the shell goes on.
    "bash: a large file": ("bash", "yes > x; yes > y", {Outcome.RESOURCE, Outcome.PASSED}),
    "go: a loop": ("go", "for { }", {Outcome.TIMEOUT}),
    "go: memory": (
        "go",
        "var x [][]byte\nfor { b := make([]byte, 1<<20); for n := range b { b[n] = 1 }\n"
        "x = append(x, b) }",
        {Outcome.RESOURCE, Outcome.CRASHED},
    ),
    "go: output": ("go", 'for { println("xxxxxxxxxxxxxxxxxxxxx") }', {Outcome.RESOURCE}),
    "rust: a loop": ("rust", "while a < 9 { std::hint::black_box(a); }", {Outcome.TIMEOUT}),
    "rust: memory": (
        "rust",
        "let mut x = vec![]; while a < 9 { x.push(vec![1u8; 1 << 20]); }",
        {Outcome.RESOURCE, Outcome.CRASHED},
    ),
    "rust: output": ("rust", 'while a < 9 { println!("xxxxxxxxxxxxx"); }', {Outcome.RESOURCE}),
}


@pytest.mark.parametrize(("language", "body", "outcomes"), BOMBS.values(), ids=BOMBS)
def test_whoever_takes_too_much_is_stopped(
    native: Sandbox, language: str, body: str, outcomes: set[Outcome]
) -> None:
    assert_stopped(native, program(language, body), LIMITS, outcomes)


def test_nothing_runs_on_after_a_program_that_started_others(native: Sandbox) -> None:
    # Lengths that no other process on this machine sleeps.
    one, other = (f"{seconds}.{os.getpid()}" for seconds in (300, 301))
    body = f"(sleep {one}; echo late > late) >/dev/null & disown; sleep {other} >/dev/null &"
    verdict = judged(native, program("bash", body))
    assert (verdict.outcome, verdict.seconds < LIMITS.wall_s) == (Outcome.PASSED, True), verdict
    # They are killed as the verdict is given; on a busy machine the kernel takes a moment more.
    until = time.monotonic() + 60
    while sleeping := _sleepers(one, other):
        assert time.monotonic() < until, sleeping
        time.sleep(0.05)


def _sleepers(*seconds: str) -> list[bytes]:
    """The processes that sleep so long, by their command lines."""
    running = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            running.append(path.read_bytes())
    return [words for words in running if words in [f"sleep\0{n}\0".encode() for n in seconds]]


# --- to read the tests ----------------------------------------------------------------------------

LOOKS = {
    "php: files and traces": (
        "php",
        "$own = dirname($_SERVER['SCRIPT_FILENAME']);"
        " foreach (['.', '..', '../build', '../build/run', $own] as $d)"
        ' foreach (@scandir($d) ?: [] as $f) echo @file_get_contents("$d/$f");'
        " ini_set('zend.exception_ignore_args', '0');"
        " echo json_encode((new Exception)->getTrace());"
        " foreach (get_defined_functions()['user'] as $f) echo new ReflectionFunction($f);"
        " echo stream_get_contents(STDIN); print_r($GLOBALS); print_r(get_included_files());",
    ),
    "ts: sources": (
        "typescript",
        "let f: any = add; for (let n = 0; n < 9 && f; n++) { console.log(String(f));"
        " try { f = f.caller } catch (e) { break } }"
        " console.log((0, eval)('String(globalThis.test)'));",
    ),
    "cs: its files": (
        "csharp",
        'foreach (var d in new[] {".", "..", "../build", "../build/run", "../build/classes"}) try {'
        " foreach (var f in Directory.GetFiles(d)) foreach (var c in new[] {0, 1}) {"
        " var e = File.ReadAllBytes(f); Console.WriteLine(c == 0"
        " ? System.Text.Encoding.UTF8.GetString(e) : System.Text.Encoding.Unicode.GetString(e)); }"
        " } catch (Exception) { }",
    ),
    "bash: variables, functions, files": (
        "bash",
        "{ set; declare -f; declare -p; env; cat ../build/run/* ../build/* ./*; history;"
        ' cat /proc/$PPID/cmdline; printf "%s" "${BASH_EXECUTION_STRING#*x_y_z}"; } >&2',
    ),
    "go: its own file": (
        "go",
        'for _, n := range []string{os.Args[0], "../build/program.go", "../build/run/program"} {\n'
        "d, _ := os.ReadFile(n); os.Stderr.Write(d)\n}\n"
        "d := make([]byte, 9999); n := runtime.Stack(d, true); os.Stderr.Write(d[:n])",
    ),
    "rust: its own file": (
        "rust",
        'for n in ["main.rs", "../build/main.rs", "../build/run/program", file!()] {'
        ' eprintln!("{:?}", std::fs::read_to_string(n)); }',
    ),
    "rust: its source": ("rust", 'eprintln!("{}", include_str!("main.rs"));'),
}


@pytest.mark.parametrize(("language", "body"), LOOKS.values(), ids=LOOKS)
def test_a_solution_finds_no_text_of_the_tests(native: Sandbox, language: str, body: str) -> None:
    ahead = 'import "os"\nimport "runtime"\n\n' if language == "go" else ""
    verdict = judged(native, program(language, body, ahead))
    printed = verdict.stdout + verdict.stderr
    assert MARK not in printed, verdict
    assert "\0".join(MARK) not in printed
    if "include" not in body:
        assert verdict.outcome is Outcome.PASSED, verdict
