# SPDX-License-Identifier: Apache-2.0
"""Launches, bytes and operations that are counted without a GPU, and the times made of them."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest
import torch
from counted import Call, count, pretended_gpu
from counted_passes import LAYERS, PASSES
from gpu_predicted import GPUS, Model
from predictions import compared
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

import stc_kernels

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
MODEL = Model(copy_share=0.9, product_share=0.75, recorded_us=1.5, eager_us=5.0)

#: what a layer of each pass launches
LAUNCHES_OF_A_LAYER = {"dense": 12, "motion": 9, "stc": 18, "paper": 29}


def of_a_layer(name: str) -> Counter[str]:
    """Launches by operator: what a tower of three layers has more than one of two."""
    found = [Counter[str](), Counter[str]()]
    for counter, layers in zip(found, (2, 3), strict=True):
        for call in PASSES[name](1, layers):
            counter[call.op] += call.launches
    two, three = found
    three.subtract(two)
    return +three


@pytest.mark.parametrize("name", PASSES)
def test_launches_of_a_layer(name):
    launches = of_a_layer(name)
    assert launches.total() == LAUNCHES_OF_A_LAYER[name], launches


@pytest.mark.parametrize("name", PASSES)
def test_the_committed_table_is_of_this_code(name):
    """After a change: python benchmarks/gpu_predicted.py."""
    with (RESULTS / "gpu_counted.csv").open(newline="") as file:
        rows = [
            (row["op"], int(row["launches"]), float(row["gflop"]))
            for row in csv.DictReader(file)
            if (row["frame"], row["streams"], row["launched_by"]) == (name, "8", "graph")
        ]
    counted = PASSES[name](8, LAYERS)
    expected = []
    for op in dict.fromkeys(call.op for call in counted):
        own = [call for call in counted if call.op == op]
        gflop = round(sum(call.flops for call in own) / 1e9, 3)
        expected.append((op, sum(call.launches for call in own), gflop))
    assert rows == expected


class TestCount:
    def test_views_and_empty_tensors_launch_nothing(self):
        x = torch.empty(2, 6, 8, device="meta")
        with pretended_gpu():
            assert x.is_cuda
            calls = count(lambda: torch.empty_like(x).view(12, 8).t()[1:].unflatten(0, (7, 1)))
        assert calls == []

    def test_a_copy_is_read_and_written(self):
        x = torch.empty(4, 8, device="meta", dtype=torch.bfloat16)
        with pretended_gpu():
            (call,) = count(lambda: x.t().contiguous())
        assert (call.launches, call.nbytes, call.flops) == (1, 2 * 64, 0)

    def test_what_is_repeated_is_read_once(self):
        x, row = torch.empty(4, 8, device="meta"), torch.empty(1, 8, device="meta")
        with pretended_gpu():
            (call,) = count(lambda: x + row.expand(4, 8))
        assert call.nbytes == 4 * (32 + 8 + 32)

    def test_products(self):
        linear = nn.Linear(8, 5, device="meta")
        x = torch.empty(2, 3, 8, device="meta")
        q, k = torch.empty(2, 4, 3, 16, device="meta"), torch.empty(2, 4, 7, 16, device="meta")
        with pretended_gpu():
            (product,) = count(lambda: linear(x))
            (attention,) = count(lambda: scaled_dot_product_attention(q, k, k))
        assert product.flops == 2 * 6 * 5 * 8
        assert attention.flops == 2 * 2 * 2 * 4 * 3 * 7 * 16

    def test_operators_of_ours_move_what_they_must(self):
        x = torch.empty(1, 9, 16, device="meta")
        indices = torch.empty(1, 4, device="meta", dtype=torch.int32)
        with pretended_gpu():
            (gather,) = count(lambda: stc_kernels.gather_rows(x, indices))
            (select,) = count(lambda: stc_kernels.select_changed(x, x, 4))
        assert gather == Call("gather_rows", 1, 2 * 4 * 16 * 4 + 4 * 4)
        assert (select.op, select.launches) == ("select_changed", 2)


class TestModel:
    def test_memory_or_products_whichever_takes_longer(self):
        gpu = GPUS["H100"]
        copy = Call("copy_", 1, round(0.9 * 3.35e9))
        assert MODEL.microseconds(copy, gpu, recorded=True) == pytest.approx(1001.5)
        large = Call("linear", 1, 0, (1, 256 * 132, 128 * 10, 1000))
        ideal = large.flops / (0.75 * 989e6)
        assert MODEL.microseconds(large, gpu, recorded=True) == pytest.approx(ideal + 1.5)

    def test_few_rows_leave_most_of_a_gpu_idle(self):
        gpu = GPUS["H100"]
        few, many = (Call("linear", 1, 0, (1, rows, 1152, 1152)) for rows in (182, 8 * 182))
        few_us, many_us = (MODEL.microseconds(call, gpu, recorded=True) for call in (few, many))
        assert many_us < 4 * few_us

    def test_the_host_launches_ahead(self):
        call = Call("copy_", 1, round(0.9 * 3.35e9))
        assert MODEL.microseconds(call, GPUS["H100"], recorded=False) == pytest.approx(1000.0)
        assert MODEL.microseconds(Call("add", 2, 8), GPUS["H100"], recorded=False) == 10.0


def test_what_was_measured_stands_beside_what_was_predicted(tmp_path):
    with (RESULTS / "gpu_predicted.csv").open(newline="") as file:
        predicted = list(csv.DictReader(file))
    assert {row["gpu"] for row in predicted} == set(GPUS)
    table = tmp_path / "gpu_cacher.csv"
    table.write_text(
        "geometry,contender,streams,device,median_ms\n"
        "siglip-so400m,motion,8,NVIDIA H100 80GB HBM3,4.0\n"
        "siglip-so400m,dense-eager,8,NVIDIA H100 80GB HBM3,9.0\n"
    )
    (_, _, line) = compared(RESULTS / "gpu_predicted.csv", table)
    (expected,) = (
        float(row["ms"])
        for row in predicted
        if (row["gpu"], row["streams"], row["frame"]) == ("H100", "8", "motion")
    )
    assert line.endswith(f"| {expected} | 4.0 | {4.0 / expected:.2f} |")
