# SPDX-License-Identifier: Apache-2.0
"""What holds for every pruner: counts, order, causality, streams, backends, bad input."""

from __future__ import annotations

import pytest
import torch
from counted import Waits, count, pretended_gpu
from torch import Tensor

import stc_kernels
from stc_video import make_pruner
from stc_video.pruners import PRUNERS, Attention, PrunedTokens, Pruner

GRID = (4, 5)
TOKENS = GRID[0] * GRID[1]

#: a name and settings, of each mode that looks at no later frame
CASES = [
    ("stc", {"tokens_per_frame": 7}),
    ("stc", {"tokens_per_frame": 7, "method": "gaussian", "memory": 3}),
    ("dtd", {}),
    ("dtd", {"tokens_per_frame": 7}),
    ("dtd", {"anchor": "last_kept", "threshold": 0.9}),
    ("dtd", {"mode": "pixel"}),
    ("dtd", {"retention_ratio": 0.4, "window": 3}),
    ("streaming_assistant", {}),
    ("streaming_assistant", {"tokens_per_frame": 7}),
    ("streaming_assistant", {"parity": "alternating", "passes": 2, "floor": 2}),
    ("streaming_assistant", {"parity": "adaptive", "neighbours": "all"}),
    ("streaming_assistant", {"pattern": "stripes"}),
    ("streaming_assistant", {"pattern": "random"}),
    ("vidcom2", {"retention_ratio": 0.3}),
    ("vidcom2", {"tokens_per_frame": 6, "window": 4}),
    ("visionzip", {"tokens_per_frame": 7}),
    ("visionzip", {"tokens_per_frame": 7, "merge": "mean"}),
    ("tome", {"tokens_per_frame": 7}),
    ("tome", {"tokens_per_frame": 7, "window": 8}),
    ("evs", {"video_pruning_rate": 0.6}),
    ("uniform", {"tokens_per_frame": 7}),
    ("random", {"tokens_per_frame": 7}),
    ("none", {}),
]
IDS = [f"{name}-{settings}" for name, settings in CASES]


