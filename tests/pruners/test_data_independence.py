# SPDX-License-Identifier: Apache-2.0
"""Pruners of exact count never look at a value on the host: traced with tensors without values.

What a GPU adds to this is in ``test_gpu_pruners.py``.
"""

from __future__ import annotations

import pytest
import torch
from test_gpu_pruners import EXACT, IDS
from torch import Tensor

import stc_kernels
from stc_video import make_pruner
from stc_video.pruners import Attention, PrunedTokens


def prune_without_values(name: str, settings: dict[str, object]) -> PrunedTokens:
    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta")

    with stc_kernels.use_backend("reference"):
        features, pixels, heads = empty(1, 196, 32), empty(1, 3, 28, 28), empty(1, 197, 4, 8)
        pruner = make_pruner(name, **settings)
        for _ in range(3):  # with a past, too
            attention = Attention(heads, heads, prefix=1)
            pruned = pruner(features, (14, 14), pixels=pixels, attention=attention)
    return pruned


@pytest.mark.parametrize(("name", "settings"), EXACT, ids=IDS)
def test_no_value_is_looked_at(name, settings):
    pruned = prune_without_values(name, settings)
    kept = settings.get("tokens_per_frame", 196)
    assert pruned.indices.shape == (1, kept)
    assert pruned.tokens.shape == (1, kept, 32)
    assert pruned.indices.is_meta


def test_the_test_notices_a_value_that_is_looked_at(monkeypatch):
    monkeypatch.setattr(
        "stc_video.pruners.novelty.highest", lambda scores, count: int(scores.max())
    )
    with pytest.raises(RuntimeError, match="meta"):
        prune_without_values("evs", {"tokens_per_frame": 64})
