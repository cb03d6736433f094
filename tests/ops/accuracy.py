# SPDX-License-Identifier: Apache-2.0
"""The bound on the error of an operator, for any device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from plain_ops import PLAIN, values_of
from torch import Tensor


def assert_as_accurate(op: str, run: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """The error to float64 is at most twice that of plain PyTorch in the same dtype.

    One rounding of the output is allowed on top.
    """

    def results(function: Callable[..., Any], dtype: torch.dtype | None) -> list[Tensor]:
        given = tuple(_copy(value, dtype) for value in arguments)
        return values_of(op, function(*given), given)

    exact = results(PLAIN[op], torch.float64)
    plain = results(PLAIN[op], None)
    ours = results(run, None)
    for right, yardstick, got in zip(exact, plain, ours, strict=True):
        allowed, error = _largest_error(yardstick, right), _largest_error(got, right)
        rounding = torch.finfo(got.dtype).eps * right[right.isfinite()].abs().max()
        assert error <= 2 * allowed + rounding, (
            f"`{op}`: error {error:.3g}, plain PyTorch {allowed:.3g}, rounding {rounding:.3g}"
        )


def _largest_error(got: Tensor, right: Tensor) -> Tensor:
    """Infinities must be equal, such as the score of a token without living neighbours."""
    return torch.where(got == right, 0.0, (got.double() - right).abs()).max()


def _copy(value: Any, dtype: torch.dtype | None) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(
        dtype if dtype is not None and value.is_floating_point() else value.dtype, copy=True
    )
