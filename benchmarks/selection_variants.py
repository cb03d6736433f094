# SPDX-License-Identifier: Apache-2.0
"""Other ways for ``motion`` to choose its tokens, for ``motion_knobs.py`` to compare with.

Each is the policy with one part replaced. They are for one stream, a square grid of patches and a
tower in float32 on a CPU; none of them is in the package.

Shapes: S streams, N tokens, C channels, K rows that are encoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, layer_norm, max_pool2d, pad, unfold

from stc_video.cacher.motion.changes import FrameChange
from stc_video.cacher.motion.plan import Plan
from stc_video.cacher.motion.policy import MotionPolicy
from stc_video.cacher.motion.ragged import run_layers
from stc_video.cacher.motion.segments import Segment, SegmentEncoder
from stc_video.cacher.motion.state import motion_state
from stc_video.cacher.streams import Stream
from stc_video.towers.block import Block

_POOLED = 2  # pixels of a patch are averaged 2 x 2, so that they fit into a token's channels


class ByPatchEmbedding(MotionPolicy):
    """Compares patch embeddings with positions, in front of the first norm."""

    def _compared(self, frames: Tensor) -> Tensor:
        return frames


class ByPixels(MotionPolicy):
    """Compares the normalised pixels of each patch."""

    #: the pictures of the call under way, (S, 3, height, width); `in_use` keeps them here
    pixels: Tensor

    def _compared(self, frames: Tensor) -> Tensor:
        small = avg_pool2d(self.pixels, _POOLED)
        side = round((frames.shape[1] - self.prefix_tokens) ** 0.5)
        patches = unfold(small, small.shape[-1] // side, stride=small.shape[-1] // side)
        rows = patches.transpose(1, 2)
        return pad(rows, (0, frames.shape[2] - rows.shape[2], self.prefix_tokens, 0))


class ByLastFrame(MotionPolicy):
    """Compares with the last frame, whether or not the token was encoded then."""

    def _encode_next(self, streams: Sequence[Stream], frames: Tensor, *rest: Any) -> Any:
        outputs = super()._encode_next(streams, frames, *rest)
        for stream, frame in zip(streams, self._compared(frames), strict=True):
            motion_state(stream).reference.copy_(frame)
        return outputs


class WithNeighbours(MotionPolicy):
    """A token also counts as changed if one of its eight neighbours did."""

    def _compare(
        self, streams: Sequence[Stream], frames: Tensor
    ) -> tuple[Tensor, list[FrameChange]]:
        compared, changes = super()._compare(streams, frames)
        return compared, [self._spread(one) for one in changes]

    def _spread(self, change: FrameChange) -> FrameChange:
        if change.is_changed is None:
            return change
        prefix, patches = change.is_changed.split(
            [self.prefix_tokens, len(change.is_changed) - self.prefix_tokens]
        )
        side = round(len(patches) ** 0.5)
        grid = patches.view(1, 1, side, side).float()
        wide = max_pool2d(grid, 3, stride=1, padding=1).flatten() > 0
        return _with_changed(change, torch.cat([prefix, wide]))


class PerTokenThresholds(MotionPolicy):
    """A token's threshold follows how much its output moved for what its input did, so far."""

    MEMORY, CLAMP = 0.7, 3.0

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._gains: Tensor | None = None  # (N,), 1 on average

    def _compare(
        self, streams: Sequence[Stream], frames: Tensor
    ) -> tuple[Tensor, list[FrameChange]]:
        compared, changes = super()._compare(streams, frames)
        [change], [stream] = changes, streams
        if change.similarity is None or self._gains is None:
            return compared, changes
        allowed = (1.0 - self.control.threshold(self._history(stream).effort)) / self._gains
        changed = ~(change.similarity > 1.0 - allowed)
        changed[: self.prefix_tokens] = False
        return compared, [_with_changed(change, changed)]

    def _carry_out(self, streams: Sequence[Stream], plans: Sequence[Plan], *rest: Any) -> Any:
        [stream], [plan] = streams, plans
        before = None if stream.state is None else motion_state(stream).output.clone()
        result = super()._carry_out(streams, plans, *rest)
        if before is not None and plan.indices is not None and plan.indices.numel():
            self._follow(plan, before, motion_state(stream).output)
        elif before is None:
            self._gains = None
        return result

    def _follow(self, plan: Plan, before: Tensor, after: Tensor) -> None:
        assert plan.indices is not None
        assert plan.similarity is not None
        rows = plan.indices[0].long()
        moved = 1.0 - _likeness(before[rows], after[rows])
        gain = moved / (1.0 - plan.similarity[rows]).clamp(min=0.02)
        gain = (gain / gain.mean().clamp(min=1e-6)).clamp(1 / self.CLAMP, self.CLAMP)
        if self._gains is None:
            self._gains = torch.ones(len(before))
        self._gains[rows] = self.MEMORY * self._gains[rows] + (1.0 - self.MEMORY) * gain


