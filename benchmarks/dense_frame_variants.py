# SPDX-License-Identifier: Apache-2.0
"""What dense_frames.py compares: frames encoded again for less work, and pictures moved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate

from stc_kernels import bipartite_match, merge_tokens
from stc_video import CacheConfig, attach_tome, make_pruner
from stc_video.cacher.dense import LayerTrace, dense_layers
from stc_video.cacher.motion.plan import Plan
from stc_video.cacher.motion.policy import MotionPolicy
from stc_video.cacher.motion.segments import Segment
from stc_video.cacher.stats import DENSE, FrameRecord, Operations
from stc_video.loading.vision import LoadedModel
from stc_video.pruners.budget import highest
from stc_video.studies.fidelity.measure import DenseClip, measure
from stc_video.towers.pre_norm import PreNormTower

PRUNERS = ("stc", "dtd")
RETENTION = 1 / 4
REACH = 3  # how many patches further a token is looked for
TAIL = 3  # layers that run for all tokens after tokens were reused, as in the policy
REUSED_AT = (0.8, 0.95)
#: layer behind which tokens stop, and the share of them that goes on
STOPS = ((6, 1 / 2), (9, 1 / 2), (9, 1 / 4))
#: tokens that each block merges away
SCHEDULES: dict[str, list[int]] = {
    "8 in every block": [8] * 12,
    "10 in every block": [10] * 12,
    "4 to 15, rising": [*range(4, 16)],
    "6 to 17, rising": [*range(6, 18)],
    "a quarter in block 6": [0] * 5 + [64] + [0] * 6,
    "half in block 6": [0] * 5 + [128] + [0] * 6,
}


@dataclass(frozen=True)
class Made:
    """A frame encoded in another way: tokens (1, K, C), its cost, and which tokens they are."""

    tokens: Tensor
    cost: float
    rows: Tensor | None = None


class Encoded:
    """A clip with what its layers made of each frame, and which frames are dense."""

    def __init__(self, clip: DenseClip, model: LoadedModel) -> None:
        self.clip, self.model = clip, model
        self.stock: Any = model.tower
        self.blocks = PreNormTower.of(model.tower).blocks
        found = measure(clip, model, CacheConfig())
        self.numbers = [
            number
            for number in range(1, clip.frames)
            if found.kinds[number] == DENSE and found.costs[number] == 1.0
        ]
        self.inputs = [self.embed(inputs["pixel_values"]) for inputs in clip.inputs]
        self.layers = [self.dense(inputs) for inputs in self.inputs]
        self.tokens = self.inputs[0].shape[1]
        self.operations = [Operations.of(block, block.channels) for block in self.blocks]
        blank = self.embed(torch.zeros_like(clip.inputs[0]["pixel_values"]))
        bias = self.stock.embeddings.patch_embeddings.projection.bias
        self.positions = blank[0, 1:] - bias

    def embed(self, pixels: Tensor) -> Tensor:
        """Input of the first block."""
        embedded: Tensor = self.stock.embeddings(pixels)
        return embedded

    def dense(self, x: Tensor) -> list[LayerTrace]:
        """Run all blocks, for all tokens."""
        return list(dense_layers(self.blocks, x, None))

    def normed(self, x: Tensor) -> Tensor:
        """Outputs of the last block behind the last norm."""
        made: Tensor = self.stock.layernorm(x)
        return made

    def share(self, operations: float) -> float:
        """Operations as a fraction of a dense frame's."""
        return operations / sum(layer.dense(self.tokens) for layer in self.operations)


# -- yardsticks ------------------------------------------------------------------------------


def moved(one: Encoded, part: float) -> list[Made]:
    """Encode pictures that are moved to the right by a part of a pixel; the rim is doubled."""
    made = []
    for number in one.numbers:
        inputs = one.clip.inputs[number]
        pixels = inputs["pixel_values"]
        by_one = torch.cat([pixels[..., :1], pixels[..., :-1]], dim=-1)
        mixed = torch.lerp(pixels, by_one, part)
        made.append(Made(one.model.encode(inputs | {"pixel_values": mixed}), 1.0))
    return made


# -- reuse: a start from the frame before, moved with the camera --------------------------------


