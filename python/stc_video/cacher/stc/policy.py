# SPDX-License-Identifier: Apache-2.0
"""The ``stc`` policy: STC-Cacher, with a fixed schedule and each layer selecting for itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stc_kernels import select_changed, select_changed_below
from stc_video.cacher.dense import FrameBatch
from stc_video.cacher.guard import Timings, fastest
from stc_video.cacher.policy import NONFINITE, Outputs, PolicyBase, finite_frames
from stc_video.cacher.stats import CACHED, DENSE, FrameRecord
from stc_video.cacher.stc.passes import Part, PlainPasses, RecordedPasses, StcPasses
from stc_video.cacher.stc.state import StcState
from stc_video.cacher.streams import Layout, Stream


@dataclass(frozen=True)
class StreamCall:
    """One stream's part of a call of the tower.

    Attributes
    ----------
    stream
        The stream.
    rows
        Its rows in the batch.
    finite
        For each of them, whether it is free of NaN and Inf.
    is_dense
        Whether they are encoded densely.
    reason
        Why, in words.
    """

    stream: Stream
    rows: slice
    finite: list[bool]
    is_dense: bool
    reason: str

    def part(self) -> Part:
        """Return what a pass needs of it; its last finite frame can become the reference."""
        usable = [at for at, is_finite in enumerate(self.finite) if is_finite]
        if not usable:
            return Part(None, None)
        return Part(self.stream.slot, stc_state(self.stream), usable[-1])


class StcPolicy(PolicyBase):
    """STC-Cacher (arXiv 2512.00891): every ``interval``-th call dense, in between a fixed share.

    The last frame of a dense call becomes the reference. All frames of a cached call are compared
    with that one, each layer for itself, and cached calls leave it as it is.
    """

    #: With a threshold, the number of tokens is rounded up to a multiple of this share of them.
    THRESHOLD_STEP = 1 / 16

    def encode(
        self, streams: Sequence[Stream], batch: FrameBatch
    ) -> tuple[Outputs, list[FrameRecord]]:
        """Encode one call's frames of each stream."""
        if self.is_never_cached:
            return self.encode_guarded(streams, batch)
        count = len(batch.frames) // len(streams)
        finite = finite_frames(batch.frames)
        parts = [slice(at, at + count) for at in range(0, len(finite), count)]
        fresh = {
            stream.name: stream
            for stream, rows in zip(streams, parts, strict=True)
            if stream.state is None and any(finite[rows])
        }
        self.place(list(fresh.values()), batch.output_layers)
        calls = [
            self._schedule(stream, rows, finite[rows], stream.name in fresh)
            for stream, rows in zip(streams, parts, strict=True)
        ]
        for call in calls:
            _commit(call)
        results = {}
        for group in self._groups(calls):
            whole = len(group) == len(calls)
            chosen = [row for call in group for row in range(call.rows.start, call.rows.stop)]
            part = batch if whole else batch[chosen]
            encode = self._encode_dense if group[0].is_dense else self._encode_cached
            outputs, records = encode(group, part)
            if whole:
                return outputs, records
            for number, call in enumerate(group):
                rows = slice(number * count, (number + 1) * count)
                cut = {layer: output[rows] for layer, output in outputs.items()}
                results[call.stream.name] = cut, records[rows]
        ordered = [results[stream.name] for stream in streams]
        together = {
            layer: torch.cat([cut[layer] for cut, _ in ordered]) for layer in batch.output_layers
        }
        return together, [record for _, records in ordered for record in records]

    def _schedule(
        self, stream: Stream, rows: slice, finite: list[bool], is_fresh: bool
    ) -> StreamCall:
        """Decide whether a call is dense."""
        if not any(finite):
            return StreamCall(stream, rows, finite, True, NONFINITE)
        is_dense = is_fresh or stream.calls % self.config.interval == 0
        reason = "first frame of the stream" if is_fresh else "scheduled refresh"
        return StreamCall(stream, rows, finite, is_dense, stream.restart_reason or reason)

    def _groups(self, calls: Sequence[StreamCall]) -> Iterator[list[StreamCall]]:
        """Put together the calls that can be encoded in one pass."""
        together: dict[bool, list[StreamCall]] = {}
        for call in calls:
            # With a threshold each stream has its own number of tokens in each layer.
            if call.is_dense or (all(call.finite) and self.config.threshold is None):
                together.setdefault(call.is_dense, []).append(call)
            else:
                yield [call]
        yield from together.values()

    def rehearse(self, layout: Layout, batch: FrameBatch) -> Timings:
        """Run a frame of each of S made-up streams densely and cached, and take the time."""
        streams = [Stream(f"warm-up {number}", layout) for number in range(len(batch.frames))]
        self.place(streams, batch.output_layers)
        calls = [
            StreamCall(stream, slice(number, number + 1), [True], True, "warm-up")
            for number, stream in enumerate(streams)
        ]

        def seconds(call: Callable[[], object]) -> float:
            return fastest(call, batch.frames.device, self.REHEARSALS)

        try:
            self._encode_dense(calls, batch)
            tokens = max(1, self.prefix_tokens, math.floor(self.config.ratio * batch.tokens))
            cached = {tokens: seconds(lambda: self._encode_cached(calls, batch))}
            return Timings(seconds(lambda: self.dense_uncached(batch)), cached)
        finally:
            for stream in streams:
                stream.drop_state()

    def place(self, streams: Sequence[Stream], output_layers: frozenset[int]) -> None:
        """Give streams without a state an empty one."""
        if not streams:
            return
        layout = streams[0].layout
        assert layout is not None
        self.pool.place(
            streams, layout, lambda slots: StcState.empty(layout, len(self.blocks), (slots,))
        )

    def _encode_dense(
        self, calls: Sequence[StreamCall], batch: FrameBatch
    ) -> tuple[Outputs, list[FrameRecord]]:
        """Encode all tokens; the last finite frame of each call becomes its stream's reference."""
        parts = [call.part() for call in calls]
        outputs = self._passes(batch.frames.device).dense(parts, batch).hidden
        return outputs, [
            self._dense_record(call.stream, batch, is_finite, call.reason)
            for call in calls
            for is_finite in call.finite
        ]

    def _dense_record(
        self, stream: Stream, batch: FrameBatch, finite: bool, reason: str
    ) -> FrameRecord:
        reason = reason if finite else NONFINITE
        return self.record(stream, DENSE, reason, batch.tokens, finite=finite)

    def _encode_cached(
        self, calls: Sequence[StreamCall], batch: FrameBatch
    ) -> tuple[Outputs, list[FrameRecord]]:
        """Re-encode some tokens per layer; frames with NaN or Inf are encoded densely instead."""
        if not all(calls[0].finite):
            return self._encode_mixed(calls[0], batch)
        tokens = batch.tokens
        parts = [call.part() for call in calls]
        output = self._passes(batch.frames.device).cached(parts, batch)
        selected, similarity = output.selected, output.similarity
        assert similarity is not None
        each = [indices.shape[1] for indices in selected]
        done = sum(
            operations.rows_with_fresh_keys(count, tokens)
            for operations, count in zip(self.operations, each, strict=True)
        )
        encoded = round(sum(each) / len(each))
        count = len(batch.frames) // len(calls)
        records = [
            self.record(
                calls[number // count].stream,
                CACHED,
                f"{encoded} of {tokens} tokens re-encoded in each layer",
                tokens,
                cost=done / self.dense_operations(tokens),
                encoded=encoded,
                changed=max(0, encoded - self.prefix_tokens),
                similarity=similarity[number],
                selected=[indices[number] for indices in selected],
            )
            for number in range(len(batch.frames))
        ]
        return output.hidden, records

    def _encode_mixed(
        self, call: StreamCall, batch: FrameBatch
    ) -> tuple[Outputs, list[FrameRecord]]:
        """Encode a cached call frame by frame, those with NaN or Inf densely."""
        parts, records = [], []
        for number, is_finite in enumerate(call.finite):
            frame = batch[number]
            if is_finite:
                one = replace(call, finite=[True])
                outputs, frame_records = self._encode_cached([one], frame)
            else:
                outputs = self.dense_uncached(frame)
                frame_records = [self._dense_record(call.stream, frame, False, call.reason)]
            parts.append(outputs)
            records += frame_records
        return {
            layer: torch.cat([part[layer] for part in parts]) for layer in batch.output_layers
        }, records

    def _passes(self, device: torch.device) -> StcPasses:
        """Return what runs the layers on a device."""
        plain = PlainPasses(self.blocks, self._select, self.config.metric == "keys")
        # With a threshold the number of tokens is known only when a layer has selected.
        if self.config.threshold is not None or not self.config.is_bucketed(device.type):
            return plain
        return RecordedPasses(plain, self.graphs_on(device))

    def _select(self, fresh: Tensor, cached: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the tokens that a layer re-encodes."""
        tokens = fresh.shape[1]
        if self.config.threshold is None:
            # floor(ratio N), as in the paper; class token and registers are among them.
            share = self.config.ratio
        else:
            counts = select_changed_below(
                fresh, cached, self.config.threshold, tokens, pinned=self.prefix_tokens
            )[1]
            steps = math.ceil(int(counts.max()) / (tokens * self.THRESHOLD_STEP))
            share = min(1.0, steps * self.THRESHOLD_STEP)
        count = min(tokens, max(1, self.prefix_tokens, math.floor(share * tokens)))
        return select_changed(fresh, cached, count, pinned=self.prefix_tokens)


def _commit(call: StreamCall) -> None:
    """Count a call in its stream's schedule, which waits if there is nothing to learn from."""
    if any(call.finite):
        call.stream.calls += 1
        call.stream.restart_reason = ""


def stc_state(stream: Stream) -> StcState:
    """Return the state of a stream that has one."""
    assert isinstance(stream.state, StcState)
    return stream.state
