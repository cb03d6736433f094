# SPDX-License-Identifier: Apache-2.0
"""The references in Python and those of the emulator agree on the emulator's cases.

``make emulate`` has the emulator write down each call of its cases, with what the kernels made of
it, which its own references in float64 have passed; here the references in Python must make the
same. ``STC_EMULATED_CALLS`` names the folder.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import stc_kernels
from stc_kernels._dispatch import function_of

_DTYPES = {
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i32": torch.int32,
    "u8": torch.bool,
    "byte": torch.uint8,
}
#: relative to the values, and absolute: two roundings of the result, and the sums before
_RELATIVE = {torch.float32: 5e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
_ABSOLUTE = {torch.float32: 5e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
#: scores nearer to each other may be chosen in another order
_SLACK = 2e-5

FOLDER = os.environ.get("STC_EMULATED_CALLS")
pytestmark = pytest.mark.skipif(FOLDER is None, reason="run by `make emulate`")


def read(path: Path) -> tuple[list[Any], list[Tensor]]:
    """Return arguments and results of a written call."""
    call = json.loads(path.read_text())
    numbers = path.with_suffix(".bin").read_bytes()

    def tensor(given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        dtype = _DTYPES[given["dtype"]]
        if given["bytes"] == 0:
            return torch.empty(given["size"], dtype=dtype)
        flat = torch.frombuffer(
            bytearray(numbers[given["at"] : given["at"] + given["bytes"]]), dtype=dtype
        )
        return flat.as_strided(given["size"], given["stride"], given["offset"])

    return [tensor(value) for value in call["arguments"]], [tensor(r) for r in call["results"]]


#: where an index stands beyond the tokens, GPUs take it for -1 and the reference refuses it
_TOKENS = {
    "gather_rows": (1, lambda a: a[0].shape[1]),
    "scatter_rows_": (1, lambda a: a[0].shape[1]),
    "gather_layer_norm": (1, lambda a: a[0].shape[1]),
    "scatter_residual": (2, lambda a: a[0].shape[1]),
    "scatter_key_value_": (2, lambda a: a[0].shape[1]),
    "merge_tokens": (1, lambda a: a[2]),
}


def run_reference(op: str, arguments: list[Any]) -> list[Tensor]:
    if op in _TOKENS:
        at, most = _TOKENS[op]
        indices = arguments[at]
        arguments[at] = torch.where(indices < most(arguments), indices, -1)
    made = function_of(op, "reference")(*arguments)
    if op == "scatter_key_value_":
        return arguments[:2]
    if op in ("scatter_rows_", "update_patches_"):
        return arguments[:1]
    return [made] if isinstance(made, Tensor) else list(made)


def assert_near(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(
        got, want, rtol=_RELATIVE[got.dtype], atol=_ABSOLUTE[got.dtype], equal_nan=True
    )


def assert_chosen(got: Tensor, want: Tensor, scores: Tensor) -> None:
    """Two choices of tokens by score differ only where the scores are all but equal."""
    for row, other, score in zip(got.tolist(), want.tolist(), scores, strict=True):
        unlike = [int(n) for n in set(row) ^ set(other) if n >= 0]
        if len(unlike) > 1:
            values = score[unlike]
            assert values.max() - values.min() < _SLACK, (row, other, values)


def assert_selection(op: str, got: list[Tensor], want: list[Tensor], arguments: list[Any]) -> None:
    assert_near(got[-1], want[-1])
    if op != "select_changed_below":
        return assert_chosen(got[0], want[0], got[-1])
    threshold = arguments[2]
    at_limit = ((got[-1] - threshold).abs() < _SLACK).sum(1)
    assert ((got[1] - want[1]).abs() <= at_limit).all()
    if not at_limit.any():
        assert_chosen(got[0], want[0], got[-1])
    return None


def assert_matching(got: list[Tensor], want: list[Tensor], metric: Tensor) -> None:
    assert_near(got[2], want[2])
    assert_chosen(got[1], want[1], got[2])
    units = torch.nn.functional.normalize(metric.double(), dim=-1, eps=1e-8)
    for frame in range(len(metric)):
        if not torch.equal(got[1][frame], want[1][frame]):
            continue  # rows have other numbers
        for token in (got[0][frame] != want[0][frame]).nonzero().flatten().tolist():
            partners = [int(got[1][frame, made[0][frame, token]]) for made in (got, want)]
            cosines = units[frame, partners] @ units[frame, token]
            assert (cosines[0] - cosines[1]).abs() < _SLACK, (frame, token, partners)


def assert_agree(op: str, got: list[Tensor], want: list[Tensor], arguments: list[Any]) -> None:
    assert [tensor.shape for tensor in got] == [tensor.shape for tensor in want]
    if op in ("select_changed", "select_changed_below"):
        assert_selection(op, got, want, arguments)
    elif op == "saliency_topk":
        assert_near(got[1], want[1])
        assert_chosen(got[0], want[0], got[1])
    elif op == "bipartite_match":
        assert_matching(got, want, arguments[0])
    else:
        for ours, other in zip(got, want, strict=True):
            if ours.is_floating_point():
                assert_near(ours, other)
            else:
                assert torch.equal(ours, other)


@pytest.mark.parametrize("op", stc_kernels.OPS)
def test_the_references_in_python_agree(op):
    paths = sorted(Path(FOLDER or "").glob(f"{op}-?-*.json"))
    assert paths, f"the emulator has no calls of {op}"
    for path in paths:
        arguments, results = read(path)
        try:
            assert_agree(op, results, run_reference(op, arguments), arguments)
        except AssertionError as error:
            raise AssertionError(f"{path.stem}: {error}") from error
