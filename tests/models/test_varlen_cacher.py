# SPDX-License-Identifier: Apache-2.0
"""The cacher on towers of packed frames, against the stock tower and an oracle."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_qwen import GRID, ROWS, TOWERS, block_inputs, encode, grid_of, make_tower, video
from varlen_oracle import MotionOracle, StcOracle

import stc_video
from stc_video import AttachError, CacheConfig, UnsupportedModelError
from stc_video.towers.patching import InstancePatch

POLICIES = ["motion", "stc"]
#: nothing rides along, nothing is rounded up by much, so that few rows are encoded
PLAIN_MOTION = CacheConfig(
    audits=False, buckets=tuple(i / 20 for i in range(1, 20)), refresh=0.0, tail_layers=0
)
CLOSE = {"atol": 2e-5, "rtol": 0}


@pytest.fixture(params=TOWERS)
def tower(request):
    return make_tower(request.param)


@pytest.fixture
def windowed():
    return make_tower("qwen2.5-vl")


def assert_close(got, expected):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


def contents(tower):
    """What an instance of each module holds, and who hooked it."""
    return {
        name: (set(module.__dict__), module.__dict__.get("forward"), len(module._forward_pre_hooks))
        for name, module in tower.named_modules()
    }


# -- against the stock tower -------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_dense_and_unchanged_frames_are_those_of_the_stock_tower(tower, policy):
    frames = [video(tower, 1, seed=0)[0], video(tower, 1, seed=1)[0]]
    expected = [encode(tower, frame) for frame in frames]
    config = CacheConfig(
        policy=policy, interval=1, threshold=0.9999 if policy == "motion" else None
    )
    cacher = stc_video.attach_cacher(tower, config)
    for frame, wanted in zip(frames, expected, strict=True):
        for _ in range(3):
            assert_close(encode(tower, frame), wanted)
    stats = cacher.stats()
    assert stats.frames == 6
    if policy == "motion":
        assert (stats.dense, stats.unchanged, stats.tokens_encoded) == (2, 4, 2 * ROWS)


def test_a_ratio_of_one_is_the_stock_tower(tower):
    frames = video(tower, 4, changed=20)
    expected = [encode(tower, frame) for frame in frames]
    cacher = stc_video.attach_cacher(tower, CacheConfig(policy="stc", ratio=1.0, interval=100))
    for frame, wanted in zip(frames, expected, strict=True):
        assert_close(encode(tower, frame), wanted)
    assert cacher.stats().cached == 3


def test_hidden_states_are_those_of_the_stock_tower(tower):
    frame = video(tower, 1)[0]

    def states():
        out = tower(frame, grid_thw=grid_of((1, *GRID)), output_hidden_states=True)
        if getattr(out, "hidden_states", None) is None:
            pytest.skip("this release's tower returns no hidden states")
        return [*out.hidden_states, out.last_hidden_state]

    with torch.no_grad():
        expected = states()
        stc_video.attach_cacher(tower)
        assert_close(states(), expected)
        assert_close(states(), expected)  # the second frame is unchanged


# -- against the oracle ------------------------------------------------------------------------


def test_partial_frames_of_motion_equal_an_oracle_that_encodes_the_same_rows(tower):
    frames = video(tower, 6)
    inputs = [block_inputs(tower, frame) for frame in frames]
    oracle = MotionOracle(tower, inputs[0])
    cacher = stc_video.attach_cacher(copy.deepcopy(tower), PLAIN_MOTION)
    cached = cacher._tower.root
    kinds = []
    for frame, calls in zip(frames, inputs, strict=True):
        got = encode(cached, frame)
        record = cacher.last_frames[0]
        kinds.append(record.kind)
        with torch.no_grad():
            if record.kind == "dense":
                oracle.dense(calls[0]["hidden_states"])
            else:
                oracle.cached(calls[0]["hidden_states"], record.selected[0])
            wanted = merged_by_hand(tower, oracle.outputs, calls)
        assert_close(got, wanted)
    assert kinds == ["dense"] + ["cached"] * 5


def merged_by_hand(tower, outputs, calls):
    """Tokens of all mergers, un-permuted as the stock tower does it."""
    made = tower.merger(outputs[-1])
    if hasattr(tower, "window_size"):
        made = made[window_order(tower).argsort()]
    others = getattr(tower, "deepstack_merger_list", ())
    layers = getattr(tower, "deepstack_visual_indexes", ())
    return [made, *(m(outputs[at]) for m, at in zip(others, layers, strict=True))]


def window_order(tower):
    """The order of merge blocks that the stock tower makes."""
    if hasattr(tower, "get_window_index"):
        return tower.get_window_index(grid_of((1, *GRID)))[0]
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as module

    found = module.get_vision_window_index(
        grid_of((1, *GRID)), spatial_merge_size=2, window_size=56, patch_size=14, kwargs={}
    )
    return found[0]


def test_partial_frames_of_stc_equal_an_oracle_that_encodes_the_same_rows(tower):
    frames = video(tower, 5)
    inputs = [block_inputs(tower, frame) for frame in frames]
    oracle = StcOracle(tower, inputs[0])
    config = CacheConfig(policy="stc", ratio=0.2, interval=3)
    cacher = stc_video.attach_cacher(copy.deepcopy(tower), config)
    for frame, calls in zip(frames, inputs, strict=True):
        got = encode(cacher._tower.root, frame)[0]
        record = cacher.last_frames[0]
        x = calls[0]["hidden_states"]
        with torch.no_grad():
            out = oracle.dense(x) if record.kind == "dense" else oracle.cached(x, record.selected)
            torch.testing.assert_close(got, merged_by_hand(tower, [out] * 4, calls)[0], **CLOSE)
    assert cacher.stats().dense == 2


def test_the_windows_are_those_of_the_stock_tower(windowed):
    found = stc_video.attach_cacher(windowed)._tower
    calls = []
    windowed.blocks[0].register_forward_pre_hook(
        lambda _m, _a, kw: calls.append(kw["cu_seqlens"]), with_kwargs=True
    )
    for height, width in [(6, 10), (8, 8), (2, 2), (4, 14)]:
        encode(windowed, video(windowed, 1, rows=height * width)[0], (1, height, width))
        assert found.windows(height, width) == tuple(calls[-1].diff().tolist())


def test_windows_without_a_change_are_exact_up_to_the_first_full_block(windowed):
    first, other = video(windowed, 1, seed=0)[0], video(windowed, 1, seed=1)[0]
    second = first.clone()
    second[:8] = other[:8]  # two merge blocks of the first window
    with torch.no_grad():
        stock = block_inputs(windowed, second)
    cacher = stc_video.attach_cacher(windowed, PLAIN_MOTION)
    seen = []
    hook = windowed.blocks[1].register_forward_hook(lambda _m, _a, out: seen.append(out))
    encode(windowed, first), encode(windowed, second)
    hook.remove()
    assert cacher.last_frames[0].kind == "cached"
    changed = cacher.last_frames[0].selected[0].long()
    window_of = cacher._tower.geometry.window_of
    touched = torch.isin(window_of, window_of[changed])
    assert 0 < touched.sum() < ROWS
    # Output of block 1 is the input of block 2, the first with full attention.
    expected = stock[2]["hidden_states"]
    torch.testing.assert_close(seen[1][~touched], expected[~touched], **CLOSE)
    assert (seen[1][touched] - expected[touched]).abs().max() > 1e-3


# -- the merger --------------------------------------------------------------------------------


def test_only_tokens_with_a_changed_row_are_merged_again(tower):
    frames = video(tower, 5)
    cacher = stc_video.attach_cacher(tower, PLAIN_MOTION)
    rows = []
    linear = next(m for m in tower.merger.modules() if isinstance(m, torch.nn.Linear))
    linear.register_forward_pre_hook(lambda _m, args: rows.append(args[0].shape[0]))
    for frame in frames:
        encode(tower, frame)
        record = cacher.last_frames[0]
        if record.kind == "cached":
            assert rows[-1] == len({int(row) // 4 for row in record.selected[0]}) < ROWS // 4
        else:
            assert rows[-1] == ROWS // 4
    before = len(rows)
    encode(tower, frames[-1])
    assert len(rows) == before, "an unchanged frame merges nothing"


# -- calls -------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_temporal_patches_of_one_call_are_frames_in_order(tower, policy):
    frames = video(tower, 6)
    config = CacheConfig(policy=policy, interval=1) if policy == "stc" else PLAIN_MOTION
    cacher = stc_video.attach_cacher(tower, config)
    one_by_one = [encode(tower, frame) for frame in frames]
    cacher.detach()
    cacher = stc_video.attach_cacher(tower, config)
    calls = [encode(tower, torch.cat(frames[:4])), encode(tower, torch.cat(frames[4:]))]
    for number, part in enumerate(zip(*calls, strict=True)):
        alone = torch.cat([one[number] for one in one_by_one])
        torch.testing.assert_close(torch.cat(part), alone, **CLOSE)
    assert [record.index for record in cacher.last_frames] == [4, 5]


@pytest.mark.parametrize("policy", POLICIES)
def test_streams_of_different_grids_in_one_call_equal_each_alone(tower, policy):
    small = [f[:16] for f in video(tower, 3, changed=2, seed=3)]
    large = video(tower, 3)
    grids = (1, 4, 4), (1, *GRID)
    alone = []
    for frames, grid in zip((small, large), grids, strict=True):
        with_cache = stc_video.attach_cacher(tower, policy)
        alone.append([encode(tower, frame, grid) for frame in frames])
        with_cache.detach()
    cacher = stc_video.attach_cacher(tower, policy)
    for number in range(3):
        with cacher.streams(["a", "b"]):
            got = encode(tower, torch.cat([small[number], large[number]]), *grids)
        for at, both in enumerate(got):
            assert_close(both.split([4, ROWS // 4]), [alone[0][number][at], alone[1][number][at]])
    assert cacher.stats().streams.keys() == {"a", "b"}
    assert cacher.stats().state_bytes == sum(s.state_bytes for s in cacher.stats().streams.values())


def test_another_grid_starts_the_stream_afresh(tower):
    cacher = stc_video.attach_cacher(tower)
    frame = video(tower, 1)[0]
    encode(tower, frame, (1, 6, 10))
    expected = [part.clone() for part in encode(tower, frame, (1, 10, 6))]
    assert "10x6" in cacher.last_frames[0].reason
    assert cacher.stats().resets == 1
    with cacher.paused():
        assert_close(encode(tower, frame, (1, 10, 6)), expected)


def test_calls_that_cannot_be_cached_are_refused_and_lose_nothing(tower):
    frames = video(tower, 3)
    cacher = stc_video.attach_cacher(tower)
    encode(tower, frames[0])
    both = torch.cat(frames[:2])
    with pytest.raises(ValueError, match=r"one video or image outside of streams\(\).* with 2"):
        encode(tower, both, (1, *GRID), (1, *GRID))
    with (
        cacher.streams(["a", "b", "c"]),
        pytest.raises(ValueError, match="one video for each of the streams a, b, c"),
    ):
        encode(tower, both, (1, *GRID), (1, *GRID))
    tower.train()
    with pytest.raises(RuntimeError, match="for inference only"):
        encode(tower, frames[0])
    tower.eval()
    with pytest.raises(ValueError, match="output_attentions is not available"):
        tower(frames[0], grid_thw=grid_of((1, *GRID)), output_attentions=True)
    assert cacher.stats().frames == 1
    encode(tower, frames[0])
    assert cacher.stats().unchanged == 1


def test_outputs_belong_to_the_caller(tower):
    frames = video(tower, 4)
    stc_video.attach_cacher(tower, PLAIN_MOTION)
    kept = [encode(tower, frame) for frame in frames]
    copies = [[part.clone() for part in parts] for parts in kept]
    for parts in kept[-1:]:
        for part in parts:
            part.fill_(1e6)
    again = encode(tower, frames[-1])
    assert_close(again, copies[-1])
    for parts, wanted in zip(kept[:-1], copies[:-1], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(parts, wanted, strict=True))


def test_nan_is_not_cached(tower):
    frames = video(tower, 3)
    broken = frames[1].clone()
    broken[0, 0] = float("nan")
    cacher = stc_video.attach_cacher(tower, PLAIN_MOTION)
    encode(tower, frames[0])
    assert encode(tower, broken)[0].isnan().any()
    assert not encode(tower, frames[2])[0].isnan().any()
    assert cacher.stats().nonfinite == 1


def test_inference_mode_may_change_between_frames(tower):
    frames = video(tower, 4)
    stc_video.attach_cacher(tower, PLAIN_MOTION)
    with torch.inference_mode():
        encode(tower, frames[0]), encode(tower, frames[1])
    encode(tower, frames[2])
    with torch.inference_mode():
        encode(tower, frames[3])


# -- attaching ---------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_detach_leaves_the_tower_exactly_as_it_was(tower, policy):
    frames = video(tower, 3)
    expected = encode(tower, frames[2])
    before, keys = contents(tower), list(tower.state_dict())
    cacher = stc_video.attach_cacher(tower, policy)
    assert list(tower.state_dict()) == keys
    for frame in frames:
        encode(tower, frame)
    with pytest.raises(AttachError, match="already has a cacher"):
        stc_video.attach_cacher(tower)
    cacher.detach()
    assert contents(tower) == before
    assert all(torch.equal(a, b) for a, b in zip(encode(tower, frames[2]), expected, strict=True))


def test_a_foreign_patch_on_the_merger_is_not_thrown_away(tower):
    cacher = stc_video.attach_cacher(tower)
    ours = tower.merger.forward
    tower.merger.forward = lambda x: ours(x)
    with pytest.raises(AttachError, match=r"patched a merger.*force=True"):
        cacher.detach()
    cacher.detach(force=True)
    assert "forward" not in tower.merger.__dict__


def test_failing_at_any_patch_leaves_nothing_half_patched(tower, monkeypatch):
    frame = video(tower, 1)[0]
    expected, before = encode(tower, frame), contents(tower)
    install = InstancePatch.install
    patches = sum(1 for _ in _patched_modules(tower))
    for failing in range(patches):
        done = []

        def fail(module, forward, *, failing=failing, done=done, **names):
            if len(done) == failing:
                raise RuntimeError("no")
            done.append(module)
            return install(module, forward, **names)

        monkeypatch.setattr(InstancePatch, "install", fail)
        with pytest.raises(RuntimeError, match="no"):
            stc_video.attach_cacher(tower)
        assert contents(tower) == before, f"patch {failing}"
    monkeypatch.undo()
    assert all(torch.equal(a, b) for a, b in zip(encode(tower, frame), expected, strict=True))
    cacher = stc_video.attach_cacher(tower)
    assert (
        len(cacher._patches) + len(cacher._weights._patches) + len(cacher._merger_patches)
        == patches
    )


def _patched_modules(tower):
    for part in (*tower.blocks, tower.merger, *getattr(tower, "deepstack_merger_list", ())):
        yield part
        yield from (m for m in part.modules() if type(m) is torch.nn.Linear)


def test_other_towers_of_packed_frames_are_named(tower, windowed):
    before = contents(windowed)
    windowed.blocks[1].attn.q_norm = torch.nn.LayerNorm(8)
    with pytest.raises(UnsupportedModelError, match=r"block 1\) is not .* it has attn\.q_norm"):
        stc_video.attach_cacher(windowed)
    del windowed.blocks[1].attn.q_norm
    assert contents(windowed) == before
    del tower.blocks[2].attn.proj
    with pytest.raises(UnsupportedModelError, match=r"Block is not .* it has no attn\.proj"):
        stc_video.attach_cacher(tower)
    pair = torch.nn.ModuleList([tower, windowed])
    with pytest.raises(UnsupportedModelError, match="holds 2 towers"):
        stc_video.attach_cacher(pair)


@pytest.mark.parametrize("name", ["qwen2.5-vl", "qwen3-vl"])
def test_weights_of_mergers_are_packed_too(name):
    tower = make_tower(name)
    cacher = stc_video.attach_cacher(tower)
    encode(tower, video(tower, 1)[0])
    linears = [module for module in tower.modules() if isinstance(module, torch.nn.Linear)]
    assert len(linears) > sum(1 for module in tower.blocks.modules() if module in set(linears))
    assert cacher.stats().packed_bytes == 4 * sum(module.weight.numel() for module in linears)
