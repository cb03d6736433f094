# SPDX-License-Identifier: Apache-2.0
"""What pruners ask of a GPU, seen without one.

Tensors on torch's meta device have no values: asking for one, which on a GPU would wait for it,
raises. The operators run on their reference there.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_every_pruner import CASES, GRID, IDS, TOKENS
from torch.utils._python_dispatch import TorchDispatchMode

import stc_kernels
from stc_video import make_pruner
from stc_video.pruners import Attention

#: operators of torch that launch nothing
FREE = ("empty", "empty_like", "scalar_tensor")


class Launches(TorchDispatchMode):
    """Counts calls of torch's operators that do something on a device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if not func.is_view and name not in FREE:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def on_meta(frames: int) -> dict[str, Any]:
    def empty(*shape: int) -> torch.Tensor:
        return torch.empty((frames, *shape), device="meta")

    heads = (empty(TOKENS + 1, 2, 8), empty(TOKENS + 1, 2, 8))
    return {"pixels": empty(3, 8, 10), "attention": Attention(*heads, prefix=1)}


@pytest.mark.parametrize(("name", "settings"), CASES, ids=IDS)
def test_nothing_is_asked_of_the_device(name, settings):
    pruner = make_pruner(name, **settings)
    for frames in (1, 3, 1):
        features = torch.empty((frames, TOKENS, 16), device="meta")
        kept = pruner(features, GRID, **on_meta(frames))
        assert len(kept.counts) == frames
        assert kept.counts.device.type == "meta"


@pytest.mark.parametrize("parity", ["fixed", "alternating"])
def test_a_frame_of_streaming_assistant_takes_few_launches(monkeypatch, parity):
    """Three operators of this package, and at most 20 small ones of torch."""
    calls: list[str] = []

    def counted(op: str, result: Any) -> Any:
        def call(*args: Any) -> Any:
            calls.append(op)
            return result(*args)

        return call

    modules = {
        "token_cosine": ("novelty", lambda x, y: torch.empty(x.shape[:2], device="meta")),
        "spatial_redundancy": (
            "streaming_assistant",
            lambda x, alive: torch.empty(x.shape[:3], device="meta"),
        ),
        "gather_rows": ("base", lambda x, at: torch.empty((*at.shape, 16), device="meta")),
    }
    for op, (module, shapes) in modules.items():
        assert op in stc_kernels.OPS
        monkeypatch.setattr(f"stc_video.pruners.{module}.{op}", counted(op, shapes))
    pruner = make_pruner("streaming_assistant", parity=parity)
    frame = torch.empty((1, TOKENS, 16), device="meta")
    pruner(frame, GRID)
    pruner(frame, GRID)  # both halves have been made
    calls.clear()
    with Launches() as launches:
        pruner(frame, GRID)
    assert calls == ["token_cosine", "spatial_redundancy", "gather_rows"]
    assert len(launches.names) <= 20, launches.names
