# SPDX-License-Identifier: Apache-2.0
"""Random shapes, strides, dtypes and indices against the reference.

A few calls of every operator, always the same; or as many as its share of STC_FUZZ_SECONDS allows,
if that is set. A failure names its seed; STC_FUZZ_SEED starts there again::

    make fuzz                                  # two minutes
    STC_FUZZ_SECONDS=3600 pytest tests/ops/test_fuzz.py
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Iterator
from typing import Any

import oracles
import pytest
import torch
from operands import CPU_BACKENDS, DTYPES, LAYOUTS
from plain_ops import values_of
from torch import Tensor

import stc_kernels
from stc_kernels import _examples

SECONDS = float(os.environ.get("STC_FUZZ_SECONDS", "0"))
CALLS = 3
SEED = int(os.environ.get("STC_FUZZ_SEED", "0"))
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
#: where a NaN in a token has consequences for that token only, or its neighbours
TAKES_NAN = {
    "token_cosine",
    "select_changed",
    "select_changed_below",
    "gather_rows",
    "scatter_rows_",
    "spatial_redundancy",
    "compact_tokens",
}
#: take Triton's interpreter long
OF_PICTURES = ("frames_to_patches", "update_patches_")


def random_geometry(rng: random.Random, op: str, interpreted: bool) -> _examples.Geometry:
    few = interpreted and op in OF_PICTURES
    most = (5 if few else 33) if interpreted else rng.choice([9, 70, 400])
    tokens = rng.randint(1, most)
    heads = rng.randint(1, 3)
    batches = [1, 2, 3] if op == "channel_variance" else [0, 1, 1, 2, 3]  # nothing has no variance
    width = rng.choice([rng.randint(1, 40), 8 * rng.randint(1, 12)])
    width = min(width, 12) if few else width
    return _examples.Geometry(
        tokens, heads * width, rng.randint(1, tokens), heads, rng.choice(batches)
    )


def spoil(rng: random.Random, op: str, position: int, value: Any) -> Any:
    """Holes in lists of indices; zeros, repeated tokens and NaN among the numbers."""
    if not isinstance(value, Tensor) or value.numel() == 0:
        return value
    if value.dtype == torch.int32:
        if op == "merge_tokens":
            return value
        # A list in any order, with places that are not used.
        value = value[:, torch.randperm(value.shape[1])]
        return torch.where(torch.rand(value.shape) < 0.2, -1, value).int()
    if value.dtype == torch.bool:
        return torch.rand(value.shape) < rng.choice([0.0, 0.5, 1.0])
    if value.dim() < 3 or position > 1:
        return value
    value = value.clone()
    if rng.random() < 0.3:
        value[:, rng.randrange(value.shape[1])] = 0.0
    if rng.random() < 0.3:
        value[:, -1] = value[:, 0]
    if op in TAKES_NAN and rng.random() < 0.3:
        value[-1, rng.randrange(value.shape[1]), ..., rng.randrange(value.shape[-1])] = torch.nan
    return value


def vary(rng: random.Random, op: str, arguments: list[Any]) -> None:
    """Change what is neither a tensor nor a size."""
    if op == "select_changed":
        arguments[3] = rng.randint(0, arguments[2])
    elif op == "select_changed_below":
        arguments[2] = rng.choice([-2.0, 0.0, 0.9, 0.97, 2.0])
        arguments[4] = rng.randint(0, arguments[3])
    elif op == "saliency_topk":
        arguments[1] = rng.choice([arguments[1], None])
        arguments[3:5] = [rng.choice(["gaussian", "dual_anchor"]), rng.random()]
        arguments[5] = None if arguments[5] is None or not arguments[5].any() else arguments[5]
    elif op == "bias_gelu":
        arguments[2] = rng.choice(["none", "tanh", "quick"])
    elif op == "sparse_query_attention":
        batch, tokens = arguments[1].shape[:2]
        arguments[4] = rng.choice([None, torch.randn(batch, tokens)])


def random_arguments(seed: int, op: str, interpreted: bool) -> tuple[list[Any], list[Any]]:
    """Arguments of one call, and the same values in random layouts."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    geometry = random_geometry(rng, op, interpreted)
    made = _examples.arguments(op, geometry, rng.choice(DTYPES), "cpu")
    arguments = [spoil(rng, op, i, value) for i, value in enumerate(made)]
    vary(rng, op, arguments)
    layouts = [
        rng.choice(list(LAYOUTS.values()))(value)
        if isinstance(value, Tensor) and value.dim() > 2 and value.is_floating_point()
        else value
        for value in arguments
    ]
    return arguments, layouts


