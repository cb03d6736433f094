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
from torch.nn.functional import cosine_similarity, layer_norm, normalize

# Of the softmax over cosines: a token listens to those that are nearly as alike as its most alike.
_TEMPERATURE = 0.05


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
        return cls(indices, left_out, output[indices])

    def drift(self, output: Tensor) -> Tensor:
        """Mean 1 - cosine of the refreshed outputs to what they were, a float32 number.

        Outputs are normalised as the tower's last norm does, but for its weights.
        """
        channels = output.shape[1:]
        before, after = (
            layer_norm(rows.float(), channels) for rows in (self.outputs, output[self.indices])
        )
        return (1.0 - cosine_similarity(before, after, dim=-1)).mean()

    def propagate(self, output: Tensor, weight: float) -> None:
        """Let the outputs (N, C) of the tokens left out move as the refreshed ones did."""
        stale = output[self.left_out]
        alike = normalize(stale.float(), dim=-1) @ normalize(self.outputs.float(), dim=-1).T
        moves = (output[self.indices] - self.outputs).float()
        moved = torch.softmax(alike / _TEMPERATURE, dim=-1) @ moves
        output[self.left_out] = (stale + weight * moved).to(output.dtype)
