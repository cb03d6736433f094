# SPDX-License-Identifier: Apache-2.0
"""Every test of an operator runs on each backend that exists here, and in each layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from operands import CPU_BACKENDS, DTYPES, LAYOUTS, SHAPES
from torch import Tensor

import stc_kernels


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what the interpreter is too slow for, and mark what is not for every day.

    Every day each layout meets each dtype, each shape and each other choice, but not all of them
    at once. In a Triton kernel dtype, strides and shape have little to do with each other, so each
    is tested with few choices of the others.
    """

    def is_one_in_three(item: pytest.Item) -> bool:
        chosen = dict(item.callspec.indices) if hasattr(item, "callspec") else {}
        chosen.pop("backend", None)
        few = interpreted(item).get("layout", "contiguous") != "contiguous"
        return few or not {"dtype", "layout"} <= chosen.keys() or sum(chosen.values()) % 3 == 0

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
        return shape in SHAPES[-2:] and values.get("dtype", torch.float32) != torch.float32

    items[:] = [item for item in items if not is_redundant(interpreted(item))]
    for item in items:
        if is_long(interpreted(item)) or not is_one_in_three(item):
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
