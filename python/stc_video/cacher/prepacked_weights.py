# SPDX-License-Identifier: Apache-2.0
"""A second copy of a tower's weights, in the form in which they multiply fastest.

On a CPU a matrix product rearranges the weight in every call, whatever the number of rows: a dense
frame hardly notices, a cached one with few rows does. Here oneDNN does it once. 16-bit weights that
the CPU has no instructions for become float32, several times faster than torch's own product.

Query, key and value of the same rows are one product. On a GPU three small ones would leave most of
it idle; their weights are kept a second time, one behind the other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from operator import is_, methodcaller
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear as product

from stc_video.towers.block import Block, Tower
from stc_video.towers.direct import Function, Untouched, direct
from stc_video.towers.patching import InstancePatch, has_own_forward
from stc_video.towers.plain import is_plain_linear

_weight_of = methodcaller("get", "weight")
#: rows that the packed layout is chosen for: an eighth to a half of a few hundred tokens
_TYPICAL_ROWS = 192


@dataclass
class WeightCopy:
    """The weights of one or several layers of the same input, as one matrix.

    It is made when it is first needed, and again when somebody said that it is out of date, or for
    another dtype or device.
    """

    linears: tuple[nn.Linear, ...]
    weight: Tensor | None = None
    bias: Tensor | None = None
    nbytes: int = 0
    is_stale: bool = True
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    packed_dtype: torch.dtype | None = None
    made_of: tuple[object, ...] = ()

    @functools.cached_property
    def sizes(self) -> list[int]:
        """Number of channels that each layer returns."""
        return [linear.out_features for linear in self.linears]

    @functools.cached_property
    def _parameters(self) -> list[dict[str, Any]]:
        # Several times as fast as getattr.
        return [cast(dict[str, Any], linear._parameters) for linear in self.linears]

    def multiply(self, x: Tensor) -> Tensor | None:
        """Return what the layers return for ``x``, side by side; None where they must be called."""
        if not self._is_right_for(x):
            is_of_use = len(self.linears) > 1 or _packs(x)
            if not is_of_use or not all(_is_eligible(one, x) for one in self.linears):
                return None
            self.refresh()
        assert self.weight is not None
        if self.packed_dtype is None:
            return product(x, self.weight, self.bias)
        if x.dtype is self.packed_dtype:
            return _packed_product()(x, self.weight, self.bias, "none", [], "")
        rows = x.to(self.packed_dtype)
        return _packed_product()(rows, self.weight, self.bias, "none", [], "").to(x.dtype)

    def _is_right_for(self, x: Tensor) -> bool:
        """Whether the copy is up to date and for such inputs, as far as it shows at once."""
        return (
            not self.is_stale
            and x.dtype is self.dtype
            and x.device == self.device
            and all(map(is_, map(_weight_of, self._parameters), self.made_of))
            and not torch.is_grad_enabled()
            and x.numel() > 0
        )

    def refresh(self) -> None:
        """Make the copy."""
        with torch.inference_mode(False), torch.no_grad():
            weight, bias = _joined(self.linears)
            self.dtype, self.device = weight.dtype, weight.device
            self.made_of = tuple(map(_weight_of, self._parameters))
            self.packed_dtype = _multiplied_in(weight.dtype) if _packs(weight) else None
            if (dtype := self.packed_dtype) is not None:
                self.nbytes = weight.numel() * dtype.itemsize
                weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype), _TYPICAL_ROWS)
                self.weight, self.bias = weight, None if bias is None else bias.to(dtype)
            else:
                self.nbytes = weight.nbytes + (0 if bias is None else bias.nbytes)
                self.weight = _kept_in_place(self.weight, weight)
                self.bias = None if bias is None else _kept_in_place(self.bias, bias)
        self.is_stale = False


@dataclass
class PrepackedWeights:
    """The copies of the weights of a tower's blocks and mergers, in use while the cacher encodes.

    Attributes
    ----------
    enabled
        Whether to make any.
    fuses_on_cpu
        Whether query, key and value are one product on a CPU, too. It saves next to nothing there,
        and costs a third copy where cached frames need the three on their own.
    """

    enabled: bool = True
    fuses_on_cpu: bool = True
    _patches: dict[nn.Linear, InstancePatch] = field(default_factory=dict)
    _copies: list[WeightCopy] = field(default_factory=list)
    _fused: dict[nn.Module, WeightCopy] = field(default_factory=dict)
    _functions: dict[nn.Linear, Function] = field(default_factory=dict)
    _direct: dict[nn.Module, Block] = field(default_factory=dict)
    _untouched: Untouched | None = None
    _is_active: bool = False
    # Whether nobody but us put anything on the blocks' parts, so that none needs to be looked at;
    # None before anybody asks in a call.
    _is_known_untouched: bool | None = None

    def fuse(self, tower: Tower) -> Tower:
        """Return the tower with blocks whose three projections are one product where they may."""
        if not self.enabled:
            return tower
        blocks = tuple(
            replace(
                one,
                project_together=functools.partial(self._project_together, one),
                shortcut=functools.partial(self._in_short, one.layer),
            )
            for one in tower.blocks
        )
        fused: Tower = replace(cast(Any, tower), blocks=blocks)
        return fused

    def install(self, tower: Tower) -> None:
        """Patch the linear layers; they behave as before until :meth:`active`."""
        if not self.enabled:
            return
        for module in (inner for part in tower.cached_modules for inner in part.modules()):
            if type(module) is nn.Linear and has_own_forward(module):
                self._install_on(module)
        for block in tower.blocks:
            if block.qkv is None:
                self._fuse_on(block)
            self._direct[block.layer] = direct(block, self._functions)
        self._untouched = Untouched(tower.blocks)

    def _install_on(self, linear: nn.Linear) -> None:
        copy = WeightCopy((linear,))

        def forward(module: nn.Linear, x: Tensor) -> Any:
            # A replica that shares the module's attributes (DataParallel) has other weights.
            if module is not linear:
                return nn.Linear.forward(module, x)
            return multiply(x) if self._is_active else patch.stock(x)

        def multiply(x: Tensor) -> Any:
            return patch.stock(x) if (out := copy.multiply(x)) is None else out

        patch = InstancePatch.install(linear, forward)
        self._functions[linear] = multiply
        self._patches[linear] = patch
        self._copies.append(copy)

    def _fuse_on(self, block: Block) -> None:
        linears = tuple(m for m in (block.query, block.key, block.value) if type(m) is nn.Linear)
        if len(linears) == 3:
            self._fused[block.layer] = copy = WeightCopy(linears)
            self._copies.append(copy)

    def _project_together(self, block: Block, normed: Tensor) -> Sequence[Tensor] | None:
        """Multiply by query, key and value in one; None where they must be called as modules."""
        copy = self._fused.get(block.layer)
        if copy is None or (_packs(normed) and not self.fuses_on_cpu):
            return None
        if not self._is_untouched and (
            copy.linears != (block.query, block.key, block.value)
            or not all(map(self._is_plain, copy.linears))
        ):
            return None
        if (joined := copy.multiply(normed)) is None:
            return None
        parts: Sequence[Tensor] = joined.split_with_sizes(copy.sizes, dim=-1)
        return parts

    @property
    def _is_untouched(self) -> bool:
        # Of other modules in their places the cacher has learned before.
        if self._is_known_untouched is None and self._is_active:
            self._is_known_untouched = bool(self._untouched)
        return bool(self._is_known_untouched)

    def _in_short(self, layer: nn.Module) -> Block | None:
        return self._direct.get(layer) if self._is_untouched else None

    def _is_plain(self, linear: nn.Linear) -> bool:
        """Whether calling a layer would do nothing but multiply: no hook, no other's forward."""
        patch = self._patches.get(linear)
        return patch is not None and patch.in_place and is_plain_linear(linear)

    def mark_stale(self) -> None:
        """Note that the weights changed; each copy is made again when it is next needed."""
        for copy in self._copies:
            copy.is_stale = True

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside the block, eligible products use the copies."""
        # A recorded pass reads the copies without asking whether they are up to date.
        for copy in self._fused.values():
            if copy.is_stale and copy.weight is not None and copy.linears[0].weight.is_cuda:
                copy.refresh()
        self._is_active = True
        try:
            yield
        finally:
            self._is_active, self._is_known_untouched = False, None

    def remove(self) -> None:
        """Take the patches off and free the copies."""
        for patch in self._patches.values():
            if (
                patch.in_place
            ):  # else somebody's forward is over ours, which then calls the stock one
                patch.remove()
        for copy in self._copies:
            copy.weight = copy.bias = None
        self._patches.clear()
        self._copies.clear()
        self._fused.clear()
        self._functions.clear()
        self._direct.clear()

    @property
    def nbytes(self) -> int:
        """Size of all copies in bytes."""
        return sum(copy.nbytes for copy in self._copies)


def _joined(linears: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Weights and biases of layers, one behind the other; a single layer's own."""
    if len(linears) == 1:
        (one,) = linears
        return one.weight.detach().contiguous(), None if one.bias is None else one.bias.detach()
    weight = torch.cat([linear.weight.detach() for linear in linears])
    if all(linear.bias is None for linear in linears):
        return weight, None
    biases = (
        linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias
        for linear in linears
    )
    return weight, torch.cat([bias.detach() for bias in biases])


