# SPDX-License-Identifier: Apache-2.0
"""Reference of ``token_cosine``."""

from __future__ import annotations

import torch
from torch import Tensor

#: Norms are at least this, so that an all-zero token has similarity 0 and not NaN.
EPSILON = 1e-8


def token_cosine(current: Tensor, reference: Tensor) -> Tensor:
    """Cosine of each token with the token of the same position in the reference."""
    x, y = current.float(), reference.float()
    norm_x = torch.linalg.vector_norm(x, dim=-1).clamp_min(EPSILON)
    norm_y = torch.linalg.vector_norm(y, dim=-1).clamp_min(EPSILON)
    similarity: Tensor = (x * y).sum(-1) / (norm_x * norm_y)
    return similarity
