"""JavaScript, C++ and Java in the sandbox: honest programs pass, hostile ones reach nothing."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from codecria.core.evaluation.benchmarks.multilingual import needs, parse_e
from codecria.core.sandbox import languages
from codecria.core.sandbox.child import KEY_BYTES
from codecria.core.sandbox.sandbox import Sandbox
from codecria.core.sandbox.verdict import Limits, Outcome, Program
from tests.core.sandbox.common import ENOUGH_S, NATIVE, assert_stopped, judged

pytestmark = pytest.mark.slow  # compilers run

LIMITS = Limits(wall_s=ENOUGH_S, memory_bytes=512 << 20, output_bytes=1 << 16, disk_bytes=8 << 20)
NAMES = ("javascript", "cpp", "java")

CPP = "#include <assert.h>\n#include <stdio.h>\n#include <stdlib.h>\n#include <unistd.h>\n"
CPP_TESTS = '\nint main() { int got = add(1, 2); assert(got == 3); puts("reached"); }\n'
JAVA = "import java.util.*;\nimport java.io.*;\nimport java.nio.file.*;\n"
JAVA_TESTS = """
public class Main {
    public static void main(String[] words) throws Exception {
        Integer got = new Solution().add(1, 2);
        List<Boolean> right = Arrays.asList(got == 3);
        if (right.contains(false)) throw new AssertionError();
        System.out.println("reached");
    }
}
"""
JS_TESTS = "const assert = require('node:assert')\nfunction test() {\n"
JS_TESTS += "  let candidate = add\n  assert.deepEqual(candidate(1, 2), 3)\n}\ntest()\n"
JS_TESTS += "console.log('reached')\n"


def program(language: str, body: str, ahead: str = "", tests: str | None = None) -> Program:
    """A function `add` with this body, and tests of it."""
    if language == "cpp":
        source = f"{CPP}{ahead}\nint add(int a, int b) {{ {body} return a + b; }}\n"
        return Program(language="cpp", source=source, tests=CPP_TESTS if tests is None else tests)
    if language == "java":
        source = f"{JAVA}{ahead}\nclass Solution {{\n  int add(int a, int b) throws Exception {{\n"
        source += f"{body}\n    return a + b;\n  }}\n}}\n"
        return Program(language="java", source=source, tests=JAVA_TESTS if tests is None else tests)
    source = f"{ahead}\nconst add = (a, b) => {{ {body}\n return a + b }}\n"
    return Program(language="javascript", source=source, tests=JS_TESTS if tests is None else tests)


@pytest.fixture(scope="module", params=[NATIVE])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with Sandbox(request.param, limits=LIMITS) as opened:
        yield opened


# --- honest programs ------------------------------------------------------------------------------

HONEST = {
    "javascript": """
        const fs = require('fs'), os = require('os');
        fs.writeFileSync('x', 'y'); if (fs.readFileSync('x', 'utf8') !== 'y') throw 1;
        new Array(1e6).fill(0).map((_, n) => n).sort(); JSON.parse('{"a": [1]}');
        Array.prototype.mine = 1; console.error('failed'); setTimeout(() => 1, 5);
    """,
    "cpp": """
        FILE *f = fopen("x", "w"); fputs("y", f); fclose(f); fprintf(stderr, "failed\\n");
        char *much = (char *)malloc(100 << 20); for (int n = 0; n < 100 << 20; n += 4096) much[n]++;
    """,
    "java": """
        Files.writeString(Path.of("x"), "y"); System.err.println("failed");
        Thread t = new Thread(() -> {}); t.start(); t.join(); byte[] much = new byte[100 << 20];
        if (!Files.readString(Path.of("x")).equals("y")) throw new Exception();
    """,
}


@pytest.mark.parametrize("language", NAMES)
def test_honest_programs_pass(sandbox: Sandbox, language: str) -> None:
    verdict = judged(sandbox, program(language, HONEST[language]))
    assert (verdict.outcome, verdict.detail) == (Outcome.PASSED, ""), verdict
    assert verdict.stdout == "reached\n"


@pytest.mark.parametrize("language", NAMES)
def test_wrong_ones_fail_and_say_why(sandbox: Sandbox, language: str) -> None:
    verdict = judged(
        sandbox, program(language, "return a - b;" if language != "java" else "b = -b;")
    )
    assert verdict.outcome is Outcome.FAILED, verdict
    assert "ssert" in verdict.detail
    assert "reached" not in verdict.stdout
    broken = judged(sandbox, program(language, "(((;"))
    assert broken.outcome is Outcome.FAILED
    assert "error" in broken.detail.lower()
    assert "/" not in broken.detail, "a box's path says nothing and differs every time"


def test_a_program_reads_its_own_input(sandbox: Sandbox) -> None:
    text = "const t = require('fs').readFileSync(0, 'utf8'); console.log(t.length)"
    verdict = judged(sandbox, Program(language="js", source=text, stdin="x" * 300_000))
    assert (verdict.outcome, verdict.stdout) == (Outcome.PASSED, "300000\n")


def test_the_key_is_as_long_as_the_guards_think() -> None:
    assert languages.guards.KEY_CHARACTERS == 2 * KEY_BYTES


# --- a missing toolchain --------------------------------------------------------------------------


def test_what_is_not_there_is_skipped_by_name(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "does not run cobol" in sandbox.run(Program(language="cobol", source="")).detail
    monkeypatch.setenv("PATH", "")
    languages.toolchain.cache_clear()
    try:
        for name in NAMES:
            verdict = sandbox.run(program(name, ""))
            assert verdict.outcome is Outcome.SKIPPED
            assert languages.LANGUAGES[name].tools[0] in verdict.detail
    finally:
        languages.toolchain.cache_clear()


def test_a_library_that_only_a_completion_names_excuses_nothing() -> None:
    record = {
        "name": "HumanEval_0", "language": "java", "stop_tokens": [], "tests": "}",
        "prompt": "import java.util.*;\nclass Problem {\n",
    }  # fmt: skip
    assert needs(parse_e(record)) == ()
    record["prompt"] = "import org.javatuples.*;\nclass Problem {\n"
    assert needs(parse_e(record)) == ("javatuples",)


# --- to be counted as passed without passing ------------------------------------------------------

# (language, ahead of the function, its body)
FALSE_PASSES = {
    "js: exits": ("javascript", "", "process.exit(0)"),
    "js: exits ahead": ("javascript", "process.exit(0)", ""),
    "js: leaves for real": ("javascript", "process.reallyExit(0)", ""),
    "js: catches all": (
        "javascript",
        "process.on('uncaughtException', () => process.exit(0))",
        "return 0",
    ),
    "js: ends at exit": ("javascript", "process.on('exit', () => process.reallyExit(0))", "return"),
    "js: another assert": (
        "javascript",
        "require('assert').deepEqual = () => {}; require('node:assert').AssertionError = Object",
        "return 0",
    ),
    "js: another require": ("javascript", "var require = () => ({deepEqual() {}})", "return 0"),
    "js: a const require": ("javascript", "const require = () => ({deepEqual() {}})", "return 0"),
    "js: a fixed require": (
        "javascript",
        "Object.defineProperty(globalThis, 'require', {value: () => ({deepEqual() {}})})",
        "return 0",
    ),
    "js: another test": (
        "javascript",
        "Object.defineProperty(globalThis, 'test', {value: () => {}})",
        "return 0",
    ),
    "js: swallows the tests": ("javascript", "", "return 0 }; /*"),
    "js: an open block": ("javascript", "", "return 0 }; if (false) { (() => {"),
    "js: reads the key": (
        "javascript",
        "const fs = require('fs'); try { const b = Buffer.alloc(64);"
        " fs.readSync(0, b, 0, 64, null); fs.writeSync(1, b) } catch (e) {} process.exit(0)",
        "",
    ),
    "js: the inspector": (
        "javascript",
        "const i = require('inspector'); new i.Session().connect(); process.exit(0)",
        "",
    ),
    "js: an import": (
        "javascript",
        "import('v8').then(v => { v.writeHeapSnapshot('x');"
        " console.log(require('fs').readFileSync('x', 'utf8').match(/[0-9a-f]{64}/g).join());"
        " process.exit(0) }); ",
        "return 0",
    ),
    "js: an import of a string": (
        "javascript",
        "new Function('return import(\"v8\")')().then(v => { v.writeHeapSnapshot('x');"
        " console.log(require('fs').readFileSync('x', 'utf8').match(/[0-9a-f]{64}/g).join());"
        " process.exit(0) }); ",
        "return 0",
    ),
    "js: modules by other ways": (
        "javascript",
        "const M = process.mainModule || module.constructor; const v ="
        " (M.require || M._load || process.getBuiltinModule || process.binding)('v8');"
        " v.writeHeapSnapshot('x'); process.exit(0)",
        "return 0",
    ),
    "js: a file that imports": (
        "javascript",
        "const fs = require('fs'); process.on('uncaughtException', () => {});"
        " fs.writeFileSync('x.js', `import('v8').then(v => { v.writeHeapSnapshot('h');"
        " require('fs').writeSync(1, require('fs').readFileSync('h'))})`);"
        " try { require(process.cwd() + '/x.js') } catch (e) {}"
        " fs.mkdirSync('node_modules/js-md5', {recursive: true});"
        " fs.copyFileSync('x.js', 'node_modules/js-md5/index.js');"
        " try { require('js-md5') } catch (e) {}",
        "return 0",
    ),
    "js: frames": (
        "javascript",
        "Error.prepareStackTrace = (e, frames) => frames; for (const f of new Error().stack) {"
        " const m = f.getThis() || f.getFunction(); if (m) console.log(Object.keys(m)) }"
        " process.exit(0)",
        "return 0",
    ),
    "js: later": (
        "javascript",
        "process.on('uncaughtException', () => {}); setTimeout(() => process.exit(0), 9)",
        "return 0",
    ),
    "js: a patched write": (
        "javascript",
        "const fs = require('fs'); fs.writeSync = () => {}; process.exit(0)",
        "",
    ),
    "js: a patched prototype": (
        "javascript",
        "Function.prototype.call = function () {}; Object.is = () => true;"
        " Array.prototype.filter = function () { process.exit(0) }; Reflect.apply = () => {}",
        "return 0",
    ),
    "cpp: exits": ("cpp", "", "exit(0);"),
    "cpp: _exits": ("cpp", "", "_exit(0);"),
    "cpp: exits quickly": ("cpp", "", "quick_exit(0);"),
    "cpp: before main": ("cpp", "__attribute__((constructor)) void f() { _exit(0); }", ""),
    "cpp: a static object": ("cpp", "struct S { S() { _exit(0); } } s;", ""),
    "cpp: a destructor": ("cpp", "struct S { ~S() { _exit(0); } } s;", "exit(1);"),
    "cpp: catches abort": (
        "cpp",
        "#include <signal.h>\nstatic struct S { S() { for (int n = 1; n < 32; n++)"
        " signal(n, [](int) { _exit(0); }); } } s;",
        "abort();",
    ),
    "cpp: another assert": ("cpp", "#undef assert\n#define assert(x) ((void)0)", "return 0;"),
    "cpp: no assert": ("cpp", "#define NDEBUG\n#include <assert.h>", "return 0;"),
    "cpp: another failure": (
        "cpp",
        "#define codecria_failed(x) 0\n"
        'extern "C" void __assert_fail(const char *, const char *, unsigned, const char *)'
        " noexcept {}",
        "return 0;",
    ),
    "cpp: another main": ("cpp", "int main() { return 0; }\n#define main other", "return 0;"),
    "cpp: hidden tests": ("cpp", "", "return 0; }\nint main() { return 0; }\n#if 0\n{"),
    "cpp: commented tests": ("cpp", "", "return 0; }\nint main() { return 0; }\n/*"),
    "cpp: renamed main": (
        "cpp",
        "#pragma redefine_extname main other\n"
        '__\\\nasm__(".globl main\\nmain: xor %eax, %eax\\nret");',
        "return 0;",
    ),
    "cpp: the guard's own": (
        "cpp",
        'extern "C" int __wrap_main(int, char **, char **) { return 0; }',
        "return 0;",
    ),
    "cpp: the guard's other": (
        "cpp",
        'extern "C" int __real_main(int, char **, char **) { return 0; }',
        "return 0;",
    ),
    "cpp: a weak main": (
        "cpp",
        'extern "C" int other() { return 0; }\n#pragma weak main = other',
        "return 0;",
    ),
    "cpp: another header": (
        "cpp",
        "#undef assert\n#define CODECRIA_ASSERT\nstatic void codecria_failed(const char *) {}\n"
        "static void failed(const char *) {}",
        "return 0;",
    ),
    "cpp: reads the key": (
        "cpp",
        "static struct S { S() { char b[64]; long n = read(0, b, 64); if (n > 0) write(1, b, n);"
        " _exit(0); } } s;",
        "",
    ),
    "cpp: ahead of all": (
        "cpp",
        "static void early() { char b[64]; long n = read(0, b, 64); if (n > 0) write(1, b, n);"
        ' _exit(0); }\n__attribute__((section(".preinit_array"), used)) void (*p)() = early;',
        "",
    ),
    "java: exits": ("java", "", "System.exit(0);"),
    "java: halts": ("java", "", "Runtime.getRuntime().halt(0);"),
    "java: at the start": (
        "java",
        "class E { static int f() { System.exit(0); return 0; } }",
        "E.f();",
    ),
    "java: catches all": (
        "java",
        "",
        "Thread.setDefaultUncaughtExceptionHandler((t, e) -> System.exit(0));"
        " throw new RuntimeException();",
    ),
    "java: a hook": (
        "java",
        "",
        "Runtime.getRuntime().addShutdownHook(new Thread(() -> Runtime.getRuntime().halt(0)));"
        " throw new RuntimeException();",
    ),
    "java: another list": (
        "java",
        "class Arrays { static <T> List<T> asList(T... a) { return new ArrayList<T>(); } }",
        "a = 9;",
    ),
    "java: reads the key": (
        "java",
        "",
        "byte[] b = System.in.readNBytes(64); System.out.write(b); System.exit(0);",
    ),
    "java: dumps the heap": (
        "java",
        "",
        'Class.forName("com.sun.management.HotSpotDiagnosticMXBean"); System.exit(0);',
    ),
    "java: raw memory": ("java", "", 'Class.forName("sun.misc.Unsafe"); System.exit(0);'),
}


@pytest.mark.parametrize(("language", "ahead", "body"), FALSE_PASSES.values(), ids=FALSE_PASSES)
def test_no_false_pass(sandbox: Sandbox, language: str, ahead: str, body: str) -> None:
    verdict = judged(sandbox, program(language, body, ahead))
    assert verdict.outcome in (Outcome.FAILED, Outcome.CRASHED), verdict


# --- to reach something outside -------------------------------------------------------------------

REACHES = {
    "javascript": {
        "passwd": "require('fs').readFileSync('/etc/passwd')",
        "the secret": "require('fs').readFileSync({secret!r})",
        "the folder": "require('fs').readdirSync({folder!r})",
        "a file": "require('fs').writeFileSync({folder!r} + '/new', 'x')",
        "removal": "require('fs').unlinkSync({secret!r})",
        "its mode": "require('fs').chmodSync({secret!r}, 0o777)",
        "proc": "require('fs').readFileSync('/proc/self/environ')",
        "its parent": "process.kill(process.ppid, 'SIGKILL')",
        "a process": "const p = require('child_process').execSync('true')",
        "a worker": "new (require('worker_threads').Worker)('1', {{eval: true}})",
        "the environment": "if (Object.keys(process.env).length < 9) throw 1",
    },
    "cpp": {
        "passwd": 'fopen("/etc/passwd", "r")',
        "the secret": 'fopen("{secret}", "r")',
        "a file": 'fopen("{folder}/new", "w")',
        "removal": 'unlink("{secret}") == 0',
        "truncation": 'truncate("{secret}", 0) == 0',
        "its mode": 'chmod("{secret}", 0777) == 0',
        "its parent": "kill(getppid(), SIGSTOP) == 0",
        "a process": "fork() >= 0",
        "a socket": "socket(AF_INET, SOCK_STREAM, 0) >= 0",
        "a local socket": "socket(AF_UNIX, SOCK_STREAM, 0) >= 0",
        "io_uring": "syscall(425, 1, 0) >= 0",
        "a namespace": "syscall(SYS_unshare, 0x10000000) == 0",
        "a trace": "syscall(SYS_ptrace, 0, 0, 0, 0) == 0",
        "proc": 'fopen("/proc/self/environ", "r")',
        "its own program": 'fopen("../build/program", "r+")',
        "root again": "setuid(0) == 0 && chown({quoted}, 1, 1) == 0",
    },
    "java": {
        "passwd": 'Files.readString(Path.of("/etc/passwd"));',
        "the secret": 'Files.readString(Path.of("{secret}"));',
        "a file": 'Files.writeString(Path.of("{folder}/new"), "x");',
        "removal": 'Files.delete(Path.of("{secret}"));',
        "a socket": 'new java.net.Socket("127.0.0.1", {port});',
        "a process": 'new ProcessBuilder("/usr/bin/true").start();',
        "its parent": "if (!ProcessHandle.current().parent().get().destroy()) throw new Error();",
    },
}


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, object]]:
    folder = tmp_path_factory.mktemp("outside")
    secret = folder / "secret"
    secret.write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as tcp:
        yield {
            "port": tcp.getsockname()[1],
            "secret": str(secret),
            "quoted": f'"{secret}"',
            "folder": str(folder),
        }


@pytest.mark.parametrize("language", NAMES)
def test_nothing_outside_is_reached(
    sandbox: Sandbox, outside: dict[str, object], language: str
) -> None:
    # All ways in one program: each starts a compiler, and none may help the next.
    ways = {name: way.format(**outside) for name, way in REACHES[language].items()}
    if language == "javascript":
        body = "".join(
            f"try {{ {way}; console.log('escaped: {name}') }} catch (e) {{ }}\n"
            for name, way in ways.items()
        )
        body += "const net = require('net');\nfor (const at of "
        body += f"[{outside['port']}, '\\0abstract'])"
        body += " net.connect(at).on('connect', () => console.log('escaped: net'))"
        body += ".on('error', () => {});\n"
        asked = program(language, body)
    elif language == "cpp":
        ahead = "#include <signal.h>\n#include <sys/socket.h>\n#include <sys/stat.h>\n"
        ahead += "#include <sys/syscall.h>\n"
        body = "".join(
            f'if ({way}) {{ puts("escaped: {name}"); fflush(stdout); }}\n'
            for name, way in ways.items()
        )
        asked = program(language, body, ahead)
    else:
        body = "".join(
            f'try {{ {way} System.out.println("escaped: {name}"); }} catch (Throwable e) {{ }}\n'
            for name, way in ways.items()
        )
        asked = program(language, body)
    secret = Path(str(outside["secret"]))
    before = secret.stat()
    verdict = judged(sandbox, asked)
    assert "escaped" not in verdict.stdout, verdict.stdout
    assert "reached" in verdict.stdout, verdict
    assert [path.name for path in secret.parent.iterdir()] == ["secret"]
    assert secret.read_text() == "secret"
    after = secret.stat()
    assert (before.st_mode, before.st_uid) == (after.st_mode, after.st_uid)


COMPILERS = {
    "a file of the user": '#include "{secret}"',
    "passwd": '#include "/etc/passwd"',
    "a blob": '__asm__(".incbin \\"{secret}\\"");',
}


@pytest.mark.parametrize("line", COMPILERS.values(), ids=COMPILERS)
def test_a_compiler_shows_nothing_either(
    sandbox: Sandbox, outside: dict[str, object], line: str
) -> None:
    Path(str(outside["secret"])).write_text("secret")
    verdict = judged(sandbox, program("cpp", "", line.format(**outside)))
    assert verdict.outcome is Outcome.FAILED
    assert "secret" not in verdict.stderr.replace(str(outside["secret"]), "")
    assert "root:" not in verdict.stderr


# --- to take too much -----------------------------------------------------------------------------

BOMBS = {
    "js: a loop": ("javascript", "while (true);", {Outcome.TIMEOUT}),
    "js: memory": (
        "javascript",
        "const all = []; while (true) all.push(new Array(1e6).fill(1.5))",
        {Outcome.RESOURCE, Outcome.CRASHED},
    ),
    "js: buffers": (
        "javascript",
        "const all = []; while (true) all.push(Buffer.alloc(1e7, 1))",
        {Outcome.RESOURCE, Outcome.CRASHED},
    ),
    "js: output": (
        "javascript",
        "while (true) require('fs').writeSync(1, 'x'.repeat(9999))",
        {Outcome.RESOURCE},
    ),
    "js: files": (
        "javascript",
        "for (let n = 0; ; n++) require('fs').writeFileSync('f' + n, 'x')",
        {Outcome.RESOURCE},
    ),
    "cpp: a loop": ("cpp", "for (volatile int n = 0;;) n = 1;", {Outcome.TIMEOUT}),
    "cpp: memory": (
        "cpp",
        "while (true) { char *p = new char[1 << 20]; p[0] = p[1 << 19] = 1; }",
        {Outcome.RESOURCE},
    ),
    "cpp: processes": (
        "cpp",
        "for (int n = 0; n < 1000000; n++) if (fork() >= 0) return 3; return 0;",
        {Outcome.FAILED},
    ),
    "cpp: output": ("cpp", 'while (true) puts("xxxxxxxxxxxxxxxxxxxx");', {Outcome.RESOURCE}),
    "cpp: a large file": (
        "cpp",
        'FILE *f = fopen("x", "w"); char d[4096]; while (fwrite(d, 1, 4096, f) || true);',
        {Outcome.RESOURCE},
    ),
    "cpp: the stack": ("cpp", "volatile char d[4096]; d[0] = 1; return add(d[0], 1) + d[0];", None),
    "java: a loop": ("java", "while (a < 9) { }", {Outcome.TIMEOUT}),
    "java: memory": (
        "java",
        "List<int[]> all = new ArrayList<>(); while (a < 9) all.add(new int[1 << 18]);",
        {Outcome.RESOURCE},
    ),
    "java: threads": (
        "java",
        "while (a < 9) { Thread t = new Thread(() -> { try { Thread.sleep(99999); }"
        " catch (Exception e) { } }); t.setDaemon(true); t.start(); }",
        {Outcome.RESOURCE},
    ),
    "java: output": ("java", 'while (a < 9) System.out.println("xxxxxxxxxx");', {Outcome.RESOURCE}),
}


@pytest.mark.parametrize(("language", "body", "outcomes"), BOMBS.values(), ids=BOMBS)
def test_whoever_takes_too_much_is_stopped(
    sandbox: Sandbox, language: str, body: str, outcomes: set[Outcome] | None
) -> None:
    assert_stopped(sandbox, program(language, body), LIMITS, outcomes)


def test_a_compiler_that_does_not_end_is_ended_whole(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = "template <int N, int M> struct T { static const int v = T<N-1, M>::v + T<N-1, M+1>"
    endless += "::v; };\ntemplate <int M> struct T<0, M> { static const int v = 1; };\n"
    endless += "const int deep = T<800, 0>::v;"
    known = languages.LANGUAGES["cpp"]
    short = [replace(known.compile[0], wall_s=1.0)]
    quick = replace(known, compile=tuple(short))
    monkeypatch.setattr(languages, "LANGUAGES", {**languages.LANGUAGES, "cpp": quick})
    if why := languages.missing("cpp"):
        pytest.skip(why)
    verdict = sandbox._once(program("cpp", "", endless), LIMITS)
    assert verdict.outcome in (Outcome.TIMEOUT, Outcome.RESOURCE), verdict
    deadline = time.monotonic() + 60
    while (left := _compilers(sandbox)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left


def _compilers(sandbox: Sandbox) -> list[bytes]:
    """Compilers that work for a box of this process's sandboxes."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes())
    mine = sandbox._boxes.path.encode()
    return [words for words in found if b"cc1plus" in words and mine in words]


