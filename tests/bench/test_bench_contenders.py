# SPDX-License-Identifier: Apache-2.0
"""The contenders compute what they should, and the check sees it when one does not."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from stc_oracle import StcOracle, blocks_of
from tiny_cases import tiny_case
from tiny_towers import make_tower, prefix_tokens
from torch import nn

from stc_video.bench.cases import Case
from stc_video.bench.contenders import (
    KINDS,
    Contender,
    Dense,
    Graphed,
    Ours,
    Published,
    motion_config,
)
from stc_video.bench.correctness import Verdict, check
from stc_video.bench.paper import PublishedLayer
from stc_video.bench.run import prepare
from stc_video.bench.towers import BenchTower
from stc_video.towers.pre_norm import PreNormTower

TOWERS = ("siglip", "clip", "dinov2", "dinov2-registers")
EAGER = [name for name, kind in KINDS.items() if not kind.needs_cuda and not kind.is_compiled]


@torch.inference_mode()
def verdict_of(contender: Contender, case: Case) -> Verdict:
    first = contender.start().clone()
    second = contender.encode(contender.clip.turn(0)).clone()
    return check(contender, case, first, second)


@pytest.mark.parametrize("name", EAGER)
@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize(("streams", "ratio"), [(1, "1/4"), (3, "1/2"), (2, "1/16"), (1, "1")])
def test_every_contender_is_correct(name: str, tower: str, streams: int, ratio: str) -> None:
    case = tiny_case(tower, streams, ratio)
    found = prepare(name, case)
    assert found.verdict.is_correct, found.verdict
    assert found.verdict.error < 1e-4
    assert found.peak_bytes is None
    is_dense = KINDS[name].is_dense
    assert (found.contender.state_bytes > 0) is not is_dense
    assert found.contender.cost <= 1.0 if not is_dense else found.contender.cost == 1.0


@pytest.mark.parametrize("name", EAGER)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_within_its_tolerance(name: str, dtype: torch.dtype) -> None:
    found = prepare(name, tiny_case("siglip", 2, dtype=dtype)).verdict
    assert found.is_correct, found


@pytest.mark.parametrize("kind", [Dense, Published])
def test_what_is_replayed_is_correct_and_checked(kind: type[Dense] | type[Published]) -> None:
    """On a CPU a pass is run again instead of replayed; the buffers are the same."""
    case = tiny_case("siglip", 2)
    assert verdict_of(Graphed(kind(case)), case).is_correct
    wrong = Graphed(kind(case))
    norm = PreNormTower.of(wrong.inner.module).blocks[1].norm2
    norm.bias = nn.Parameter(norm.bias.detach() + 1.0)
    assert not verdict_of(wrong, case).is_correct


@pytest.mark.long
def test_the_compiled_tower_is_correct() -> None:
    assert prepare("dense-compiled", tiny_case()).verdict.is_correct


@pytest.mark.parametrize("name", EAGER)
@pytest.mark.parametrize("part", ["mlp", "key", "value"])
def test_a_wrong_weight_is_seen(name: str, part: str) -> None:
    case = tiny_case("siglip", 2)
    contender = KINDS[name].make(case)
    block = PreNormTower.of(contender.module).blocks[2]
    linear = block.mlp.fc2 if part == "mlp" else getattr(block, part)
    linear.weight = nn.Parameter(1.5 * linear.weight.detach())
    found = verdict_of(contender, case)
    assert not found.is_correct
    assert found.error > 10 * found.tolerance


def test_tokens_that_changed_and_were_not_encoded_are_seen() -> None:
    case = tiny_case("siglip", 2, "1/2")
    blind = replace(motion_config(case, refresh=True), threshold=-1.0, buckets=(0.3,))
    assert verdict_of(Ours(case, blind), case).error == float("inf")


def test_other_rows_than_agreed_are_seen() -> None:
    case = tiny_case("siglip", 1, "1/4")
    generous = replace(motion_config(case, refresh=False), buckets=(0.55,))
    found = verdict_of(Ours(case, generous), case)
    assert not found.is_correct
    assert "tokens in all instead of" in found.problem


def test_frames_that_were_not_cached_are_seen() -> None:
    case = tiny_case("siglip", 1, "1/2")
    contender = Ours(case, motion_config(tiny_case("siglip", 1, "1/4"), refresh=False))
    with torch.inference_mode():
        contender.start()
        contender.encode(case.clip.turn(0))
    assert "1 frames were not cached" in contender.problem
    assert "tokens changed" in contender.problem


@pytest.mark.parametrize("name", TOWERS)
@torch.inference_mode()
def test_the_published_forward_agrees_with_the_oracle(name: str) -> None:
    """The tests' oracle writes attention out; these frames change everywhere, by more and more."""
    tower = make_tower(name)
    generator = torch.Generator().manual_seed(3)
    first, second = torch.randn((2, 1, 16 + prefix_tokens(name), 48), generator=generator)
    second = first + second * torch.linspace(0.1, 2.0, second.shape[1])[:, None]
    oracle = StcOracle(blocks_of(tower), 0.4, 9, prefix_tokens(name))
    layers = [
        PublishedLayer(block, int(0.4 * first.shape[1]), prefix_tokens(name))
        for block in PreNormTower.of(tower).blocks
    ]
    for x in (first, second, first):
        expected = oracle.encode(x)
        for layer in layers:
            x = layer(x)
        torch.testing.assert_close(x, expected, atol=1e-4, rtol=0)