def run(op: str, arguments: list[Any], device: str, backend: str) -> tuple[list[Tensor], Any]:
    """Floating-point results on the CPU, and all that was returned."""
    given = tuple(_copy(value, device) for value in arguments)
    out = getattr(torch.ops.stc_kernels, op).default(*given, backend=backend)
    return [t.cpu() for t in values_of(op, out, given)], out


def _copy(value: Any, device: str) -> Any:
    """On the device, in the same layout."""
    if not isinstance(value, Tensor):
        return value
    # Not clone(), which makes a tensor with gaps contiguous.
    storage = torch.empty(value.untyped_storage().nbytes() // value.element_size()).to(value.dtype)
    storage.copy_(value.as_strided(storage.shape, (1,), 0))
    return storage.to(device).as_strided(value.shape, value.stride(), value.storage_offset())


def check_selection(op: str, arguments: list[Any], out: Any) -> None:
    """The indices are those that the operator's own scores ask for, ties to the lower one."""
    if op == "compact_tokens":
        keep, capacity = arguments[1:3]
        kept = keep.flatten().nonzero()[:capacity, 0].tolist()
        assert out[1].tolist() == kept + [-1] * (capacity - len(kept))
        assert out[2].tolist() == keep.sum(1).tolist()
    elif op in ("select_changed", "saliency_topk"):
        for row, scores in zip(out[0].cpu(), out[1].cpu(), strict=True):
            if op == "saliency_topk":
                keys, k = (-scores).nan_to_num(nan=torch.inf).tolist(), arguments[2]
            else:
                keys, k = oracles.changed_keys(scores, arguments[3]), arguments[2]
            oracles.assert_selects(row, keys, k, slack=0)
    elif op == "select_changed_below":
        threshold, capacity, pinned = arguments[2:5]
        limit = torch.tensor(threshold)
        for row, count, scores in zip(out[0].cpu(), out[1].tolist(), out[2].cpu(), strict=True):
            changed = ~(scores > limit) | (torch.arange(len(scores)) < pinned)
            assert count == int(changed.sum())
            listed = min(count, capacity)
            assert row[listed:].eq(-1).all()
            keys = oracles.changed_keys(scores, pinned)
            oracles.assert_selects(row[:listed], keys, listed, slack=0)


def seeds() -> Iterator[int]:
    """The seeds of an operator's calls."""
    yield from range(SEED, SEED + CALLS)
    deadline = time.monotonic() + SECONDS / len(stc_kernels.OPS)
    for seed in itertools.count(SEED + CALLS):
        if time.monotonic() > deadline:
            return
        yield seed


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op", stc_kernels.OPS)
def test_random_calls_agree_with_the_reference(op, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    available = stc_kernels.available_backends(op, device)
    wanted = CPU_BACKENDS if device == "cpu" else available.available
    backends = [name for name in available if name in wanted and name != "reference"]
    if not backends:
        pytest.skip(available.describe())
    for seed in seeds():
        for backend in backends:
            interpreted = backend == "triton" and device == "cpu"
            arguments, layouts = random_arguments(seed, op, interpreted)
            expected, _ = run(op, arguments, "cpu", "reference")
            try:
                got, out = run(op, layouts, device, backend)
                check_selection(op, arguments, out)
                for ours, right in zip(got, expected, strict=True):
                    tolerance = TOLERANCE[right.dtype]
                    torch.testing.assert_close(
                        ours, right, rtol=tolerance, atol=tolerance, equal_nan=True
                    )
            except Exception as error:
                shapes = [tuple(v.shape) if isinstance(v, Tensor) else v for v in arguments]
                raise AssertionError(
                    f"`{op}` on {backend}, {device}: STC_FUZZ_SEED={seed}, {shapes}"
                ) from error
