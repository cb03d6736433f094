# SPDX-License-Identifier: Apache-2.0
"""A dense pass of the cacher that is looked at, so that a check computes nothing twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from stc_video.towers.block import Block


@dataclass(frozen=True)
class WatchedPass:
    """What blocks got and gave in a pass, by their numbers; empty if nobody looked.

    Attributes
    ----------
    inputs, mlps
        Inputs of the blocks and outputs of their MLPs, for all rows of the pass.
    """

    inputs: dict[int, Tensor] = field(default_factory=dict)
    mlps: dict[int, Tensor] = field(default_factory=dict)

    @contextmanager
    def noted(self, blocks: Sequence[Block], size: int) -> Iterator[None]:
        """Inside, take note of the first pass of at least so many numbers."""

        def note(where: dict[int, Tensor], number: int) -> Callable[..., None]:
            def keep(_: nn.Module, args: tuple[Any, ...], *output: Tensor) -> None:
                (states,) = output or args[:1]
                if states.numel() >= size:
                    where.setdefault(number, states)

            return keep

        hooks = []
        for number, block in enumerate(blocks):
            hooks += [
                block.norm1.register_forward_pre_hook(note(self.inputs, number)),
                block.last_of_mlp.register_forward_hook(note(self.mlps, number)),
            ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def input_of(self, number: int, x: Tensor) -> Tensor | None:
        """Input of a block for the pass's first frame, in the shape of ``x``; None if unknown."""
        return _first_rows(self.inputs, number, x)

    def mlp_of(self, number: int, x: Tensor) -> Tensor | None:
        """What a block's MLP gave for the pass's first frame; None if unknown."""
        return _first_rows(self.mlps, number, x)


def _first_rows(noted: Mapping[int, Tensor], number: int, x: Tensor) -> Tensor | None:
    if number not in noted:
        return None
    channels = x.shape[-1]
    return noted[number].reshape(-1, channels)[: x.numel() // channels].view_as(x)
