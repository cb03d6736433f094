# SPDX-License-Identifier: Apache-2.0
"""The interface of a vision tower and of its transformer blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

__all__ = ["PATCH_MARK", "Block", "Part", "Tower", "is_plain", "is_plain_linear", "is_untouched"]

#: attribute of the forwards that we put on modules; it names the handle they belong to
PATCH_MARK = "_stc_video_owner"


class Part:
    """A part of a block, looked up whenever it is asked for.

    Somebody may put another module in its place at any time: an adapter, a quantised layer. The
    block has a module ``layer`` and ``paths``, which lead from there to each part by its name; a
    part without a path is None.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, block: HasParts, owner: type | None = None) -> Any:
        if self.name not in block.paths:
            return None
        module: Any = block.layer
        for step in block.paths[self.name]:
            module = module._modules[step]  # several times as fast as getattr
        return module


class HasParts(Protocol):
    """A block as :class:`Part` sees it."""

    @property
    def layer(self) -> nn.Module:
        """The module."""

    @property
    def paths(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the modules from the layer down to each part."""


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling a module would do nothing but what its class does with its weight.

    That is so if it is no subclass, its weight is an ordinary parameter and no quantised one, and
    nobody but us has put a hook or a forward on it.
    """
    is_own = type(module) is kind and type(module.weight) is nn.Parameter
    return is_own and is_untouched(module)


def is_untouched(module: nn.Module) -> bool:
    """Whether nobody but us has put a hook or a forward on a module."""
    forward = module.__dict__.get("forward")
    is_ours = forward is None or hasattr(forward, PATCH_MARK)
    return is_ours and not module._forward_hooks and not module._forward_pre_hooks


def is_plain_linear(module: nn.Module) -> bool:
    """Whether calling a layer would do nothing but multiply by its weight."""
    return is_plain(module, nn.Linear)


class Block(Protocol):
    """One transformer block, by its parts.

    Shapes: B frames, N tokens of a frame, K of them, C channels. ``indices`` (B, K) int32 tell
    where in the frame the K tokens are, None if they are all N in order; blocks with positions of
    their own (RoPE) or with windows need them.
    """

    @property
    def layer(self) -> nn.Module:
        """The module."""

    @property
    def parts(self) -> Sequence[nn.Module]:
        """The modules of it that are called."""

    @property
    def norm1(self) -> nn.Module:
        """The norm in front of the attention."""

    @property
    def norm2(self) -> nn.Module:
        """What normalises the input of the MLP."""

    @property
    def mlp(self) -> nn.Module:
        """The MLP, which does the same to each row."""

    @property
    def channels(self) -> int:
        """Width of the residual stream, C."""

    @property
    def returns_tuple(self) -> bool:
        """Whether this release's class wraps its output in a tuple."""

    def project(
        self, normed: Tensor, indices: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, K, C) of normalised rows (B, K, C)."""

    def project_query(self, normed: Tensor, indices: Tensor | None = None) -> Tensor:
        """Queries alone."""

    def project_key(self, normed: Tensor, indices: Tensor | None = None) -> Tensor:
        """Keys alone."""

    def project_value(self, normed: Tensor, indices: Tensor | None = None) -> Tensor:
        """Values alone."""

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        indices: Tensor | None = None,
    ) -> Tensor:
        """Attention branch of queries (B, K, C) over keys and values (B, N, C): (B, K, C)."""

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        indices: Tensor | None = None,
    ) -> Tensor:
        """Values mixed by attention, in front of the output projection."""

    def attention_branch(self, mixed: Tensor) -> Tensor:
        """Project mixed values (B, K, C) to what is added to the residual stream."""

    def feed_forward(self, x: Tensor) -> Tensor:
        """MLP branch of rows (B, K, C) of the residual stream: ``mlp_branch`` behind ``norm2``."""

    def mlp_branch(self, normed: Tensor) -> Tensor:
        """MLP branch of normalised rows (B, K, C)."""

    def mlp_operations(self) -> int:
        """Multiply-adds of the MLP for one token."""


class Tower(Protocol):
    """A vision tower and its blocks."""

    @property
    def root(self) -> nn.Module:
        """The module that calls the blocks."""

    @property
    def ancestors(self) -> Sequence[nn.Module]:
        """``root`` and the modules between it and the blocks, outermost first."""

    @property
    def blocks(self) -> Sequence[Block]:
        """The transformer blocks, in order."""

    @property
    def prefix_tokens(self) -> int:
        """Class token and registers at the start of the sequence."""

    @property
    def cached_modules(self) -> Sequence[nn.Module]:
        """The modules whose results a cacher keeps."""

    def rescan(self) -> Tower:
        """Look for the blocks and their parts again, after somebody put others in their place."""
