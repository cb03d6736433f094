# SPDX-License-Identifier: Apache-2.0
"""Outputs that were computed without gradients, and say so in backward."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor

OutputT = TypeVar("OutputT", Tensor, Tensor | None)


def refusing_gradients(
    output: OutputT, states: Tensor, weights: Iterable[Iterable[Tensor]]
) -> OutputT:
    """Return the output of layers, if any, such that backward through it raises RuntimeError.

    Only where the stock layers would have gradients: without a word the others would be the only
    ones that are trained.
    """
    if output is None or not torch.is_grad_enabled():
        return output
    tensors = chain([states], *weights)
    trained = next((tensor for tensor in tensors if tensor.requires_grad), None)
    if trained is None:
        return output
    refused: OutputT = _Refused.apply(output, trained)  # type: ignore[no-untyped-call]
    return refused


class _Refused(torch.autograd.Function):
    """The same, with a backward that raises."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, trained: Tensor) -> Tensor:
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(
            "backward: a tower with a cacher or a token merger has no gradients, nor have the "
            "embeddings of a pruned prompt; take that off to train them, or freeze them (or call "
            "the tower under torch.no_grad()) to train what comes behind"
        )
