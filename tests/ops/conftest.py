# SPDX-License-Identifier: Apache-2.0
"""Every test of an operator runs on each backend that exists here, and in each layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from operands import CPU_BACKENDS, DTYPES, LAYOUTS, SHAPES
from torch import Tensor

import stc_kernels

#: what other layouts are tried with in the interpreter of Triton, and what takes it long
_FEW, _LARGE = ((3, 33, 17), (3, 5, 4, 33)), SHAPES[-2:]

#: what takes it long with any choices: in float32 and one by one every day
_SLOW = {
    "test_any_layout_and_batch",
    "test_an_update_overwrites_only_what_sees_a_change",
    "test_saliency_matches_float64",
    "test_opcheck",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is not for every day, and leave out what the interpreter is too slow for."""
    known: dict[tuple[str, str], list[object]] = {}  # values of each parameter of each test
    kept = []
    for item in items:
        values = dict(item.callspec.params) if hasattr(item, "callspec") else {}
        interpreted = values.pop("backend", "") == "triton" and not torch.cuda.is_available()
        if "layout" in values and "dtype" in values:
            places = {}
            for name, value in values.items():
                those = known.setdefault((item.nodeid.partition("[")[0], name), [])
                if value not in those:
                    those.append(value)
                places[name] = those.index(value)
            if interpreted and places["layout"] and places["dtype"]:
                continue
            if not _is_for_every_day(values, places, interpreted):
                if interpreted and sum(places.values()) % 3:
                    continue
                item.add_marker(pytest.mark.long)
        elif interpreted and item.originalname in _SLOW and not _is_plain(values):
            item.add_marker(pytest.mark.long)
        kept.append(item)
    items[:] = kept


def _is_plain(values: dict[str, object]) -> bool:
    return values.get("dtype", torch.float32) == torch.float32 and values.get("batch", 1) == 1


def _is_for_every_day(values: dict[str, object], places: dict[str, int], interpreted: bool) -> bool:
    """Whether these choices, each with its place among the values of its parameter, are tried daily.

    Any two choices meet, such as a layout and a dtype, but not all of them at once: it is one
    combination in three, or in five where there are more choices. In a Triton kernel dtype, strides
    and shape have little to do with each other, so in its interpreter they meet less: one in three
    at all, and one in six every day.
    """
    shape = values.get("shape")
    if interpreted and places["layout"] and shape is not None:
        return shape in _FEW
    if interpreted and shape in _LARGE:
        places = {**places, "shape": 0}
        if places["dtype"]:
            return False
    return sum(places.values()) % (6 if interpreted else 3 if len(places) < 5 else 5) == 0


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