def _kept_in_place(before: Tensor | None, now: Tensor) -> Tensor:
    """Reuse the earlier tensor if the shape is the same: recorded passes know its address."""
    if before is None or (before.shape, before.dtype, before.device) != (
        now.shape,
        now.dtype,
        now.device,
    ):
        return now
    return before.copy_(now)


@functools.cache
def _has_packed_product() -> bool:
    """Whether this build of torch has oneDNN and the operators."""
    names = (
        "_reorder_linear_weight",
        "_linear_pointwise",
        "_is_mkldnn_bf16_supported",
        "_is_mkldnn_fp16_supported",
    )
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in names
    )


@functools.cache
def _packed_product() -> Callable[..., Tensor]:
    """The operator itself: to find it takes longer than some products."""
    product: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise.default
    return product


def _packs(x: Tensor) -> bool:
    return x.is_cpu and _has_packed_product()


@functools.cache
def _multiplied_in(dtype: torch.dtype) -> torch.dtype:
    """In which dtype oneDNN multiplies packed weights: 16 bits need AVX-512 or later."""
    is_native = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return dtype if dtype in is_native and is_native[dtype]() else torch.float32


def _is_eligible(linear: nn.Linear, x: Tensor) -> bool:
    weight = linear._parameters.get("weight")
    return (
        type(weight) is nn.Parameter  # quantised ones multiply in their own way
        and x.device == weight.device
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and x.numel() > 0
        and not torch.is_grad_enabled()
    )
