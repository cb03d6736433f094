# SPDX-License-Identifier: Apache-2.0
"""The Triton backend around its kernels: reasons, launch parameters, warm-up, compilation."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import stc_kernels
from stc_kernels import _examples, _triton, _tuning, tune

pytest.importorskip("triton")

from stc_kernels._triton._candidates import CANDIDATES, TUNED_KERNELS
from stc_kernels._triton._launch import record

ROOT = Path(__file__).resolve().parents[2]


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([environment.pop("first_on_path", ""), str(ROOT), *sys.path])
    inherited = {k: v for k, v in os.environ.items() if k != "STC_KERNELS_BACKEND"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**inherited, "PYTHONPATH": path, **environment},
    )


def test_every_operator_has_a_kernel():
    assert set(_triton.OPS) == set(stc_kernels.OPS) == set(TUNED_KERNELS)


def test_every_operator_lists_triton_where_the_interpreter_runs():
    code = """
import stc_kernels
for op in stc_kernels.OPS:
    assert "triton" in stc_kernels.available_backends(op), op
"""
    assert run(code, TRITON_INTERPRET="1").returncode == 0


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        (None, "the package `triton` is not installed (pip install"),
        ("3.5.1", "Triton 3.5.1 is too old (3.6 is the oldest"),
    ],
)
def test_a_missing_or_old_triton_is_a_reason_and_the_others_run(tmp_path, version, reason):
    hidden = "import sys; sys.modules['triton'] = None\n"
    if version is not None:
        hidden = ""
        (tmp_path / "triton").mkdir()
        (tmp_path / "triton" / "__init__.py").write_text(f"__version__ = {version!r}\n")
    code = f"""
{hidden}
import torch, stc_kernels
x = torch.ones(1, 3, 4)
stc_kernels.select_changed(x, x, 1)
print(stc_kernels.available_backends("select_changed").unavailable["triton"])
"""
    done = run(code, TRITON_INTERPRET="1", first_on_path=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert reason in done.stdout


def test_the_heuristic_has_parameters_from_the_candidates_for_every_kernel():
    heuristic = _tuning.read_config(_tuning.HEURISTIC)
    assert set(heuristic) == set(CANDIDATES)
    for kernel, entries in heuristic.items():
        for entry in entries:
            wide_head = entry["shape"].get("width", 0) > 128
            assert wide_head or entry["parameters"] in CANDIDATES[kernel], (kernel, entry)


def test_the_nearest_shape_is_taken(tmp_path, monkeypatch):
    entries = [
        {"shape": {"rows": rows, "channels": channels}, "parameters": {"BLOCK": rows + channels}}
        for rows in (100, 10_000)
        for channels in (64, 1024)
    ]
    path = tmp_path / "heuristic.json"
    path.write_text(json.dumps({"kernels": {"some": entries}}))
    monkeypatch.setattr(_tuning, "HEURISTIC", path)
    monkeypatch.setattr(_tuning, "read_config", _tuning.read_config.__wrapped__)
    find = _tuning._nearest.__wrapped__
    assert find("some", None, (("rows", 300), ("channels", 100)))["BLOCK"] == 164
    assert find("some", None, (("rows", 5000), ("channels", 999)))["BLOCK"] == 11_024
    assert find("some", None, (("rows", 0), ("channels", 1)))["BLOCK"] == 164


def test_a_device_without_a_file_is_told_of_once_and_runs_on_the_heuristic(tmp_path, monkeypatch):
    monkeypatch.setattr(_tuning, "CONFIGS", tmp_path)
    sizes = (("tokens", 729),)
    with pytest.warns(stc_kernels.TuningWarning, match="Model T; using those of heuristic.json"):
        found = _tuning._nearest("select", "Model T", sizes)
    assert found == _tuning._nearest("select", None, sizes)


def test_tuned_entries_are_written_read_and_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(_tuning, "CONFIGS", tmp_path)
    path = _tuning.config_path("NVIDIA Model-T 80GB")
    assert path.name == "nvidia_model_t_80gb.json"
    for block in (1, 2):
        entry = {"shape": {"tokens": 7}, "parameters": {"BLOCK": block}, "microseconds": 1.0}
        tune.write_entries(path, "kernels", "select", [entry], "NVIDIA Model-T 80GB")
        assert _tuning._nearest("select", "NVIDIA Model-T 80GB", (("tokens", 9),)) == {
            "BLOCK": block
        }
    assert len(json.loads(path.read_text())["kernels"]["select"]) == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tuning_without_a_gpu_is_refused_in_one_sentence(capsys, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert tune.main([]) == 2
    error = capsys.readouterr().err
    assert "torch sees no GPU" in error
    assert len(error.splitlines()) == 1


#: where a call is not one launch: docs/architecture.md
LAUNCHES = {
    "select_changed": 2,
    "select_changed_below": 2,
    "channel_variance": 2,
    "saliency_topk": 3,
    "compact_tokens": 3,
    "bipartite_match": 5,
    "attention_column_mean": 2,
    "frames_to_patches": 2,
    "update_patches_": 3,
}


@pytest.mark.parametrize("op", _triton.OPS)
def test_few_launches(op):
    geometry = next(iter(_examples.geometries(op).values()))
    arguments = _examples.arguments(op, geometry, torch.bfloat16, "meta")
    with record() as launches:
        _triton.implementation(op)(*arguments)
    assert len(launches) == LAUNCHES.get(op, 1), [launch.kernel.__name__ for launch in launches]


@pytest.mark.parametrize("op", _triton.OPS)
def test_a_grid_has_one_axis_for_any_number_of_frames(op):
    """The second and third axis of a grid end at 65,535."""
    geometry = _examples.Geometry(tokens=8, channels=16, k=4, heads=2, batch=70_000)
    arguments = _examples.arguments(op, geometry, torch.bfloat16, "meta")
    with record() as launches:
        _triton.implementation(op)(*arguments)
    assert max(launch.programs for launch in launches) >= 2**16 or op in FEW_PROGRAMS
    for launch in launches:
        assert type(launch.programs) is int
        assert not re.search(r"program_id\([12]\)", inspect.getsource(launch.kernel.fn))


#: a program has many rows
FEW_PROGRAMS = ("token_cosine", "channel_variance")


def test_more_programs_than_a_launch_can_have_are_refused():
    x = torch.empty((2**16, 2**16, 1), device="meta")
    parameters = {"BLOCK_ROWS": 1, "BLOCK_CHANNELS": 16}
    refused = pytest.raises(ValueError, match="_token_cosine: a launch has at most 2147483647")
    with record(), _tuning.forced("token_cosine", parameters), refused:
        _triton.implementation("token_cosine")(x, x)


class TestIndicesBeyondTheTokens:
    """On a GPU nobody looks at the values of indices; what is behind the tokens stays as it is."""

    def frames(self) -> torch.Tensor:
        """Four tokens, and what lies behind them."""
        return torch.full((1, 9, 8), 7.0)

    indices = torch.tensor([[1, 4, 8, -1, 2**31 - 1]], dtype=torch.int32)

    @pytest.mark.parametrize("op", ["gather_rows", "gather_layer_norm"])
    def test_read(self, op):
        x = self.frames()
        more = (None, torch.ones(8), 1e-5) if op == "gather_layer_norm" else ()
        rows = _triton.implementation(op)(x[:, :4], self.indices, *more)
        assert rows[0, 0].all()
        assert not rows[0, 1:].any()

    def test_written(self):
        x, keys, values = self.frames(), self.frames(), self.frames()
        rows = torch.zeros((1, 5, 8))
        _triton.implementation("scatter_rows_")(x[:, :4], self.indices, rows)
        caches = keys[:, :4], values[:, :4]
        _triton.implementation("scatter_key_value_")(*caches, self.indices, rows, rows, None, None)
        for tensor in (x, keys, values):
            assert not tensor[0, 1].any()
            assert (tensor[0, [0, *range(2, 9)]] == 7.0).all()


def test_forced_parameters_reach_the_launch():
    geometry = _examples.TOWERS["siglip-so400m"]
    arguments = _examples.arguments("token_cosine", geometry, torch.bfloat16, "meta")
    for parameters in CANDIDATES["token_cosine"]:
        with record() as launches, _tuning.forced("token_cosine", parameters) as shapes:
            _triton.implementation("token_cosine")(*arguments)
        assert shapes == [{"rows": 729, "channels": 1152}]
        (launch,) = launches
        assert {**launch.constants, **launch.options}.items() >= parameters.items()


class TestWarmup:
    def test_says_which_backend_ran(self, monkeypatch):
        monkeypatch.delenv("STC_KERNELS_BACKEND", raising=False)
        ran = stc_kernels.warmup([(1, 9, 16)], heads=2, dtype=torch.float32, device="cpu")
        assert set(ran) == set(stc_kernels.OPS)
        assert ran["bias_gelu"] == stc_kernels.available_backends("bias_gelu").available[0]
        without = stc_kernels.warmup([(1, 9, 16)], k=[3], device="cpu")
        assert set(without) == set(stc_kernels.OPS) - {"sparse_query_attention"}

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"shapes": [(1, 0, 16)]}, r"at least one frame, token and channel, got \(1, 0, 16\)"),
            ({"shapes": [(1, 9, 16)], "heads": 3}, r"heads must divide 16 \(channels\), got 3"),
            ({"shapes": [(1, 9, 16)], "k": [10]}, r"k must be between 1 and 9 \(tokens\), got 10"),
            ({"shapes": [(1, 9, 16)], "ops": ["cosine"]}, "ops must be among .* got 'cosine'"),
        ],
    )
    def test_bad_input_is_refused_in_one_sentence(self, arguments, message):
        with pytest.raises(ValueError, match=message) as caught:
            stc_kernels.warmup(**arguments, device="cpu")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target", ["sm_80", "gfx942"])
def test_a_kernel_compiles_without_a_gpu(target):
    """All kernels in all configurations: benchmarks/static_resources.py, run by CI."""
    code = f"""
