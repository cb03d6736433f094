# SPDX-License-Identifier: Apache-2.0
"""The passes of ``stc`` in fixed shapes against those that run as they come.

On a CPU a recording calls the pass again on its own buffers; `test_gpu_cacher.py` has the graphs.
"""

from __future__ import annotations

import pytest
import torch
from tiny_towers import (
    TOWERS,
    encode,
    frame,
    last_hidden,
    make_tower,
    noisy_walk,
    siglip2,
    siglip2_arguments,
)

import stc_video
from stc_video import CacheConfig


def config(batching: str, **settings: object) -> CacheConfig:
    return CacheConfig("stc", batching=batching, **{"interval": 3, **settings})


def both(tower, run, **settings: object):
    """What a run gives as it comes, and in recorded passes, with the records of the latter."""
    found = []
    for batching in ("ragged", "bucketed"):
        cacher = stc_video.attach_cacher(tower, config(batching, **settings))
        found.append(run(cacher))
        graphs = cacher.stats().graphs
        assert (graphs is not None and graphs.replayed > 0) == (batching == "bucketed")
        cacher.detach()
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    return graphs


@pytest.mark.parametrize("metric", ["keys", "values"])
@pytest.mark.parametrize("name", TOWERS)
def test_recorded_passes_give_the_same(name, metric):
    tower = make_tower(name)
    graphs = both(tower, lambda _: encode(tower, noisy_walk(7)), metric=metric)
    assert (graphs.recorded, graphs.replayed, graphs.failures) == (2, 7, ())


def test_calls_of_several_frames_and_streams(siglip):
    """Streams of two slabs in one call, three of them, three frames of each."""
    pictures = noisy_walk(9)

    def run(cacher):
        outputs = []
        with cacher.streams(["a", "b"]):
            outputs.append(last_hidden(siglip, torch.cat(pictures[:6])))
        for order in (["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]):
            with cacher.streams(order):
                outputs.append(last_hidden(siglip, torch.cat(pictures)))
                kinds = [record.kind for record in cacher.last_frames]
                assert "cached" in kinds
                chosen = [record.selected[0] for record in cacher.last_frames if record.selected]
                outputs += chosen
        return outputs

    both(siglip, run, interval=4)


def test_what_is_returned_is_the_callers_to_keep(siglip):
    stc_video.attach_cacher(siglip, config("bucketed"))
    kept = encode(siglip, noisy_walk(8))
    copies = [output.clone() for output in kept]
    encode(siglip, [frame(40 + number) for number in range(6)])
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


def test_masks_and_frames_with_nan():
    tower = siglip2()
    shown = [siglip2_arguments(2, (3, 4), seed=seed) for seed in range(5)]
    shown[2]["pixel_values"][1, 0, 0] = torch.nan

    def run(cacher):
        with torch.no_grad(), cacher.streams(["a", "b"]):
            every = [tower(**arguments).last_hidden_state[:, :12] for arguments in shown]
        return [output.nan_to_num(7.0) for output in every]

    both(tower, run)


def test_a_threshold_has_no_fixed_shapes(siglip):
    cacher = stc_video.attach_cacher(siglip, config("bucketed", threshold=0.9))
    encode(siglip, noisy_walk(4))
    assert cacher.stats().graphs is None


def test_a_saved_stream_goes_on_in_recorded_passes(siglip):
    pictures = noisy_walk(6)
    cacher = stc_video.attach_cacher(siglip, config("bucketed"))
    encode(siglip, pictures[:4])
    saved = cacher.stream_state("default")
    expected = encode(siglip, pictures[4:])
    cacher.reset()
    cacher.restore_stream("default", saved)
    got = encode(siglip, pictures[4:])
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
