# SPDX-License-Identifier: Apache-2.0
"""A copy of a patched tower is a stock tower; the original stays as it was."""

from __future__ import annotations

import copy
import io
import pickle
import pickletools
import types

import pytest
import torch
from tiny_towers import encode, frame, last_hidden, layers_of, make_tower, noisy_walk
from tower_changes import (
    POLICIES,
)

import stc_video

tiny_qwen = pytest.importorskip("tiny_qwen", exc_type=ImportError)  # transformers from 4.57 on


def _saved(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": _saved,
}


class TestCopies:
    """A copy of a patched tower is a stock tower; the original stays as it was."""

    @pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
    @pytest.mark.parametrize("make", ["motion", "stc", "tome", "capture"])
    def test_a_copy_is_stock(self, make, way):
        tower, pictures = make_tower("siglip"), noisy_walk(3)
        expected = encode(make_tower("siglip"), pictures)
        handle = {
            "motion": lambda: stc_video.attach_cacher(tower),
            "stc": lambda: stc_video.attach_cacher(tower, "stc"),
            "tome": lambda: stc_video.attach_tome(tower, r=2),
            "capture": lambda: stc_video.capture_attention(tower),
        }[make]()
        with torch.no_grad():
            tower(pictures[0])
            seen = handle.last_frames if make in POLICIES else None
            twin = way(tower)
            assert isinstance(twin, type(tower))
            for got, want in zip(encode(twin, pictures), expected, strict=True):
                assert torch.equal(got, want)
            if make in POLICIES:
                assert handle.last_frames is seen, "the copy's frames are none of this cacher's"
                tower(pictures[0])
                assert handle.stats().frames == 2
                assert handle.stats().cached + handle.stats().unchanged == 1
        assert twin.state_dict().keys() == tower.state_dict().keys()
        other = stc_video.attach_cacher(twin)
        encode(twin, pictures)
        assert other.stats().frames == 3
        other.detach()
        for got, want in zip(encode(twin, pictures), expected, strict=True):
            assert torch.equal(got, want)

    @pytest.mark.parametrize("name", tiny_qwen.TOWERS)
    def test_a_copy_of_a_tower_of_packed_frames_is_stock(self, name):
        tower = tiny_qwen.make_tower(name)
        one = tiny_qwen.video(tower, 1)[0]
        expected = tiny_qwen.encode(tower, one)
        cacher = stc_video.attach_cacher(tower)
        tiny_qwen.encode(tower, one)
        for way in WAYS.values():
            twin = way(tower)
            for _ in range(2):
                for got, want in zip(tiny_qwen.encode(twin, one), expected, strict=True):
                    assert torch.equal(got, want)
        tiny_qwen.encode(tower, one)
        assert (cacher.stats().frames, cacher.stats().unchanged) == (2, 1)

    def test_a_pickled_tower_needs_nothing_of_this_package(self):
        tower = make_tower("siglip")
        stc_video.attach_cacher(tower)
        stc_video.capture_attention(tower, layer=1)
        tower(frame(0))
        strings = [arg for _, arg, _ in pickletools.genops(pickle.dumps(tower))]
        assert "transformers.models.siglip.modeling_siglip" in strings
        assert not any("stc" in string for string in strings if isinstance(string, str))

    def test_the_weights_alone_load_into_a_stock_tower(self):
        tower = make_tower("siglip")
        stc_video.attach_cacher(tower)
        file = io.BytesIO()
        torch.save(tower.state_dict(), file)
        file.seek(0)
        assert not make_tower("siglip").load_state_dict(torch.load(file)).missing_keys

    def test_a_copy_of_a_patched_forward_keeps_what_was_there_before(self):
        tower = make_tower("siglip")
        layer = layers_of(tower)[1]
        layer.forward = types.MethodType(_louder, layer)
        expected = last_hidden(tower, frame(0))
        stc_video.attach_cacher(tower)
        twin = copy.deepcopy(tower)  # nor does a stock tower with such a method pickle
        assert torch.equal(last_hidden(twin, frame(0)), expected)
        assert layers_of(twin)[1].forward.__self__ is layers_of(twin)[1]

    def test_a_cacher_itself_refuses(self):
        cacher = stc_video.attach_cacher(make_tower("siglip"))
        for way in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="belongs to one tower"):
                way(cacher)


def _louder(layer, hidden_states, *args, **kwargs):
    return type(layer).forward(layer, 1.5 * hidden_states, *args, **kwargs)
