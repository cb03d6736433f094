# SPDX-License-Identifier: Apache-2.0
"""The passes of the ``stc`` policy: as they are, or in fixed shapes for a GPU and its graphs.

Shapes: S slots of a slab, B streams of a pass with F frames each, N tokens, C channels, L layers,
K tokens that a layer re-encodes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from stc_video.cacher.dense import FrameBatch, dense_layers
from stc_video.cacher.graphs import GraphCache
from stc_video.cacher.stc.layer import StcReference, stc_layer
from stc_video.cacher.stc.state import StcState
from stc_video.cacher.streams import Slab, Slot
from stc_video.towers.block import Block

#: fresh and cached projections -> (B * F, K) int32 indices and (B * F, N) similarities
Select = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Part:
    """One stream's part of a pass.

    Attributes
    ----------
    slot, state
        Where its state is; None for a stream of which nothing is kept.
    kept
        Which of its frames becomes the reference, if the pass is dense; None for none.
    """

    slot: Slot | None
    state: StcState | None
    kept: int | None = None


@dataclass(frozen=True)
class StcOutput:
    """The result of a pass.

    Attributes
    ----------
    hidden
        Outputs (B * F, N, C) of the layers that were asked for, by number.
    selected
        (B * F, K) int32 of each layer, the tokens that it re-encoded; empty for a dense pass.
    similarity
        (B * F, N) float32 of the first layer; None for a dense pass.
    """

    hidden: dict[int, Tensor]
    selected: tuple[Tensor, ...] = ()
    similarity: Tensor | None = None

    def rows(self, rows: Tensor | slice) -> StcOutput:
        """Return a copy of some rows."""

        def cut(tensor: Tensor) -> Tensor:
            return tensor[rows].clone()

        return StcOutput(
            {layer: cut(output) for layer, output in self.hidden.items()},
            tuple(cut(indices) for indices in self.selected),
            None if self.similarity is None else cut(self.similarity),
        )


class StcPasses(Protocol):
    """Runs passes."""

    def dense(self, parts: Sequence[Part], batch: FrameBatch) -> StcOutput:
        """Encode all tokens of B * F frames, and keep the references."""

    def cached(self, parts: Sequence[Part], batch: FrameBatch) -> StcOutput:
        """Re-encode in each layer the tokens of B * F frames that it selects."""


@dataclass(frozen=True)
class PlainPasses:
    """Runs each pass as it comes.

    Attributes
    ----------
    blocks
        All blocks of the tower.
    select
        Chooses the tokens that a layer re-encodes.
    by_keys
        Whether keys are compared, else values.
    """

    blocks: Sequence[Block]
    select: Select
    by_keys: bool

    def dense(self, parts: Sequence[Part], batch: FrameBatch) -> StcOutput:
        """Encode all tokens, and keep the references."""
        frames = len(batch.frames) // len(parts)
        kept = [
            (part.state, number * frames + part.kept)
            for number, part in enumerate(parts)
            if part.kept is not None and part.state is not None
        ]

        def keep(layer: int, *computed: Tensor) -> None:
            for state, row in kept:
                for planes, new in zip(state.tensors(), computed, strict=True):
                    planes[layer].copy_(new[row])

        return self.run_dense(batch, keep)

    def cached(self, parts: Sequence[Part], batch: FrameBatch) -> StcOutput:
        """Re-encode what each layer selects."""
        states = [part.state for part in parts if part.state is not None]
        frames = len(batch.frames) // len(parts)

        def references(layer: int) -> StcReference:
            if len(states) == 1:
                return StcReference(*(planes[layer] for planes in states[0].tensors()))
            alike = zip(*(state.tensors() for state in states), strict=True)
            together = (torch.stack([planes[layer] for planes in of]) for of in alike)
            return StcReference(*(one.repeat_interleave(frames, 0) for one in together))

        return self.run_cached(batch, references)

    def run_dense(
        self, batch: FrameBatch, keep: Callable[[int, Tensor, Tensor, Tensor], None]
    ) -> StcOutput:
        """Run all layers; ``keep`` gets a layer's number and what a reference is made of."""
        hidden = {}
        for layer, trace in enumerate(dense_layers(self.blocks, batch.frames, batch.mask)):
            pair = (trace.key, trace.value) if self.by_keys else (trace.value, trace.key)
            keep(layer, *pair, trace.update)
            if layer in batch.output_layers:
                hidden[layer] = trace.output
        return StcOutput(hidden)

    def run_cached(self, batch: FrameBatch, references: Callable[[int], StcReference]) -> StcOutput:
        """Run all layers against the references of each."""
        x, hidden, selected = batch.frames, {}, []
        first: Tensor | None = None
        for layer, block in enumerate(self.blocks):
            x, indices, similarity = stc_layer(
                block,
                x,
                references(layer),
                select=self.select,
                by_keys=self.by_keys,
                mask=batch.mask,
            )
            first = similarity if first is None else first
            if layer in batch.output_layers:
                hidden[layer] = x
            selected.append(indices)
        return StcOutput(hidden, tuple(selected), first)