def test_nothing_is_left_in_the_boxes(sandbox: Sandbox) -> None:
    assert [path for path in Path(sandbox._boxes.path).rglob("*") if not path.is_dir()] == []


# --- to read the tests ----------------------------------------------------------------------------

MARK = "expected-by-the-tests-alone"
JS_LOOKS = {
    "beside the program": """
        const fs = require('fs'), path = require('path');
        const look = (folder, depth) => {
          let names = [];
          try { names = fs.readdirSync(folder) } catch (e) {}
          for (const name of names) {
            const at = path.join(folder, name);
            try { console.log(fs.readFileSync(at, 'utf8')) } catch (e) {}
            if (depth < 3) look(at, depth + 1);
          }
        };
        const beside = path.dirname(process.argv[1]);
        for (const folder of [beside, '.', '..', '../build', '/proc/self']) look(folder, 0);
        console.log(process.argv, process.execArgv, process.env);
    """,
    "its caller": """
        let f = add; for (let n = 0; n < 9 && f; n++) { console.log(String(f)); f = f.caller }
        f = arguments.callee;
        for (let n = 0; n < 9 && f; n++) { console.log(String(f)); f = f.caller }
    """,
    "frames": """
        Error.prepareStackTrace = (_, frames) => frames;
        try {
          for (const frame of new Error().stack)
            for (const part of [frame.getFunction(), frame.getThis()]) console.log(String(part));
        } catch (e) {}
        const held = {}; Error.captureStackTrace(held);
        console.log(String(held.stack && held.stack[0] && held.stack[0].getFunction));
    """,
    "frames of another kind": """
        try {
          Object.defineProperty(Error, 'prepareStackTrace', { value: (_, frames) => frames });
        } catch (e) {}
        class Mine extends Error {}
        Mine.prepareStackTrace = (_, frames) => frames;
        const frames = new Mine().stack;
        if (Array.isArray(frames)) for (const f of frames) console.log(String(f.getFunction()));
    """,
    "standard input": "console.log(require('fs').readFileSync(0, 'utf8'));",
}
CPP_LOOKS = {
    "its own file": """
        for (const char *name : {__FILE__, "../build/main.cpp", "../build/run/program",
                "main.cpp", "/proc/self/exe", "/proc/self/cmdline", "/proc/self/fd/0"}) {
            FILE *f = fopen(name, "r");
            char text[4096];
            size_t n;
            while (f && (n = fread(text, 1, sizeof text, f)) > 0) fwrite(text, 1, n, stdout);
        }
    """,
    "folders": """
        for (const char *name : {"..", "../build", "../build/run", "/proc/self/cwd/.."}) {
            DIR *d = opendir(name);
            while (struct dirent *e = d ? readdir(d) : 0)
                printf("%s/%s " "expected-by" "-the-tests-alone\\n", name, e->d_name);
        }
    """,
}
JAVA_LOOKS = {
    "the class path": """
        for (String place : System.getProperty("java.class.path").split(":"))
            try (var walk = Files.walk(Path.of(place).getParent())) {
                for (Path path : (Iterable<Path>) walk::iterator)
                    try { System.out.write(Files.readAllBytes(path)); } catch (IOException no) {}
            } catch (IOException | java.io.UncheckedIOException no) {}
    """,
    "resources": """
        for (String name : new String[] {"Main.class", "/Main.class", "Main.java"})
            try {
                var in = Solution.class.getResourceAsStream(name);
                if (in == null) in = Solution.class.getClassLoader().getResourceAsStream(name);
                if (in != null) System.out.write(in.readAllBytes());
            } catch (IOException no) {}
    """,
    "what the loader holds": """
        Object loader = Solution.class.getClassLoader();
        for (var field : loader.getClass().getDeclaredFields())
            try {
                field.setAccessible(true);
                Object held = field.get(loader);
                if (held instanceof Map) for (Object code : ((Map<?, ?>) held).values())
                    System.out.write((byte[]) code);
            } catch (Exception no) {}
    """,
}
LOOKS = {
    **{f"js: {name}": ("javascript", body) for name, body in JS_LOOKS.items()},
    **{f"cpp: {name}": ("cpp", body) for name, body in CPP_LOOKS.items()},
    **{f"java: {name}": ("java", body) for name, body in JAVA_LOOKS.items()},
}


