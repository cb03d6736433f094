# SPDX-License-Identifier: Apache-2.0
"""What each method promises by itself."""

from __future__ import annotations

import pytest
import torch

from stc_video import make_pruner
from stc_video.pruners import Attention

GENERATOR = torch.Generator().manual_seed(0)
VIDEO = torch.randn(6, 20, 16, generator=GENERATOR)
GRID = (4, 5)


class TestDtd:
    def test_a_static_video_keeps_the_first_frame_only(self):
        still = VIDEO[:1].repeat(5, 1, 1)
        assert make_pruner("dtd")(still).counts.tolist() == [20, 0, 0, 0, 0]
        assert make_pruner("dtd", floor=3)(still).counts.tolist() == [20, 3, 3, 3, 3]

    def test_thresholds_at_the_ends(self):
        assert make_pruner("dtd", threshold=1.0)(VIDEO).counts.tolist() == [20] * 6
        assert make_pruner("dtd", threshold=-1.0)(VIDEO).counts.tolist() == [20] + [0] * 5

    def test_slow_drift_is_sent_only_against_the_last_kept_token(self):
        angle = torch.linspace(0, 1.5, 31)
        drift = torch.stack([angle.cos(), angle.sin()], -1)[:, None]
        assert make_pruner("dtd", threshold=0.9)(drift).counts.sum() == 1
        sent = make_pruner("dtd", threshold=0.9, anchor="last_kept")(drift).counts
        assert 3 <= int(sent.sum()) <= 5

    def test_a_bucket_spends_evenly_on_even_change(self):
        """All of a first frame is new: that must not make the frames after it look still."""
        angle = torch.linspace(0.0, 2.0, 17)[:, None] + torch.rand(20, generator=GENERATOR)
        turning = torch.stack([angle.cos(), angle.sin()], -1)
        counts = make_pruner("dtd", tokens_per_frame=5, window=8)(turning).counts
        assert counts[:16].tolist() == [5] * 16

    def test_pixels(self):
        pixels = torch.zeros(2, 3, 8, 10)
        pixels[1, :, 2:4, 4:6] = 1.0  # row 1, column 2 of the grid
        kept = make_pruner("dtd", mode="pixel")(VIDEO[:2], GRID, pixels=pixels)
        assert [i for i in kept.indices[1].tolist() if i >= 0] == [7]

    def test_relative_mode_drops_a_fraction_of_the_most_similar(self):
        kept = make_pruner("dtd", video_pruning_rate=0.7)(VIDEO)
        assert kept.counts.tolist() == [6] * 6
        cosine = torch.cosine_similarity(VIDEO[1:], VIDEO[:-1], dim=-1)
        expected = cosine.topk(6, largest=False).indices.sort(-1).values
        assert torch.equal(kept.indices[1:].long(), expected)


