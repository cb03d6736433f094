# SPDX-License-Identifier: Apache-2.0
"""Every operator is as accurate as plain PyTorch in the same dtype, or nearly so."""

from __future__ import annotations

import pytest
import torch
from accuracy import assert_as_accurate
from plain_ops import PLAIN

import stc_kernels
from stc_kernels import _examples

#: for the interpreter of Triton, which pictures take longest
SMALL = _examples.Geometry(tokens=9, channels=48, k=4, heads=2, batch=2)
SMALLEST = _examples.Geometry(tokens=4, channels=12, k=2, heads=2, batch=2)
GEOMETRY = _examples.Geometry(tokens=61, channels=144, k=20, heads=2, batch=2)
#: a square grid, on which some tokens have no living neighbour, and so an infinite score
SQUARE = _examples.Geometry(tokens=49, channels=144, k=16, heads=2, batch=2)
CASES = [(op, GEOMETRY) for op in stc_kernels.OPS] + [("spatial_redundancy", SQUARE)]


def test_every_operator_has_a_yardstick():
    assert set(PLAIN) == set(stc_kernels.OPS)


@pytest.mark.parametrize(("op", "geometry"), CASES)
def test_error_is_at_most_twice_that_of_plain_pytorch(backend, dtype, op, geometry):
    if backend not in (backends := stc_kernels.available_backends(op)):
        pytest.skip(backends.unavailable[backend])
    if backend == "triton":
        geometry = SMALLEST if "patches" in op else SMALL
    arguments = _examples.arguments(op, geometry, dtype, "cpu")
    if op == "update_patches_":  # what sees a change that changes nothing may be made anew or not
        previous = PLAIN["frames_to_patches"](*arguments[2:])
        arguments = (previous, *arguments[1:])
    with torch.no_grad():
        assert_as_accurate(op, getattr(torch.ops.stc_kernels, op).default, arguments)
