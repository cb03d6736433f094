# SPDX-License-Identifier: Apache-2.0
"""Every test of an operator runs on each backend that exists here, and in each layout."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import stc_kernels

_FORCED = os.environ.get("STC_KERNELS_BACKEND")
CPU_BACKENDS = (_FORCED,) if _FORCED else ("reference", "native", "triton")


def contiguous(x: Tensor) -> Tensor:
    return x.contiguous()


def offset(x: Tensor) -> Tensor:
    """A view that does not start at the beginning of its storage."""
    padded = torch.full([size + 3 for size in x.shape], 7.0, dtype=x.dtype)
    view = padded[tuple(slice(2, 2 + size) for size in x.shape)]
    return view.copy_(x)


def every_other_row(x: Tensor) -> Tensor:
    """A view whose rows are not next to each other."""
    wide = torch.full((*x.shape[:-2], 2 * x.shape[-2], x.shape[-1]), 7.0, dtype=x.dtype)
    wide[..., ::2, :] = x
    return wide[..., ::2, :]


def channels_first(x: Tensor) -> Tensor:
    """A view whose channels are not next to each other."""
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": contiguous,
    "offset": offset,
    "every-other-row": every_other_row,
    "channels-first": channels_first,
}

SHAPES = [(1, 1, 1), (1, 7, 5), (3, 33, 17), (2, 64, 64), (1, 130, 1153)]
EMPTY_SHAPES = [(0, 5, 8), (2, 0, 8), (2, 4, 0)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what the interpreter is too slow for, and mark what is not for every day.

    In a Triton kernel dtype, strides and shape have little to do with each other, so each is
    tested with few choices of the others.
    """

    def interpreted(item: pytest.Item) -> dict[str, object]:
        values = item.callspec.params if hasattr(item, "callspec") else {}
        return values if values.get("backend") == "triton" and not torch.cuda.is_available() else {}

    def is_redundant(values: dict[str, object]) -> bool:
        other_layout = values.get("layout", "contiguous") != "contiguous"
        return other_layout and values.get("dtype") != torch.float32

    def is_long(values: dict[str, object]) -> bool:
        shape = values.get("shape")
        if values.get("layout", "contiguous") != "contiguous":
            return shape not in (None, (3, 33, 17))
        return shape == SHAPES[-1] and values.get("dtype", torch.float32) != torch.float32

    items[:] = [item for item in items if not is_redundant(interpreted(item))]
    for item in items:
        if is_long(interpreted(item)):
            item.add_marker(pytest.mark.long)


@pytest.fixture(params=CPU_BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once per backend; one that cannot run says why."""
    name: str = request.param
    op = getattr(request.module, "OP", "token_cosine")
    if name not in (backends := stc_kernels.available_backends(op)):
        pytest.skip(backends.unavailable[name])
    with stc_kernels.use_backend(name):
        yield name


@pytest.fixture(params=list(LAYOUTS))
def layout(request: pytest.FixtureRequest) -> Callable[[Tensor], Tensor]:
    return LAYOUTS[request.param]


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def shape(request: pytest.FixtureRequest) -> tuple[int, int, int]:
    return request.param


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1234)


def random_indices(
    batch: int, tokens: int, count: int, generator: torch.Generator, holes: bool = True
) -> Tensor:
    """Different indices per row, ascending, some of them -1."""
    rows = [torch.randperm(tokens, generator=generator)[:count].sort().values for _ in range(batch)]
    indices = torch.stack(rows) if rows else torch.zeros((0, count), dtype=torch.int64)
    if holes and count > 2:
        indices[:, 1] = -1
    return indices.int()
