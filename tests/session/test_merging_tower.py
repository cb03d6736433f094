# SPDX-License-Identifier: Apache-2.0
"""A whole model on a tower that merges tokens."""

from __future__ import annotations

import pytest
import torch
from test_accelerate import arguments, greedy

import stc_video
from stc_video import AttachError, accelerate


def test_a_model_runs_on_the_full_output_of_a_merging_tower(model):
    inputs = arguments()
    stock = model(**inputs).logits
    tower = model.model.vision_tower
    with stc_video.attach_tome(tower, 0, output="full"):
        assert torch.equal(model(**inputs).logits, stock)
    with stc_video.attach_tome(tower, 3, output="full") as tome:
        merged = model(**inputs).logits
        assert merged.shape == stock.shape
        assert not torch.allclose(merged, stock)
        assert tome.last.sizes.max() > 1
        with accelerate(model, cache=None, prune="none").stc:
            torch.testing.assert_close(model(**inputs).logits, merged, atol=1e-5, rtol=0)
            assert greedy(model, **inputs).shape[1] > inputs["input_ids"].shape[1]
        with pytest.raises(AttachError, match="already has a token merger"):
            accelerate(model)
        assert not hasattr(model, "stc")
    assert torch.equal(model(**inputs).logits, stock)