def video(frames: int, seed: int = 0) -> dict[str, Tensor]:
    """Features that drift, with pixels, queries and keys to them."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    features = random(1, TOKENS, 16) + 0.4 * random(frames, TOKENS, 16).cumsum(0)
    pixels = torch.rand((frames, 3, 8, 10), generator=generator)
    heads = (random(frames, TOKENS + 1, 2, 8), random(frames, TOKENS + 1, 2, 8))
    return {"features": features, "pixels": pixels, "query": heads[0], "key": heads[1]}


def prune(pruner: Pruner, data: dict[str, Tensor], part: slice, stream: str = "a") -> PrunedTokens:
    attention = Attention(data["query"][part], data["key"][part], prefix=1)
    return pruner(
        data["features"][part], GRID, stream, pixels=data["pixels"][part], attention=attention
    )


def chosen(pruned: PrunedTokens) -> list[list[int]]:
    return [[i for i in row if i >= 0] for row in pruned.indices.tolist()]


def test_every_pruner_has_a_case():
    assert {name for name, _ in CASES} == set(PRUNERS)


@pytest.mark.parametrize(("name", "settings"), CASES, ids=IDS)
def test_result_is_consistent(name, settings):
    data = video(6)
    pruner = make_pruner(name, **settings)
    pruned = prune(pruner, data, slice(0, 6))
    assert pruner.causal
    kept = chosen(pruned)
    assert [len(row) for row in kept] == pruned.counts.tolist()
    for f, row in enumerate(kept):
        assert row == sorted(set(row))
        assert pruned.indices[f, len(row) :].eq(-1).all()
        assert pruned.tokens[f, len(row) :].eq(0).all()
        if pruned.source_map is None:
            assert torch.equal(pruned.tokens[f, : len(row)], data["features"][f, row])
    assert torch.equal(pruned.packed(), pruned.tokens[pruned.indices >= 0])
    if pruner.exact:
        assert pruned.counts.unique().numel() == 1
        expected = settings.get("tokens_per_frame")
        assert expected is None or pruned.counts[0] == expected
    assert pruned.counts.min() >= settings.get("floor", 0)


@pytest.mark.parametrize(("name", "settings"), CASES, ids=IDS)
def test_feeding_in_pieces_equals_feeding_at_once(name, settings):
    data = video(9)
    whole = chosen(prune(make_pruner(name, **settings), data, slice(0, 9)))
    pruner = make_pruner(name, **settings)
    pieces = [prune(pruner, data, slice(a, b)) for a, b in ((0, 1), (1, 5), (5, 6), (6, 9))]
    assert [row for piece in pieces for row in chosen(piece)] == whole


@pytest.mark.parametrize(("name", "settings"), CASES, ids=IDS)
def test_two_streams_do_not_touch_each_other(name, settings):
    one, two = video(4, seed=1), video(4, seed=2)

    def alone(data: dict[str, Tensor]) -> list[list[list[int]]]:
        pruner = make_pruner(name, **settings)
        return [chosen(prune(pruner, data, slice(i, i + 1))) for i in range(4)]

    pruner = make_pruner(name, **settings)
    mixed = []
    for i in range(4):
        part = slice(i, i + 1)
        mixed.append([chosen(prune(pruner, d, part, s)) for d, s in ((one, "a"), (two, "b"))])
    assert [m[0] for m in mixed] == alone(one)
    assert [m[1] for m in mixed] == alone(two)
    pruner.reset("a")
    again = [chosen(prune(pruner, one, slice(i, i + 1))) for i in range(4)]
    assert again == alone(one)
    pruner.reset()
    assert pruner.state_bytes == 0


@pytest.mark.parametrize(("name", "settings"), CASES, ids=IDS)
def test_no_frame_depends_on_a_later_one(name, settings):
    """Cut the future off, frame by frame."""
    data = video(5)
    whole = chosen(prune(make_pruner(name, **settings), data, slice(0, 5)))
    for end in range(1, 5):
        past = chosen(prune(make_pruner(name, **settings), data, slice(0, end)))
        assert past == whole[:end]


@pytest.mark.parametrize(("name", "settings"), CASES, ids=IDS)
def test_same_indices_on_every_backend(name, settings):
    data = video(5)
    results = []
    for backend in stc_kernels.available_backends("bipartite_match"):
        with stc_kernels.use_backend(backend):
            results.append(chosen(prune(make_pruner(name, **settings), data, slice(0, 5))))
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize(("name", "settings"), CASES, ids=IDS)
def test_a_nan_frame_is_survived_and_forgotten(name, settings):
    data = video(5)
    clean = data["features"].clone()
    pruner = make_pruner(name, **settings)
    prune(pruner, data, slice(0, 1))
    data["features"][1, 3] = float("nan")
    prune(pruner, data, slice(1, 2))
    data["features"][1] = clean[1]
    later = [prune(pruner, data, slice(i, i + 1)) for i in range(2, 5)]
    assert all(p.tokens.isfinite().all() for p in later)
    assert later[-1].scores is None or later[-1].scores.isfinite().all()


@pytest.mark.parametrize(("name", "settings"), CASES, ids=IDS)
def test_a_frame_of_another_size_starts_the_stream_afresh(name, settings):
    data = video(3)
    pruner = make_pruner(name, **settings)
    prune(pruner, data, slice(0, 2))
    attention = Attention(data["query"][:1, :16], data["key"][:1, :16])
    changed = pruner(data["features"][:1, :16], (4, 4), "a", pixels=torch.rand(1, 3, 8, 8),
                     attention=attention)  # fmt: skip
    assert changed.counts.shape == (1,)
    assert int(changed.indices.max()) < 16


@pytest.mark.parametrize(("name", "settings"), CASES, ids=IDS)
def test_one_token_frames(name, settings):
    if name == "visionzip":  # the token and a class token
        settings = {**settings, "contextual": 0.0}
    settings = {k: v for k, v in settings.items() if k != "floor"}
    if "tokens_per_frame" in settings:
        settings["tokens_per_frame"] = 1
    heads = torch.ones(3, 2, 1, 4)
    kept = make_pruner(name, **settings)(
        torch.ones(3, 1, 4),
        (1, 1),
        pixels=torch.ones(3, 3, 4, 4),
        attention=Attention(heads, heads, 1),
    )
    assert kept.counts[0] == 1


def test_positions_are_those_of_the_whole_frame():
    kept = make_pruner("uniform", tokens_per_frame=3)(torch.rand(2, 6, 4), (2, 3))
    assert kept.indices.tolist() == [[1, 3, 5]] * 2
    expected = [[[7 + f, 0, 1], [7 + f, 1, 0], [7 + f, 1, 2]] for f in range(2)]
    assert kept.positions((2, 3), first_frame=7).tolist() == expected
    some = make_pruner("dtd")(torch.ones(2, 6, 4), (2, 3))
    assert some.positions((2, 3))[1].eq(-1).all()


@pytest.mark.parametrize("rate", [2, 7, 19])
@pytest.mark.parametrize("name", ["dtd", "streaming_assistant", "evs", "vidcom2"])
def test_a_bucket_is_exact_over_each_window(name, rate):
    data = video(12)
    data["features"][5:8] = data["features"][4]  # still, then on
    pruner = make_pruner(name, tokens_per_frame=rate, window=4, floor=1)
    counts = prune(pruner, data, slice(0, 12)).counts
    assert not pruner.exact
    assert counts.view(3, 4).sum(1).tolist() == [4 * rate] * 3
    assert counts.min() >= 1


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("dtd", {"tokens_per_frame": 0}, "tokens_per_frame must be at least 1, got 0"),
        ("evs", {"retention_ratio": 0.0}, "retention_ratio must be above 0"),
        ("evs", {"video_pruning_rate": 1.0}, "video_pruning_rate must be at least 0 and below 1"),
        ("stc", {"tokens_per_frame": 3, "retention_ratio": 0.5}, "give one of"),
        ("dtd", {"tokens_per_frame": 3, "threshold": 0.5}, "not both"),
        ("dtd", {"threshold": 1.5}, "threshold must be between -1 and 1"),
        ("dtd", {"mode": "colour"}, "mode must be one of feature, pixel"),
        ("dtd", {"window": 4}, "window"),
        ("dtd", {"floor": -1}, "floor must be at least 0"),
        ("evs", {"scope": "video"}, "scope must be one of frame, clip"),
        ("vidcom2", {"temperature": 0.0}, "temperature must be above 0"),
        ("visionzip", {"contextual": 1.0}, "contextual must be"),
        ("streaming_assistant", {"passes": 0}, "passes must be at least 1"),
        ("streaming_assistant", {"pattern": "dots"}, "pattern must be one of"),
        ("tome", {"threshold": 0.5}, "does not take these settings"),
        ("tome", {"window": 1}, "window must be at least 2 tokens, got 1"),
        ("best", {}, "name must be one of"),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(name, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        make_pruner(name, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "settings"), CASES, ids=IDS)
def test_bad_input_is_refused_and_leaves_the_stream_as_it_was(name, settings):
    data = video(4)
    pruner, other = make_pruner(name, **settings), make_pruner(name, **settings)
    first, second = slice(0, 2), slice(2, 4)
    prune(pruner, data, first)
    prune(other, data, first)
    with pytest.raises(ValueError, match="grid must have 20 places"):
        pruner(data["features"], (4, 4), "a")
    with pytest.raises(ValueError, match="3 dimensions"):
        pruner(data["features"][0], GRID, "a")
    if settings.get("tokens_per_frame"):
        with pytest.raises(ValueError, match="tokens_per_frame must be between 1 and 4"):
            pruner(data["features"][:1, :4], (2, 2), "a")
    assert chosen(prune(pruner, data, second)) == chosen(prune(other, data, second))


def test_missing_inputs_are_named():
    features = torch.rand(1, 6, 4)
    with pytest.raises(ValueError, match="needs attention"):
        make_pruner("visionzip", tokens_per_frame=2)(features)
    with pytest.raises(ValueError, match="needs the grid"):
        make_pruner("streaming_assistant")(features)
    with pytest.raises(ValueError, match="needs pixels"):
        make_pruner("dtd", mode="pixel")(features, (2, 3))
    with pytest.raises(ValueError, match="multiple of the grid"):
        make_pruner("dtd", mode="pixel")(features, (2, 3), pixels=torch.rand(1, 3, 8, 8))


VARYING = [
    *((name, settings) for name, settings in CASES if not make_pruner(name, **settings).exact),
    ("evs", {"video_pruning_rate": 0.6, "scope": "clip"}),
    ("dtd", {"threshold": -1.0}),
    ("dtd", {"threshold": 1.0}),
]


@pytest.mark.parametrize(("name", "settings"), VARYING, ids=map(str, VARYING))
def test_a_varying_number_of_tokens_is_packed_on_a_gpu_without_a_wait(name, settings):
    """By `compact_tokens`; whoever wants the tokens in one row without room behind them waits."""
    data = video(6)
    expected = prune(make_pruner(name, **settings), data, slice(0, 6))
    pruner, results = make_pruner(name, **settings), []
    with pretended_gpu("cpu"), Waits() as waits:
        calls = count(lambda: results.append(prune(pruner, data, slice(0, 6))))
        assert waits.count == 0
        (got,) = results
        packed = got.packed()
    assert "compact_tokens" in {call.op for call in calls}
    assert torch.equal(packed, expected.packed())
    assert torch.equal(got.counts, expected.counts)
    assert chosen(got) == chosen(expected)
    assert got.tokens.shape == (6, TOKENS, 16)
    assert torch.equal(got.tokens[got.indices >= 0], expected.packed())
    assert not got.tokens[got.indices < 0].any()