class TestStreamingAssistant:
    @pytest.mark.parametrize("grid", [(4, 5), (3, 3), (1, 1), (1, 6)])
    def test_a_constant_frame_loses_exactly_the_odd_places(self, grid):
        height, width = grid
        kept = make_pruner("streaming_assistant")(torch.ones(1, height * width, 4), grid)
        even = [i * width + j for i in range(height) for j in range(width) if (i + j) % 2 == 0]
        assert [i for i in kept.indices[0].tolist() if i >= 0] == even

    def test_nothing_goes_where_neighbours_are_orthogonal(self):
        frame = torch.zeros(1, 4, 5, 2)
        for i in range(4):
            for j in range(5):
                frame[0, i, j, (i + j) % 2] = 1.0
        assert make_pruner("streaming_assistant")(frame.flatten(1, 2), GRID).counts == 20

    @pytest.mark.parametrize("parity", ["fixed", "alternating", "adaptive"])
    def test_no_two_dropped_tokens_of_one_pass_are_neighbours(self, parity):
        pruner = make_pruner(
            "streaming_assistant", temporal_threshold=1.0, spatial_threshold=-1.0, parity=parity
        )
        for row in pruner(VIDEO, GRID).indices:
            dropped = torch.ones(20, dtype=torch.bool)
            dropped[row[row >= 0].long()] = False
            grid = dropped.view(GRID)
            assert not (grid[1:] & grid[:-1]).any()
            assert not (grid[:, 1:] & grid[:, :-1]).any()
            assert dropped.sum() == 10

    @staticmethod
    def dropped(frames, **settings):
        """Places that a pruner takes out in space alone."""
        pruner = make_pruner("streaming_assistant", temporal_threshold=1.0, **settings)
        indices = pruner(frames, GRID).indices.tolist()
        return [sorted(set(range(20)) - set(row)) for row in indices]

    def test_parity_alternates_from_frame_to_frame(self):
        odd = [i for i in range(20) if (i // 5 + i % 5) % 2 == 1]
        even = [i for i in range(20) if i not in odd]
        ones = torch.ones(3, 20, 4)
        assert self.dropped(ones, parity="fixed") == [odd, odd, odd]
        assert self.dropped(ones, parity="alternating") == [odd, even, odd]

    def test_adaptive_parity_takes_the_more_redundant_half(self):
        frame = VIDEO[:1].clone()
        star = [2, 6, 8, 12]  # of the even half, around one of the odd half
        frame[0, star] = frame[0, 7] + 0.5 * VIDEO[1, star]
        adaptive, fixed = (
            set(self.dropped(frame, parity=parity, spatial_threshold=0.6)[0]) & {7, *star}
            for parity in ("adaptive", "fixed")
        )
        assert adaptive == set(star)
        assert fixed == {7}

    def test_every_pattern_takes_half_of_the_places(self):
        ones = torch.ones(2, 20, 4)
        stripes = [i for i in range(20) if i % 5 % 2 == 1]
        assert self.dropped(ones, pattern="stripes", neighbours="all")[0] == stripes
        first, second = self.dropped(ones, pattern="random", neighbours="all")
        assert first == second
        assert len(first) == 10
        assert first != self.dropped(ones, neighbours="all")[0]

    def test_passes_go_beyond_half(self):
        ones = torch.ones(1, 20, 4)
        once = make_pruner("streaming_assistant")(ones, GRID).counts
        more = make_pruner("streaming_assistant", passes=2)(ones, GRID).counts
        assert once == 10
        assert more == 10  # its neighbours are gone: nothing stands for the rest
        literal = make_pruner("streaming_assistant", passes=2, neighbours="all")(ones, GRID).counts
        assert literal == 0

    def test_dead_neighbours_matter_only_beside_dropped_tokens(self):
        video = torch.ones(2, 20, 4)
        video[1, 7:] = torch.tensor([-1.0, 1.0, 1.0, 1.0])  # cosine 0.5 to before, not above
        kept = {n: make_pruner("streaming_assistant", neighbours=n)(video, GRID).indices[1]
                for n in ("alive", "all")}  # fmt: skip
        differing = set(kept["alive"].tolist()) ^ set(kept["all"].tolist())
        dead = set(range(7))
        for place in differing - {-1}:
            beside = {place - 1, place + 1, place - 5, place + 5}
            assert beside & dead


class TestVidCom2:
    def test_identical_frames_get_equal_counts(self):
        kept = make_pruner("vidcom2", scope="clip")(VIDEO[:1].repeat(4, 1, 1))
        assert kept.counts.unique().numel() == 1
        assert kept.counts[0] == 5

    def test_counts_sum_to_the_ratio_up_to_rounding(self):
        counts = make_pruner("vidcom2", scope="clip", retention_ratio=0.3)(VIDEO).counts
        assert abs(int(counts.sum()) - 0.3 * 120) <= 6

    def test_ratio_one_does_not_keep_everything(self):
        """The authors' formula: beside one winner, frames keep round((1 - 1/F) N)."""
        odd = VIDEO.clone()
        odd[1:] = VIDEO[1]
        pruner = make_pruner("vidcom2", scope="clip", retention_ratio=1.0, temperature=1e-4)
        counts = pruner(odd).counts.tolist()
        assert counts[0] == 20
        assert counts[1:] == [round((1 - 1 / 6) * 20)] * 5

    def test_the_published_form_says_that_it_is_not_causal(self):
        assert not make_pruner("vidcom2", scope="clip").causal
        assert make_pruner("vidcom2").causal


class TestEvs:
    def test_a_clip_keeps_an_exact_number_and_its_first_frame(self):
        kept = make_pruner("evs", scope="clip", retention_ratio=0.4)(VIDEO)
        assert int(kept.counts.sum()) == 6 * 8
        assert kept.counts[0] == 20
        assert not make_pruner("evs", scope="clip").causal

    def test_what_changed_is_kept(self):
        video = VIDEO[:1].repeat(2, 1, 1)
        video[1, [4, 11]] *= -1
        kept = make_pruner("evs", tokens_per_frame=2)(video)
        assert kept.indices[1].tolist() == [4, 11]


class TestTome:
    def test_the_weighted_mean_and_the_sizes_are_kept(self):
        for count in (13, 10, 6, 1):
            kept = make_pruner("tome", tokens_per_frame=count, trace=True)(VIDEO)
            sizes = kept.trace["sizes"]
            assert kept.tokens.shape[1] == count
            assert sizes.sum(1).tolist() == [20.0] * 6
            total = (kept.tokens * sizes[..., None]).sum(1)
            torch.testing.assert_close(total, VIDEO.sum(1), atol=1e-4, rtol=1e-4)
            for row in range(count):
                assert (kept.source_map == row).sum(1).tolist() == sizes[:, row].tolist()

    def test_keeping_all_changes_nothing(self):
        kept = make_pruner("tome", tokens_per_frame=20)(VIDEO)
        assert torch.equal(kept.tokens, VIDEO)

    @pytest.mark.parametrize("count", [4, 7, 13, 20])
    @pytest.mark.parametrize("window", [5, 6, 8, 19, 20, 100])
    def test_bands_are_merged_each_by_itself(self, window, count):
        kept = make_pruner("tome", tokens_per_frame=count, window=window, trace=True)(VIDEO)
        bands = -(-20 // window)
        sizes = [len(part) for part in torch.arange(20).tensor_split(bands)]
        left = [len(part) for part in torch.arange(count).tensor_split(bands)]
        place = row = 0
        for size, number in zip(sizes, left, strict=True):
            part = VIDEO[:, place : place + size]
            alone = make_pruner("tome", tokens_per_frame=number, trace=True)(part)
            rows = slice(row, row + number)
            torch.testing.assert_close(kept.tokens[:, rows], alone.tokens)
            assert torch.equal(kept.indices[:, rows] - place, alone.indices)
            assert torch.equal(kept.source_map[:, place : place + size] - row, alone.source_map)
            assert torch.equal(kept.trace["sizes"][:, rows], alone.trace["sizes"])
            place, row = place + size, row + number

    def test_a_band_keeps_at_least_one(self):
        with pytest.raises(ValueError, match=r"at least 4, one for each band of 5 tokens .* got 3"):
            make_pruner("tome", tokens_per_frame=3, window=5)(VIDEO)


class TestVisionZip:
    QUERY = torch.randn(6, 21, 4, 8, generator=GENERATOR)
    KEY = torch.randn(6, 21, 4, 8, generator=GENERATOR)

    def kept(self, prefix, heads=slice(None), **settings):
        start = 1 - prefix
        attention = Attention(
            self.QUERY[:, start:, heads], self.KEY[:, start:, heads], prefix=prefix
        )
        pruner = make_pruner("visionzip", tokens_per_frame=8, contextual=0.25, **settings)
        return pruner(VIDEO, attention=attention)

    @pytest.mark.parametrize("prefix", [0, 1])
    def test_the_most_attended_are_kept_as_they_are(self, prefix):
        kept = self.kept(prefix)
        start = 1 - prefix
        query, key = self.QUERY[:, start:].double(), self.KEY[:, start:].double()
        attention = torch.einsum("fihd,fjhd->fhij", query, key).mul(8**-0.5).softmax(-1)
        received = (attention[:, :, 0] if prefix else attention.mean(2)).mean(1)[:, prefix:]
        for f in range(6):
            top = set(received[f].topk(6).indices.tolist())
            assert top <= set(kept.indices[f].tolist())
            for row, place in enumerate(kept.indices[f].tolist()):
                if place in top:
                    assert torch.equal(kept.tokens[f, row], VIDEO[f, place])

    def test_each_other_token_is_assigned_once(self):
        source = self.kept(1).source_map
        assert source.ge(0).all()
        assert source.lt(8).all()

    def test_mean_and_sum_of_the_merged(self):
        total, mean = self.kept(1), self.kept(1, merge="mean")
        assert torch.equal(total.indices, mean.indices)
        f, row = 0, next(r for r in range(8) if (total.source_map[0] == r).sum() > 1)
        place = int(total.indices[f, row])
        others = [n for n in range(20) if total.source_map[f, n] == row and n != place]
        torch.testing.assert_close(total.tokens[f, row], VIDEO[f, place] + VIDEO[f, others].mean(0))
        torch.testing.assert_close(mean.tokens[f, row], VIDEO[f, [place, *others]].mean(0))

    def test_permuting_heads_changes_nothing(self):
        permuted = self.kept(1, heads=[2, 0, 3, 1])
        assert torch.equal(permuted.indices, self.kept(1).indices)
        assert torch.equal(permuted.source_map, self.kept(1).source_map)


class TestRandom:
    def test_every_place_is_as_likely_in_every_frame(self):
        frames = torch.zeros(2000, 20, 1)
        kept = make_pruner("random", tokens_per_frame=5)(frames).indices
        share = torch.bincount(kept.flatten().long(), minlength=20) / 2000
        torch.testing.assert_close(share, torch.full((20,), 0.25), atol=0.04, rtol=0)
        assert len({tuple(row) for row in kept.tolist()}) > 1500

    def test_the_seed_decides(self):
        frames = torch.zeros(3, 20, 1)

        def chosen(seed):
            return make_pruner("random", tokens_per_frame=5, seed=seed)(frames).indices.tolist()

        assert chosen(1) == chosen(1)
        assert len({str(chosen(seed)) for seed in (0, 1, 2, 10**30)}) == 4


class TestStc:
    def test_all_of_the_tokens_come_back_unchanged(self):
        assert torch.equal(make_pruner("stc", retention_ratio=1.0)(VIDEO).tokens, VIDEO)

    @pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
    def test_against_a_loop(self, alpha):
        """The paper's blend, the past being the last three frames."""
        kept = make_pruner("stc", tokens_per_frame=5, alpha=alpha, memory=3)(VIDEO)
        for f, frame in enumerate(VIDEO.double()):
            unit = frame / frame.norm(dim=-1, keepdim=True)

            def distance(anchor, unit=unit):
                return 1.0 - torch.cosine_similarity(unit, anchor[None], dim=-1)

            score = distance(unit.mean(0))
            if f:
                past = VIDEO[max(0, f - 3) : f].double().mean((0, 1))
                score = alpha * distance(past) + (1.0 - alpha) * score
            assert kept.indices[f].tolist() == sorted(score.topk(5).indices.tolist())

    def test_memory_has_a_capacity(self):
        pruner = make_pruner("stc", tokens_per_frame=3, memory=2)
        for frame in VIDEO:
            pruner(frame[None])
        assert pruner.state_bytes == 2 * 16 * 4


TRACED = {
    "dtd": {"change"},
    "evs": {"change"},
    "streaming_assistant": {"change", "redundancy"},
    "vidcom2": {"likeness"},
    "tome": {"sizes"},
}


@pytest.mark.parametrize(("name", "names"), TRACED.items())
@pytest.mark.parametrize("by", ["number", "own"])
def test_the_trace_is_kept_on_request(name, names, by):
    settings = {"tokens_per_frame": 7} if by == "number" else {}
    settings |= {"tokens_per_frame": 7} if name == "tome" else {}
    traced = make_pruner(name, trace=True, **settings)(VIDEO, GRID).trace
    assert set(traced) == names
    places = 7 if name == "tome" else 20
    assert all(values.shape == (6, places) for values in traced.values())
    assert make_pruner(name, **settings)(VIDEO, GRID).trace == {}


@pytest.mark.parametrize("name", ["stc", "dtd", "streaming_assistant", "vidcom2", "tome", "evs"])
def test_a_rate_is_one_minus_the_ratio(name):
    rate, ratio = ({"video_pruning_rate": 0.65}, {"retention_ratio": 0.35})
    kept = [make_pruner(name, **settings)(VIDEO, GRID).indices for settings in (rate, ratio)]
    assert torch.equal(*kept)
    assert kept[0].shape == (6, 7)
