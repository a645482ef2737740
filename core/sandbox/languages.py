"""The languages beside Python, as data: another is one entry of `LANGUAGES` and nothing else."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from . import guards
from .language import GIB, Language, Step, Suite
from .stand_ins import program_behind
from .toolchains import bash, csharp, go, php, rust, typescript


def _js_files(_source: str, _tests: str) -> dict[str, str]:
    return {"guard.js": guards.JS_GUARD}


def _java_files(source: str, tests: str) -> dict[str, str]:
    entry = guards.java_entry(source, tests)
    return {
        f"{entry}.java": f"{source}\n{tests}",
        f"guard/{guards.JAVA_GUARD_NAME}.java": guards.java_guard(entry, tests),
        "sources": f"{{build}}/{entry}.java\n{{build}}/guard/{guards.JAVA_GUARD_NAME}.java\n",
    }


_CPP_HEADERS = (  # HumanEval-X's C++ takes them as given (its README)
    *("stdlib.h", "algorithm", "math.h", "stdio.h", "vector", "string", "climits", "cstring"),
    *("iostream", "map", "set", "numeric"),
)
# Node's console.assert prints and goes on; a failed one must end the program.
_JS_ASSERT = (
    "console.assert = (ok, ...told) => {"
    " if (!ok) throw new Error(['Assertion failed', ...told].join(' ')); };\n"
)


# Without those that read memory or dump it: jdk.unsupported, jdk.management, jdk.attach, jdk.jdi.
JAVA_MODULES = "java.base,java.logging,java.xml"
_JVM = ("-XX:-UsePerfData", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")
LANGUAGES: Mapping[str, Language] = {
    language.name: language
    for language in (
        Language(
            name="javascript",
            title="JavaScript",
            tools=("node",),
            version=("--version",),
            aliases=("js",),
            files=_js_files,
            kept=(("guard.js", "guard.js"),),
            fed=lambda source, tests: (source, tests),
            suite=Suite(end="\n}", closer="\n}\n", tests_prelude=_JS_ASSERT),
            run=Step(
                argv=(
                    *("{node}", "--max-old-space-size={heap_mb}", "--no-addons"),
                    *("--stack-trace-limit=5", "{run}/guard.js"),
                ),
                address_bytes=4 * GIB,  # V8 reserves what it may never use
            ),
            readable=("/etc/ssl/openssl.cnf",),
            sample=(
                "const one = () => 1",
                "if (one() + one() !== 2) throw new Error('wrong')",
            ),
        ),
        Language(
            name="cpp",
            title="C++",
            tools=("g++",),
            version=("-dumpfullversion",),
            aliases=("c++",),
            files=guards.cpp_files,
            kept=(("program", "program"),),
            suite=Suite(
                end="\n}",
                closer="\n}\n",
                prelude="".join(f"#include<{header}>\n" for header in _CPP_HEADERS),
            ),
            compile=(
                Step(
                    argv=(
                        *("{g++}", "-std=gnu++17", "-w", "-I{build}/include", "-o"),
                        *("{build}/program", "{build}/guard.cpp", "{build}/main.cpp"),
                        *("-Wl,--wrap=main", "-pthread", "-lm"),
                        "{link}",
                    ),
                    wall_s=30.0,
                    address_bytes=2 * GIB,
                    processes=True,
                ),
            ),
            run=Step(argv=("{run}/program",)),
            refusal=guards.cpp_refusal,
            sample=(
                "#include <vector>\nint one() { return 1; }",
                "int main() { std::vector<int> v(one()); assert(v.size() + one() == 2); }",
            ),
        ),
        Language(
            name="java",
            title="Java",
            tools=("java", "javac"),
            version=("-version",),
            files=_java_files,
            kept=((f"classes/{guards.JAVA_GUARD_NAME}.class", f"{guards.JAVA_GUARD_NAME}.class"),),
            fed_folder="classes",
            suite=Suite(end="\n    }\n", closer="\n    }\n}\n"),
            compile=(
                Step(
                    argv=(
                        *("{javac}", *(f"-J{option}" for option in _JVM), "-J-Xmx512m"),
                        *("-proc:none", "-nowarn", "-implicit:none", "-encoding", "UTF-8"),
                        *("-Xmaxerrs", "5", "--limit-modules", JAVA_MODULES),
                        *("-cp", "{build}{jars}", "-d", "{build}/classes", "@{build}/sources"),
                    ),
                    wall_s=30.0,
                    address_bytes=4 * GIB,
                ),
            ),
            run=Step(
                argv=(
                    *("{java}", *_JVM, "-Xmx{heap_mb}m", "-XX:CompressedClassSpaceSize=64m"),
                    *("-Djava.io.tmpdir={box}", "-Duser.home={box}", "-Dfile.encoding=UTF-8"),
                    *("--limit-modules", JAVA_MODULES, "-ea", "-cp", "{run}{jars}"),
                    guards.JAVA_GUARD_NAME,
                ),
                address_bytes=4 * GIB,  # less is a fatal error of the JVM's
            ),
            readable=("/etc/java*",),
            sample=(
                "class One { static int one() { return 1; } }",
                "public class Main { public static void main(String[] words)"
                " { assert One.one() + One.one() == 2; } }",
            ),
        ),
        typescript.TYPESCRIPT,
        php.PHP,
        bash.BASH,
        csharp.CSHARP,
        go.GO,
        rust.RUST,
    )
}
RUN = "run"  # the folder of what remains while a program runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """Something that tests of a suite stand on, beside the language.

    Attributes:
        title: its name, and what installs it on Debian.
        paths: patterns of files, of which one must be there.
        jar: whether it goes on Java's class path.
    """

    title: str
    paths: tuple[str, ...]
    jar: bool = False


LIBRARIES: Mapping[str, Library] = {
    "boost": Library(
        title="Boost (libboost-dev)",
        paths=("/usr/include/boost/any.hpp", "/usr/local/include/boost/any.hpp"),
    ),
    "openssl": Library(
        title="OpenSSL's headers (libssl-dev)",
        paths=("/usr/include/openssl/md5.h", "/usr/local/include/openssl/md5.h"),
    ),
    "javatuples": Library(
        title="javatuples (libjavatuples-java)",
        paths=("/usr/share/java/javatuples.jar", "/usr/share/maven-repo/**/javatuples*.jar"),
        jar=True,
    ),
    "rust-crates": Library(
        title="crates beside the standard library (rand, regex, md5)",
        paths=(),
    ),
    "js-md5": Library(
        title="js-md5 (npm)",
        paths=("/usr/share/nodejs/js-md5/package.json",),
    ),
}


def canonical(language: str) -> str:
    """A language's name as this module has it."""
    small = language.lower()
    for known in LANGUAGES.values():
        if small == known.name or small in known.aliases:
            return known.name
    return small


