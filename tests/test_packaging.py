"""The wheel holds the three folders and the completions, whole, and nothing else."""

import importlib.metadata
import itertools
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("cli", "core", "data")
COMPLETIONS = {
    "share/bash-completion/completions/codecria.bash": "completions/codecria.bash",
    "share/zsh/site-functions/_codecria": "completions/_codecria",
    "share/fish/vendor_completions.d/codecria.fish": "completions/codecria.fish",
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def shipped() -> set[str]:
    """The files of the three folders that belong into a wheel, relative to the tree."""
    return {
        str(path.relative_to(ROOT))
        for part in PARTS
        for path in (ROOT / part).rglob("*")
        if (
            path.suffix in (".py", ".json")
            or path.name == "py.typed"
            or (path.suffix == ".txt" and path.parent.name == "templates")
        )
        and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel built from a copy, so that nothing is left in the tree and nothing stale is in it."""
    copy = tmp_path_factory.mktemp("tree")
    names = [*PARTS, "completions", "pyproject.toml", "README.md", "LICENSE"]
    for name in names:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", ".tmp-*")
            shutil.copytree(ROOT / name, copy / name, ignore=ignored)
        else:
            shutil.copyfile(ROOT / name, copy / name)
    told = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "out"],
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    (built,) = (copy / "out").glob("*.whl")
    return zipfile.ZipFile(built)


def test_the_wheel_holds_exactly_the_three_folders_and_the_completions(
    wheel: zipfile.ZipFile,
) -> None:
    name = f"codecria-{PROJECT['project']['version']}"
    wanted = {f"codecria/{path}" for path in shipped()}
    wanted |= {f"{name}.data/data/{path}" for path in COMPLETIONS}
    found = {path for path in wheel.namelist() if not path.startswith(f"{name}.dist-info/")}
    assert found == wanted
    assert any(path.startswith(f"{name}.dist-info/licenses/LICENSE") for path in wheel.namelist())


def test_the_files_in_the_wheel_are_those_of_the_tree(wheel: zipfile.ZipFile) -> None:
    pairs = {f"codecria/{path}": path for path in shipped()}
    prefix = f"codecria-{PROJECT['project']['version']}.data/data/"
    pairs |= {prefix + inside: outside for inside, outside in COMPLETIONS.items()}
    differing = [
        outside
        for inside, outside in pairs.items()
        if wheel.read(inside) != (ROOT / outside).read_bytes()
    ]
    assert not differing


def test_an_installed_wheel_adds_one_name_to_python(wheel: zipfile.ZipFile) -> None:
    tops = {path.split("/")[0] for path in wheel.namelist()}
    assert {top for top in tops if not top.startswith("codecria-")} == {"codecria"}


def test_the_command_line_answers_from_the_unpacked_wheel(
    wheel: zipfile.ZipFile, tmp_path: Path
) -> None:
    wheel.extractall(tmp_path)
    program = (
        "import sys; sys.path.insert(0, '.'); import codecria.cli.app as app;"
        " assert app.__file__.startswith(sys.argv.pop(1)), app.__file__; app.main()"
    )
    told = subprocess.run(
        [sys.executable, "-S", "-c", f"import site; {program}", str(tmp_path), "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        # Without site's hooks the editable install does not answer instead.
        env={"PYTHONPATH": next(p for p in sys.path if p.endswith("site-packages"))},
    )
    assert told.returncode == 0, told.stderr
    assert "Usage: codecria" in told.stdout


def test_every_folder_of_modules_is_a_package_of_the_project() -> None:
    folders = {
        path.parent.relative_to(ROOT) for part in PARTS for path in (ROOT / part).rglob("*.py")
    }
    dotted = {".".join(["codecria", *folder.parts]) for folder in folders}
    assert dotted == set(PROJECT["tool"]["setuptools"]["packages"])


def test_the_version_is_the_installed_one() -> None:
    assert importlib.metadata.version("codecria") == PROJECT["project"]["version"]


def test_constraints_pin_what_the_project_asks_for() -> None:
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
        if "==" in line
    )
    project = PROJECT["project"]
    asked = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    from packaging.requirements import Requirement

    unmet = [
        str(requirement)
        for requirement in map(Requirement, asked)
        if requirement.name not in pins or pins[requirement.name] not in requirement.specifier
    ]
    assert not unmet
