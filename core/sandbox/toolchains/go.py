"""Go: its compiler and linker, called one after the other, without modules and without a cache.

What HumanEval-X's tests import, testify's `assert`, is a small package of ours with the methods
that the tests use and testify's meaning of equal. The key is read by a package that the program
imports, so before any code of the solution, and is written for a word that only the tests' main
holds.

This needs the standard library as compiled files, which Go has up to 1.19 (Debian 12).
"""

from __future__ import annotations

import re
import secrets
from pathlib import Path

from ..guards import KEY_CHARACTERS
from ..language import GIB, Language, Step, Suite

TESTIFY = "github.com/stretchr/testify/assert"
_ASSERT = """\
package assert

import (
    "bytes"
    "fmt"
    "math"
    "os"
    "reflect"
)

type TestingT interface{}
type Assertions struct{}

func New(t TestingT) *Assertions { return &Assertions{} }

func fail(format string, values ...interface{}) {
    fmt.Fprintf(os.Stderr, "Error: assertion failed: "+format+"\\n", values...)
    for { os.Exit(1) }
}

func ObjectsAreEqual(expected, actual interface{}) bool {
    if expected == nil || actual == nil { return expected == actual }
    exp, ok := expected.([]byte)
    if !ok { return reflect.DeepEqual(expected, actual) }
    act, ok := actual.([]byte)
    if !ok { return false }
    if exp == nil || act == nil { return exp == nil && act == nil }
    return bytes.Equal(exp, act)
}

func (a *Assertions) Equal(expected, actual interface{}, _ ...interface{}) bool {
    if !ObjectsAreEqual(expected, actual) { fail("expected %#v, got %#v", expected, actual) }
    return true
}

func (a *Assertions) NotEqual(expected, actual interface{}, _ ...interface{}) bool {
    if ObjectsAreEqual(expected, actual) { fail("%#v is not to be returned", actual) }
    return true
}

func (a *Assertions) True(value bool, _ ...interface{}) bool {
    if !value { fail("should be true") }
    return true
}

func (a *Assertions) False(value bool, _ ...interface{}) bool {
    if value { fail("should be false") }
    return true
}

func (a *Assertions) Nil(value interface{}, _ ...interface{}) bool {
    if value != nil && !reflect.ValueOf(value).IsNil() { fail("expected nil, got %#v", value) }
    return true
}

func (a *Assertions) InDelta(expected, actual, delta float64, _ ...interface{}) bool {
    if !(math.Abs(expected-actual) <= delta) { fail("expected %v, got %v", expected, actual) }
    return true
}
"""
_GUARD = """\
package guard

import (
    "os"
    "syscall"
)

var key [SIZE]byte

func init() {
    for have := 0; have < len(key); {
        got, err := syscall.Read(0, key[have:])
        if err == syscall.EINTR { continue }
        if got <= 0 { os.Exit(71) }
        have += got
    }
}

func Done(word string) {
    if word != "WORD" { os.Exit(71) }
    syscall.Write(1, key[:])
}
""".replace("SIZE", str(KEY_CHARACTERS))
_TEST = re.compile(r"^func (Test\w*)\(\w+ \*testing\.T\)", re.MULTILINE)
_IMPORT = re.compile(
    r"^import\s*(?:\(([^)]*)\)|((?:[\w.]+[ \t]+)?[\"`][^\"`\n]+[\"`]))", re.MULTILINE
)
_PATH = re.compile(r"([\w.]+[ \t]+)?[\"`]([^\"`\n]+)[\"`]")
_REFUSED = {"unsafe", "C", "plugin", "guard"}
_DIRECTIVE = re.compile(r"^//go:(?:linkname|embed|cgo\w*)", re.MULTILINE)
# What HumanEval-X's own harness imports where code uses it.
_ADDED = (
    *("math", "strings", "fmt", "strconv", "time", "bytes", "regexp", "sort", "math/rand"),
    "crypto/md5",
)
_NO_CODE = re.compile(
    r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|`[^`]*`|'(?:\\.|[^'\\\n])+'", re.DOTALL
)


def _imported(text: str) -> dict[str, str]:
    """The imports of a text: what each is called by, or nothing, by its path."""
    found: dict[str, str] = {}
    for match in _IMPORT.finditer(text):
        for name, path in _PATH.findall(match[1] or match[2]):
            found.setdefault(path, name.strip())
    return found


def _with_imports(text: str) -> str:
    """A text with each import once: those that it uses, of which some need not be written.

    So does HumanEval-X's harness: a prompt has imports that a right solution may not use, and some
    solutions use packages that nothing imports, both of which Go does not compile.
    """
    imports = _imported(text)
    rest = _IMPORT.sub("", text)
    code = _NO_CODE.sub("", rest)
    imports |= {path: "" for path in _ADDED if path not in imports}
    lines = []
    for path, name in imports.items():
        called = name or path.rpartition("/")[2]
        if called in ("_", ".") or re.search(rf"(?<![\w.]){re.escape(called)}\.\w", code):
            lines.append(f'import {name} "{path}"\n')
    package = re.search(r"^package\s+\w+[^\n]*\n", rest, re.MULTILINE)
    rest = rest.replace(package[0], "", 1) if package else rest
    return f"package main\n\n{''.join(lines)}\n{rest}"


def _refusal(source: str) -> str:
    """What in a solution leads to raw memory or other files; empty where nothing does."""
    refused = sorted(_REFUSED & _imported(source).keys())
    directive = _DIRECTIVE.search(source)
    what = refused[0] if refused else directive[0] if directive else ""
    return f"the sandbox does not allow {what}" if what else ""


def _files(source: str, tests: str) -> dict[str, str]:
    word = secrets.token_hex(16)
    calls = "".join(f"    {name}(new(testing.T))\n" for name in _TEST.findall(tests))
    main = 'package main\n\nimport "guard"\n'
    if calls:
        main += f'import "testing"\n\nfunc main() {{\n{calls}    guard.Done("{word}")\n}}\n'
        text = f"{source}\n{tests}"
    else:  # a whole program: its main is called
        text = re.sub(r"^func main\(\)", "func mainOfProgram()", f"{source}\n{tests}", flags=re.M)
        main += f'\nfunc main() {{\n    mainOfProgram()\n    guard.Done("{word}")\n}}\n'
    return {
        "guard.go": _GUARD.replace("WORD", word),
        "assert.go": _ASSERT,
        f"{TESTIFY}.none": "",
        "program.go": _with_imports(text),
        "entry.go": main,
    }


def _library() -> str:
    """Why there is no compiled standard library here; empty where there is."""
    from ..languages import toolchain

    go = toolchain("go").paths.get("go", "")
    root = Path(go).parent.parent
    if any(root.glob("pkg/linux_*/fmt.a")):
        return ""
    return "Go needs its standard library as compiled files (Go 1.19 or older, Debian: golang-go)"


def _step(*words: str) -> Step:
    return Step(argv=("{go}", "tool", *words), wall_s=30.0, address_bytes=4 * GIB, processes=True)


GO = Language(
    name="go",
    title="Go",
    tools=("go",),
    version=("version",),
    aliases=("golang",),
    files=_files,
    kept=(("program", "program"),),
    compile=(
        _step("compile", "-p", "guard", "-o", "{build}/guard.a", "{build}/guard.go"),
        _step("compile", "-p", TESTIFY, "-o", f"{{build}}/{TESTIFY}.a", "{build}/assert.go"),
        _step(
            *("compile", "-p", "main", "-I", "{build}", "-o", "{build}/main.a"),
            *("{build}/program.go", "{build}/entry.go"),
        ),
        _step("link", "-L", "{build}", "-s", "-w", "-o", "{build}/program", "{build}/main.a"),
    ),
    run=Step(argv=("{run}/program",), address_bytes=4 * GIB),
    refusal=_refusal,
    problem=_library,
    suite=Suite(end="\n}", closer="\n}\n"),
    sample=(
        'package main\n\nimport "testing"\n\nfunc One() int {\n    return 1\n}\n',
        'func TestOne(t *testing.T) {\n    if One()+One() != 2 { panic("wrong") }\n}\n',
    ),
)