@dataclass(frozen=True, slots=True)
class Toolchain:
    """The tools of a language on this machine.

    Attributes:
        paths: by command, of the programs that run.
        missing: commands without a program, and why each has none.
    """

    paths: Mapping[str, str]
    missing: Mapping[str, str]


@lru_cache(maxsize=32)
def toolchain(name: str, search: str | None = None) -> Toolchain:
    """The tools of a language of `LANGUAGES`.

    Args:
        name: canonical.
        search: PATH; None for this process's.
    """
    known = LANGUAGES[name]
    found = {tool: program_behind(tool, search) for tool in known.tools}
    return Toolchain(
        {tool: known.resolve(path) for tool, (path, _) in found.items() if path},
        {tool: why for tool, (_, why) in found.items() if why},
    )


@lru_cache(maxsize=32)
def library_path(name: str) -> str | None:
    """Where a library of `LIBRARIES` is, or None."""
    for pattern in LIBRARIES[name].paths:
        for path in _matching(pattern):
            return os.path.realpath(path)
    return None


def missing(language: str, needs: tuple[str, ...] = ()) -> str:
    """Why programs of a language cannot run here, by name; empty where they can.

    Args:
        language: canonical; not Python.
        needs: names of libraries.
    """
    known = LANGUAGES.get(language)
    if known is None:
        return f"the sandbox does not run {language}"
    if lost := toolchain(language).missing:
        by_reason: dict[str, list[str]] = {}
        for tool, why in lost.items():
            by_reason.setdefault(why, []).append(tool)
        reasons = (f"{' and '.join(tools)}, {why}" for why, tools in by_reason.items())
        return f"{known.title} needs {'; and '.join(reasons)}"
    if why := known.problem() or _started(language)[1]:
        return why
    for name in needs:
        if library_path(name) is None:
            return f"the tests need {LIBRARIES[name].title}, not installed here"
    return ""


