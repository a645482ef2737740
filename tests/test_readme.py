"""The README's map names things that exist."""

import importlib
import re
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    "document", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name
)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text(encoding="utf-8"))
    missing = [target for target in targets if not (document.parent / target).exists()]
    assert not missing