class SelectedTwice(MotionPolicy):
    """Rows that the first layers did not change go no further.

    The second look is where the tail would begin, which must not run: set ``tail_from=1.0``.
    """

    #: cosine above which a row of the residual stream, normalised, counts as unchanged
    SECOND = 0.98

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._narrowing = _NarrowingEncoder(self.blocks, self.planner.head, self.prefix_tokens)

    def _encoder(self, device: torch.device) -> SegmentEncoder:
        return self._narrowing

    def _cost(self, plan: Plan, tokens: int) -> float:
        assert plan.indices is not None
        rows = plan.indices.shape[1]
        later = min(rows, self._narrowing.rows)
        counts = [rows if layer < self.planner.head else later for layer in range(len(self.blocks))]
        spent = sum(of.rows(k, tokens) for of, k in zip(self.operations, counts, strict=True))
        return spent / self.dense_operations(tokens)


@dataclass
class _NarrowingEncoder:
    """Runs the last layers for those rows only that the first ones changed."""

    blocks: Sequence[Block]
    head: int
    prefix_tokens: int
    rows: int = 0  # of the last frame that went on

    def encode(self, segments: Sequence[Segment]) -> None:
        [segment] = segments
        state, middle = segment.state, segment.state.tail_input
        assert middle is not None
        segment.put_reference()
        x = run_layers(self.blocks, segment.x, segments, range(self.head))
        if segment.indices is not None:
            alike = _likeness(segment.take(middle[None])[0], x[0])
            goes_on = ~(alike > SelectedTwice.SECOND)
            goes_on[: self.prefix_tokens] = True
            segment.put(middle[None], x)
            x, indices = x[:, goes_on], segment.indices[:, goes_on]
            segment = replace(segment, indices=indices)
        else:
            segment.put(middle[None], x)
        self.rows = x.shape[1]
        x = run_layers(self.blocks, x, [segment], range(self.head, len(self.blocks)))
        segment.put(state.output[None], x)


@contextmanager
def in_use(variant: type[MotionPolicy], tower: nn.Module) -> Iterator[None]:
    """Inside the block, cachers that are attached to the tower get this policy."""

    def remember(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        ByPixels.pixels = kwargs["pixel_values"] if "pixel_values" in kwargs else args[0]

    hook = tower.register_forward_pre_hook(remember, with_kwargs=True)
    try:
        with mock.patch("stc_video.cacher.cacher.MotionPolicy", variant):
            yield
    finally:
        hook.remove()


def _with_changed(change: FrameChange, changed: Tensor) -> FrameChange:
    return replace(change, is_changed=changed, changed=int(changed.sum()))


def _likeness(before: Tensor, after: Tensor) -> Tensor:
    """Cosine (K,) of rows (K, C), normalised as a norm of the tower does but for its weights."""
    rows = (layer_norm(one, one.shape[-1:]) for one in (before, after))
    return torch.cosine_similarity(*rows, dim=-1)
