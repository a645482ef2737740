"""The README's map names things that exist."""

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from codecria.cli.app import app

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

STOPS = re.findall(r"^\| `((?:cli|core|data)/[\w/]+\.py): ([\w.]+)` \|", README, re.MULTILINE)


def test_the_trace_is_there() -> None:
    assert len(STOPS) >= 10


@pytest.mark.parametrize(("path", "name"), STOPS, ids=lambda part: part)
def test_every_stop_of_the_trace_exists(path: str, name: str) -> None:
    assert (ROOT / path).is_file()
    found: object = importlib.import_module(f"codecria.{path[:-3].replace('/', '.')}")
    for part in name.split("."):
        found = getattr(found, part)


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text(encoding="utf-8"))
    missing = [target for target in targets if not (document.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_files_of_this_repository_that_a_document_names_exist(document: Path) -> None:
    named = (
        r"`((?:cli|core|tests|examples|completions|docs|data/(?:corpus|rows|formats))/[\w./-]+)`"
    )
    names = re.findall(named, document.read_text(encoding="utf-8"))
    assert [name for name in names if not (ROOT / name).exists()] == []


def commands_of(text: str) -> Iterator[list[str]]:
    """The words behind `codecria` in the lines of a document's code blocks."""
    for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if found := re.match(r"(?:\$ |\S+=\S+ )*codecria (.*)", line.strip()):
                yield shlex.split(found[1].replace("...", "").split(" | ")[0], comments=True)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_commands_of_the_documents_name_verbs_and_options_that_exist(document: Path) -> None:
    for words in commands_of(document.read_text(encoding="utf-8")):
        verb: Any = typer.main.get_command(app)
        known = {option for parameter in verb.params for option in parameter.opts}
        for word in words:
            if word in getattr(verb, "commands", {}):
                verb = verb.commands[word]
                for parameter in verb.params:
                    known |= {*parameter.opts, *parameter.secondary_opts}
        options = {w.partition("=")[0] for w in words if re.match(r"--?[A-Za-z]", w)}
        assert verb.name != app.info.name or options, f"no verb in {words}"
        assert options <= known, f"{sorted(options - known)} in {words}"
