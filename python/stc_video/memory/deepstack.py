# SPDX-License-Identifier: Apache-2.0
"""DeepStack (arXiv 2406.04334): features of the picture that are added behind the first layers.

A token with such features is one row: what enters the language model, and behind it what is added
to the output of its first layers, one after the other. Text has zeros there, or nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad


def split_layers(rows: Tensor, width: int) -> tuple[Tensor, list[Tensor]]:
    """Split tokens (..., (1 + L) * D): what enters the model (..., D), and L additions (..., D)."""
    first, *added = rows.split(width, dim=-1)
    return first, added


def joined(parts: list[Tensor]) -> Tensor:
    """Concatenate tokens (n, W), of which some have no additions, to (sum of n, W)."""
    widest = max(part.shape[-1] for part in parts)
    return torch.cat([pad(part, (0, widest - part.shape[-1])) for part in parts])


def deepstack_arguments(rows: Tensor, width: int) -> dict[str, Any]:
    """Return the arguments by which a language model of transformers is given such tokens.

    Parameters
    ----------
    rows
        (B, n, W) tokens.
    width
        D.
    """
    embeds, added = split_layers(rows, width)
    if not added:
        return {"inputs_embeds": embeds}
    # Zeros change nothing, so that text need not be told from pictures.
    mask = (rows[..., width:] != 0).any(-1)
    return {
        "inputs_embeds": embeds,
        "visual_pos_masks": mask,
        "deepstack_visual_embeds": [layer[mask] for layer in added],
    }