def version(language: str) -> str | None:
    """The version that a language's first tool reports, or None where it is missing."""
    return None if toolchain(language).missing else _started(language)[0]


@lru_cache(maxsize=32)
def _started(language: str) -> tuple[str | None, str]:
    """The version that a language's first tool reports, and why it does not start.

    A command that is there may start nothing, such as the one that offers to install Java.
    """
    known = LANGUAGES[language]
    tool = known.tools[0]
    try:
        done = subprocess.run(
            [toolchain(language).paths[tool], *known.version],
            capture_output=True, text=True, errors="replace", timeout=20, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"{known.title} needs {tool}, which does not start here: {error}"
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines()
    if done.returncode:
        why = lines[0] if lines else f"exit status {done.returncode}"
        return None, f"{known.title} needs {tool}, which does not start here: {why}"
    return (lines[0].removeprefix("v") if lines else "unknown"), ""


def readable_beside() -> list[str]:
    """What the languages here read beside the system's folders."""
    patterns = [pattern for language in LANGUAGES.values() for pattern in language.readable]
    return sorted(path for pattern in patterns for path in _matching(pattern))


def _matching(pattern: str) -> list[str]:
    """The paths that an absolute pattern stands for."""
    return sorted(str(path) for path in Path("/").glob(pattern.lstrip("/")))


# What compilers and runtimes are made of. It holds none of the user's own files.
_SYSTEM = ("/usr/bin", "/usr/lib", "/usr/lib64", "/usr/libexec", "/lib", "/lib64", "/bin")
_READ = (
    *("/usr/include", "/usr/local/include", "/usr/share/java", "/usr/share/nodejs"),
    *("/usr/share/zoneinfo", "/etc/alternatives", "/etc/ld.so.cache", "/etc/localtime"),
    *("/dev/urandom", "/dev/random", "/dev/zero"),
)


def job_of(
    language: str, source: str, tests: str, needs: tuple[str, ...], memory_bytes: int, wall_s: float
) -> dict[str, Any]:
    """What a server runs: files, steps, and what they may read and execute.

    Args:
        language: canonical, and not `missing`.
        source, tests, needs: of the program.
        memory_bytes, wall_s: its limits.
    """
    known = LANGUAGES[language]
    tools = toolchain(language).paths
    places = (library_path(name) for name in needs if LIBRARIES[name].jar)
    jars = "".join(f":{place}" for place in places if place)
    heap = max(16, memory_bytes // 2 >> 20)
    steps = []
    for step in (*known.compile, known.run):
        filled = (_filled(part, tools, jars=jars, heap_mb=heap) for part in step.argv)
        # Linked where the tests ask for it alone: elsewhere it may not be there.
        link = "-lcrypto" if "openssl" in needs else ""
        argv = [part for part in (p.replace("{link}", link) for p in filled) if part]
        steps.append(
            {
                "argv": argv,
                "wall_s": wall_s if step.wall_s is None else step.wall_s,
                "address_bytes": max(step.address_bytes, memory_bytes),
                "memory_bytes": memory_bytes if step.wall_s is None else step.address_bytes,
                "processes": step.processes,
                "maps": step.maps,
            }
        )
    homes = {str(Path(path).parent.parent) for path in tools.values()} - {"/usr", "/"}
    extra = [path for pattern in known.readable for path in _matching(pattern)]
    return {
        "files": known.files(source, tests),
        "kept": known.kept,
        "fed": known.fed(source, tests),
        "fed_folder": known.fed_folder,
        "steps": steps,
        "executable": [*_SYSTEM, *sorted(homes)],
        "readable": [*_READ, *extra],
        # Where a program's own place in /proc cannot be seen, its loader is given its libraries.
        "libraries": ":".join(f"{home}/lib" for home in sorted(homes)),
        "isolated": known.splits,
    }


def _filled(part: str, tools: Mapping[str, str], *, jars: str, heap_mb: int) -> str:
    """An argument with what is known of its places; folders are the worker's to fill in."""
    for tool, path in tools.items():
        part = part.replace(f"{{{tool}}}", path)
    return part.replace("{jars}", jars).replace("{heap_mb}", str(heap_mb))
