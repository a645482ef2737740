"""A git history: its commits, the files at each, and the lines that each added.

Objects lie in packs, so this runs the `git` program, with plumbing commands alone and without the
user's settings: no hook, filter, pager or external diff is started, nothing is written, and no
object is fetched. (What a work tree holds is read without git: git.py.)
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from codecria.data.errors import UsageError, UserError

from .git import root_of

_HUNK = re.compile(rb"@@ -\S+ \+(\d+)(?:,(\d+))? @@")
_QUIET = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_NO_LAZY_FETCH": "1",  # a partial clone stays as it is
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C",
}


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit on the main line of a history.

    Attributes:
        id: its hash.
        parent: the first parent's; "" of the first commit.
        time: when it was committed, seconds since 1970.
        subject: the first line of its message.
    """

    id: str
    parent: str
    time: int
    subject: str

    @property
    def date(self) -> str:
        """The day it was committed, in UTC."""
        return datetime.fromtimestamp(self.time, tz=UTC).date().isoformat()


@dataclass(frozen=True, slots=True)
class Added:
    """The lines that a commit added to a file.

    Attributes:
        path: of the file.
        blob: hash of its content after the commit.
        lines: numbers of the added lines, from 1, as [first, last] stretches.
    """

    path: str
    blob: str
    lines: tuple[tuple[int, int], ...]


