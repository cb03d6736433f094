# SPDX-License-Identifier: Apache-2.0
"""What `quality` promises: audits, the ledger that holds the promise, and what is said of it."""

from __future__ import annotations

import math
import random
import warnings

import pytest
import torch
from tiny_towers import TOWERS, encode, frame, last_hidden, make_tower, noisy_walk

import stc_video
from stc_video import CacheConfig
from stc_video.cacher import PromiseWarning
from stc_video.cacher.motion.changes import Conditions
from stc_video.cacher.motion.promise import PromiseKeeper, Way
from stc_video.cacher.motion.state import Ledger
from stc_video.session.state_tree import pack, unpack

STILL = Conditions(change=0.002, common=0.004)
CACHED_COST = 0.25


def keep(quality: float, errors: list[float]) -> tuple[float, float, PromiseKeeper, Ledger]:
    """Encode a made-up stream; mean error handed out, and cost."""
    keeper, ledger = PromiseKeeper(quality), Ledger()
    keeper.hand_out_dense(ledger)
    handed = cost = 0.0
    for error in errors:
        way, _ = keeper.decide(ledger, STILL)
        if way is Way.CACHED:
            keeper.hand_out_cached(ledger)
            handed, cost = handed + error, cost + CACHED_COST
            continue
        if way is Way.AUDIT:
            keeper.learn(ledger, error, error / 3.0, STILL)
            cost += CACHED_COST
        else:
            keeper.weigh(ledger, error, 0.0)
        keeper.hand_out_dense(ledger)
        cost += 1.0
    return handed / len(errors), cost / len(errors), keeper, ledger


def made_up(mean: float, spread: float, seed: int, frames: int = 240) -> list[float]:
    """Errors that differ from frame to frame by a factor of e ** spread."""
    generator, level, errors = random.Random(seed), 0.0, []
    for _ in range(frames):
        level = 0.3 * level + math.sqrt(1 - 0.3**2) * generator.gauss(0.0, 1.0)
        errors.append(mean * math.exp(spread * level - spread**2 / 2.0))
    return errors


@pytest.mark.parametrize("share", [0.3, 0.8, 1.0, 1.5, 2.5, 5.0])
def test_streams_of_any_error_stay_within_the_promise(share):
    """Whatever cached frames are off by, as a part of what is promised."""
    allowed = 1.0 - 0.983
    means = [keep(0.983, made_up(share * allowed, 0.8, seed))[0] for seed in range(100)]
    assert sum(mean <= allowed for mean in means) >= 90
    assert sum(means) / len(means) < 0.85 * allowed


def test_a_stream_that_is_good_enough_is_hardly_audited():
    streams = [keep(0.983, made_up(0.005, 0.5, seed)) for seed in range(20)]
    assert sum(cost for _, cost, _, _ in streams) / 20 < 1.27 * CACHED_COST
    assert all(ledger.debt < 0.0 for _, _, _, ledger in streams)


@pytest.mark.parametrize(
    ("share", "gaps"), [(0.1, [8, 16, 16]), (0.9, [4, 8, 16]), (1.1, [2, 2, 2])]
)
def test_audits_become_rare_faster_where_they_find_little(share, gaps):
    keeper, ledger, seen = PromiseKeeper(0.983), Ledger(), []
    for _ in gaps:
        error = share * keeper.allowed
        keeper.learn(ledger, error, error / 3.0, STILL)
        seen.append(ledger.gap)
    assert seen == gaps


def test_a_stream_that_is_not_good_enough_becomes_dense_and_comes_back():
    bad, good = made_up(0.2, 0.5, 0, 100), made_up(0.004, 0.5, 1, 100)
    error, cost, keeper, ledger = keep(0.983, bad)
    assert cost > 0.95
    assert error < 0.017
    with pytest.warns(PromiseWarning, match=r"stream 'night': .*0\.983 is promised"):
        keeper.give_notice(ledger, "night")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keeper.give_notice(ledger, "night")  # once is enough
    _, cost, _, _ = keep(0.983, bad + good)
    assert cost < 0.8


def test_a_good_hour_does_not_pay_for_a_bad_minute():
    """What is saved while cached frames are exact is worth some frames and no more."""
    errors = made_up(1e-4, 0.1, 0, 1000) + made_up(0.1, 0.3, 1, 60)
    handed, quiet = keep(0.983, errors), keep(0.983, errors[:1000])
    last_minute = handed[0] * len(errors) - quiet[0] * 1000
    assert last_minute / 60 < 2 * (1.0 - 0.983) * 16 / 60 + 0.1 * 17 / 60


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (Conditions(0.004, 0.3), "every token changed in the same way"),
        (Conditions(0.05, 0.004), "every token changed more than before"),
    ],
)
def test_other_conditions_call_for_an_audit(seen, reason):
    _, _, keeper, ledger = keep(0.983, made_up(0.004, 0.1, 0, 8))
    assert keeper.decide(ledger, STILL)[0] is Way.CACHED
    assert keeper.decide(ledger, seen) == (Way.AUDIT, reason)


def test_a_frozen_picture_that_is_not_good_enough_is_encoded_once_more():
    keeper, ledger = PromiseKeeper(0.99), Ledger(last=0.05)
    assert not keeper.may_repeat(ledger)
    keeper.hand_out_dense(ledger)
    for _ in range(100):
        assert keeper.may_repeat(ledger)
        assert keeper.hand_out_again(ledger) == 0.0


