# SPDX-License-Identifier: Apache-2.0
"""Slots for many streams: nobody disturbs anybody."""

from __future__ import annotations

import random

import pytest
import torch
from tiny_towers import encode, frame, last_hidden, make_tower, noisy_walk, walk
from torch import Tensor, nn

import stc_video
from stc_video import CacheConfig
from stc_video.cacher import Cacher

POLICIES = ["motion", "stc"]
STREAMS, TICKS, BATCH = 64, 100, 8


def encode_with_positions(tower: nn.Module, pictures: Tensor) -> Tensor:
    """As `last_hidden`, at any resolution."""
    with torch.no_grad():
        return tower(pictures, interpolate_pos_encoding=True).last_hidden_state


def picture(stream: int, step: int, size: int) -> Tensor:
    """A frame of a stream: every patch changes a little, one of them altogether."""
    still = torch.rand((1, 3, size, size), generator=torch.Generator().manual_seed(stream))
    noise = torch.Generator().manual_seed(1000 * stream + step)
    made = still + 0.05 * torch.randn(still.shape, generator=noise)
    at = 14 * (step % (size // 14))
    made[..., at : at + 14, :14] = torch.rand((1, 3, 14, 14), generator=noise)
    return made


@pytest.mark.parametrize("policy", ["motion", "stc", "bucketed"])
def test_64_streams_with_arrivals_resets_and_resolutions(policy):
    """Each stream gets what it gets alone, whoever else comes, goes or shares its calls."""
    chance = random.Random(0)
    tower = make_tower("siglip")
    config = CacheConfig(batching="bucketed") if policy == "bucketed" else CacheConfig(policy)
    cacher = stc_video.attach_cacher(tower, config)
    history: dict[int, list[tuple[str, Tensor | None, Tensor | None]]] = {}
    steps = dict.fromkeys(range(STREAMS), 0)
    sizes = {stream: chance.choice([56, 70]) for stream in range(STREAMS)}
    for tick in range(TICKS):
        known = range(min(STREAMS, 4 + tick))  # they arrive one by one
        size = chance.choice([56, 70])
        called = [stream for stream in known if sizes[stream] == size]
        called = chance.sample(called, min(len(called), chance.randint(1, BATCH)))
        if called:
            pictures = [picture(stream, steps[stream], size) for stream in called]
            with cacher.streams([str(stream) for stream in called]):
                outputs = encode_with_positions(tower, torch.cat(pictures))
            for stream, shown, output in zip(called, pictures, outputs, strict=True):
                steps[stream] += 1
                history.setdefault(stream, []).append(("frame", shown, output))
        someone = chance.choice(list(history))
        if tick % 5 == 0:
            cacher.reset(str(someone))
            history[someone].append(("reset", None, None))
        elif tick % 7 == 0:
            sizes[someone] = 126 - sizes[someone]
    cacher.detach()
    assert len(history) > STREAMS / 2
    assert sum(what == "reset" for events in history.values() for what, *_ in events) == TICKS / 5
    cached = 0
    for events in history.values():
        alone = stc_video.attach_cacher(tower, config.policy)
        for what, shown, expected in events:
            if what == "reset":
                alone.reset()
            else:
                got = encode_with_positions(tower, shown)[0]
                torch.testing.assert_close(got, expected, atol=3e-5, rtol=0)
        cached += alone.stats().cached
        alone.detach()
    assert cached > 50, "the streams must have been cached for this to mean anything"


@pytest.mark.parametrize("batching", ["ragged", "bucketed"])
def test_different_numbers_of_changed_tokens_in_one_call(siglip, batching):
    """Dense, cached with and without the tail, unchanged and spoilt frames side by side."""
    pictures = noisy_walk(3)
    cut, spoilt = frame(50), torch.full_like(frame(0), torch.nan)
    little = pictures[0] + 1e-3 * frame(4)
    seconds = {"cut": cut, "same": pictures[0], "little": little, "more": pictures[1],
               "spoilt": spoilt}  # fmt: skip
    cacher = stc_video.attach_cacher(siglip, CacheConfig(batching=batching))
    alone, kinds = {}, {}
    for name, second in seconds.items():
        with cacher.streams([name]):
            encode(siglip, [pictures[0]])
            alone[name] = last_hidden(siglip, second)
        kinds[name] = cacher.last_frames[0].kind
    cacher.reset()
    with cacher.streams(list(seconds)):
        encode(siglip, [torch.cat([pictures[0]] * len(seconds))])
        together = last_hidden(siglip, torch.cat(list(seconds.values())))
    assert [record.kind for record in cacher.last_frames] == list(kinds.values())
    assert set(kinds.values()) == {"dense", "cached", "unchanged"}
    for name, output in zip(seconds, together, strict=True):
        torch.testing.assert_close(output, alone[name][0], atol=1e-5, rtol=0, equal_nan=True)


def slots(cacher: Cacher) -> list[int]:
    return [slab.slots for slab in cacher._pool.slabs]


def test_streams_of_one_call_lie_side_by_side(siglip):
    cacher = stc_video.attach_cacher(siglip)
    with cacher.streams(["a", "b", "c"]):
        last_hidden(siglip, torch.cat([frame(0)] * 3))
    assert slots(cacher) == [3]
    states = [cacher._streams[name].state for name in "abc"]
    starts = [state.keys.data_ptr() for state in states]
    assert starts[1] - starts[0] == starts[2] - starts[1] == states[0].keys.nbytes


@pytest.mark.parametrize("policy", POLICIES)
def test_slots_are_used_again_and_slabs_are_freed(siglip, policy):
    cacher = stc_video.attach_cacher(siglip, policy)
    with cacher.streams(["a", "b"]):
        last_hidden(siglip, torch.cat([frame(0)] * 2))
    both = cacher.stats().state_bytes
    cacher.reset("a")
    assert cacher.stats().streams["a"].state_bytes == 0
    assert cacher.stats().state_bytes == both, "b still lives there"
    with cacher.streams(["c"]):
        last_hidden(siglip, frame(1))
    assert slots(cacher) == [2]
    with cacher.streams(["d"]):
        last_hidden(siglip, frame(2))
    assert slots(cacher) == [2, 1]
    cacher.reset()
    assert slots(cacher) == []
    assert cacher.stats().state_bytes == 0


def test_a_removed_stream_leaves_its_totals(siglip):
    cacher = stc_video.attach_cacher(siglip)
    for number in range(20):
        with cacher.streams([f"visitor {number}"]):
            encode(siglip, walk(2))
        cacher.remove(f"visitor {number}")
    stats = cacher.stats()
    assert (stats.frames, stats.streams, stats.state_bytes) == (40, {}, 0)
    assert "visitor 3" not in cacher
    with pytest.raises(KeyError, match="no stream 'visitor 3'; known are: none"):
        cacher.remove("visitor 3")


@pytest.mark.parametrize("policy", POLICIES)
def test_a_full_pool_refuses_and_disturbs_nobody(siglip, policy):
    pictures = walk(4)
    cacher = stc_video.attach_cacher(siglip, CacheConfig(policy, max_streams=2, interval=9))
    expected = {}
    for name in ("a", "b"):
        expected[name] = encode(siglip, pictures)
        cacher.reset()
    cacher.remove("default")
    for number, shown in enumerate(pictures):
        with cacher.streams(["a", "b"]):
            got = last_hidden(siglip, torch.cat([shown] * 2))
        for output, name in zip(got, "ab", strict=True):
            torch.testing.assert_close(output, expected[name][number][0], atol=1e-5, rtol=0)
        full = pytest.raises(ValueError, match=r"at most 2 streams .* got 3; reset\(stream\)")
        with full, cacher.streams(["c"]):
            last_hidden(siglip, frame(9))
        with full, cacher.streams(["c", "a"]):
            last_hidden(siglip, torch.cat([frame(9)] * 2))
    assert set(cacher.stats().streams) == {"a", "b"}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_saved_stream_shares_nothing_and_goes_on(siglip, policy):
    pictures = walk(6)
    cacher = stc_video.attach_cacher(siglip, policy)
    encode(siglip, pictures[:3])
    saved = cacher.stream_state("default")
    expected = encode(siglip, pictures[3:])
    assert saved.counters.frames == 3
    cacher.restore_stream("other", saved)
    with cacher.streams(["other"]):
        got = encode(siglip, pictures[3:])
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert cacher.stats().streams["other"].frames == 6
    assert saved.counters.frames == 3
