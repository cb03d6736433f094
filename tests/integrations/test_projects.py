# SPDX-License-Identifier: Apache-2.0
"""What is particular to one project: what its language model gets, and what is refused."""

from __future__ import annotations

import types

import pytest
import torch
from projects import Project, walk
from stand_ins import SIZE, LlavaNext, stand_in
from upstream import NotAtHandError
from upstream_models import IMAGE, randomise, run_llava
from upstream_models import llava_next as llava_next_model

from stc_video import AttachError, UnsupportedModelError, make_pruner
from stc_video.integrations import dispider, llava_next, rekv, streamforest


def only(name: str):
    """Run a test for one project, as a stand-in and of the authors' files."""
    kinds = [(name, "stand-in"), (name, "upstream")]
    return pytest.mark.parametrize("project", kinds, indirect=True, ids="-".join)


# -- ReKV -----------------------------------------------------------------------------------------


@only("rekv")
def test_rekv_keeps_one_pruned_frame_per_block(project: Project):
    model = project.model
    handle = rekv.apply(model, cache=None, tokens_per_frame=6)
    assert model.n_frame_tokens == 6
    length = project.run(model, project.frames())[2 if hasattr(model, "lm_head") else -2]
    model.encode_init_prompt()
    model.encode_video((project.frames().permute(0, 2, 3, 1) * 255).to(torch.uint8), 3)
    memory = model.kv_cache[0]
    assert memory.block_size == memory.exc_block_size == 6
    assert memory.length == int(length.flatten()[0]) == 3 + 7 * 6
    with pytest.raises(AttachError, match="blocks of 6 tokens"):
        handle.restore()
    with pytest.raises(AttachError, match=r"restore\(\) first|clear_cache"):
        rekv.apply(model)
    model.kv_cache = None
    handle.restore()
    assert model.n_frame_tokens == 16


@only("rekv")
def test_rekv_features_are_rows_of_the_stock_ones(project: Project):
    pixels = walk(4, project.size)[None] * 2 - 1
    stock = project.model._get_video_features(pixels).view(4, 16, -1)
    expected = make_pruner("stc", tokens_per_frame=6)(stock, grid=(4, 4)).tokens
    with rekv.apply(project.model, cache=None, tokens_per_frame=6):
        pruned = project.model._get_video_features(pixels)
    assert pruned.shape == (1, 24, stock.shape[-1])
    assert torch.equal(pruned.view(4, 6, -1), expected)


def test_rekv_refuses_what_its_blocks_cannot_hold():
    model = stand_in("rekv")
    with pytest.raises(ValueError, match="same for each frame"):
        rekv.apply(model, prune="dtd", tokens_per_frame=None)
    with pytest.raises(ValueError, match="between 1 and 16"):
        rekv.apply(model)
    model.encode_init_prompt()
    with pytest.raises(AttachError, match="apply: the model holds a video in blocks of 16"):
        rekv.apply(model, tokens_per_frame=6)
    model.kv_cache = None
    rekv.apply(model, tokens_per_frame=6)
    with pytest.raises(ValueError, match="one video at a time, got a batch of 2"):
        model._get_video_features(torch.rand(2, 1, 3, SIZE, SIZE))


def test_rekv_refuses_a_model_without_its_attention():
    model = stand_in("rekv")
    for layer in model.language_model.layers:
        del layer.__dict__["forward"]
    with pytest.raises(UnsupportedModelError, match="none of ReKV's attention forwards"):
        rekv.apply(model)
    model = stand_in("rekv")
    model.n_frame_tokens = 10
    with pytest.raises(UnsupportedModelError, match="block_size of ReKV's memory must be"):
        rekv.apply(model, tokens_per_frame=5)
    assert not hasattr(model, "stc")


# -- StreamForest ---------------------------------------------------------------------------------


@only("streamforest")
def test_streamforest_s_memory_is_thinned(project: Project):
    stock = project.run(project.model, project.frames())[0][0]
    with streamforest.apply(project.model, cache=None, retention_ratio=0.3):
        pruned = project.run(project.model, project.frames())[0][0]
    memory, text = stock[2:-2], 4
    assert len(pruned) == text + round(0.3 * len(memory))
    places = [(memory == row).all(-1).nonzero()[0, 0] for row in pruned[2:-2]]
    assert places == sorted(places)


@only("streamforest")
def test_streamforest_s_images_pass_unchanged(project: Project, monkeypatch):
    # Their projector picks one of two sizes for an image at random.
    monkeypatch.setattr("random.randint", lambda low, high: low)
    image = walk(1, project.size)[0]
    stock = run_llava(project.model, image, kinds=("image",))[0]
    handle = streamforest.apply(project.model)
    assert torch.equal(run_llava(project.model, image, kinds=("image",))[0], stock)
    assert handle.stats().cache.frames == handle.stats().tokens_before == 0


