# SPDX-License-Identifier: Apache-2.0
"""Linear layers whose weights are kept in the layout that the CPU multiplies in.

A matrix product on the CPU rearranges the weight in every call, whatever the number of rows: a
dense frame hardly notices, a cached one with few rows does. Here oneDNN does it once, at the price
of a second copy of those weights, and adds the bias in the same pass.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from stc_video.cacher.patching import InstancePatch
from stc_video.towers.block import Block

#: rows that the packed layout is chosen for: an eighth to a half of a few hundred tokens
_TYPICAL_ROWS = 192


@dataclass
class PackedLinear:
    """The packed weight of one layer, made when it is first needed and again when it changes."""

    linear: nn.Linear
    packed: Tensor | None = None
    made_from: tuple[int, int] = (0, 0)

    def multiply(self, x: Tensor) -> Tensor:
        """Return what ``linear(x)`` returns."""
        weight = self.linear.weight
        identity = (weight.data_ptr(), weight._version)
        if self.packed is None or identity != self.made_from:
            with torch.inference_mode(False), torch.no_grad():
                self.packed = torch.ops.mkldnn._reorder_linear_weight(
                    weight.detach(), _TYPICAL_ROWS
                )
            self.made_from = identity
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.packed, self.linear.bias, "none", [], ""
        )
        return out

    @property
    def nbytes(self) -> int:
        """Size of the packed copy in bytes."""
        return 0 if self.packed is None else self.linear.weight.nbytes


@dataclass
class PackedLinears:
    """The linear layers of a tower's blocks, patched while the cacher encodes.

    Attributes
    ----------
    blocks
        Blocks of the tower.
    enabled
        Whether to use packed weights where they help: float32, and bfloat16 on a CPU with AVX-512.
    """

    blocks: Sequence[Block]
    enabled: bool = True
    _layers: list[PackedLinear] = field(default_factory=list)
    _patches: list[InstancePatch] = field(default_factory=list)
    _is_active: bool = False

    def install(self) -> None:
        """Patch the layers; they behave as before until :meth:`active`."""
        if not self.enabled or not _has_packed_product():
            return
        for block in self.blocks:
            for module in block.layer.modules():
                if type(module) is nn.Linear:
                    self._install_on(module)

    def _install_on(self, linear: nn.Linear) -> None:
        layer = PackedLinear(linear)

        def forward(module: nn.Linear, x: Tensor) -> Any:
            # A deep copy of the model carries this forward along, but not this object's weight.
            if module is linear and self._is_active and _is_eligible(module, x):
                return layer.multiply(x)
            if module is linear:
                return patch.stock(x)
            return nn.Linear.forward(module, x)

        patch = InstancePatch.install(linear, forward)
        self._patches.append(patch)
        self._layers.append(layer)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside the block, eligible products use the packed weights."""
        self._is_active = True
        try:
            yield
        finally:
            self._is_active = False

    def remove(self) -> None:
        """Take the patches off and free the copies."""
        for patch in self._patches:
            patch.remove()
        self._patches.clear()
        self._layers.clear()

    @property
    def nbytes(self) -> int:
        """Size of all packed copies in bytes."""
        return sum(layer.nbytes for layer in self._layers)


def _has_packed_product() -> bool:
    """Whether this build of torch has oneDNN and the operators."""
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name)
        for name in (
            "_reorder_linear_weight",
            "_linear_pointwise",
            "_is_mkldnn_bf16_supported",
        )
    )


@functools.cache
def _multiplies_packed(dtype: torch.dtype) -> bool:
    """Whether oneDNN takes packed weights of this dtype; bfloat16 needs AVX-512 or later."""
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def _is_eligible(linear: nn.Linear, x: Tensor) -> bool:
    weight = linear.weight
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype
        and _multiplies_packed(x.dtype)
        and x.numel() > 0
        and not torch.is_grad_enabled()
        and not weight.is_inference()
    )