class History:
    """The history of a repository; make one with `History.open`, and use it in a `with` block."""

    def __init__(self, root: Path, program: str) -> None:
        self.root = root
        self._program = program
        self._reader: subprocess.Popen[bytes] | None = None

    @classmethod
    def open(cls, path: Path) -> History:
        """The history of the repository that a folder lies in.

        Raises:
            UserError: it lies in none, or there is no git.
        """
        program = shutil.which("git")
        if program is None:
            raise UserError("there is no git program", hint="install git to read a history")
        root = root_of(path) if path.is_dir() else None
        if root is None:
            bare = (path / "HEAD").is_file() and (path / "objects").is_dir()
            if not bare:
                raise UserError(f"{path} is no git repository", hint="name the folder of a clone")
            root = path
        return cls(root, program)

    def __enter__(self) -> History:
        return self

    def __exit__(self, *_: object) -> None:
        if self._reader is not None:
            assert self._reader.stdin is not None, "opened with pipes"
            self._reader.stdin.close()
            self._reader.wait(timeout=10)
            self._reader = None

    def commits(self, tip: str = "HEAD") -> list[Commit]:
        """The main line of the history, oldest first: every commit's first parent is before it.

        Raises:
            UserError: there is no such commit.
        """
        form = "--format=%H%x09%P%x09%ct%x09%s"
        lines = self._run(
            "log", "--first-parent", "--reverse", "--no-show-signature", form, tip, "--"
        )
        found = []
        for line in lines.decode("utf-8", "replace").splitlines():
            commit, parents, time, subject = line.split("\t", 3)
            found.append(Commit(commit, parents.split(" ")[0], int(time), subject))
        return found

    def files(self, commit: str) -> dict[str, str]:
        """The hash of every regular file of a commit, by its path."""
        found = {}
        for entry in self._run("ls-tree", "-r", "-z", "--full-tree", commit).split(b"\0"):
            head, _, path = entry.partition(b"\t")
            fields = head.split()
            if len(fields) == 3 and fields[0] in (b"100644", b"100755"):
                found[os.fsdecode(path)] = fields[2].decode()
        return found

    def added(self, commit: Commit) -> list[Added]:
        """The lines that a commit added to each regular file, beside its first parent."""
        files = self.files(commit.id)
        sides = [commit.parent, commit.id] if commit.parent else ["--root", commit.id]
        patch = self._run(
            *("diff-tree", "-r", "-p", "-U0", "--no-commit-id", "--no-ext-diff", "--no-textconv"),
            *(
                "--no-color",
                "--no-renames",
                "--diff-filter=AM",
                "--src-prefix=a/",
                "--dst-prefix=b/",
            ),
            *sides,
        )
        found: list[Added] = []
        path, stretches = "", list[tuple[int, int]]()
        inside = False  # a hunk's own lines may look like heads

        def close() -> None:
            if path in files and stretches:
                found.append(Added(path, files[path], tuple(stretches)))

        for line in patch.split(b"\n"):
            if line.startswith(b"diff --git "):
                close()
                path, stretches, inside = "", [], False
            elif not inside and line.startswith(b"+++ b/"):
                path = os.fsdecode(line[6:].rstrip(b"\t"))  # a tab ends a name with spaces
            elif (hunk := _HUNK.match(line)) is not None:
                inside = True
                first, count = int(hunk[1]), int(hunk[2] or 1)
                if count:
                    stretches.append((first, first + count - 1))
        close()
        return found

    def content(self, blob: str) -> bytes:
        """A file's content.

        Raises:
            UserError: the repository lacks it, as a partial clone may.
        """
        if self._reader is None:
            self._reader = subprocess.Popen(
                self._command("cat-file", "--batch"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | _QUIET,
            )
        reader = self._reader
        assert reader.stdin is not None, "opened with pipes"
        assert reader.stdout is not None, "opened with pipes"
        try:
            reader.stdin.write(blob.encode() + b"\n")
            reader.stdin.flush()
            head = reader.stdout.readline().split()
            if len(head) != 3 or head[1] != b"blob":
                raise UserError(f"{self.root} lacks the object {blob}", hint="make a full clone")
            content = reader.stdout.read(int(head[2]))
            reader.stdout.read(1)
        except OSError as error:
            raise UserError(f"git stopped while {self.root} was read: {error}") from error
        return content

    def _command(self, *words: str) -> list[str]:
        settings = ("core.fsmonitor=false", "core.quotePath=false", "safe.directory=*")
        given = [word for setting in settings for word in ("-c", setting)]
        return [self._program, "-C", str(self.root), "--no-pager", *given, *words]

    def _run(self, *words: str) -> bytes:
        done = subprocess.run(
            self._command(*words), capture_output=True, env=os.environ | _QUIET, check=False
        )
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            raise UserError(
                f"git cannot read {self.root}: {said[-1] if said else done.returncode}",
                hint="it needs a repository with at least one commit",
            )
        return done.stdout


@dataclass(frozen=True, slots=True)
class Split:
    """A history cut in two.

    Attributes:
        base: the last commit that may be trained on.
        later: those after it, oldest first.
        commits: how many there are in all.
    """

    base: Commit
    later: tuple[Commit, ...]
    commits: int


def split(commits: list[Commit], *, since: str | None = None, share: float | None = None) -> Split:
    """Cut a history in two by time.

    Args:
        commits: oldest first.
        since: the first day of the later part, or the hash of its first commit.
        share: of the commits that are the later part, where `since` is not given.

    Raises:
        UsageError: a value makes no sense.
        UserError: one part would be empty.
    """
    if since is not None:
        place = _place_of(commits, since)
    else:
        share = DEFAULT_SHARE if share is None else share
        if not 0 < share < 1:
            raise UsageError(f"a split of {share:g} is not between 0 and 1", hint="use 0.1")
        place = len(commits) - max(1, round(share * len(commits)))
    if len(commits) < 2:
        raise UserError(
            f"the history has {len(commits)} commit: it takes two to cut it",
            hint="a shallow clone lacks the others: git fetch --unshallow",
        )
    if not 0 < place < len(commits):
        side, hint = (
            ("before", "choose an earlier --since")
            if place
            else ("after", "choose a later --since, or a smaller --split")
        )
        raise UserError(
            f"all {len(commits)} commits are {side} the cut: both parts need some", hint=hint
        )
    return Split(commits[place - 1], tuple(commits[place:]), len(commits))


DEFAULT_SHARE = 0.2  # ours: enough spans for an interval, most of the code to learn from


def _place_of(commits: list[Commit], since: str) -> int:
    """How many commits are before a day or a hash.

    Raises:
        UsageError: it is neither.
    """
    named = [n for n, commit in enumerate(commits) if commit.id.startswith(since.lower())]
    if len(since) >= 7 and len(named) == 1:
        return named[0]
    try:
        first = datetime.fromisoformat(since)
    except ValueError:
        raise UsageError(
            f"--since {since!r} is neither a day nor a commit of the main line",
            hint="for example --since 2026-05-01",
        ) from None
    if first.tzinfo is None:
        first = first.replace(tzinfo=UTC)
    # Clocks may differ: the history is cut once, after the last commit before that day.
    earlier = [n for n, commit in enumerate(commits) if commit.time < first.timestamp()]
    return earlier[-1] + 1 if earlier else 0