@lru_cache(maxsize=64)
def likeness(one: Encoded, number: int) -> tuple[Tensor, Tensor]:
    """Cosines (S, N) of a frame's patches to those of the one before, for S shifts by patches.

    As the policy compares them, but with the position of the new place; -1 from outside of the
    frame. Also returns the places (S, N) that the shifts take patches from.
    """
    norm, positions = one.blocks[0].norm1, one.positions
    height, width = one.clip.grid
    places = torch.arange(height * width).view(height, width)
    content = one.inputs[number - 1][0, 1:] - positions
    target = norm(one.inputs[number][0, 1:])
    cosines, sources = [], []
    for down in range(-REACH, REACH + 1):
        for right in range(-REACH, REACH + 1):
            rows, columns = torch.arange(height) + down, torch.arange(width) + right
            inside = (rows.clamp(0, height - 1) == rows)[:, None]
            inside = inside & (columns.clamp(0, width - 1) == columns)
            source = places[rows.clamp(0, height - 1)][:, columns.clamp(0, width - 1)].flatten()
            cosine = cosine_similarity(norm(content[source] + positions), target, dim=-1)
            cosines.append(torch.where(inside.flatten(), cosine, -1.0))
            sources.append(source)
    return torch.stack(cosines), torch.stack(sources)


