# SPDX-License-Identifier: Apache-2.0
"""Reference of ``token_cosine``."""

from __future__ import annotations

from torch import Tensor

#: Norms are at least this, so that an all-zero token has similarity 0 and not NaN.
EPSILON = 1e-8


def token_cosine(current: Tensor, reference: Tensor) -> Tensor:
    """Cosine of each token with the token of the same position in the reference."""
    x, y = current.float(), reference.float()
    dot = (x * y).sum(-1)
    norms = x.norm(dim=-1).clamp_min(EPSILON) * y.norm(dim=-1).clamp_min(EPSILON)
    return dot / norms