@only("streamforest")
def test_streamforest_s_online_loop_is_pruned(project: Project):
    def answer() -> list[torch.Tensor]:
        prompt = torch.tensor([[1, 2, IMAGE, 3]])
        settings = {"modalities": ["video"], "max_new_tokens": 3, "do_sample": False}
        return list(project.model.generate_online(prompt, images=[frames], **settings))

    frames = walk(4, project.size)
    stock = answer()
    with streamforest.apply(project.model, retention_ratio=0.5) as handle:
        pruned = answer()
        stats = handle.stats()
    assert stats.cache.frames == 4
    assert stats.tokens_after == stats.tokens_before // 2
    assert [x.shape for x in answer()] == [x.shape for x in stock]
    assert all(torch.equal(x, y) for x, y in zip(answer(), stock, strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(pruned, stock, strict=True))


def test_streamforest_refuses_other_encoders():
    model = stand_in("streamforest")
    model.config.vision_encode_type = "video"
    with pytest.raises(UnsupportedModelError, match="got 'video'"):
        streamforest.apply(model)


# -- Dispider -------------------------------------------------------------------------------------


@only("dispider")
def test_dispider_s_clips_keep_the_same_number_of_each_frame(project: Project):
    stock = project.run(project.model, project.frames())[0]
    with dispider.apply(project.model, cache=None, tokens_per_frame=6) as handle:
        pruned = project.run(project.model, project.frames())[0]
        assert handle.stats().tokens_after == 32 * 6
    assert stock.shape[1] - pruned.shape[1] == 32 * (16 - 6)


def test_dispider_refuses_a_varying_number():
    model = stand_in("dispider")
    with pytest.raises(ValueError, match="same for each frame"):
        dispider.apply(model, prune="dtd", tokens_per_frame=None)
    assert not hasattr(model, "stc")


# -- LLaVA-NeXT -----------------------------------------------------------------------------------


@only("llava_next")
def test_llava_next_pays_for_newlines(project: Project):
    side = round(project.tokens**0.5)
    stock = project.run(project.model, project.frames())[0][0, 2:-2]
    assert len(stock) == 7 * side * (side + 1)
    with llava_next.apply(project.model, cache=None, tokens_per_frame=9) as handle:
        pruned = project.run(project.model, project.frames())[0][0, 2:-2]
    assert 7 * 8 <= len(pruned) <= 7 * 9
    assert (handle.stats().tokens_before, handle.stats().tokens_after) == (len(stock), len(pruned))
    newline = (pruned == project.model.model.image_newline).all(-1)
    assert bool(newline[-1])
    assert not bool(newline[0])
    assert not bool((newline[1:] & newline[:-1]).any())  # no row has a newline alone
    rows = {tuple(row.tolist()) for row in stock}
    assert all(tuple(row.tolist()) in rows for row in pruned)


def test_llava_next_without_newlines_keeps_frames_rectangular():
    model = stand_in("llava_next-no_token")
    frames = walk(4, SIZE)
    stock = run_llava(model, frames)[0][0, 2:-2]
    llava_next.apply(model, cache=None, tokens_per_frame=6)
    pruned = run_llava(model, frames)[0][0, 2:-2]
    expected = make_pruner("stc", tokens_per_frame=6)(stock.view(4, 16, -1), grid=(4, 4)).tokens
    assert torch.equal(pruned, expected.flatten(0, 1))
    model.stc.restore()
    llava_next.apply(model, cache=None, prune="dtd", tokens_per_frame=None)
    with pytest.raises(ValueError, match="same for each frame"):
        run_llava(model, frames)


@pytest.mark.parametrize("newlines", ["frame", "one_token", "no_token"])
def test_llava_next_s_other_layouts(newlines):
    try:
        with llava_next_model(newlines) as model:
            frames = walk(3, 384)
            stock = run_llava(model, frames)[0].shape[1]
            with llava_next.apply(model, cache=None, tokens_per_frame=20):
                pruned = run_llava(model, frames)[0].shape[1]
    except NotAtHandError as reason:
        pytest.skip(str(reason))
    assert stock - pruned == 3 * (169 - 20)


def test_llava_next_keeps_items_of_a_prompt_apart():
    model = stand_in("llava_next")
    image, first, second = walk(1, SIZE, seed=3)[0], walk(4, SIZE), walk(3, SIZE, seed=1)
    kinds = ("video", "image", "video")
    stock_image = run_llava(model, image, kinds=("image",))[0][0, 2:-2]
    handle = llava_next.apply(model, tokens_per_frame=6)
    alone = [run_llava(model, video)[0][0, 2:-2] for video in (first, second)]
    together = run_llava(model, first, image, second, kinds=kinds)[0][0, 2:-2]
    torch.testing.assert_close(together, torch.cat([alone[0], stock_image, alone[1]]))
    assert handle.stats().cache.frames == 14


def test_llava_next_refuses_two_sets_of_tokens():
    model = stand_in("llava_next")
    model.config.add_faster_video = True
    with pytest.raises(UnsupportedModelError, match="add_faster_video must be off"):
        llava_next.apply(model)
    model = randomise(LlavaNext())
    model.config = types.SimpleNamespace(
        mm_patch_merge_type="spatial", mm_newline_position="grid", add_faster_video=False
    )
    llava_next.apply(model, cache=None, prune="tome", tokens_per_frame=6)
    with pytest.raises(ValueError, match="merges"):
        run_llava(model, walk(2, SIZE))