def match(cosines: Tensor, sources: Tensor, how: str, threshold: float) -> tuple[Tensor, Tensor]:
    """Cosine (N,) of each patch to the one that it may reuse, and the place of that one."""
    if how == "block matching":
        best, shift = cosines.max(dim=0)
        return best, sources.gather(0, shift[None])[0]
    counts = (cosines > threshold).sum(dim=1)
    counts[len(cosines) // 2] += 1  # of equal shifts rather none
    chosen = len(cosines) // 2 if how == "in place" else int(counts.argmax())
    return cosines[chosen], sources[chosen]


def encode_from(
    one: Encoded, before: list[LayerTrace], x: Tensor, rows: Tensor, source: Tensor
) -> Made:
    """Encode rows of a frame among tokens of the frame before, and the last layers for all."""
    head, y = len(one.blocks) - TAIL, x[:, rows]
    for block, old in zip(one.blocks[:head], before, strict=False):
        query, key, value = block.project(block.norm1(y))
        keys = old.key[:, source].index_copy(1, rows, key)
        values = old.value[:, source].index_copy(1, rows, value)
        y = y + block.attention(query, keys, values, None)
        y = y + block.feed_forward(y)
    whole = before[head - 1].output[:, source].index_copy(1, rows, y)
    *_, last = dense_layers(one.blocks[head:], whole, None)
    spent = [layer.rows(len(rows), one.tokens) for layer in one.operations[:head]]
    spent += [layer.dense(one.tokens) for layer in one.operations[head:]]
    return Made(one.normed(last.output), one.share(sum(spent)))


def with_class(places: Tensor) -> Tensor:
    """Rows of a frame for places of patches: the class token comes first."""
    return torch.cat([places.new_zeros(1), places + 1])


def reused(one: Encoded, how: str, threshold: float) -> list[Made]:
    """Encode the patches of which the frame before has no like one."""
    made = []
    for number in one.numbers:
        best, source = match(*likeness(one, number), how, threshold)
        rows = with_class(torch.nonzero(best <= threshold)[:, 0])
        before, x = one.layers[number - 1], one.inputs[number]
        made.append(encode_from(one, before, x, rows, with_class(source)))
    return made


def pans(clip: DenseClip, one: Encoded) -> Iterator[tuple[str, Made, Tensor]]:
    """Pan over the first frame of a clip, and reuse the patches that it shows again."""
    picture = clip.inputs[0]["pixel_values"]
    side, patch = picture.shape[-1], picture.shape[-1] // clip.grid[1]
    wide = interpolate(picture, size=(side, side + 2 * patch), mode="bicubic")
    first = one.embed(wide[..., :side])
    before = one.dense(first)
    places = torch.arange(one.tokens - 1).view(clip.grid)
    source = torch.cat([places[:, 1:], places[:, -1:]], dim=1).flatten()
    for pixels in (patch, patch - 1, patch // 2):
        x = one.embed(wide[..., pixels : pixels + side])
        dense = one.normed(one.dense(x)[-1].output)
        entering = with_class(places[:, -1])
        made = encode_from(one, before, x, entering, with_class(source))
        yield f"{pixels} pixels, moved by a patch of {patch}", made, dense
        if pixels == patch:
            rolled = one.positions.view(*clip.grid, -1).roll(1, dims=1).flatten(0, 1)
            there = torch.cat([x[:, :1], x[:, 1:] - one.positions + rolled], dim=1)
            elsewhere = one.normed(one.dense(there)[-1].output)
            yield "none, but positions moved by a patch", Made(elsewhere, 1.0), dense


# -- stop: the last layers for those tokens that a pruner is likely to keep ----------------------


def stopped(one: Encoded, pruner: str, layer: int, share: float, by: str) -> list[Made]:
    """Let a share of the tokens go on behind a layer, those that the pruner is likely to keep."""
    middle = [traces[layer - 1].output for traces in one.layers]
    seen = torch.cat(middle if by == "middle layer" else one.clip.dense)[:, 1:]
    scores = make_pruner(pruner, retention_ratio=RETENTION)(seen).scores
    assert scores is not None
    if by == "frame before":
        scores = scores.roll(1, dims=0)
    made = []
    for number in one.numbers:
        rows = with_class(highest(scores[number, None], round(share * scores.shape[1]))[0].long())
        *_, last = dense_layers(one.blocks[layer:], middle[number][:, rows], None)
        spent = [operations.dense(one.tokens) for operations in one.operations[:layer]]
        spent += [operations.dense(len(rows)) for operations in one.operations[layer:]]
        made.append(Made(one.normed(last.output), one.share(sum(spent)), rows))
    return made


# -- merge: similar tokens as one, inside the tower ------------------------------------------


def merged_operations(operations: Sequence[Operations], steps: Sequence[int], tokens: int) -> int:
    """Count a frame whose blocks merge so many tokens between attention and MLP."""
    spent = 0
    for layer, step in zip(operations, steps, strict=True):
        spent += layer.dense(tokens) - step * layer.mlp
        tokens -= step
    return spent


def merged(one: Encoded, steps: list[int]) -> list[Made]:
    """Merge tokens block by block; each gets the value of what it became part of."""
    cost = one.share(merged_operations(one.operations, steps, one.tokens))
    with attach_tome(one.model.tower, steps, output="full"):
        return [Made(one.model.encode(one.clip.inputs[number]), cost) for number in one.numbers]


class MergingPolicy(MotionPolicy):
    """Merges tokens in frames that are dense because most of their tokens changed.

    The other dense frames stay exact: a stream's first, audits, and those that the promise takes,
    after which most tokens stay for long. All tokens stay in the state: those that were merged have
    the same keys and values, and so count in later attention as often as the merged one did.
    """

    steps: Sequence[int] = SCHEDULES["6 to 17, rising"]
    merges = False

    def _carry_out(self, streams: Sequence[Any], plans: Sequence[Plan], *rest: Any) -> Any:
        [plan] = plans
        is_changed = plan.similarity is not None and plan.weighed is None
        self.merges = plan.indices is None and is_changed
        return super()._carry_out(streams, plans, *rest)

    def _encode_segments(self, segments: Sequence[Segment]) -> None:
        if not self.merges:
            super()._encode_segments(segments)
        for segment in segments if self.merges else ():
            self._merge(segment)

    def _merge(self, segment: Segment) -> None:
        segment.put_reference()
        state, x = segment.state, segment.frame
        sizes = torch.ones(x.shape[:2])
        source = torch.arange(x.shape[1])
        for layer, (block, step) in enumerate(zip(self.blocks, self.steps, strict=True)):
            query, key, value = block.project(block.norm1(x))
            segment.put(segment.keys[layer], key[:, source])
            segment.put(segment.values[layer], value[:, source])
            x = x + block.attention(query, key, value, sizes.log()[:, None, None])
            if step:
                metric = key.unflatten(-1, (block.heads, -1)).mean(2)
                rows, _, _ = bipartite_match(metric, step, protected=self.prefix_tokens)
                x, sizes = merge_tokens(x, rows, x.shape[1] - step, sizes=sizes)
                source = rows[0].long()[source]
            x = x + block.feed_forward(x)
            if layer + 1 == self.planner.head and state.tail_input is not None:
                segment.put(state.tail_input[None], x[:, source])
        segment.put(state.output[None], x[:, source])

    def _record(self, stream: Any, plan: Plan, tokens: int) -> FrameRecord:
        record = super()._record(stream, plan, tokens)
        if not self.merges:
            return record
        spent = merged_operations(self.operations, self.steps, tokens)
        return replace(record, cost=record.cost - 1.0 + spent / self.dense_operations(tokens))


POLICIES: dict[str, type[MotionPolicy]] = {"as-is": MotionPolicy, "merged": MergingPolicy}


# -- the table ---------------------------------------------------------------------------------


def variants() -> dict[tuple[str, str], Callable[[Encoded], list[Made]]]:
    """All ways to encode dense frames, by kind and name."""
    made: dict[tuple[str, str], Callable[[Encoded], list[Made]]] = {
        ("moved", "one pixel"): partial(moved, part=1.0),
        ("moved", "half a pixel"): partial(moved, part=0.5),
    }
    for how in ("in place", "the camera's shift", "block matching"):
        for threshold in REUSED_AT:
            made["reuse", f"{how}, {threshold:g}"] = partial(reused, how=how, threshold=threshold)
    for pruner in PRUNERS:
        for layer, share in STOPS:
            for by in ("frame before", "middle layer"):
                name = f"{pruner}, {share:g} behind layer {layer}, by the {by}"
                made["stop", name] = partial(
                    stopped, pruner=pruner, layer=layer, share=share, by=by
                )
    for name, steps in SCHEDULES.items():
        made["merge", name] = partial(merged, steps=steps)
    return made
