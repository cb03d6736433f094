# SPDX-License-Identifier: Apache-2.0
"""Backends chosen by measured times."""

from __future__ import annotations

import json
import timeit
from pathlib import Path

import pytest
import torch

import stc_kernels
from stc_kernels import _dispatch, _examples, _measured, _native, _tuning, tune

DEVICE = "Model T"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file of measurements for the CPU, under the name of a device."""
    if reason := _native.load():
        pytest.skip(reason)
    monkeypatch.delenv("STC_KERNELS_BACKEND", raising=False)
    monkeypatch.setattr(_tuning, "CONFIGS", tmp_path)
    monkeypatch.setattr(_tuning, "name_of", lambda device: DEVICE)
    _dispatch.forget()
    yield _tuning.config_path(DEVICE)
    monkeypatch.undo()
    _dispatch.forget()


def row(shape: list[int], native: float, reference: float, bits: int = 32) -> _measured.Row:
    return {
        "shape": shape,
        "bits": bits,
        "microseconds": {"native": native, "reference": reference},
    }


def chosen(*shape: int, op: str = "token_cosine", dtype: torch.dtype = torch.float32) -> str:
    return _dispatch.choose(op, "cpu", None, torch.empty(shape, dtype=dtype))


def test_the_nearest_measured_call_decides(config):
    rows = [row([1, 100, 64], 9.0, 5.0), row([1, 4000, 64], 5.0, 9.0)]
    tune.write_entries(config, "backends", "token_cosine", rows, DEVICE)
    assert chosen(1, 90, 80) == "reference"
    assert chosen(1, 3000, 32) == "native"
    assert chosen(8, 4000, 64) == "native"
    # What was not measured goes by the fixed order: other operators, types, numbers of sizes.
    assert chosen(1, 100, 64, op="channel_variance") == "native"
    assert chosen(1, 100, 64, dtype=torch.bfloat16) == "native"
    assert chosen(100, 64) == "native"


def test_a_choice_of_the_caller_comes_first(config):
    tune.write_entries(config, "backends", "token_cosine", [row([1, 9, 8], 9.0, 5.0)], DEVICE)
    x = torch.zeros(1, 9, 8)
    assert _dispatch.choose("token_cosine", "cpu", "native", x) == "native"
    with stc_kernels.use_backend("native"):
        assert _dispatch.choose("token_cosine", "cpu", None, x) == "native"


def test_a_backend_that_cannot_run_is_passed_over(config):
    rows = [row([1, 9, 8], 9.0, 5.0)]
    rows[0]["microseconds"]["triton"] = 1.0
    tune.write_entries(config, "backends", "token_cosine", rows, DEVICE)
    if "triton" not in stc_kernels.available_backends("token_cosine"):
        assert chosen(1, 9, 8) == "reference"


def test_it_can_be_seen_why(config):
    assert stc_kernels.available_backends("token_cosine").measured is None
    tune.write_entries(config, "backends", "token_cosine", [row([1, 9, 8], 9.0, 5.0)], DEVICE)
    found = stc_kernels.available_backends("token_cosine")
    assert found.measured == "model_t.json, 1 measured calls"
    assert "chosen by model_t.json" in found.describe()
    assert stc_kernels.available_backends("gather_rows").measured is None


def test_times_are_measured_written_and_obeyed(config, monkeypatch):
    """The tuner's own path, with a clock for the CPU."""

    def clock(op, values, backend="triton"):
        function = _dispatch.function_of(op, backend)
        return 1e6 * min(timeit.repeat(lambda: function(*values), number=1, repeat=3))

    monkeypatch.setattr(tune, "_measure", clock)
    shapes = [_examples.Geometry(tokens=60, channels=32, k=9, heads=2)]
    device = torch.device("cpu")
    # The reference stands for a second backend that a GPU would have.
    monkeypatch.setattr(tune, "_COMPARED", ("native", "reference"))
    rows = tune.compare_backends("select_changed", shapes, torch.float32, device)
    tune.write_entries(config, "backends", "select_changed", rows, DEVICE)
    (written,) = json.loads(config.read_text())["backends"]["select_changed"]
    assert written["shape"] == [1, 60, 32]
    assert written["bits"] == 32
    times = written["microseconds"]
    assert set(times) == {"native", "reference"}
    assert times[chosen(1, 60, 32, op="select_changed")] == min(times.values())


def test_entries_for_the_same_call_are_replaced(config):
    for time in (5.0, 50.0):
        rows = [row([1, 9, 8], 9.0, time), row([1, 9, 8], 9.0, time, bits=16)]
        tune.write_entries(config, "backends", "token_cosine", rows, DEVICE)
    assert len(json.loads(config.read_text())["backends"]["token_cosine"]) == 2
    assert chosen(1, 9, 8) == "native"


def test_no_measured_backend_is_shipped_without_its_device():
    """A file says on which device it was measured, and with which torch."""
    for path in Path(_tuning.CONFIGS).glob("*.json"):
        content = json.loads(path.read_text())
        if content.get("backends"):
            assert content["measured"] is True
            assert content["device"]
            assert content["torch"]
