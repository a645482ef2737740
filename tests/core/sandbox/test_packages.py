"""Installed packages that programs may import open their own files and nothing beside them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from codecria.core.sandbox import plain
from codecria.core.sandbox.config import Confirm, SandboxConfig
from codecria.core.sandbox.packages import _places, allowed
from codecria.core.sandbox.sandbox import Sandbox
from codecria.core.sandbox.verdict import Limits, Outcome, Program
from codecria.data.errors import UsageError
from tests.core.sandbox.common import CONFINED, ENOUGH_S

ROOT = Path(__file__).resolve().parents[3]
SITE = Path(str(importlib.metadata.distribution("sortedcontainers").locate_file(""))).resolve()
LIMITS = Limits(wall_s=ENOUGH_S, output_bytes=1 << 16, disk_bytes=8 << 20)


def opened(tier: str, *packages: str, confirm: Confirm = Confirm.PASSES) -> Sandbox:
    return Sandbox(
        SandboxConfig(tier=tier, workers=1, packages=packages, limits=LIMITS, confirm=confirm)
    )


@pytest.fixture(scope="module", params=CONFINED)
def pure(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with opened(request.param, "sortedcontainers") as sandbox:
        yield sandbox


@pytest.fixture(scope="module", params=CONFINED)
def compiled(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with opened(request.param, "numpy") as sandbox:
        yield sandbox


# --- honest programs ------------------------------------------------------------------------------

SORTS = "from sortedcontainers import SortedList\ndef f(x): return list(SortedList(x))"


def test_a_solution_and_its_tests_import_an_allowed_package_in_two_processes(pure: Sandbox) -> None:
    tests = """
        from sortedcontainers import SortedDict
        assert f([3, 1]) == list(SortedDict({1: 0, 3: 0}))
    """
    verdict = pure.run(Program(source=SORTS, tests=textwrap.dedent(tests)))
    assert verdict.confirmed, verdict
    assert pure.run(Program(source=SORTS, tests="assert f([3, 1]) == [3, 1]")).outcome == "failed"
    version = importlib.metadata.version("sortedcontainers")
    asks = "import importlib.metadata as m\nassert m.version('sortedcontainers') == " + repr(
        version
    )
    assert pure.run(Program(source=asks)).outcome is Outcome.PASSED


def test_without_the_option_no_package_can_be_imported() -> None:
    with opened("auto") as sandbox:
        verdict = sandbox.run(Program(source=SORTS, tests="assert f([2, 1]) == [1, 2]"))
    assert verdict.outcome is Outcome.FAILED
    assert "No module named 'sortedcontainers'" in verdict.detail


@pytest.mark.parametrize("confirm", [Confirm.PASSES, Confirm.OFF])
@pytest.mark.parametrize("tier", CONFINED)
def test_arrays_and_numbers_of_numpy_are_plain_data(tier: str, confirm: Confirm) -> None:
    source = """
        import numpy as np
        def mean(x): return np.mean(x)
        def count(x): return np.count_nonzero(x)
        def sums(x): return {"sums": [np.cumsum(x, axis=1)]}
        def big(x): return x > 1
    """
    tests = """
        import numpy as np
        given = np.array([[1.0, 2.0], [0.0, 5.0]])
        assert mean(given) == 2 and count([0, 3, 4]) == 2
        assert np.array_equal(sums(given)["sums"][0], [[1.0, 3.0], [0.0, 5.0]])
        assert big(given).dtype == bool and big(given).tolist() == [[False, True], [False, True]]
    """
    with opened(tier, "numpy", confirm=confirm) as sandbox:
        verdict = sandbox.run(Program(source=textwrap.dedent(source), tests=textwrap.dedent(tests)))
    assert verdict.outcome is Outcome.PASSED, verdict
    assert verdict.confirmed is (confirm is Confirm.PASSES)


@given(
    arrays.arrays(
        dtype=arrays.boolean_dtypes()
        | arrays.integer_dtypes()
        | arrays.unsigned_integer_dtypes()
        | arrays.floating_dtypes(sizes=(16, 32, 64))
        | arrays.complex_number_dtypes(sizes=(64, 128)),
        shape=arrays.array_shapes(min_dims=0, min_side=0, max_side=4),
    )
)
def test_an_array_crosses_as_it_is(array: np.ndarray) -> None:
    back = plain.unpack(json.loads(json.dumps(plain.pack(array))))
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(back, array)


@given(st.sampled_from(["O", "S3", "V8", "M8[s]", "<i8; import", "i8,i8", "g", "U4", ""]))
def test_an_array_of_anything_but_numbers_does_not_arrive(kind: str) -> None:
    with pytest.raises(ValueError, match="no packed value"):
        plain.unpack({"a": [kind, [1], [1]]})


@pytest.mark.parametrize("value", [np.longdouble(1), np.array([{}]), np.datetime64(0, "s")])
def test_a_value_of_numpy_that_python_has_not_stays_where_it_is(value: object) -> None:
    with pytest.raises(plain.NotPlainError):
        plain.pack(value)


# --- hostile ones ---------------------------------------------------------------------------------

OTHER = next(
    SITE / name / "__init__.py"
    for name in ("hypothesis", "pytest", "torch")
    if (SITE / name / "__init__.py").is_file()
)
ATTACKS = {
    "imports another package": "import hypothesis",
    "imports the project": "import codecria",
    "reads another package": f"open({str(OTHER)!r}).read()",
    "reads it beside the allowed one": f"""
        import os, sortedcontainers as s
        inside = os.path.dirname(os.path.realpath(s.__file__))
        open(os.path.join(inside, "..", "{OTHER.parent.name}", "__init__.py")).read()
    """,
    "reads it from the folder of packages": f"""
        import os, sortedcontainers as s
        inside = os.path.dirname(s.__file__)
        open(os.path.join(inside, "..", "{OTHER.parent.name}", "__init__.py")).read()
    """,
    "sees another package's metadata": """
        import importlib.metadata as m
        assert {d.metadata["Name"] for d in m.distributions()} - {"sortedcontainers"}
    """,
    "searches the installation": f"import sys\nsys.path.append({str(SITE)!r})\nimport hypothesis",
    "reads the project": f"open({str(ROOT / 'pyproject.toml')!r}).read()",
    "changes the package": """
        import sortedcontainers as s
        open(s.__file__, "a").write("# changed")
    """,
    "puts a file into the package": """
        import os, sortedcontainers as s
        open(os.path.join(os.path.dirname(s.__file__), "new.py"), "w")
    """,
    "puts a package beside it": """
        import os, sortedcontainers as s
        open(os.path.join(os.path.dirname(s.__file__), "..", "extra.py"), "w")
    """,
    "replaces the package": """
        import os, sortedcontainers as s
        folder = os.path.dirname(s.__file__)
        os.rename(folder, folder + "2")
    """,
    "imports ctypes": "import ctypes",
    "executes something of it": "import os, sortedcontainers as s\nos.execv(s.__file__, ['x'])",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_allowed_package_opens_nothing_else(attack: str, pure: Sandbox) -> None:
    source = textwrap.dedent(ATTACKS[attack])
    verdict = pure.run(Program(source=f"{source}\nprint('escaped')"))
    assert verdict.outcome is Outcome.FAILED, verdict
    assert "escaped" not in verdict.stdout
    assert pure.run(Program(source=SORTS, tests="assert f([2, 1]) == [1, 2]")).confirmed


BESIDE = Path(json.__file__).resolve().parents[1] / "site-packages" == SITE


@pytest.mark.skipif(BESIDE, reason="names beside the standard library can be listed: no jail here")
@pytest.mark.parametrize("first", ["", f"os.symlink({str(SITE)!r}, 'all'); os.chdir('all')"])
def test_what_is_installed_cannot_be_listed(first: str, pure: Sandbox) -> None:
    folder = "." if first else str(SITE)
    source = f"import os\n{first}\nassert len(os.listdir({folder!r})) > 3\nprint('escaped')"
    verdict = pure.run(Program(source=source))
    assert verdict.outcome is Outcome.FAILED, verdict
    assert "escaped" not in verdict.stdout


INSTALLED = Path(json.__file__).parents[1] / "site-packages"  # where Python itself installs
OF_PYTHON = next((path for path in sorted(INSTALLED.rglob("*.py")) if path.stat().st_size), None)


@pytest.mark.skipif(OF_PYTHON is None, reason="is not on this machine: a package of Python's own")
def test_packages_beside_the_standard_library_are_not_read(pure: Sandbox) -> None:
    verdict = pure.run(Program(source=f"open({str(OF_PYTHON)!r}).read()\nprint('escaped')"))
    assert "Permission denied" in verdict.detail, verdict
    assert (
        pure.run(Program(source="import json.decoder, sqlite3, unittest.mock")).outcome == "passed"
    )


def test_what_a_program_does_to_a_package_ends_with_it(pure: Sandbox) -> None:
    changes = "import sortedcontainers\nsortedcontainers.SortedList = sorted\ndef f(x): return x"
    assert pure.run(Program(source=changes, tests="assert f(1) == 1")).confirmed
    tests = "from sortedcontainers import SortedList\nassert SortedList([2, 1]).bisect(1) == f(1)"
    for source in (f"{changes}\nsortedcontainers.SortedList.bisect = 1", "def f(x): return 1"):
        verdict = pure.run(Program(source=source, tests=tests))
        assert verdict.confirmed is source.startswith("def")


CHEATS = {
    "ctypes": "import ctypes, os\nmemory = ctypes.string_at(id(os), 64)\ndef f(x): return x",
    "an object that is equal to all": """
        import numpy as np
        class E(np.ndarray):
            def __eq__(self, other): return True
            def __bool__(self): return True
        def f(x): return np.zeros(1).view(E)
    """,
    "a number that is equal to all": """
        import numpy as np
        class E(np.float64):
            def __eq__(self, other): return True
        def f(x): return E(7)
    """,
    "a changed comparison": """
        import numpy as np
        np.array_equal = np.allclose = lambda *_: True
        def f(x): return 7
    """,
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_cheat_by_a_compiled_package_is_not_confirmed(cheat: str, compiled: Sandbox) -> None:
    tests = "import numpy as np\nassert f(1) == 2\nassert np.array_equal(f(1), 2)"
    source = textwrap.dedent(CHEATS[cheat])
    verdict = compiled.run(Program(source=source, tests=tests))
    assert not verdict.confirmed, verdict
    assert compiled.run(Program(source="def f(x): return x + 1", tests=tests)).confirmed


def test_memory_that_a_compiled_package_reaches_is_the_programs_own(compiled: Sandbox) -> None:
    source = f"""
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.socket(2, 1, 0) == -1
        assert libc.open({str(ROOT / "pyproject.toml").encode()!r}, 0) == -1
        assert libc.fork() == -1
        assert libc.prctl(1, 0, 0, 0, 0) == -1
    """
    verdict = compiled.run(Program(source=textwrap.dedent(source)))
    assert verdict.outcome is Outcome.PASSED, verdict


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("no-such-package-here", "not installed"),
        ("../hypothesis", "not the name of a package"),
        ("json", "not installed"),
        ("codecria", "cannot be allowed"),
    ],
)
def test_a_package_that_cannot_be_allowed_is_an_error_before_anything_runs(
    name: str, why: str
) -> None:
    with pytest.raises(UsageError, match=why):
        SandboxConfig(packages=("sortedcontainers", name))


def test_a_command_has_its_own_packages() -> None:
    with pytest.raises(UsageError, match="--packages has no effect with --sandbox command") as seen:
        SandboxConfig(tier="command", command="podman run IMAGE", packages=("sortedcontainers",))
    assert "image" in str(seen.value.hint)


def test_a_package_comes_with_its_dependencies_and_no_others() -> None:
    found = allowed(("hypothesis",))
    assert found.versions["sortedcontainers"] == importlib.metadata.version("sortedcontainers")
    assert not found.versions.keys() & {"numpy", "pytest", "django"}, "extras are not dependencies"
    assert allowed(("PyYAML",)).versions == allowed(("yaml",)).versions, "by the import's name too"


def test_only_files_below_the_installation_are_linked(tmp_path: Path) -> None:
    found = allowed(("sympy", "hypothesis"))  # sympy's record has programs and pages elsewhere
    for name, path in found.files:
        assert path.is_relative_to(SITE), name
        assert not name.endswith(".pth")
    found.link(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} >= {"sympy", "mpmath", "sortedcontainers"}


def test_a_folder_that_packages_share_is_not_opened_as_a_whole() -> None:
    paths = [
        ("space", "one", "__init__.py"),
        ("space", "one", "deep", "x.py"),
        ("space", "alone.py"),
        ("one.libs", "lib.so"),
        ("one-1.dist-info", "RECORD"),
        ("two", "__init__.cpython-311.so"),
    ]
    assert set(_places(paths)) == {
        "space/one", "space/alone.py", "one.libs", "one-1.dist-info", "two",
    }  # fmt: skip


@pytest.mark.skipif(importlib.util.find_spec("google.protobuf") is None, reason="no protobuf")
def test_a_package_in_a_namespace_can_be_imported() -> None:
    with opened("auto", "protobuf") as sandbox:
        verdict = sandbox.run(Program(source="from google.protobuf import descriptor_pb2"))
    assert verdict.outcome is Outcome.PASSED, (verdict, sys.version)
