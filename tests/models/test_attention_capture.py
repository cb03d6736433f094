# SPDX-License-Identifier: Apache-2.0
"""Queries and keys of one layer of real towers, with and without a cacher."""

from __future__ import annotations

import pytest
import torch
from tiny_towers import (
    TOWERS,
    frame,
    last_hidden,
    make_tower,
    prefix_tokens,
    walk,
    with_changed_patches,
)
from torch import nn

import stc_video
from stc_kernels import attention_column_mean
from stc_video import AttachError, CacheConfig, UnsupportedModelError
from stc_video.pruners import Attention

PICTURES = torch.cat([frame(0), frame(1), frame(2)])
WITH_CLASS_TOKEN = ["clip", "dinov2-registers"]


def received(attention: Attention) -> torch.Tensor:
    """Attention that each token receives from the class token, or from all."""
    query = attention.query[:, :1] if attention.prefix else attention.query
    return attention_column_mean(query, attention.key)


def dense(name: str, picture: torch.Tensor, layer: int = -2) -> torch.Tensor:
    tower = make_tower(name)
    with stc_video.capture_attention(tower, layer) as capture:
        last_hidden(tower, picture)
        return received(capture.take())


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("layer", [0, -2, 3])
def test_it_is_the_attention_of_the_layer(name, layer):
    tower = make_tower(name)
    if not hasattr(tower, "set_attn_implementation"):
        pytest.skip("this release of transformers cannot say what its attention is")
    expected_output = last_hidden(tower, PICTURES)
    with stc_video.capture_attention(tower, layer) as capture:
        assert torch.equal(last_hidden(tower, PICTURES), expected_output)
        attention = capture.take()
    prefix = prefix_tokens(name)
    assert attention.prefix == prefix
    assert attention.query.shape == (3, 1 if prefix else 16, 4, 12)
    assert attention.key.shape == (3, 16 + prefix, 4, 12)
    tower.set_attn_implementation("eager")
    with torch.no_grad():
        matrix = tower(PICTURES, output_attentions=True).attentions[layer].mean(1)
    expected = matrix[:, 0] if prefix else matrix.mean(1)
    torch.testing.assert_close(received(attention), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", TOWERS)
def test_removing_leaves_nothing_behind(name):
    tower = make_tower(name)
    last_hidden(tower, frame(0))  # lets transformers install its own hooks

    def hooks() -> list[tuple[int, int]]:
        return [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in tower.modules()]

    before = hooks()
    capture = stc_video.capture_attention(tower)
    assert hooks() != before
    last_hidden(tower, frame(0))
    capture.remove()
    capture.remove()
    assert hooks() == before
    with pytest.raises(ValueError, match="was not called"):
        capture.take()


def test_visionzip_takes_it(siglip):
    for tower, prefix in ((siglip, 0), (make_tower("clip"), 1)):
        pruner = stc_video.make_pruner("visionzip", tokens_per_frame=6)
        with stc_video.capture_attention(tower) as capture:
            features = last_hidden(tower, PICTURES)[:, prefix:]
            kept = pruner(features, attention=capture.take())
        assert kept.counts.tolist() == [6, 6, 6]


@pytest.mark.parametrize("policy", ["motion", "stc"])
@pytest.mark.parametrize("cacher_first", [True, False])
@pytest.mark.parametrize("name", WITH_CLASS_TOKEN)
def test_beside_a_cacher_the_class_token_sees_every_frame(name, policy, cacher_first):
    tower = make_tower(name)
    if cacher_first:
        cacher = stc_video.attach_cacher(tower, policy)
        capture = stc_video.capture_attention(tower)
    else:
        capture = stc_video.capture_attention(tower)
        cacher = stc_video.attach_cacher(tower, policy)
    kinds = []
    for number, picture in enumerate(walk(8)):
        last_hidden(tower, picture)
        record = cacher.last_frames[0]
        kinds.append(record.kind)
        got, expected = received(capture.take()), dense(name, picture)
        torch.testing.assert_close(got.sum(1), torch.ones(1))
        if record.kind == "dense":
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
        else:
            assert torch.cosine_similarity(got, expected).item() > 0.9, number
    assert {"dense", "cached"} <= set(kinds)


@pytest.mark.parametrize("name", WITH_CLASS_TOKEN)
def test_an_unchanged_frame_has_the_attention_of_the_one_before(name):
    tower = make_tower(name)
    stc_video.attach_cacher(tower, CacheConfig(policy="motion", refresh=0.0))
    capture = stc_video.capture_attention(tower)
    cacher = tower  # the handle is found through the tower
    last_hidden(cacher, frame(0))
    last_hidden(tower, with_changed_patches(frame(0), [3]))
    still = with_changed_patches(frame(0), [3])
    first = received(capture.take())
    last_hidden(tower, torch.cat([still, still]))
    assert torch.equal(received(capture.take()), torch.cat([first, first]))


def test_streams_and_calls_in_between():
    tower = make_tower("clip")
    cacher = stc_video.attach_cacher(tower)
    capture = stc_video.capture_attention(tower)
    with cacher.streams(["a", "b"]):
        last_hidden(tower, PICTURES[:2])
        last_hidden(tower, PICTURES[:2])  # unchanged, and nobody takes it
        last_hidden(tower, PICTURES[:2])
    with cacher.streams(["b"]):
        last_hidden(tower, PICTURES[1:2])
    torch.testing.assert_close(received(capture.take()), dense("clip", PICTURES[1:2]))
    with cacher.paused():
        last_hidden(tower, PICTURES[2:])
    torch.testing.assert_close(received(capture.take()), dense("clip", PICTURES[2:]))
    with cacher.streams(["a"]):
        last_hidden(tower, PICTURES[:1])
    torch.testing.assert_close(received(capture.take()), dense("clip", PICTURES[:1]))
    cacher.reset()
    last_hidden(tower, PICTURES[:1])
    capture.take()
    assert set(capture._latest) == {"default"}


def test_without_a_class_token_all_queries_are_needed(siglip):
    cacher = stc_video.attach_cacher(siglip, CacheConfig(policy="motion", tail_layers=0))
    capture = stc_video.capture_attention(siglip)
    last_hidden(siglip, frame(0))
    torch.testing.assert_close(received(capture.take()), dense("siglip", frame(0)))
    changed = with_changed_patches(frame(0), [3])
    last_hidden(siglip, changed)
    with pytest.raises(ValueError, match=r"layer 2 computed \d of 16 queries of frame 0"):
        capture.take()
    with cacher.paused():
        last_hidden(siglip, changed)
    torch.testing.assert_close(received(capture.take()), dense("siglip", changed))


def test_a_failed_call_is_not_taken_for_attention():
    tower = make_tower("clip")
    capture = stc_video.capture_attention(tower)

    def fail(*_):
        raise KeyError("on purpose")

    hook = tower.get_submodule(capture._tower.path)[1].register_forward_pre_hook(fail)
    with pytest.raises(KeyError):
        last_hidden(tower, frame(0))
    hook.remove()
    with pytest.raises(ValueError, match="failed, or was no whole call"):
        capture.take()
    last_hidden(tower, frame(1))
    torch.testing.assert_close(received(capture.take()), dense("clip", frame(1)))


def test_what_cannot_be_captured_is_refused(siglip):
    with pytest.raises(ValueError, match="layer must be between -4 and 3, got 4"):
        stc_video.capture_attention(siglip, 4)
    with pytest.raises(UnsupportedModelError, match="capture_attention: Linear is not"):
        stc_video.capture_attention(nn.Linear(2, 2))
    with (
        stc_video.attach_tome(siglip),
        pytest.raises(AttachError, match=r"capture_attention: this tower has a token merger"),
    ):
        stc_video.capture_attention(siglip)
    with stc_video.capture_attention(siglip) as capture, stc_video.attach_tome(siglip, 3):
        last_hidden(siglip, frame(0))
        with pytest.raises(ValueError, match="take: "):
            capture.take()


def test_a_frame_that_is_encoded_twice_has_the_attention_of_the_second_time():
    tower = make_tower("clip")
    cacher = stc_video.attach_cacher(tower, CacheConfig(redo_from=0.0, threshold=0.9))
    capture = stc_video.capture_attention(tower)
    redone = 0
    with cacher.streams(["a", "b"]):
        for first, second in zip(walk(5), reversed(walk(5)), strict=True):
            last_hidden(tower, torch.cat([first, second]))
            got = received(capture.take())
            redone += sum(record.passes == 2 for record in cacher.last_frames)
            for row, picture in enumerate((first, second)):
                if cacher.last_frames[row].kind == "dense":
                    torch.testing.assert_close(got[row, None], dense("clip", picture))
    assert redone > 0


def test_what_cannot_be_told_apart_is_refused():
    tower = make_tower("clip")
    cacher = stc_video.attach_cacher(tower)
    capture = stc_video.capture_attention(tower)
    with cacher.streams(["a", "b"]):
        last_hidden(tower, torch.cat([*walk(4)]))
    with pytest.raises(ValueError, match="one frame of each of several streams"):
        capture.take()
    recorded = make_tower("clip")
    stc_video.attach_cacher(recorded, CacheConfig(batching="bucketed"))
    with pytest.raises(AttachError, match="batching='ragged'"):
        stc_video.capture_attention(recorded)