@dataclass(frozen=True)
class RecordedPasses:
    """Runs passes of fixed shapes through the cache of graphs.

    Streams are filled up to a power of two of them. Which ones they are is data on the device, so
    that a pass of one shape does for all.

    Attributes
    ----------
    plain
        The passes themselves.
    graphs
        Where they are recorded and run.
    """

    plain: PlainPasses
    graphs: GraphCache

    def dense(self, parts: Sequence[Part], batch: FrameBatch) -> StcOutput:
        """Encode all tokens, and keep the references."""
        if any(part.kept is None for part in parts):  # NaN in all its frames, which is rare
            return self.plain.dense(parts, batch)

        def make(state: StcState, _: bool) -> Callable[..., StcOutput]:
            def run(x: Tensor, slots: Tensor, rows: Tensor, *mask: Tensor) -> StcOutput:
                def keep(layer: int, *computed: Tensor) -> None:
                    for planes, new in zip(state.tensors(), computed, strict=True):
                        planes[:, layer].index_copy_(0, slots, new.index_select(0, rows))

                return self.plain.run_dense(batch.like(x, *mask), keep)

            return run

        return self._by_slab("dense", parts, batch, make)

    def cached(self, parts: Sequence[Part], batch: FrameBatch) -> StcOutput:
        """Re-encode what each layer selects."""
        frames = len(batch.frames) // len(parts)

        def make(state: StcState, in_order: bool) -> Callable[..., StcOutput]:
            def run(x: Tensor, slots: Tensor, rows: Tensor, *mask: Tensor) -> StcOutput:
                def of_streams(plane: Tensor) -> Tensor:
                    mine = plane[: len(slots)] if in_order else plane.index_select(0, slots)
                    return mine if frames == 1 else mine.repeat_interleave(frames, 0)

                def references(layer: int) -> StcReference:
                    planes = (planes[:, layer] for planes in state.tensors())
                    return StcReference(*map(of_streams, planes))

                return self.plain.run_cached(batch.like(x, *mask), references)

            return run

        return self._by_slab("cached", parts, batch, make)

    def _by_slab(
        self,
        kind: str,
        parts: Sequence[Part],
        batch: FrameBatch,
        make: Callable[[StcState, bool], Callable[..., StcOutput]],
    ) -> StcOutput:
        """Run one pass for the streams of each slab, and put their rows in order.

        ``make`` is told whether the streams' slots are the first ones of the slab, in order.
        """
        frames = len(batch.frames) // len(parts)
        groups: dict[Slab, list[int]] = {}
        for number, part in enumerate(parts):
            assert part.slot is not None
            groups.setdefault(part.slot.slab, []).append(number)
        outputs, order = [], []
        for slab, numbers in groups.items():
            assert isinstance(slab.state, StcState)
            rows = [number * frames + frame for number in numbers for frame in range(frames)]
            inputs = _inputs([parts[number] for number in numbers], rows, batch)
            slots = [slot.number for number in numbers if (slot := parts[number].slot) is not None]
            in_order = kind == "cached" and slab.begins_with(slots, len(inputs[1]))
            shapes = tuple(i.shape for i in inputs)
            key: Hashable = (kind, shapes, frames, in_order, batch.output_layers)
            output: StcOutput = self.graphs.run(slab, key, make(slab.state, in_order), inputs)
            outputs.append(output.rows(slice(len(rows))))
            order += rows
        if len(outputs) == 1:
            return outputs[0]
        return _concatenated(outputs).rows(
            torch.tensor(order, device=batch.frames.device).argsort()
        )


def _inputs(parts: Sequence[Part], rows: Sequence[int], batch: FrameBatch) -> tuple[Tensor, ...]:
    """Frames, slots, rows that are kept, and perhaps masks, of a power of two of streams."""
    device, frames = batch.frames.device, len(rows) // len(parts)
    spare = (1 << (len(parts) - 1).bit_length()) - len(parts)
    # What fills up repeats the first stream, and writes what that one writes.
    filled = [*parts, *[parts[0]] * spare]
    taken = torch.tensor([*rows, *[*rows[:frames]] * spare]).to(device, non_blocking=True)
    slots = [part.slot.number for part in filled if part.slot is not None]
    kept = [number * frames + (part.kept or 0) for number, part in enumerate(filled)]
    inputs = [batch.frames.index_select(0, taken)]
    inputs += [torch.tensor(one).to(device, non_blocking=True) for one in (slots, kept)]
    return (*inputs, *([] if batch.mask is None else [batch.mask.index_select(0, taken)]))


def _concatenated(parts: Sequence[StcOutput]) -> StcOutput:
    """Put the rows of some outputs one behind the other."""
    similarities = [part.similarity for part in parts if part.similarity is not None]
    return StcOutput(
        {layer: torch.cat([part.hidden[layer] for part in parts]) for layer in parts[0].hidden},
        tuple(torch.cat(of) for of in zip(*(part.selected for part in parts), strict=True)),
        torch.cat(similarities) if similarities else None,
    )