def test_each_turn_changes_the_patches_of_each_stream() -> None:
    case = tiny_case("clip", 3, "1/2")
    clip = case.clip
    assert clip.changed.shape == (3, case.rows - 1)
    assert len({tuple(row) for row in clip.changed.tolist()}) == 3
    shown = (clip.first, *clip.turns)
    for before, after in ((0, 1), (1, 2), (0, 2)):
        differs = (shown[before] != shown[after]).any(dim=1)
        patches = differs.unflatten(1, (4, 14)).unflatten(3, (4, 14)).any(dim=4).any(dim=2)
        for stream, row in enumerate(patches.flatten(1)):
            assert (row.nonzero()[:, 0] + 1).tolist() == clip.changed[stream].tolist()
    assert torch.equal(clip.first, case.half_clip.first)


@pytest.mark.parametrize(
    ("ratio", "rows"), [("1/4", 4), ("1/16", 2), ("1/100", 2), ("1/2", 8), ("1", 17)]
)
def test_rows_are_the_floor_and_at_least_one_patch(ratio: str, rows: int) -> None:
    assert tiny_case("clip").tower.rows(Fraction(ratio)) == rows


def test_a_twin_shares_the_weights_and_nothing_else() -> None:
    tower = tiny_case().tower
    twin = tower.twin()
    pairs = zip(tower.module.parameters(), twin.parameters(), strict=True)
    assert all(a is b for a, b in pairs)
    assert all(a is not b for a, b in zip(tower.module.modules(), twin.modules(), strict=True))


def test_the_paper_keeps_four_tensors_a_layer() -> None:
    case = tiny_case("siglip", 2)
    contender = Published(case)
    with torch.inference_mode():
        contender.start()
    assert contender.state_bytes == 4 * 4 * 2 * 16 * 48 * 4


@pytest.mark.parametrize("geometry", ["siglip-base", "dinov2-small"])
def test_activations_of_a_built_tower_are_of_order_one(geometry: str) -> None:
    tower = BenchTower.build(geometry, layers=2)
    case = Case.of(tower, 1, Fraction(1, 8))
    with torch.inference_mode():
        output = tower.encode(case.clip.first)
    assert 0.3 < float(output.std()) < 3.0
    found = prepare("stc", case)
    assert found.verdict.is_correct
    assert found.contender.cost == pytest.approx(prepare("paper-eager", case).contender.cost)