@pytest.mark.parametrize(("language", "body"), LOOKS.values(), ids=LOOKS)
def test_a_solution_finds_no_text_of_the_tests(sandbox: Sandbox, language: str, body: str) -> None:
    looks = program(language, body, ahead="#include <dirent.h>" if language == "cpp" else "")
    if language == "javascript":  # an arrow function has no caller
        looks = replace(looks, source=f"function add(a, b) {{ {body}\n return a + b }}")
    tests = {
        "javascript": f"{JS_TESTS}\nif (String(add) === '{MARK}') throw 1",
        "cpp": CPP_TESTS.replace("puts", f'if (got == 4) puts("{MARK}"); puts'),
        "java": JAVA_TESTS.replace("Integer got", f'String x = "{MARK}"; Integer got'),
    }
    found = judged(sandbox, replace(looks, tests=tests[language]))
    assert MARK not in found.stdout, found
    honest = judged(sandbox, replace(program(language, ""), tests=tests[language]))
    assert honest.outcome is Outcome.PASSED, honest


def test_tests_call_a_solutions_functions_and_classes_as_if_nothing_stood_between(
    sandbox: Sandbox,
) -> None:
    source = """
        class Stack {
          constructor() { this.items = [] }
          push(x) { this.items.push(x); return this }
        }
        class Deep extends Stack { size() { return this.items.length } }
        function add(a, b) { return a + b }
        const later = (f, n) => f(n);
        async function soon() { return 3 }
        function* count() { yield 1; yield 2 }
        add.kind = 'sum';
    """
    tests = """
        const assert = require('assert');
        const s = new Deep();
        assert(s.push(1) instanceof Stack && s instanceof Deep && s.size() === 1);
        assert.strictEqual(add.name, 'add'); assert.strictEqual(add.length, 2);
        assert.strictEqual(add.kind, 'sum'); assert.strictEqual(add, add);
        assert.strictEqual(typeof add, 'function'); assert.deepStrictEqual([...count()], [1, 2]);
        assert.strictEqual(later(n => n + 1, 1), 2); assert(soon() instanceof Promise);
        assert.strictEqual(add.call(null, 1, 2), 3); assert.strictEqual([1, 2].reduce(add), 3);
    """
    verdict = judged(sandbox, Program(language="js", source=source, tests=tests))
    assert verdict.outcome is Outcome.PASSED, verdict