import torch
from stc_kernels import _examples, _triton
from stc_kernels._triton._compile import compile_launch
from stc_kernels._triton._launch import record
arguments = _examples.arguments(
    "select_changed", _examples.TOWERS["siglip-so400m"], torch.bfloat16, "meta"
)
with record() as launches:
    _triton.implementation("select_changed")(*arguments)
for launch in launches:
    needs = compile_launch(launch, {target!r})
    assert needs.registers > 0 and needs.spill_bytes == 0
print(len(launches))
"""
    done = run(code, TRITON_INTERPRET="0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "2"


def results_of(op: str, geometry: _examples.Geometry) -> list[torch.Tensor]:
    """What a Triton operator returns, and its arguments, some of which are written to."""
    torch.manual_seed(0)
    arguments = _examples.arguments(op, geometry, torch.float32, "cpu")
    made = _triton.implementation(op)(*arguments)
    tensors = [made] if isinstance(made, torch.Tensor) else list(made or [])
    return [*tensors, *(value for value in arguments if isinstance(value, torch.Tensor))]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is not in use")
@pytest.mark.parametrize("op", _triton.OPS)
def test_the_order_of_programs_does_not_matter(op, monkeypatch):
    """Programs of a launch run in any order, several at once: none may read what another writes."""
    from interleaved import Programs

    tokens, channels, batch = (4, 12, 1) if "patches" in op else (16, 16, 3)
    geometry = _examples.Geometry(tokens, channels, k=4, heads=2, batch=batch)
    expected = results_of(op, geometry)
    programs = Programs(at_once=5, seed=0)
    programs.install(monkeypatch)
    for got, want in zip(results_of(op, geometry), expected, strict=True):
        assert torch.equal(got, want)
    assert programs.switches


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is not in use")
def test_a_program_that_reads_what_another_writes_is_noticed(monkeypatch):
    import triton
    from interleaved import Programs
    from triton import language as tl

    @triton.jit
    def passes_on(x):
        number = tl.program_id(0)
        tl.store(x + number + 1, tl.load(x + number) + 1)

    @triton.jit
    def adds(x):
        tl.store(x, tl.load(x) + 1)

    found = {}
    for at_once in (0, 1, 4):
        with monkeypatch.context() as patch:
            if at_once:
                Programs(at_once, seed=0).install(patch)
            for kernel in (passes_on, adds):
                x = torch.zeros(9, dtype=torch.int32)
                kernel[(8,)](x)
                found[kernel.__name__, at_once] = int(x.max())
    assert found["passes_on", 0] == found["adds", 0] == found["adds", 1] == 8
    assert found["passes_on", 1] < 8
    assert found["adds", 4] < 8


#: kernel -> instructions that read and write 16 bytes each, for bfloat16 on sm_90 with the
#: heuristic's parameters. They move the channels of tokens; what is narrower are indices, scores,
#: flags, and the last 8 channels of heads of 72.
WIDE = {
    "_token_cosine": (4, 0),
    "_select": (0, 0),
    "_move_rows": (1, 1),
    "_gather_layer_norm": (6, 2),
    "_scatter_residual": (3, 1),
    "_attention": (10, 2),
    "_add_layer_norm": (8, 4),
    "_bias_gelu": (2, 1),
    "_scatter_key_value": (4, 2),
    "_moments": (2, 0),
    "_merge_parts": (0, 0),
    "_partial_anchors": (4, 1),
    "_mean_anchors": (4, 1),
    "_score_and_select": (5, 0),
    "_spatial_redundancy": (8, 0),
    "_count_marked": (0, 0),
    "_list_marked": (0, 0),
    "_pack_rows": (1, 1),
    "_best_partners": (16, 0),
    "_mark_leaves": (0, 0),
    "_number_survivors": (0, 0),
    "_follow_links": (0, 0),
    "_merge_rows": (1, 1),
    "_row_sums": (6, 0),
    "_column_sums": (6, 0),
    "_mark_changed_patches": (0, 0),
    "_narrow_rows": (0, 0),
    "_make_patches": (0, 0),
}


@pytest.mark.long
def test_tokens_are_moved_16_bytes_at_a_time_and_nothing_spills():
    """As the compiler has it for sm_90: a slow kernel is noticed without a GPU."""
    code = """
import dataclasses, json, torch
from stc_kernels import _examples, _triton
from stc_kernels._triton._compile import compile_launch
from stc_kernels._triton._launch import record
for op in _triton.OPS:
    geometry = next(iter(_examples.geometries(op).values()))
    with record() as launches:
        _triton.implementation(op)(*_examples.arguments(op, geometry, torch.bfloat16, "meta"))
    for launch in launches:
        found = dataclasses.asdict(compile_launch(launch, "sm_90").accesses)
        print(json.dumps([launch.kernel.__name__, found]))
"""
    done = run(code, TRITON_INTERPRET="0")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {kernel for kernel, _ in found} == set(WIDE)
    for kernel, accesses in found:
        wide = accesses["loads"].get("16", 0), accesses["stores"].get("16", 0)
        assert wide == WIDE[kernel], (kernel, accesses)
        assert accesses["local"] == 0, kernel
