# SPDX-License-Identifier: Apache-2.0
"""The ``stc`` policy: STC-Cacher, with a fixed schedule and each layer selecting for itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stc_kernels import select_changed, select_changed_below
from stc_video.cacher.encoder import dense_layers, stc_layer
from stc_video.cacher.guard import Timings, fastest
from stc_video.cacher.policies.base import NONFINITE, Outputs, PolicyBase, finite_frames
from stc_video.cacher.stats import CACHED, DENSE, FrameRecord
from stc_video.cacher.stream_state import Layout, StcState, Stream


class StcPolicy(PolicyBase):
    """STC-Cacher (arXiv 2512.00891): every ``interval``-th call dense, in between a fixed share.

    The last frame of a dense call becomes the reference. All frames of a cached call are compared
    with that one, each layer for itself, and cached calls leave it as it is.
    """

    #: With a threshold, the number of tokens is rounded up to a multiple of this share of them.
    THRESHOLD_STEP = 1 / 16

    def encode(
        self,
        streams: Sequence[Stream],
        frames: Tensor,
        mask: Tensor | None,
        wanted: frozenset[int],
    ) -> tuple[Outputs, list[FrameRecord]]:
        """Encode one call's frames of each stream."""
        if self.is_never_cached:
            return self.encode_guarded(streams, frames, mask, wanted)
        count = frames.shape[0] // len(streams)
        finite = finite_frames(frames)
        rows = [slice(at, at + count) for at in range(0, len(finite), count)]
        fresh = [
            s for s, own in zip(streams, rows, strict=True) if not s.state and any(finite[own])
        ]
        begun = {stream.name for stream in fresh}
        self.place(fresh, wanted)
        parts, records = [], []
        for stream, own in zip(streams, rows, strict=True):
            own_mask = None if mask is None else mask[own]
            outputs, made = self._encode_call(
                stream, frames[own], own_mask, wanted, finite[own], stream.name not in begun
            )
            parts.append(outputs)
            records += made
        if len(parts) == 1:
            return parts[0], records
        return {layer: torch.cat([part[layer] for part in parts]) for layer in wanted}, records

    def rehearse(
        self, layout: Layout, frames: Tensor, mask: Tensor | None, wanted: frozenset[int]
    ) -> Timings:
        """Run frames (S, N, C) of made-up streams densely and cached, and take the time."""
        streams = [Stream(f"warm-up {number}", layout) for number in range(frames.shape[0])]
        self.place(streams, wanted)

        def run(encode: Callable[..., tuple[Outputs, list[FrameRecord]]]) -> None:
            for number, stream in enumerate(streams):
                one = slice(number, number + 1)
                one_mask = None if mask is None else mask[one]
                encode(stream, frames[one], one_mask, wanted, [True], "warm-up")

        def seconds(call: Callable[[], object]) -> float:
            return fastest(call, frames.device, self.REHEARSALS)

        try:
            run(self._encode_dense)
            tokens = max(1, self.pinned, math.floor(self.config.ratio * frames.shape[1]))
            cached = {tokens: seconds(lambda: run(self._encode_cached))}
            return Timings(seconds(lambda: self.dense_uncached(frames, mask, wanted)), cached)
        finally:
            for stream in streams:
                stream.drop_state()

    def place(self, streams: Sequence[Stream], wanted: frozenset[int]) -> None:
        """Give streams without a state an empty one."""
        if not streams:
            return
        layout = streams[0].layout
        assert layout is not None
        self.pool.place(
            streams, layout, lambda slots: StcState.empty(layout, len(self.blocks), (slots,))
        )

    def _encode_call(
        self,
        stream: Stream,
        frames: Tensor,
        mask: Tensor | None,
        wanted: frozenset[int],
        finite: list[bool],
        has_state: bool,
    ) -> tuple[Outputs, list[FrameRecord]]:
        """Encode one call's frames of a stream."""
        if not any(finite):
            # Nothing to learn from: the schedule waits.
            dense, encode = True, self._encode_dense
        else:
            dense = not has_state or stream.calls % self.config.interval == 0
            encode = self._encode_dense if dense else self._encode_cached
            stream.calls += 1
        reason = "first frame of the stream" if not has_state else "scheduled refresh"
        if stream.restart_reason and any(finite):
            reason, stream.restart_reason = stream.restart_reason, ""
        return encode(stream, frames, mask, wanted, finite, reason if dense else "")

    def _encode_dense(
        self,
        stream: Stream,
        frames: Tensor,
        mask: Tensor | None,
        wanted: frozenset[int],
        finite: list[bool],
        reason: str,
    ) -> tuple[Outputs, list[FrameRecord]]:
        """Encode all tokens; the last finite frame becomes the reference."""
        state = stream.state
        usable = [number for number, is_finite in enumerate(finite) if is_finite]
        by_keys = self.config.metric == "keys"
        outputs: Outputs = {}
        for layer, trace in enumerate(dense_layers(self.blocks, frames, mask)):
            if usable and isinstance(state, StcState):
                compared, reused = trace.key[usable[-1]], trace.value[usable[-1]]
                if not by_keys:
                    compared, reused = reused, compared
                state.compared[layer].copy_(compared)
                state.reused[layer].copy_(reused)
                state.update[layer].copy_(trace.update[usable[-1]])
            if layer in wanted:
                outputs[layer] = trace.output
        return outputs, [self._dense_record(stream, frames, ok, reason) for ok in finite]

    def _dense_record(
        self, stream: Stream, frames: Tensor, finite: bool, reason: str
    ) -> FrameRecord:
        stream.counters.nonfinite += not finite
        return self.record(stream, DENSE, reason if finite else NONFINITE, frames.shape[1])

    def _encode_cached(
        self,
        stream: Stream,
        frames: Tensor,
        mask: Tensor | None,
        wanted: frozenset[int],
        finite: list[bool],
        reason: str,
    ) -> tuple[Outputs, list[FrameRecord]]:
        """Re-encode some tokens per layer; frames with NaN or Inf are encoded densely instead."""
        if not all(finite):
            return self._encode_mixed(stream, frames, mask, wanted, finite, reason)
        state = stream.state
        assert isinstance(state, StcState)
        tokens = frames.shape[1]
        outputs: Outputs = {}
        selected, done, x = [], 0, frames
        first_similarity: Tensor | None = None
        for layer, block in enumerate(self.blocks):
            x, indices, similarity = stc_layer(
                block,
                x,
                state,
                layer,
                select=self._select,
                by_keys=self.config.metric == "keys",
                mask=mask,
            )
            if layer == 0:
                first_similarity = similarity
            if layer in wanted:
                outputs[layer] = x
            selected.append(indices)
            done += self.operations[layer].rows_with_fresh_keys(indices.shape[1], tokens)
        encoded = round(sum(indices.shape[1] for indices in selected) / len(selected))
        assert first_similarity is not None
        records = [
            self.record(
                stream,
                CACHED,
                f"{encoded} of {tokens} tokens re-encoded in each layer",
                tokens,
                cost=done / self.dense_operations(tokens),
                encoded=encoded,
                changed=max(0, encoded - self.pinned),
                similarity=first_similarity[number],
                selected=[indices[number] for indices in selected],
            )
            for number in range(frames.shape[0])
        ]
        return outputs, records

    def _encode_mixed(
        self,
        stream: Stream,
        frames: Tensor,
        mask: Tensor | None,
        wanted: frozenset[int],
        finite: list[bool],
        reason: str,
    ) -> tuple[Outputs, list[FrameRecord]]:
        """Encode a cached call frame by frame, those with NaN or Inf densely."""
        parts, records = [], []
        for number, is_finite in enumerate(finite):
            frame = frames[number, None]
            frame_mask = None if mask is None else mask[number, None]
            if is_finite:
                outputs, made = self._encode_cached(
                    stream, frame, frame_mask, wanted, [True], reason
                )
            else:
                outputs = self.dense_uncached(frame, frame_mask, wanted)
                made = [self._dense_record(stream, frame, False, reason)]
            parts.append(outputs)
            records += made
        return {layer: torch.cat([part[layer] for part in parts]) for layer in wanted}, records

    def _select(self, fresh: Tensor, cached: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the tokens that a layer re-encodes."""
        tokens = fresh.shape[1]
        if self.config.threshold is None:
            # floor(ratio N), as in the paper; class token and registers are among them.
            share = self.config.ratio
        else:
            counts = select_changed_below(
                fresh, cached, self.config.threshold, tokens, pinned=self.pinned
            )[1]
            steps = math.ceil(int(counts.max()) / (tokens * self.THRESHOLD_STEP))
            share = min(1.0, steps * self.THRESHOLD_STEP)
        count = min(tokens, max(1, self.pinned, math.floor(share * tokens)))
        return select_changed(fresh, cached, count, pinned=self.pinned)
