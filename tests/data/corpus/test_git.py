"""What git's files say, compared with git itself on random patterns and trees."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from codecria.data.corpus import git
from codecria.data.corpus.reasons import Reason
from codecria.data.corpus.walk import Entry, Skip, walk

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is the oracle")

ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    **{f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
}


def run(folder: Path, *arguments: str | bytes) -> bytes:
    return subprocess.run(
        ["git", "-C", folder, "-c", "protocol.file.allow=always", *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        check=True,
    ).stdout


def listed_by_git(folder: Path) -> set[bytes]:
    """The files that git tracks or would add."""
    found = run(folder, "ls-files", "--cached", "--others", "--exclude-standard", "-z").split(b"\0")
    return {path for path in found if path and (folder / os.fsdecode(path)).is_file()}


def listed(folder: Path) -> set[bytes]:
    """The files that the walk gives."""
    return {
        os.fsencode(entry.path.relative_to(folder))
        for entry in walk(folder, "s")
        if isinstance(entry, Entry)
    }


def plant(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


ATOMS = [
    *("*", "**", "***", "?", "/", "/", "/", "a", "b", "ab", "k.py", "*.py", "dir", "x y", "é"),
    *("[a-c]", "[!a]", "[^b]", "[[:alpha:]]", "[]x]", "[\\]]", "[a-", "[[:bad:]]", "[a\\-z]"),
    *("\\", "\\*", "\\ ", " ", "!", "#", "-"),
]
CUSTOMARY = [
    *("dir/**", "!dir/k.py", "*", "!*/", "!*.py", "/a", "a/", "dir/*", "!dir/a/", "a/**/b", "**/a"),
    *("**/b/", "/*", "!/dir", "*.py", "dir/a/*", "a\\ ", "a  ", "a**/b", "\\!n", "\\#h", "!a/b"),
]
PATTERNS = st.one_of(
    st.sampled_from(CUSTOMARY),
    st.tuples(
        st.sampled_from(["", "", "!", "/"]),
        st.lists(st.sampled_from(ATOMS), min_size=1, max_size=5).map("".join),
        st.sampled_from(["", "", "  ", "/"]),
    ).map("".join),
)
NAMES = st.sampled_from(["a", "b", "ab", "k.py", "dir", "x y", "é", "!n", "#h", "a ", "[x]"])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
RULES = st.dictionaries(
    st.sampled_from(["", "dir/", "a/", "a/b/"]), st.lists(PATTERNS, max_size=4), max_size=3
)


@settings(max_examples=80, deadline=None)
@given(
    paths=st.sets(PATHS, min_size=1, max_size=14),
    rules=RULES,
    exclude=st.lists(PATTERNS, max_size=2),
    tracked=st.sets(st.integers(0, 13), max_size=4),
    line_end=st.sampled_from(["\n", "\r\n"]),
)
@example({"dir/k.py", "dir/a"}, {"": ["dir/**", "!dir/k.py"]}, [], set(), "\n")
@example({"dir/a/k.py", "k.py", "b"}, {"": ["*", "!*/", "!*.py"]}, [], set(), "\n")
@example({"dir/a", "dir/b"}, {"": ["dir/"]}, [], {0}, "\n")
def test_the_files_read_are_those_that_git_lists(
    tmp_path_factory: pytest.TempPathFactory,
    paths: set[str],
    rules: dict[str, list[str]],
    exclude: list[str],
    tracked: set[int],
    line_end: str,
) -> None:
    folder = tmp_path_factory.mktemp("tree")
    run(folder, "init", "-q")
    there = []
    for path in sorted(paths):
        file = folder / path
        if not any(parent.is_file() for parent in file.parents) and not file.is_dir():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
            there.append(path)
    for below, patterns in rules.items():
        if (folder / below).is_dir():
            (folder / below / ".gitignore").write_bytes(line_end.join(patterns).encode())
    (folder / ".git/info/exclude").write_text("\n".join(exclude))
    forced = [f":(literal){path}" for i, path in enumerate(there) if i in tracked]
    if forced:
        run(folder, "add", "-f", "--", *forced)
    assert listed(folder) == listed_by_git(folder)


@settings(max_examples=40, deadline=None)
@given(
    paths=st.sets(PATHS, min_size=1, max_size=8),
    lines=st.lists(
        st.tuples(PATTERNS, st.sampled_from(["", "-", "!"]), st.sampled_from(["", "=true"])),
        max_size=5,
    ),
)
def test_attributes_are_those_that_git_reports(
    tmp_path_factory: pytest.TempPathFactory, paths: set[str], lines: list[tuple[str, str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("tree")
    run(folder, "init", "-q")
    name = "linguist-vendored"
    text = "".join(
        f"{pattern} {sign}{name}{'' if sign else value}\n"
        for pattern, sign, value in lines
        if not set(pattern) & set(' !#"')
    )
    (folder / ".gitattributes").write_text(text)
    scope = git.scope_of(folder)
    for path in sorted(paths):
        *above, last = path.split("/")
        inner = scope
        for part in above:
            inner = inner.below(part)
        value = run(folder, "check-attr", "-z", name, "--", path).split(b"\0")[2]
        assert (inner.mark(last) is Reason.VENDORED) == (value in (b"set", b"true")), path


@pytest.mark.parametrize("version", [2, 3, 4])
@pytest.mark.parametrize("form", ["sha1", "sha256"])
def test_every_version_of_the_index_gives_the_tracked_paths(
    tmp_path: Path, version: int, form: str
) -> None:
    run(tmp_path, "init", "-q", f"--object-format={form}")
    plant(tmp_path, {f"{'d' * (i % 7)}x/{'n' * i}.py": "x\n" for i in range(1, 40)})
    run(tmp_path, "add", ".")
    if version == 3:  # git writes it where an entry needs its longer flags
        plant(tmp_path, {"later.py": "x\n"})
        run(tmp_path, "add", "--intent-to-add", "later.py")
    else:
        run(tmp_path, "update-index", "--index-version", str(version))
    assert (tmp_path / ".git/index").read_bytes()[7] == version
    expected = {path for path in run(tmp_path, "ls-files", "-z").split(b"\0") if path}
    assert set(git.tracked_paths(tmp_path / ".git")) == expected


def test_a_split_index_and_a_linked_work_tree_are_read(tmp_path: Path) -> None:
    main, linked = tmp_path / "main", tmp_path / "linked"
    plant(main, {".gitignore": "*.log\n", "a.log": "x\n", "b.py": "x\n"})
    run(main, "init", "-q")
    run(main, "add", "-f", ".")
    run(main, "commit", "-q", "-m", "x")
    run(main, "update-index", "--split-index")
    plant(main, {"c.log": "x\n", "d.log": "x\n"})
    run(main, "add", "-f", "c.log")
    (main / ".git/info/exclude").write_text("own.py\n")
    run(main, "worktree", "add", "-q", str(linked))
    plant(linked, {"own.py": "x\n", "e.log": "x\n"})
    assert listed(main) == listed_by_git(main) == {b".gitignore", b"a.log", b"b.py", b"c.log"}
    assert listed(linked) == listed_by_git(linked) == {b".gitignore", b"a.log", b"b.py"}


def test_each_repository_inside_another_goes_by_its_own_rules(tmp_path: Path) -> None:
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    plant(inner, {"kept.log": "x\n", "gone.tmp": "x\n", ".gitignore": "*.tmp\n"})
    run(inner, "init", "-q")
    run(inner, "add", ".")
    run(inner, "commit", "-q", "-m", "x")
    plant(outer, {".gitignore": "*.log\nsub\nignored/\n", "out.log": "x\n", "a.py": "x\n"})
    run(outer, "init", "-q")
    run(outer, "submodule", "add", "-f", str(inner), "sub")  # tracked, so it is not ignored
    shutil.copytree(inner, outer / "cloned")
    shutil.copytree(inner, outer / "ignored")
    found = {path for path in listed(outer) if b".git" not in path}
    assert found == {b"a.py", b"sub/kept.log", b"cloned/kept.log"}


def test_a_folder_of_a_work_tree_goes_by_the_rules_above_it(tmp_path: Path) -> None:
    files = {
        ".gitignore": "*.log\n/lib/build/\n",
        "lib/a.py": "x\n",
        "lib/a.log": "x\n",
        "lib/build/b.py": "x\n",
        "lib/build/c.py": "x\n",
    }
    plant(tmp_path, files)
    run(tmp_path, "init", "-q")
    run(tmp_path, "add", "-f", "lib/build/b.py")
    assert listed(tmp_path / "lib") == listed_by_git(tmp_path / "lib") == {b"a.py", b"build/b.py"}
    assert listed(tmp_path / "lib/build") == {b"b.py"}
    run(tmp_path, "rm", "-q", "--cached", "lib/build/b.py")
    assert listed(tmp_path / "lib/build") == {b"b.py", b"c.py"}, "ignored whole: named, so wanted"


def test_a_folder_that_lies_in_no_work_tree_still_goes_by_its_gitignore(tmp_path: Path) -> None:
    files = {
        ".gitignore": "dir/**\n!dir/k.py\n\\#h\na\\ \n",
        **dict.fromkeys(["dir/k.py", "dir/other.py", "#h", "a ", "a"], "x\n"),
    }
    plant(tmp_path, files)
    assert listed(tmp_path) == {b".gitignore", b"dir/k.py", b"a"}
    ignored = {found.relative for found in walk(tmp_path, "s") if isinstance(found, Skip)}
    assert ignored == {"dir/other.py", "#h", "a "}


@pytest.mark.parametrize("damage", [b"", b"DIRC", b"DIRC\0\0\0\x02\0\0\xff\xff", b"\0" * 100])
def test_a_damaged_index_tracks_nothing_and_ends_no_run(tmp_path: Path, damage: bytes) -> None:
    plant(tmp_path, {".gitignore": "*.log\n", "a.log": "x\n", "a.py": "x\n"})
    run(tmp_path, "init", "-q")
    (tmp_path / ".git/index").write_bytes(damage)
    assert listed(tmp_path) == {b".gitignore", b"a.py"}
