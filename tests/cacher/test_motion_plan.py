# SPDX-License-Identifier: Apache-2.0
"""The plan of a frame: made without a change to the stream, which `commit` alone makes."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_towers import encode, make_tower, noisy_walk

import stc_video
from stc_video import CacheConfig
from stc_video.cacher.motion.changes import Conditions, FrameChange
from stc_video.cacher.motion.control import EffortControl
from stc_video.cacher.motion.plan import Planner
from stc_video.cacher.motion.promise import PromiseKeeper
from stc_video.cacher.stats import Operations

TOKENS = 16


def a_stream(**learned):
    """A stream of which some frames were encoded, with what was learned replaced in part."""
    tower = make_tower("siglip")
    cacher = stc_video.attach_cacher(tower, CacheConfig(audits=False))
    encode(tower, noisy_walk(4))
    stream = cacher.stream_state("default")
    for name, value in learned.items():
        part = "effort" if hasattr(stream.history.effort, name) else "ledger"
        setattr(getattr(stream.history, part), name, value)
    return stream


def a_planner(*, pays=True, promised=None):
    config = CacheConfig()
    keeper = None if promised is None else PromiseKeeper(promised)
    control = EffortControl(config.aim(), config.redo_from, config.threshold)
    operations = [Operations(48, 2 * 48 * 96)] * 4
    return Planner(config, control, keeper, 0, operations, lambda _: pays, lambda _: "too slow")


def a_change(count=2):
    similarity = torch.linspace(0.99, 0.5, TOKENS)
    is_changed = torch.arange(TOKENS) >= TOKENS - count
    return FrameChange(True, count, False, similarity, is_changed, Conditions(0.01, 0.01))


def snapshot(stream):
    """All that could change of a stream."""
    tensors = [tensor.clone() for tensor in stream.state.tensors()]
    parts = stream.history, stream.counters, stream.calls, stream.restart_reason
    return tensors, copy.deepcopy(parts)


def is_same(before, after):
    return before[1] == after[1] and all(map(torch.equal, before[0], after[0]))


CASES = {
    "cached": (a_planner(), {}, "cached"),
    "guarded": (a_planner(pays=False), {}, "dense"),
    "not worth trying": (a_planner(), {"redo_rate": 0.9}, "dense"),
    "for the promise": (a_planner(promised=0.99), {"audits": 3.0, "debt": 1.0, "gap": 9}, "dense"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_question_changes_nothing_and_a_commit_does_once(case):
    planner, learned, kind = CASES[case]
    stream = a_stream(**learned)
    before, staleness = snapshot(stream), stream.state.staleness.clone()
    first, second = (planner.plan(stream, a_change(), TOKENS) for _ in range(2))
    assert is_same(snapshot(stream), before), "planning changed the stream"
    assert first.kind == second.kind == kind
    assert first.reason == second.reason
    planner.commit(stream, second)
    assert not is_same(snapshot(stream), before)
    counters, known = stream.counters, before[1][1]
    assert counters.guarded - known.guarded == (case == "guarded")
    assert counters.for_promise - known.for_promise == (case == "for the promise")
    assert stream.history.effort.redo_rate == learned.get("redo_rate", 0.0) * 0.9
    if kind == "cached":
        rows = first.indices[0].long()
        assert torch.equal(first.indices, second.indices)
        assert not stream.state.staleness[rows].any()
        left_out = torch.ones(TOKENS, dtype=torch.bool).index_fill(0, rows, False)
        assert (stream.state.staleness > staleness)[left_out].all()
    else:
        assert torch.equal(stream.state.staleness, staleness)


def test_asking_whether_a_frame_is_worth_it_gives_the_same_answer_each_time():
    """Each frame that is not tried forgives a little, and asking about it does not."""
    control = EffortControl(CacheConfig().aim(), 0.1, None)
    effort = control.start()
    control.observe(effort, 0.2, is_too_far=True)
    assert [control.is_worth_trying(effort, 0.52) for _ in range(10)] == [False] * 10
    control.skip(effort)
    assert control.is_worth_trying(effort, 0.52)
