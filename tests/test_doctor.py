"""What doctor says of a machine is there, in range, and said in bounded time."""

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from codecria.cli import app as cli
from codecria.core import machine

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    machine.matmul_flops.cache_clear()
    machine.memory_bandwidth.cache_clear()
    start = time.process_time()
    found = machine.survey(Path.cwd())
    # Of all threads together: unlike the clock on the wall, others' work does not count.
    spent = time.process_time() - start
    cores = len(os.sched_getaffinity(0))
    assert spent < 5 * cores, f"the survey took {spent:.1f} s of {cores} cores"
    return found


def test_the_survey_is_json(told: dict[str, Any]) -> None:
    assert json.loads(json.dumps(told)) == told
    assert set(told) == {
        "versions", "device", "instructions", "cores", "threads", "memory_gb", "free_disk_gb",
        "attention", "compiler", "float32_gflops", "bfloat16_gflops", "training_dtype",
        "memory_bandwidth_gb_s", "advice",
    }  # fmt: skip


def test_what_was_measured_is_possible(told: dict[str, Any]) -> None:
    assert 0.1 < told["float32_gflops"] < 1e7
    assert 0.001 < told["bfloat16_gflops"] < 1e7
    assert 0.1 < told["memory_bandwidth_gb_s"] < 1e5
    assert 0 < told["memory_gb"] < 1e5
    assert 0 <= told["free_disk_gb"] < 1e7
    assert told["threads"] >= 1
    assert told["cores"] >= 1


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
    from codecria.core.attention import choose_backend

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
    (line,) = [line for line in machine.advice(CPU) if "compiler" in line]
    assert "eagerly" in line


def test_a_compiler_that_is_named_is_the_one_that_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    assert not machine.compiler_available()
    script = tmp_path / "compiler"
    script.write_text("")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    assert machine.compiler_available()


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
        assert set(json.loads(out)) == set(told)
    else:
        assert told["versions"]["torch"] in out
        assert "GFLOP/s" in out
        assert err.splitlines() == told["advice"]