def first_audit(tower, pictures, **settings):
    """Features of the frames up to the first audited one, and its record."""
    cacher = stc_video.attach_cacher(tower, CacheConfig(**settings))
    for number, picture in enumerate(pictures):
        features = last_hidden(tower, picture)
        if cacher.last_frames[0].audited:
            record = cacher.last_frames[0]
            stats = cacher.stats()
            cacher.detach()
            return number, features, record, stats
    raise AssertionError("no frame was audited")


@pytest.mark.parametrize("name", TOWERS)
def test_an_audit_measures_what_would_have_been_handed_out(backend, name):
    """Against the same stream without audits; and the dense features are handed out."""
    tower, pictures = make_tower(name), noisy_walk(9)
    number, features, record, stats = first_audit(tower, pictures, redo_from=None)
    dense = last_hidden(tower, pictures[number])
    torch.testing.assert_close(features, dense, atol=1e-4, rtol=0)
    cacher = stc_video.attach_cacher(tower, CacheConfig(audits=False, redo_from=None))
    cached = [last_hidden(tower, picture) for picture in pictures[: number + 1]][-1]
    cosine = torch.cosine_similarity(cached, dense, dim=-1).mean()
    # The lowest of the features with and without the last norm, one of which is compared here.
    assert record.measured <= cosine + 1e-4
    assert record.measured > 1.0 - 3.0 * (1.0 - cosine) - 1e-3
    assert cacher.last_frames[0].measured is None
    assert record.kind == "dense"
    assert record.cost == pytest.approx(1.0 + cacher.last_frames[0].cost)
    assert stats.audits == 1
    assert stats.measured_cosine == pytest.approx(record.measured)
    assert stats.promised == CacheConfig().quality


def test_what_dinov2_hands_out_is_what_is_measured():
    tower, pictures = make_tower("dinov2"), noisy_walk(9)
    number, _, record, _ = first_audit(tower, pictures, redo_from=None)
    with torch.no_grad():
        dense = tower(pictures[number]).last_hidden_state
        stc_video.attach_cacher(tower, CacheConfig(audits=False, redo_from=None))
        cached = [tower(p).last_hidden_state for p in pictures[: number + 1]][-1]
    cosine = float(torch.cosine_similarity(cached, dense, dim=-1).mean())
    assert record.measured <= cosine + 1e-5
    assert record.measured == pytest.approx(cosine, abs=0.02)


def test_a_hook_on_the_last_norm_sees_handed_out_features_only():
    tower = make_tower("dinov2")
    seen = []
    tower.layernorm.register_forward_hook(lambda *args: seen.append(1))
    cacher = stc_video.attach_cacher(tower)
    encode(tower, noisy_walk(9))
    assert cacher.stats().audits > 0
    assert len(seen) == 9


@pytest.mark.parametrize(
    "settings", [{"policy": "stc"}, {"threshold": 0.9}, {"audits": False}], ids=str
)
def test_nothing_is_promised_without_audits(settings):
    tower = make_tower("dinov2")
    cacher = stc_video.attach_cacher(tower, CacheConfig(**settings))
    encode(tower, noisy_walk(8))
    stats = cacher.stats()
    assert stats.audits == 0
    assert (stats.promised, stats.promise_held, stats.measured_cosine) == (None, None, None)


def test_streams_have_promises_of_their_own():
    """A still one beside one that flickers: audits, estimates and the verdict of each."""
    tower = make_tower("dinov2")
    cacher = stc_video.attach_cacher(tower)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromiseWarning)
        for number in range(12):
            still = frame(0) + 1e-4 * frame(number)
            flicker = frame(0) * (1.0 + 0.3 * (number % 3)) + 0.05 * frame(number)
            with cacher.streams(["still", "flicker"]):
                last_hidden(tower, torch.cat([still, flicker]))
    stats = cacher.stats()
    still, flicker = stats.streams["still"], stats.streams["flicker"]
    assert still.promise_held
    assert still.estimated_cosine > 0.999
    assert still.cost < flicker.cost
    assert stats.audits == still.audits + flicker.audits
    assert stats.promise_held == (still.promise_held and flicker.promise_held is not False)


def test_totals_are_printed_in_four_lines():
    tower = make_tower("siglip")
    cacher = stc_video.attach_cacher(tower)
    assert "promise: similarity 0.983, not measured yet" in str(cacher.stats())
    encode(tower, noisy_walk(12))
    stats = cacher.stats()
    lines = str(stats).splitlines()
    assert lines[0].startswith(f"12 frames: {stats.dense} dense, {stats.cached} cached, ")
    assert lines[1] == f"work: {100 * stats.cost:.1f} % of a dense encode"
    word = "held" if stats.promise_held else "missed"
    assert lines[2].startswith(f"promise: similarity 0.983, {word} ({stats.estimated_cosine:.4f}")
    assert lines[3].startswith("memory: ")
    assert len(lines) == 4
    assert repr(stats).startswith("CacheStats(frames=12, ")


def test_a_saved_stream_goes_on_with_what_it_knows():
    """The ledger is saved, and the restored stream does what the other one does."""
    tower, pictures = make_tower("dinov2"), noisy_walk(12)
    cacher = stc_video.attach_cacher(tower)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromiseWarning)
        encode(tower, pictures[:6])
        tensors: dict[str, torch.Tensor] = {}
        saved = pack(cacher.stream_state("default"), tensors)
        encode(tower, pictures[6:])
        expected, ledger = cacher.stats(), cacher.stream_state("default").history.ledger
        cacher.restore_stream("default", unpack(saved, tensors, torch.device("cpu")))
        encode(tower, pictures[6:])
    assert ledger.audits > 0.0
    assert cacher.stream_state("default").history.ledger == ledger
    assert cacher.stats().cost == pytest.approx(expected.cost)
    assert cacher.stats().audits == expected.audits
