# SPDX-License-Identifier: Apache-2.0
"""Reference of ``channel_variance``."""

from __future__ import annotations

from torch import Tensor


def channel_variance(tokens: Tensor) -> Tensor:
    """Population variance of each channel over all tokens of all frames."""
    rows = tokens.float().flatten(0, 1)
    centred = rows - rows.mean(0)
    return centred.square().mean(0)