# --- another language -----------------------------------------------------------------------------

PERL_GUARD = r"""
sub take {
    my ($size, $taken) = ($_[0], '');
    while (length($taken) < $size) {
        exit 71 unless sysread(STDIN, $taken, $size - length($taken), length($taken));
    }
    return $taken;
}
sub part { return take(0 + take(12)); }
{
    my $key = take(64);
    part();
    my ($solution, $tests) = (part(), part());
    eval "package main; $solution\n;$tests\n;1" or do { print STDERR "Error: $@"; exit 1; };
    syswrite(STDOUT, $key);
}
"""


def test_another_language_is_one_entry(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    perl = languages.Language(
        name="perl",
        title="Perl",
        aliases=("pl",),
        tools=("perl",),
        version=("-e", "print $^V"),
        files=lambda _source, _tests: {"guard.pl": PERL_GUARD},
        kept=(("guard.pl", "guard.pl"),),
        fed=lambda source, tests: (source, tests),
        run=languages.Step(argv=("{perl}", "{run}/guard.pl")),
        sample=("sub one { return 1 }", "die 'wrong' unless one() + one() == 2"),
    )
    monkeypatch.setattr(languages, "LANGUAGES", {**languages.LANGUAGES, "perl": perl})
    if why := languages.missing("perl"):
        pytest.skip(why)
    source, tests = perl.sample
    assert languages.canonical("PL") == "perl"
    assert languages.version("perl")
    right = sandbox.run(Program(language="pl", source=source, tests=tests))
    assert right.outcome is Outcome.PASSED, right
    wrong = sandbox.run(Program(language="perl", source=source, tests=tests.replace("2", "3")))
    assert wrong.outcome is Outcome.FAILED, wrong
    exits = sandbox.run(Program(language="perl", source="exit 0;", tests=tests))
    assert exits.outcome is Outcome.FAILED, exits
