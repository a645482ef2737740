"""What the sandbox has to know of a language: its tools, its files, and how it is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A program that is executed in the jail.

    Attributes:
        argv: with {tool} for the path of a tool, {build}, {run} and {box} for folders, {heap_mb}
            for half of what the program may have of memory, and {jars} for Java's class path.
        wall_s: seconds by the clock; None takes the program's own limit.
        address_bytes: of address space at least, as runtimes reserve more than they use.
        processes: whether it may start others, as compilers and shells do.
        maps: whether it reads the map of its own memory, as mono does to find its stack.
    """

    argv: tuple[str, ...]
    wall_s: float | None = None
    address_bytes: int = 0
    processes: bool = False
    maps: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """What HumanEval-X needs to know of a language.

    Attributes:
        end: what ends a function, at which a completion stops.
        closer: what the stop took, and closes what is open.
        prelude: ahead of a solution.
        tests_prelude: ahead of the tests.
    """

    end: str
    closer: str
    prelude: str = ""
    tests_prelude: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """A language that the sandbox runs where its tools are: all that is to be known of it.

    No source is on a disk while a program runs. `kept` is what remains of the files that were
    written and compiled; `fed` the program reads from standard input, behind its key.

    Attributes:
        name: as programs name it.
        title: as people write it.
        aliases: other names of it, in small letters.
        tools: commands that must be there.
        version: arguments that make the first tool print its version.
        files: makes the files of a solution and its tests.
        compile: the steps ahead of the program.
        run: the program.
        kept: files that remain, by their paths before and behind: the latter in RUN.
        fed: makes texts of a solution and its tests that the program reads.
        fed_folder: one whose files the program reads, each its name and what it holds.
        refusal: what in a solution is not run at all; empty where nothing is.
        readable: more that may be read, as patterns of paths.
        splits: whether the guard runs solution and tests in two processes.
        resolve: finds what runs in place of a tool's program, by the paths of both.
        problem: why the tools that are there do not do; empty where they do.
        sample: a solution and its tests, which pass; with "3" for "2", the tests do not.
        suite: see `Suite`; None where no suite of problems has it.
    """

    name: str
    title: str
    aliases: tuple[str, ...] = ()
    tools: tuple[str, ...]
    version: tuple[str, ...]
    files: Callable[[str, str], dict[str, str]]
    run: Step
    compile: tuple[Step, ...] = ()
    kept: tuple[tuple[str, str], ...]
    fed: Callable[[str, str], tuple[str, ...]] = field(default=lambda _source, _tests: ())
    fed_folder: str = ""
    refusal: Callable[[str], str] = field(default=lambda _source: "")
    readable: tuple[str, ...] = ()
    splits: bool = False
    resolve: Callable[[str], str] = field(default=lambda path: path)
    problem: Callable[[], str] = field(default=lambda: "")
    sample: tuple[str, str]
    suite: Suite | None = None
