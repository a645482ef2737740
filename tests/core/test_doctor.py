"""What doctor says of a machine is there, in range, and said in bounded time."""

import json
import os
import sys
import sysconfig
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from codecria.cli import app as cli
from codecria.core import doctor, machine

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    machine.matmul_flops.cache_clear()
    machine.memory_bandwidth.cache_clear()
    start = time.process_time()
    found = doctor.survey(Path.cwd())
    # Of all threads together: unlike the clock on the wall, others' work does not count.
    spent = time.process_time() - start
    cores = len(os.sched_getaffinity(0))
    assert spent < 5 * cores, f"the survey took {spent:.1f} s of {cores} cores"
    return found


def test_the_survey_is_json(told: dict[str, Any]) -> None:
    assert json.loads(json.dumps(told)) == told
    assert set(told) == {
        "versions", "device", "device_memory_gb", "instructions", "cores", "threads", "memory_gb",
        "free_disk_gb", "engine", "attention", "sandbox", "packed_cache", "prefix_cache",
        "compiler",
        "float32_gflops", "bfloat16_gflops", "training_dtype", "memory_bandwidth_gb_s", "advice",
    }  # fmt: skip


def test_what_was_measured_is_possible(told: dict[str, Any]) -> None:
    assert 0.1 < told["float32_gflops"] < 1e7
    assert 0.001 < told["bfloat16_gflops"] < 1e7
    assert 0.1 < told["memory_bandwidth_gb_s"] < 1e5
    assert 0 < told["memory_gb"] < 1e5
    assert 0 <= told["free_disk_gb"] < 1e7
    assert told["threads"] >= 1
    assert told["cores"] >= 1


def test_the_native_engine_is_reported_with_its_level_or_its_problem(told: dict[str, Any]) -> None:
    engine = told["engine"]
    assert (engine["level"] is None) == bool(engine["problem"])
    assert engine["threads"] >= 1


def test_the_training_type_follows_from_the_measurements(told: dict[str, Any]) -> None:
    faster = told["bfloat16_gflops"] > 1.2 * told["float32_gflops"]
    assert told["training_dtype"] == ("bfloat16" if faster else "float32")


def test_versions_are_the_installed_ones_and_absent_packages_are_named(
    told: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert told["versions"]["torch"] == version("torch")
    assert told["versions"]["codecria"] == version("codecria")
    monkeypatch.setattr(machine, "PACKAGES", ("no-such-package",))
    assert machine.versions()["no-such-package"] is None


def test_the_backend_named_is_the_one_that_attention_takes(told: dict[str, Any]) -> None:
    from codecria.core.model.attention import choose_backend

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert told["attention"]["backend"] == choose_backend(device)[0]
    assert told["attention"]["why"]


def test_the_number_of_threads_is_as_before_a_probe() -> None:
    before = torch.get_num_threads()
    machine.matmul_flops.cache_clear()
    machine.matmul_flops(torch.float32, CPU)
    assert torch.get_num_threads() == before


def test_results_of_probes_are_kept_for_the_process() -> None:
    first = machine.matmul_flops(torch.float32, CPU)
    start = time.process_time()
    assert machine.matmul_flops(torch.float32, CPU) == first
    assert time.process_time() - start < 0.05


def test_without_a_compiler_one_line_says_what_that_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert not machine.compiler_available()
    (line,) = [line for line in doctor.advice(CPU) if "compiler" in line]
    assert "without torch.compile" in line


@pytest.fixture
def only_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """Make a program of a given name the only one on PATH, beside Python's headers."""

    def make(name: str) -> Path:
        program = tmp_path / "bin" / name
        program.parent.mkdir()
        program.write_text("")
        program.chmod(0o755)
        headers = tmp_path / "include"
        headers.mkdir()
        (headers / "Python.h").write_text("")
        monkeypatch.setenv("PATH", str(program.parent))
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setattr(sysconfig, "get_path", lambda _: str(headers))
        return program

    return make


def test_the_compiler_that_counts_is_the_one_pytorch_calls(
    only_compiler: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config

    usual = config.cpp.cxx[1] if "CXX" not in os.environ else "g++"
    other = only_compiler("some-compiler")
    assert usual in machine.compiler_problem()
    monkeypatch.setenv("CXX", str(other))
    assert machine.compiler_available()
    other.rename(other.with_name(usual))
    assert not machine.compiler_available(), "PyTorch would call the one that CXX names"
    monkeypatch.delenv("CXX")
    assert machine.compiler_available()


def test_a_compiler_without_the_headers_of_python_does_not_count(
    only_compiler: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(only_compiler("some-compiler")))
    assert machine.compiler_available()
    (tmp_path / "include" / "Python.h").unlink()
    assert not machine.compiler_available()
    assert "headers" in machine.compiler_problem()


def test_instructions_name_what_makes_bfloat16_fast() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("there is no list of the processor's flags")
    flags = set(cpuinfo.read_text(encoding="utf-8").split())
    named = machine.instructions().split()
    assert ("AVX512_BF16" in named) == ("avx512_bf16" in flags)
    assert ("AMX" in named) == ("amx_tile" in flags)


@pytest.mark.parametrize("arguments", [[], ["--json"]], ids=["table", "json"])
def test_the_verb_puts_the_facts_on_stdout(
    arguments: list[str],
    told: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["codecria", "doctor", *arguments])
    assert cli.run() == 0
    out, err = capfd.readouterr()
    if arguments:
        assert set(json.loads(out)) == {*told, "config_files"}
    else:
        assert told["versions"]["torch"] in out
        assert "GFLOP/s" in out
        assert err.splitlines() == told["advice"]
