# SPDX-License-Identifier: Apache-2.0
"""Token merging inside real towers, against a loop over single tokens."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_towers import (
    SIDE,
    TOWERS,
    contents,
    encoder_output,
    frame,
    last_hidden,
    layer_inputs,
    layers_of,
    make_tower,
    prefix_tokens,
    siglip2,
    siglip2_arguments,
)
from torch import Tensor, nn

import stc_video
from stc_video import AttachError, UnsupportedModelError
from stc_video.towers.block import Block

PATCHES = SIDE * SIDE
TWO = torch.cat([frame(0), frame(1)])


class Token:
    """A merged token: its value, and the places it is made of."""

    def __init__(self, value: Tensor, members: list[int]) -> None:
        self.value, self.members = value, members


def naive_attention(block: Block, tokens: list[Token], weighted: bool) -> list[Tensor]:
    """What attention adds to each token; a token of size s is s keys."""
    normed = [block.norm1(token.value) for token in tokens]
    heads = [[part(x).view(block.heads, -1) for x in normed]
             for part in (block.query, block.key, block.value)]  # fmt: skip
    query, key, value = heads
    out = []
    for q in query:
        mixed = []
        for h in range(block.heads):
            logits = torch.stack([q[h] @ k[h] / len(q[h]) ** 0.5 for k in key])
            weights = logits.exp()
            if weighted:
                weights = weights * torch.tensor([len(token.members) for token in tokens])
            share = weights / weights.sum()
            mixed.append(sum(s * v[h] for s, v in zip(share, value, strict=True)))
        branch = block.output(torch.cat(mixed))
        out.append(branch if block.scale1 is None else block.scale1(branch))
    return out


def naive_merge(block: Block, tokens: list[Token], metric: list[Tensor],
                prefix: int, r: int) -> list[Token]:  # fmt: skip
    places = range(prefix, len(tokens))
    pairs = []
    for a in places:
        if a % 2 == 0:
            cosines = {b: float(torch.cosine_similarity(metric[a], metric[b], dim=0))
                       for b in places if b % 2 == 1}  # fmt: skip
            best = max(cosines, key=lambda b: cosines[b])
            pairs.append((cosines[best], a, best))
    leaving = sorted(pairs, reverse=True)[:r]
    for into in {b for _, _, b in leaving}:
        group = [tokens[into], *(tokens[a] for _, a, b in leaving if b == into)]
        size = sum(len(token.members) for token in group)
        value = sum(token.value * len(token.members) for token in group) / size
        tokens[into] = Token(value, [m for token in group for m in token.members])
    gone = {a for _, a, _ in leaving}
    return [token for place, token in enumerate(tokens) if place not in gone]


def naive(tower: nn.Module, picture: Tensor, steps: list[int], prefix: int,
          weighted: bool = True) -> list[Token]:  # fmt: skip
    """Tokens after the last block, in front of any final norm."""
    hidden = layer_inputs(tower, [picture])[0][0]
    tokens = [Token(value, [place]) for place, value in enumerate(hidden)]
    with torch.no_grad():
        for layer, r in zip(layers_of(tower), steps, strict=True):
            block = Block.of(layer)
            metric = [block.key(block.norm1(t.value)).view(block.heads, -1).mean(0) for t in tokens]
            for token, branch in zip(tokens, naive_attention(block, tokens, weighted), strict=True):
                token.value = token.value + branch
            tokens = naive_merge(block, tokens, metric, prefix, r)
            for token in tokens:
                token.value = token.value + block.feed_forward(token.value[None, None])[0, 0]
    return tokens


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("weighted", [True, False])
def test_against_a_loop_over_tokens(name, weighted):
    tower, prefix = make_tower(name), prefix_tokens(name)
    expected = naive(tower, frame(3), [3, 0, 4, 1], prefix, weighted)
    with stc_video.attach_tome(tower, [3, 0, 4, 1], proportional_attention=weighted) as tome:
        got = encoder_output(tower, frame(3))[0]
    values = torch.stack([token.value for token in expected])
    torch.testing.assert_close(got, values, atol=2e-4, rtol=2e-4)
    last = tome.last
    assert last is not None
    patches = expected[prefix:]
    assert last.sizes[0].tolist() == [len(token.members) for token in patches]
    for row, token in enumerate(patches):
        members = [place for place in range(PATCHES) if last.source_map[0, place] == row]
        assert members == sorted(m - prefix for m in token.members)
        assert int(last.indices[0, row]) in members


@pytest.mark.parametrize("name", TOWERS)
def test_merging_nothing_is_the_stock_tower(name):
    tower = make_tower(name)
    expected = last_hidden(tower, TWO)
    for settings in ({"r": 0}, {"retention_ratio": 1.0}, {"r": 0, "output": "full"}):
        with stc_video.attach_tome(tower, **settings) as tome:
            assert torch.equal(last_hidden(tower, TWO), expected)
        assert tome.last.sizes.eq(1).all()


@pytest.mark.parametrize("name", ["siglip", "clip", "dinov2-registers"])
def test_restore_leaves_the_tower_exactly_as_it_was(name):
    tower = make_tower(name)
    last_hidden(tower, frame(0))  # lets transformers install its own hooks
    before, keys = contents(tower), list(tower.state_dict())
    expected = last_hidden(tower, TWO)
    tome = stc_video.attach_tome(tower, 3)
    assert list(tower.state_dict()) == keys
    assert last_hidden(tower, TWO).shape[1] == expected.shape[1] - 4 * 3
    tome.restore()
    tome.restore()
    after = contents(tower)
    for module, entries in before.items():
        assert after[module].keys() == entries.keys(), module
        assert len(after[module]["_forward_pre_hooks"]) == 0
    assert torch.equal(last_hidden(tower, TWO), expected)


@pytest.mark.parametrize("left", [16, 13, 6, 2, 1])
@pytest.mark.parametrize("name", ["siglip", "dinov2-registers"])
def test_a_number_is_left_in_the_order_of_the_frame(name, left):
    tower, prefix = make_tower(name), prefix_tokens(name)
    with stc_video.attach_tome(tower, tokens_per_frame=left) as tome:
        out = last_hidden(tower, TWO)
    assert out.shape[1] == prefix + left
    last = tome.last
    assert last.sizes.sum(1).tolist() == [16.0, 16.0]
    assert (last.indices[:, 1:] > last.indices[:, :-1]).all()
    pruned = last.pruned(out[:, prefix:])
    assert pruned.counts.tolist() == [left, left]
    rows = pruned.positions((SIDE, SIDE), first_frame=5)
    assert torch.equal(rows[..., 1] * SIDE + rows[..., 2], last.indices)
    assert rows[1, 0, 0] == 6
    with pytest.raises(ValueError, match="features must have shape"):
        last.pruned(out[:, :0])


def test_r_above_half_merges_half():
    tower = make_tower("siglip")
    with stc_video.attach_tome(tower, 100):
        assert last_hidden(tower, TWO).shape[1] == 1


@pytest.mark.parametrize("name", ["siglip", "clip", "dinov2"])
def test_the_full_output_repeats_the_merged_tokens(name):
    tower, prefix = make_tower(name), prefix_tokens(name)
    stock = last_hidden(tower, TWO)
    with stc_video.attach_tome(tower, [0, 5, 0, 4]) as tome:
        merged, source = last_hidden(tower, TWO)[:, prefix:], tome.last.source_map.long()
    with stc_video.attach_tome(tower, [0, 5, 0, 4], output="full") as tome:
        with torch.no_grad():
            full = tower(TWO, output_hidden_states=True).hidden_states
        assert torch.equal(tome.last.source_map, source.int())
    assert all(state.shape == stock.shape for state in full)
    expected = merged.gather(1, source[..., None].expand(-1, -1, merged.shape[-1]))
    torch.testing.assert_close(full[-1][:, prefix:], expected)


def test_frames_do_not_touch_each_other_and_calls_leave_nothing_behind(siglip):
    with stc_video.attach_tome(siglip, 2):
        together = last_hidden(siglip, TWO)
        alone = [last_hidden(siglip, picture[None]) for picture in TWO]
        with pytest.raises(ValueError, match="output_attentions is not available"):
            siglip(TWO, output_attentions=True)
        torch.testing.assert_close(torch.cat(alone), together)
        assert torch.equal(last_hidden(siglip, TWO), together)


def test_half_precision(siglip):
    with stc_video.attach_tome(siglip.to(torch.bfloat16), 2, output="full"):
        out = last_hidden(siglip, TWO.to(torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()


def test_a_cacher_and_merging_exclude_each_other(siglip):
    cacher = stc_video.attach_cacher(siglip)
    with pytest.raises(AttachError, match=r"attach_tome: .* already has a cacher; detach that"):
        stc_video.attach_tome(siglip)
    last_hidden(siglip, frame(0))
    assert cacher.stats().frames == 1
    cacher.detach()
    tome = stc_video.attach_tome(siglip)
    with pytest.raises(AttachError, match=r"attach_cacher: .* already has a token merger; restore"):
        stc_video.attach_cacher(siglip)
    with pytest.raises(AttachError, match=r"attach_tome: .* already has a token merger"):
        stc_video.attach_tome(siglip)
    tome.restore()
    stc_video.attach_cacher(siglip)


def test_a_foreign_patch_is_not_lost(siglip):
    tome = stc_video.attach_tome(siglip)
    layer = layers_of(siglip)[2]
    ours = layer.forward
    layer.forward = lambda *args, **kwargs: ours(*args, **kwargs)
    with pytest.raises(AttachError, match=r"restore: something else patched layer 2"):
        tome.restore()
    assert last_hidden(siglip, TWO).shape[1] < PATCHES
    tome.restore(force=True)
    assert last_hidden(siglip, TWO).shape[1] == PATCHES


def test_a_deep_copy_does_not_merge(siglip):
    with stc_video.attach_tome(siglip, 3):
        assert last_hidden(copy.deepcopy(siglip), TWO).shape[1] == PATCHES


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": -1}, "r must be at least 0, got -1"),
        ({"r": [1, 2]}, "r must be one number or one for each of 4 blocks, got 2"),
        ({"r": 2, "tokens_per_frame": 4}, "not both"),
        ({"retention_ratio": 0.0}, "attach_tome: retention_ratio must be above 0"),
        ({"output": "half"}, "output must be one of merged, full"),
    ],
)
def test_bad_settings_are_refused_and_nothing_is_patched(siglip, settings, message):
    with pytest.raises(ValueError, match=message):
        stc_video.attach_tome(siglip, **settings)
    assert all("forward" not in layer.__dict__ for layer in layers_of(siglip))


def test_what_cannot_be_done_is_said_before_any_layer_runs(siglip):
    with pytest.raises(UnsupportedModelError, match="attach_tome: Linear is not a supported tower"):
        stc_video.attach_tome(nn.Linear(2, 2))
    with stc_video.attach_tome(siglip, tokens_per_frame=17):
        with pytest.raises(ValueError, match="tokens_per_frame must be between 1 and 16"):
            siglip(TWO)
        with pytest.raises(RuntimeError, match="inference only"):
            siglip.train()(TWO)
    tower = siglip2()
    with stc_video.attach_tome(tower, 2), pytest.raises(ValueError, match="attention mask"):
        tower(**siglip2_arguments(2, (3, 4)))
