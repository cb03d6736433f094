# SPDX-License-Identifier: Apache-2.0
"""One view of a transformer block, whatever its family, and the interface of a tower."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from stc_video.errors import UnsupportedModelError
from stc_video.towers.attention import attention
from stc_video.towers.fused import feed_forward
from stc_video.towers.layouts import BlockLayout, layout_of, missing_parts, part_at
from stc_video.towers.observers import show_attention
from stc_video.towers.plain import is_plain_linear, parameter_names
from stc_video.towers.positions import FrameGeometry

_HEADS = ("num_heads", "num_attention_heads", "attention_heads")
_SCALES = ("scaling", "scale")


class Part:
    """A part of a block, looked up whenever it is asked for.

    Somebody may put another module in its place at any time: an adapter, a quantised layer. A part
    that the block does not have is None.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, block: Block, owner: type | None = None) -> Any:
        if self.name not in block.paths:
            return None
        module: Any = block.layer
        *path, last = block.paths[self.name]
        for step in path:
            module = module._modules[step]  # several times as fast as getattr
        return module._modules[last] if last in module._modules else module._parameters[last]


@dataclass(frozen=True)
class Block:
    """One transformer block, by the parts that its :class:`BlockLayout` names.

    Parts are called as modules, never re-implemented, which absorbs every difference between
    activations, gated MLPs, kinds of norm and adapters.

    Shapes: B frames, N tokens of a frame, K of them, C channels. ``indices`` (B, K) int32 tell
    where in the frame the K tokens are, None if they are all N in order.

    Attributes
    ----------
    layer
        The module.
    layout
        Where its parts are.
    heads, key_heads
        Number of heads of the queries, and of the keys and values.
    sharpness
        What queries are multiplied by, so that their products with keys only have to be divided
        by the root of the head size.
    geometry
        Of the frames under way.
    is_windowed
        Whether a row attends to its window only.
    project_together
        Makes query, key and value of the same rows at once, or returns None where they must be
        called as modules; None if there is no such function.
    shortcut
        Returns the same block with functions in place of its modules, or None where these must be
        called; None if there is no such function.
    """

    layer: nn.Module
    layout: BlockLayout
    heads: int
    key_heads: int
    sharpness: float
    geometry: FrameGeometry = field(repr=False)
    is_windowed: bool = False
    project_together: Callable[[Tensor], Sequence[Tensor] | None] | None = None
    shortcut: Callable[[], Block | None] | None = None
    paths: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)

    norm1 = Part()
    norm2 = Part()
    qkv = Part()
    query = Part()
    key = Part()
    value = Part()
    query_norm = Part()
    key_norm = Part()
    value_norm = Part()
    output = Part()
    mlp = Part()
    mlp_output = Part()
    scale1 = Part()
    scale2 = Part()

    @classmethod
    def of(
        cls, layer: nn.Module, geometry: FrameGeometry | None = None, is_windowed: bool = False
    ) -> Block:
        """Take a block apart.

        Raises
        ------
        UnsupportedModelError
            If a part is missing, or if its heads do not add up to its channels.
        """
        name, layout = type(layer).__name__, layout_of(layer)
        if layout is None:
            raise UnsupportedModelError(
                f"attach_cacher: {name} is not a supported block: it has no "
                f"{' and no '.join(missing_parts(layer))}"
            )
        inner = cast(nn.Module, part_at(layer, (layout.attention,)))
        heads = _heads(inner)
        paths, geometry = layout.paths, geometry or FrameGeometry()
        block = cls(layer, layout, heads, heads, 1.0, geometry, is_windowed, paths=paths)
        size, odd = divmod(block.channels, heads)
        widths = block._widths()
        if odd or widths[0] != block.channels or widths[1] % size or heads % (widths[1] // size):
            raise UnsupportedModelError(
                f"attach_cacher: {name} is not a supported block: {heads} heads with queries and "
                f"keys of {widths} channels, where the residual stream has {block.channels}"
            )
        return replace(block, key_heads=widths[1] // size, sharpness=_sharpness(inner, size))

    def _widths(self) -> tuple[int, int]:
        """Channels of the queries, and of the keys."""
        if self.qkv is None:
            return _features(self.query, "out_features"), _features(self.key, "out_features")
        return self.channels, (_features(self.qkv, "out_features") - self.channels) // 2

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        """The modules of it that are called."""
        every = (getattr(self, name) for name in self.paths)
        return tuple(part for part in every if isinstance(part, nn.Module))

    @property
    def last_of_mlp(self) -> nn.Module:
        """The module that returns what the MLP gives."""
        return cast(nn.Module, self.mlp if self.mlp_output is None else self.mlp_output)

    @property
    def weights(self) -> tuple[nn.Parameter, ...]:
        """The parameters of it that are parts by themselves."""
        every = (getattr(self, name) for name in self.paths)
        return tuple(part for part in every if isinstance(part, nn.Parameter))

    @property
    def returns_tuple(self) -> bool:
        """Whether this release's class wraps its output in a tuple.

        True exactly for the classes whose forward still has ``output_attentions``.
        """
        return "output_attentions" in parameter_names(type(self.layer).forward)

    @property
    def channels(self) -> int:
        """Width of the residual stream, C."""
        # The weight of a quantised layer may have any shape.
        return _features(self.query if self.qkv is None else self.qkv, "in_features")

    def in_short(self) -> Block:
        """Return the block with functions in place of its modules, if these do nothing else."""
        return self if self.shortcut is None else self.shortcut() or self

    # -- queries, keys and values ------------------------------------------------------------

    def project(
        self, normed: Tensor, indices: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of normalised rows, each (B, K, C)."""
        query, key, value = self._project(normed)
        if self._hands_on and self.geometry.tables is None:
            return query, key, value
        return self._as_query(query, indices), self._as_key(key, indices), self._as_value(value)

    @functools.cached_property
    def _hands_on(self) -> bool:
        """Whether projections are queries, keys and values as they are, but for places."""
        norms = {"query_norm", "key_norm", "value_norm"}
        return self.sharpness == 1.0 and self.heads == self.key_heads and not norms & {*self.paths}

    def _project(self, normed: Tensor) -> Sequence[Tensor]:
        if self.qkv is not None:
            parts: Sequence[Tensor] = self.qkv(normed).split(self._sizes(), dim=-1)
            return parts
        together = None if self.project_together is None else self.project_together(normed)
        if together is not None:
            return together
        return self.query(normed), self.key(normed), self.value(normed)

    def project_query(self, normed: Tensor, indices: Tensor | None = None) -> Tensor:
        """Queries alone."""
        return self._as_query(self._one(normed, 0), indices)

    def project_key(self, normed: Tensor, indices: Tensor | None = None) -> Tensor:
        """Keys alone."""
        return self._as_key(self._one(normed, 1), indices)

    def project_value(self, normed: Tensor, indices: Tensor | None = None) -> Tensor:
        """Values alone."""
        return self._as_value(self._one(normed, 2))

    def _one(self, normed: Tensor, number: int) -> Tensor:
        if self.qkv is None:
            return cast(Tensor, (self.query, self.key, self.value)[number](normed))
        if not is_plain_linear(self.qkv):  # an adapter, a quantised layer, a hook
            return self._project(normed)[number]
        sizes = self._sizes()
        rows = slice(sum(sizes[:number]), sum(sizes[: number + 1]))
        bias = None if self.qkv.bias is None else self.qkv.bias[rows]
        return linear(normed, self.qkv.weight[rows], bias)

    def _sizes(self) -> list[int]:
        width = self.channels
        narrow = width // self.heads * self.key_heads
        return [width, narrow, narrow]

    def _as_query(self, x: Tensor, indices: Tensor | None) -> Tensor:
        x = self._normalised(self.query_norm, x, self.heads)
        x = self.geometry.rotate(x, self.heads, self.layout.rotary_axes, indices)
        return x if self.sharpness == 1.0 else x * self.sharpness

    def _as_key(self, x: Tensor, indices: Tensor | None) -> Tensor:
        x = self._normalised(self.key_norm, x, self.key_heads)
        x = self.geometry.rotate(x, self.key_heads, self.layout.rotary_axes, indices)
        return self._repeated(x)

    def _as_value(self, x: Tensor) -> Tensor:
        return self._repeated(self._normalised(self.value_norm, x, self.key_heads))

    def _normalised(self, norm: Any, x: Tensor, heads: int) -> Tensor:
        """Normalise each head, or all channels, whichever the weight of ``query_norm`` fits."""
        if norm is None:
            return x
        weight = getattr(self.query_norm, "weight", None)
        if weight is None or weight.numel() > self.channels // self.heads:
            return cast(Tensor, norm(x))
        by_head: Tensor = norm(x.unflatten(-1, (heads, -1)))
        return by_head.flatten(-2)

    def _repeated(self, x: Tensor) -> Tensor:
        """Keys or values of grouped heads, once for each query head."""
        groups = self.heads // self.key_heads
        if groups == 1:
            return x
        by_head: Tensor = x.unflatten(-1, (self.key_heads, -1))
        return by_head.repeat_interleave(groups, -2).flatten(-2)

    # -- the two branches --------------------------------------------------------------------

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        indices: Tensor | None = None,
    ) -> Tensor:
        """Attention branch of some rows: query (B, K, C), key and value (B, N, C) -> (B, K, C).

        ``mask`` is None or broadcastable to (B, heads, K, N).
        """
        return self.attention_branch(self.attend(query, key, value, mask, indices))

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        indices: Tensor | None = None,
    ) -> Tensor:
        """Values mixed by attention, in front of the output projection."""
        show_attention(self.layer, query, key)
        geometry = self.geometry
        if not self.is_windowed or len(geometry.windows) == 1:
            return attention(query, key, value, self.heads, mask)
        if indices is None:
            queries, keys, values = (x.split(geometry.windows, 1) for x in (query, key, value))
            windows = zip(queries, keys, values, strict=True)
            return torch.cat([attention(q, k, v, self.heads) for q, k, v in windows], dim=1)
        # One call for whatever rows there are: their number per window is only known on the device.
        same = geometry.window_of[indices.long()][:, None, :, None] == geometry.window_of
        return attention(query, key, value, self.heads, same)

    def attention_branch(self, mixed: Tensor) -> Tensor:
        """Project mixed values (B, K, C) to what is added to the residual stream."""
        return _scaled(self.scale1, self.output(mixed))

    def feed_forward(self, x: Tensor) -> Tensor:
        """MLP branch of rows (B, K, C) of the residual stream: ``mlp_branch`` behind ``norm2``."""
        return self.mlp_branch(self.norm2(x))

    def mlp_branch(self, normed: Tensor) -> Tensor:
        """MLP branch of normalised rows, (B, K, C) -> (B, K, C)."""
        branch = feed_forward(self.mlp, normed)
        return _scaled(self.scale2, branch if self.mlp_output is None else self.mlp_output(branch))

    def mlp_operations(self) -> int:
        """Multiply-adds of the MLP for one token."""
        halves = [part for part in (self.mlp, self.mlp_output) if part is not None]
        linears = (m for half in halves for m in half.modules() if isinstance(m, nn.Linear))
        return sum(module.weight.numel() for module in linears)


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
    def depth(self) -> int:
        """How many blocks there are, with those that run as they are behind these."""

    @property
    def prefix_tokens(self) -> int:
        """Class token and registers at the start of the sequence."""

    @property
    def geometry(self) -> FrameGeometry:
        """Of the frames under way; the blocks look at it."""

    @property
    def cached_modules(self) -> Sequence[nn.Module]:
        """The modules whose results a cacher keeps."""

    def rescan(self) -> Tower:
        """Look for the blocks and their parts again, after somebody put others in their place."""


def _scaled(scale: Any, branch: Tensor) -> Tensor:
    """What is added to the residual stream: the branch, its norm, or it times a parameter."""
    if scale is None:
        return branch
    scaled: Tensor = scale * branch if isinstance(scale, Tensor) else scale(branch)
    return scaled


def _heads(attention: nn.Module) -> int:
    """Number of heads, by the attention, a module inside it, or its config."""
    for holder in (*attention.modules(), getattr(attention, "config", None)):
        for name in _HEADS:
            if isinstance(heads := getattr(holder, name, None), int):
                return heads
    raise UnsupportedModelError(
        f"attach_cacher: {type(attention).__name__} does not tell its number of heads "
        f"({' or '.join(_HEADS)})"
    )


def _sharpness(attention: nn.Module, size: int) -> float:
    """Factor of the products of queries and keys, times the root of the head size."""
    for module in attention.modules():
        for name in _SCALES:
            if isinstance(scale := getattr(module, name, None), float):
                factor = scale * size**0.5
                return 1.0 if abs(factor - 1.0) < 1e-6 else factor
    return 1.0


def _features(projection: Any, name: str) -> int:
    """``in_features`` or ``out_features`` of a linear layer, or of the one that it wraps."""
    while not hasattr(projection, name):
        projection = projection.linear
    return cast(int, getattr(projection, name))
