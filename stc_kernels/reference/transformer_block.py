# SPDX-License-Identifier: Apache-2.0
"""Reference of ``add_layer_norm``, ``bias_gelu`` and ``scatter_key_value_``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from stc_kernels.reference.rows import scatter_rows_


def add_layer_norm(
    base: Tensor,
    update: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    scale: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Sum of a residual stream and an update, and the layer norm of that sum."""
    scaled = update.float() if scale is None else update.float() * scale.float()
    # Rounded before the norm: the next block reads the sum in this dtype, too.
    total = (base.float() + scaled).to(base.dtype).contiguous()
    normed = layer_norm(
        total.float(),
        (base.shape[-1],),
        None if weight is None else weight.float(),
        None if bias is None else bias.float(),
        eps,
    )
    return total, normed.to(base.dtype)


def bias_gelu(x: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
    """GELU of x plus a bias."""
    y = x.float() if bias is None else x.float() + bias.float()
    out = (
        y * torch.sigmoid(1.702 * y) if approximate == "quick" else gelu(y, approximate=approximate)
    )
    return out.to(x.dtype).contiguous()


def scatter_key_value_(
    key_cache: Tensor,
    value_cache: Tensor,
    indices: Tensor,
    key: Tensor,
    value: Tensor,
    key_bias: Tensor | None,
    value_bias: Tensor | None,
) -> None:
    """Write keys and values, each plus its bias, into the rows of two caches."""
    for cache, rows, bias in ((key_cache, key, key_bias), (value_cache, value, value_bias)):
        biased = rows if bias is None else (rows.float() + bias.float()).to(rows.dtype)
        scatter_rows_(cache, indices, biased)
