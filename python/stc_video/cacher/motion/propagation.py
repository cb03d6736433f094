# SPDX-License-Identifier: Apache-2.0
"""Propagation of what a cached frame's refreshed tokens show to the tokens left out.

A token that did not change is re-encoded now and then. What its output moves by is due to the
context, and other tokens that look like it have missed the same. So the movement is measured, and
passed on to the tokens left out, weighted by how alike the outputs are: one small attention, whose
queries are the tokens left out, whose keys are the refreshed ones and whose values their moves.

Shapes: N tokens, C channels, R refreshed and U left-out tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import cosine_similarity, layer_norm, normalize

# Of the softmax over cosines: a token listens to those that are nearly as alike as its most alike.
_TEMPERATURE = 0.05
_TINY = 1e-12


@dataclass(frozen=True)
class Refreshed:
    """The refreshed tokens of a frame before they are encoded.

    Attributes
    ----------
    indices
        (R,) their indices.
    left_out
        (U,) indices of the tokens that are not encoded.
    outputs
        (R, C) their outputs as cached.
    """

    indices: Tensor
    left_out: Tensor
    outputs: Tensor

    @classmethod
    def before(cls, output: Tensor, indices: Tensor, left_out: Tensor) -> Refreshed:
        """Look at the cached outputs (N, C) before the frame is encoded."""
        return cls(indices, left_out, output.index_select(0, indices))

    def drift(self, output: Tensor) -> Tensor:
        """Mean of what the refreshed outputs :func:`moved` by, a float32 number."""
        return moved(self.outputs, output.index_select(0, self.indices)).mean()

    def propagate(self, output: Tensor, weight: float) -> None:
        """Let the outputs (N, C) of the tokens left out move as the refreshed ones did."""
        stale = output.index_select(0, self.left_out).float()
        size = vector_norm(stale, dim=-1, keepdim=True).clamp_min(_TINY)
        alike = (stale @ normalize(self.outputs.float(), dim=-1).T).div_(size * _TEMPERATURE)
        moves = (output.index_select(0, self.indices) - self.outputs).float()
        moved = stale.addmm_(torch.softmax(alike, dim=-1), moves, alpha=weight)
        output.index_copy_(0, self.left_out, moved.to(output.dtype))


def moved(before: Tensor, after: Tensor) -> Tensor:
    """1 - cosine of outputs (..., C) to what they were, (...) float32.

    Outputs are normalised as the tower's last norm does, but for its weights.
    """
    old, new = (layer_norm(rows.float(), rows.shape[-1:]) for rows in (before, after))
    return 1.0 - cosine_similarity(old, new, dim=-1)
