# SPDX-License-Identifier: Apache-2.0
"""The passes whose launches are counted: a dense frame, cached ones of each policy, the paper's.

Shapes are those of SigLIP-so400m (729 tokens, 1152 channels) in bfloat16; a cached frame encodes a
quarter of the tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import torch
from counted import Call, Waits, count, pretended_gpu
from torch import nn

from stc_kernels import select_changed
from stc_video.bench.cases import Case
from stc_video.bench.contenders import Ours, motion_config, stc_config
from stc_video.bench.paper import PublishedLayer
from stc_video.bench.towers import BenchTower
from stc_video.cacher.dense import FrameBatch
from stc_video.cacher.graphs import GraphCache, PlainRecorder
from stc_video.cacher.motion.bucketed import BucketedEncoder, Rows
from stc_video.cacher.motion.state import MotionState
from stc_video.cacher.prepacked_weights import PrepackedWeights
from stc_video.cacher.stc.layer import StcReference
from stc_video.cacher.stc.passes import PlainPasses
from stc_video.cacher.streams import Layout
from stc_video.loading.geometries import build_random
from stc_video.towers.pre_norm import PreNormTower

GEOMETRY, LAYERS, RATIO = "siglip-so400m", 27, Fraction(1, 4)
TOKENS, CHANNELS, ROWS = 729, 1152, 182
_DTYPE = torch.bfloat16


def dense(streams: int, layers: int = LAYERS) -> list[Call]:
    """Count a frame of each stream through the stock tower."""
    tower = _tower(layers)
    with pretended_gpu():
        frames = torch.empty((streams, 3, 384, 384), dtype=_DTYPE, device="cuda")
        return count(lambda: tower(frames))


def motion(streams: int, layers: int = LAYERS) -> list[Call]:
    """Count the layers of a cached frame of the `motion` policy, with all streams in order."""
    blocks = _packed(layers).blocks
    with pretended_gpu():
        layout = Layout(TOKENS, CHANNELS, _DTYPE, torch.device("cuda"))
        state = MotionState.empty(layout, layers, False, frozenset(), (streams,))
        slots = torch.empty(streams, dtype=torch.int64, device="cuda")
        indices = torch.empty((streams, ROWS), dtype=torch.int32, device="cuda")
        frames = torch.empty((streams, TOKENS, CHANNELS), dtype=_DTYPE, device="cuda")
        encoder = BucketedEncoder(blocks, layers, GraphCache(PlainRecorder(), 0))

        def run() -> None:
            encoder._run(state, frames, Rows(slots, indices, False, in_order=True), None, False)

        count(run)  # makes the copies of weights
        return count(run)


def stc(streams: int, layers: int = LAYERS) -> list[Call]:
    """Count the layers of a cached frame of the `stc` policy, with all streams in order."""
    blocks = _packed(layers).blocks
    with pretended_gpu():
        frame = (TOKENS, CHANNELS)
        planes = torch.empty((3, streams, layers, *frame), dtype=_DTYPE, device="cuda")
        x = torch.empty((streams, *frame), dtype=_DTYPE, device="cuda")

        def references(layer: int) -> StcReference:
            return StcReference(*(plane[:streams, layer] for plane in planes))

        passes = PlainPasses(blocks, lambda new, old: select_changed(new, old, ROWS), True)
        run = functools.partial(passes.run_cached, FrameBatch(x, None, frozenset()), references)
        count(run)  # makes the copies of weights
        return count(run)


def paper(streams: int, layers: int = LAYERS) -> list[Call]:
    """Count the layers of a cached frame of the published forward."""
    published = [PublishedLayer(block, ROWS, 0) for block in _found(layers).blocks]
    with pretended_gpu():
        x = torch.empty((streams, TOKENS, CHANNELS), dtype=_DTYPE, device="cuda")

        def run() -> None:
            y = x
            for layer in published:
                y = layer(y)

        count(run)  # the dense frame
        return count(run)


PASSES: dict[str, Callable[..., list[Call]]] = {
    "dense": dense,
    "motion": motion,
    "stc": stc,
    "paper": paper,
}


def around(policy: str, streams: int) -> list[Call]:
    """Count what a cached frame launches outside of its recorded pass: embedding, changes, output.

    Real calls on a CPU that says it is a GPU, since what changed decides what is done: those of a
    tower of one layer less those of its pass. Calls with one stream and with two tell what a stream
    adds.
    """
    one, two = _outside(policy, 1), _outside(policy, 2)
    calls = []
    for op in dict.fromkeys([*one, *two]):
        pairs = zip(one.get(op, (0, 0)), two.get(op, (0, 0)), strict=True)
        launches, nbytes = (first + (streams - 1) * (second - first) for first, second in pairs)
        if launches > 0:
            calls.append(Call(op, launches, max(0, nbytes)))
    return calls


@functools.cache
def _outside(policy: str, streams: int) -> dict[str, tuple[int, int]]:
    """By operator, the launches and bytes of a frame that are not in its pass."""
    found = _totals(_whole_frame(policy, streams)[0])
    for op, (launches, nbytes) in _totals(PASSES[policy](streams, 1)).items():
        found[op] = found[op][0] - launches, found[op][1] - nbytes
    return {op: numbers for op, numbers in found.items() if numbers[0] > 0}


def waits(policy: str) -> int:
    """Count how often a cached frame of one stream waits for the device."""
    return _whole_frame(policy, 1)[1]


def _totals(calls: list[Call]) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for call in calls:
        launches, nbytes = found.get(call.op, (0, 0))
        found[call.op] = launches + call.launches, nbytes + call.nbytes
    return found


@functools.cache
def _whole_frame(policy: str, streams: int) -> tuple[list[Call], int]:
    """Calls and waits of a whole cached frame through one layer, behind others like it."""
    tower = BenchTower.build(GEOMETRY, layers=1, dtype=_DTYPE)
    case = Case.of(tower, streams, RATIO)
    config = motion_config(case, refresh=False) if policy == "motion" else stc_config(case)
    with pretended_gpu("cpu"):
        contender = Ours(case, replace(config, graphs=False))
        # It looks at the weights through memory that a machine without a GPU lacks.
        contender.cacher._watch = None
        contender.start()
        for turn in range(2):
            contender.encode(case.clip.turn(turn))
        with Waits() as waits:
            calls = count(lambda: contender.encode(case.clip.turn(2)))
    if contender.problem:
        raise RuntimeError(f"{policy} did not encode a cached frame: {contender.problem}")
    return calls, waits.count


def _tower(layers: int) -> nn.Module:
    """A tower without data."""
    with torch.device("meta"):
        tower: nn.Module = build_random(GEOMETRY, layers=layers).to(_DTYPE).eval()
    return tower


def _found(layers: int) -> PreNormTower:
    return PreNormTower.of(_tower(layers))


def _packed(layers: int) -> PreNormTower:
    """With the weights of query, key and value as one, as the cacher has them on a GPU."""
    tower = _found(layers)
    weights = PrepackedWeights()
    weights.install(tower)
    return weights.fuse(tower)
