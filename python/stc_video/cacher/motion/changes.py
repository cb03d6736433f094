# SPDX-License-Identifier: Apache-2.0
"""The comparison of a frame with its stream's state, by which the ``motion`` policy decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stc_kernels import token_cosine
from stc_video.cacher.motion.state import MotionState, motion_state
from stc_video.cacher.streams import Stream

if TYPE_CHECKING:
    from stc_video.cacher.motion.ahead import Ahead


@dataclass(frozen=True)
class Conditions:
    """The change of a frame's patches as a whole.

    Attributes
    ----------
    change
        Median over the patches of 1 - cosine to the input at which they were last encoded: noise, a
        moving camera, another light.
    common
        The part of the change, by its square, that is the same in all patches: near 1 / N for noise
        and motion, more where brightness, contrast or colour changed.
    """

    change: float = 0.0
    common: float = 0.0


NOTHING_SEEN = Conditions()


@dataclass(frozen=True)
class FrameChange:
    """The difference between a frame and what its stream's tokens were last encoded at.

    Attributes
    ----------
    is_finite
        Whether it is free of NaN and Inf.
    changed
        How many tokens changed.
    is_repeated
        Whether it is the last frame once more, bit for bit.
    similarity
        (N,) cosine of each token with the input at which it was last encoded; None without a
        state to compare with.
    is_changed
        (N,) bool, which tokens changed; None likewise.
    conditions
        How the patches changed as a whole; all 0 if nobody asked.
    ahead
        What was encoded before all of this was known; None if nothing was.
    """

    is_finite: bool
    changed: int = 0
    is_repeated: bool = False
    similarity: Tensor | None = None
    is_changed: Tensor | None = None
    conditions: Conditions = NOTHING_SEEN
    ahead: Ahead | None = None


@dataclass(frozen=True)
class Comparison:
    """What the device found out about the next frame of each of S streams; nobody has waited yet.

    Attributes
    ----------
    finite
        (S,) bool.
    known
        Numbers of the T streams that have a state to compare with.
    counts, repeated
        (T,) how many tokens changed, and whether it is the last frame once more.
    similarity, is_changed
        (T, N) as in :class:`FrameChange`.
    conditions
        The two of :class:`Conditions`, (T,) each; empty if nobody asked.
    """

    finite: Tensor
    known: Sequence[int] = ()
    counts: Tensor | None = None
    repeated: Tensor | None = None
    similarity: Tensor | None = None
    is_changed: Tensor | None = None
    conditions: Sequence[Tensor] = ()

    def fetch(self, *others: Tensor) -> tuple[list[FrameChange], list[Tensor]]:
        """Wait for the device, once: what is known of each frame, and other float32 numbers."""
        facts = [self.finite]
        if self.counts is not None and self.repeated is not None:
            facts += [self.counts, self.repeated, *self.conditions]
        # float32 holds any number of tokens.
        flat = torch.cat([fact.float() for fact in (*facts, *others)]).cpu()
        parts = list(flat.split([len(fact) for fact in (*facts, *others)]))
        finite, *columns = (part.tolist() for part in parts[: len(facts)])
        changes = [FrameChange(bool(is_finite)) for is_finite in finite]
        found = parts[len(facts) :]
        if self.similarity is None or self.is_changed is None:
            return changes, found
        for row, (number, (count, is_repeated, *seen)) in enumerate(
            zip(self.known, zip(*columns, strict=True), strict=True)
        ):
            changes[number] = FrameChange(
                changes[number].is_finite,
                int(count),
                bool(is_repeated),
                self.similarity[row],
                self.is_changed[row],
                Conditions(*seen),
            )
        return changes, found


def compare(
    streams: Sequence[Stream],
    frames: Tensor,
    compared: Tensor,
    thresholds: Sequence[float],
    prefix_tokens: int,
    with_conditions: bool = False,
) -> Comparison:
    """Compare the next frame of each stream with its state.

    Parameters
    ----------
    streams
        The streams, S of them, with or without a state.
    frames
        (S, N, C) input of the first layer.
    compared
        (S, N, C) what is compared with the states' references.
    thresholds
        For each stream the cosine at or below which a token counts as changed.
    prefix_tokens
        How many tokens at the start are no patches, and never count as changed.
    with_conditions
        Whether to look at how the patches changed as a whole.
    """
    # A sum shows any NaN or Inf, at the price of one pass.
    finite = torch.isfinite(frames.sum(dim=(1, 2), dtype=torch.float32))
    known = [number for number, stream in enumerate(streams) if stream.state is not None]
    if not known:
        return Comparison(finite)
    states = [motion_state(streams[number]) for number in known]
    limits = torch.tensor([thresholds[number] for number in known])
    limits = limits.to(frames.device, non_blocking=True)
    compared = _rows(compared, known)
    counts, repeated, similarity, changed = _compare_states(
        states, _rows(frames, known), compared, limits, prefix_tokens
    )
    conditions = _conditions(states, compared, similarity, prefix_tokens) if with_conditions else []
    return Comparison(finite, known, counts, repeated, similarity, changed, conditions)


def _conditions(
    states: Sequence[MotionState], compared: Tensor, similarity: Tensor, prefix_tokens: int
) -> list[Tensor]:
    """See how the patches of frames (S, N, C) changed as a whole: two tensors (S,)."""
    moves = (compared - stacked([state.reference for state in states]))[:, prefix_tokens:]
    squares = torch.linalg.vector_norm(moves, dim=(1, 2), dtype=torch.float32).square()
    means = moves.mean(dim=1, dtype=torch.float32)
    common = moves.shape[1] * means.square().sum(dim=1) / squares.clamp(min=1e-12)
    return [1.0 - similarity[:, prefix_tokens:].float().median(dim=1).values, common]


def _compare_states(
    states: Sequence[MotionState],
    frames: Tensor,
    compared: Tensor,
    limits: Tensor,
    prefix_tokens: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compare frames (S, N, C) with the states of their streams.

    Returns how many tokens changed and whether the frame is a repeated one, (S,) each, then
    similarity (S, N) and which tokens changed, (S, N).
    """
    similarity = token_cosine(compared, stacked([state.reference for state in states]))
    changed = ~(similarity > limits[:, None])
    changed[:, :prefix_tokens] = False
    counts = changed.sum(dim=1)
    # On a CPU a look at a number is free, and one at every value of a frame is not.
    if frames.device.type == "cpu" and bool(counts.all()):
        repeated = torch.zeros_like(counts)
    else:
        last = stacked([state.last_input for state in states])
        repeated = (frames == last).flatten(1).all(dim=1)
    return counts, repeated, similarity, changed


def _rows(x: Tensor, numbers: list[int]) -> Tensor:
    """Some rows of a batch; the batch itself if they are all of them."""
    return x if len(numbers) == len(x) else torch.stack([x[number] for number in numbers])


def stacked(planes: Sequence[Tensor]) -> Tensor:
    """Planes (N, C) behind one another; a view of a single one."""
    return planes[0][None] if len(planes) == 1 else torch.stack(list(planes))
