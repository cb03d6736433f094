# SPDX-License-Identifier: Apache-2.0
"""What only LLaVA-OneVision does: pictures cut into views, features of inner blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_engine import noise, partly, pictures, video

from stc_video.integrations.vllm.names import StreamName

pytest.importorskip("vllm", reason="`make test-vllm` puts vLLM into an environment of its own")
pytestmark = pytest.mark.parametrize("engine", ["llava-onevision"], indirect=True)


def test_views_of_a_picture_are_compared_each_with_its_own(engine):
    """LLaVA-OneVision sees a wide picture whole, its left half and its right half."""
    frame = np.concatenate([noise(engine.side, 160), noise(engine.side, 161)], 1)
    changed = frame.copy()
    changed[:, : engine.side] = partly(frame[:, : engine.side], 162)
    encoder = engine.attach()
    expected = engine.ask(pictures([frame])), list(engine.encoded)
    engine.forget()
    assert engine.ask(pictures([frame], stc_stream="cam")) == expected[0]
    torch.testing.assert_close(engine.encoded, expected[1], rtol=1e-4, atol=1e-4)
    totals = encoder.totals
    assert (totals.dense, totals.streams) == (3, 3)
    engine.ask(pictures([changed], stc_stream="cam"))
    assert (totals.dense, totals.cached, totals.unchanged) == (3, 2, 1)
    engine.ask(video([noise(engine.side, 163)], stc_stream="cam", stc_end=True))
    assert (totals.streams, totals.ended) == (0, 1)


def test_a_call_for_features_of_inner_blocks_runs_as_stock(engine):
    encoder = engine.attach()
    pixels = torch.randn(1, 3, engine.side, engine.side)
    with torch.inference_mode():
        expected = engine.visual(pixels, select_layers=[1, 3])
        with encoder.naming([StreamName("cam")], {"pixel_values_videos": [pixels]}):
            assert torch.equal(engine.visual(pixels, select_layers=[1, 3]), expected)
    assert encoder.totals.rows == 0


def test_a_tower_with_a_class_token_is_refused(engine):
    encoder, embeddings = engine.attach(), engine.visual.vision_model.embeddings
    encoder.detach()
    embeddings.class_embedding = torch.zeros(1)
    try:
        with pytest.raises(AttributeError, match="SiglipVisionModel has a class token"):
            type(encoder)(engine.visual, encoder._settings, print)
    finally:
        del embeddings.class_embedding
        engine.model.stc_encoder = type(encoder)(engine.visual, encoder._settings, print)
