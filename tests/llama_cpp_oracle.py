"""llama.cpp through llama-cpp-python, as an oracle: a model of a file, and files it quantises."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest

# enum llama_ftype in llama.h.
FILE_TYPES = {
    "Q4_0": 2,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q2_K": 10,
    "Q3_K_M": 12,
    "Q4_K_S": 14,
    "Q4_K_M": 15,
    "Q5_K_M": 17,
    "Q6_K": 18,
}
FILE_TYPES |= {"Q6_K": 18, "Q4_1": 3, "Q5_1": 9, "IQ4_NL": 25, "IQ4_XS": 30}


def loaded(path: Path, **options: Any) -> Any:
    """A model on one thread. Without repacked weights: on CPUs with AMX they crash in 0.3.36."""
    llama_cpp = pytest.importorskip("llama_cpp")
    defaults = llama_cpp.llama_model_default_params

    def plain() -> Any:
        params = defaults()
        params.use_extra_bufts = False
        return params

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama_cpp.llama_cpp, "llama_model_default_params", plain)
        return llama_cpp.Llama(
            str(path), **{"n_ctx": 256, "verbose": False, "n_threads": 1} | options
        )


def quantised(source: Path, out: Path, kind: str) -> Path:
    """`out`, which llama.cpp quantises from a float file."""
    llama_cpp = pytest.importorskip("llama_cpp")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = FILE_TYPES[kind], 1
    status = llama_cpp.llama_model_quantize(
        str(source).encode(), str(out).encode(), ctypes.byref(params)
    )
    assert status == 0, f"llama.cpp cannot quantise to {kind}"
    return out
