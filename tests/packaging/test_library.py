# SPDX-License-Identifier: Apache-2.0
"""The compiled library of this environment: what it links to, what it says, what it can run."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch
from packaging_tools import COMPARE, assert_stable_abi

from stc_kernels import __version__, _native, _schemas, available_backends, build_info
from stc_kernels._dispatch import BackendUnavailableError, choose

#: operators that torch's own kernels do well on a CPU
ON_GPUS_ONLY = ["add_layer_norm", "bias_gelu", "scatter_key_value", "sparse_query_attention"]
REASON = "from stc_kernels import _native; print(_native.load())"


def run_with(capability: str, code: str = COMPARE) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "STC_KERNELS_CPU_CAPABILITY": capability}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_it_needs_only_the_stable_abi(library):
    assert_stable_abi(library)


def test_build_info_has_the_facts(library):
    info = build_info()
    assert info["native"] is True
    assert info["version"] == __version__
    assert info["torch_target"] == "2.10"
    assert (info["cuda_archs"] is None) == (info["cuda_version"] is None)
    assert info["namespace"] == "stc_kernels"
    assert info["cpu_capability"] in info["cpu_capabilities"]
    for name in ("compiler", "torch_built_against", "build_mode", "build_reason"):
        assert info[name], name


@pytest.mark.parametrize("capability", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_gives_the_reference_answer(library, capability):
    if capability not in build_info()["cpu_capabilities"]:
        pytest.skip(f"not compiled for {capability}")
    reason = run_with(capability, REASON).stdout
    if "run on this processor" in reason:
        pytest.skip(reason.strip())
    done = run_with(capability)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [capability]


@pytest.mark.parametrize("device", ["CPU", "CUDA"])
def test_every_operator_has_a_kernel(library, device):
    if device == "CUDA" and build_info()["cuda_archs"] is None:
        pytest.skip("the library was built without CUDA kernels")
    names = [f"stc_kernels::{_schemas.native_name(op)}" for op in _schemas.OPS]
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    missing = [name for name in names if not has_kernel(name, device)]
    expected = ON_GPUS_ONLY if device == "CPU" else []
    assert sorted(missing) == [f"stc_kernels::{op}_native" for op in expected]


def test_a_cuda_kernel_refuses_a_tensor_of_the_cpu(library):
    if build_info()["cuda_archs"] is None:
        pytest.skip("the library was built without CUDA kernels")
    x = torch.zeros(1, 2, 8)
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    with pytest.raises(RuntimeError, match=r"`token_cosine`.*a tensor that is not on a GPU"):
        torch.ops.stc_kernels.token_cosine_native.default.redispatch(cuda, x, x)


def test_why_the_library_cannot_run_on_a_gpu(library):
    assert _native.why_not_on("cpu") is None
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    backends = available_backends("token_cosine", "cuda")
    reason = backends.unavailable["native"]
    if build_info()["cuda_archs"] is None:
        assert reason.startswith("the compiled library was built without CUDA kernels (")
    else:
        assert "no CUDA support" in reason or "no GPU" in reason
    with pytest.raises(BackendUnavailableError, match=re.escape(reason)):
        choose("token_cosine", "cuda", "native")


def test_an_unknown_instruction_set_is_a_reason_not_to_load(library):
    reason = run_with("sse9", REASON).stdout
    assert "STC_KERNELS_CPU_CAPABILITY must be one of baseline" in reason
    assert "got sse9" in reason


def test_a_library_of_another_python_is_named(monkeypatch, tmp_path):
    (tmp_path / "_C.cpython-399-x86_64-linux-gnu.so").touch()
    monkeypatch.setattr(_native, "_HERE", tmp_path)
    assert "another Python (_C.cpython-399" in _native._why_missing()


def test_a_pure_build_tells_why(monkeypatch, tmp_path):
    config = tmp_path / "_build_config.json"
    monkeypatch.setattr(_native, "_HERE", tmp_path)
    monkeypatch.setattr(_native, "_BUILD_CONFIG", config)
    assert "no build has run" in _native._why_missing()
    config.write_text('{"mode": "auto", "native": false, "reason": "no C++ compiler was found"}')
    assert _native._why_missing().endswith("not built: no C++ compiler was found")


def test_a_missing_symbol_means_an_old_torch():
    error = ImportError("_C.so: undefined symbol: torch_library_impl")
    assert "needs torch 2.10 or newer" in _native._why_broken(error)
