# SPDX-License-Identifier: Apache-2.0
"""A cacher that is attached to a tower, and the forwards that it puts on its blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from stc_video.cacher.call_streams import check_rehearsal, shared_out
from stc_video.cacher.dense import FrameBatch
from stc_video.cacher.guard import Timings
from stc_video.cacher.motion.policy import MotionPolicy
from stc_video.cacher.policy import Outputs
from stc_video.cacher.prepacked_weights import PrepackedWeights
from stc_video.cacher.self_check import SelfCheck
from stc_video.cacher.stats import CacheStats, Counters, FrameRecord
from stc_video.cacher.stc.policy import StcPolicy
from stc_video.cacher.streams import Layout, Stream, StreamPool, check_room, checked_names
from stc_video.cacher.weight_watch import Change, WeightWatch
from stc_video.config import DEFAULT_STREAM, CacheConfig
from stc_video.towers.block import Tower
from stc_video.towers.block_calls import BatchCall, bind
from stc_video.towers.call_request import RequestWatcher, looked_at
from stc_video.towers.gradients import refusing_gradients
from stc_video.towers.patching import (
    CACHER_TITLE,
    InstancePatch,
    as_function,
    check_in_place,
    run_stock,
)
from stc_video.towers.rows import sizes_in_row


class Cacher:
    """A cacher that is attached to a tower.

    It is made by :func:`attach_cacher`. Like the tower it is used by one thread at a time.

    Attributes
    ----------
    config
        The settings.
    last_frames
        What happened to each row of the last call of the tower.
    """

    #: what `attach_...` functions say that a tower with a cacher already has
    title = CACHER_TITLE

    def __init__(self, tower: Tower, config: CacheConfig) -> None:
        self.config = config
        self.last_frames: list[FrameRecord] = []
        self._streams: dict[str, Stream] = {}
        self._removed = Counters()  # of the streams that are gone
        self._active: tuple[str, ...] | None = None
        self._is_paused = False
        self._is_rehearsal = False
        # Outputs of the layers of the pass under way; the first layer computes all of them.
        self._pending: Outputs = {}
        self._watcher = RequestWatcher(tower.ancestors, self._check_call)
        self._patches: list[InstancePatch] = []
        self._watch: WeightWatch | None = None
        self._take(tower)

    def __repr__(self) -> str:
        state = "attached to" if self._patches else "detached from"
        name = type(self._tower.root).__name__
        return f"<Cacher {state} {name}, policy {self.config.policy}>"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            "a Cacher cannot be copied or pickled, because it belongs to one tower; attach_cacher "
            "gives a copy of that its own"
        )

    # -- attaching ---------------------------------------------------------------------------

    def _take(self, tower: Tower) -> None:
        """Put everything that depends on the tower's modules on them."""
        config = self.config
        # A layer of `stc` asks for keys of all tokens, and for the rest of some.
        self._weights = PrepackedWeights(
            config.pack_weights, fuses_on_cpu=config.policy == "motion"
        )
        self._tower = tower = self._weights.fuse(tower)
        self._pool = StreamPool()
        policy = MotionPolicy if config.policy == "motion" else StcPolicy
        self._policy = policy(tower, config, self._pool)
        self._watcher.ancestors = tower.ancestors
        self._self_check = SelfCheck(tower, self._patches, self._streams, self._undo)
        self._install()
        self._watch = WeightWatch(tower)

    def _install(self) -> None:
        later = range(1, len(self._tower.blocks))
        forwards = [self._first_forward, *map(self._later_forward, later)]
        self._patches += InstancePatch.install_all(
            (block.layer for block in self._tower.blocks),
            map(as_function, forwards),
            owner=self,
            caller="attach_cacher",
        )
        try:
            self._watcher.install()
            self._weights.install(self._tower)
        except BaseException:
            self._remove()
            raise

    def _remove(self) -> None:
        """Take off what is installed."""
        for patch in self._patches:
            patch.remove()
        self._patches.clear()
        self._watcher.remove()
        self._weights.remove()

    def detach(self, *, force: bool = False) -> None:
        """Take the cacher off; the tower is then exactly as before. ``stats()`` keeps its totals.

        Parameters
        ----------
        force
            Put the original forwards back even if something else was patched over ours since.

        Raises
        ------
        AttachError
            If another forward was put on a layer after ours; nothing is changed then.
        """
        if not force:
            check_in_place(self._patches, self._tower.root, owner="cacher", undo="detach")
        self._remove()
        self._watch = None
        for stream in self._streams.values():
            stream.drop_state()
        self._pool.slabs.clear()
        if self._policy.graphs is not None:
            self._policy.graphs.clear()

    # -- a tower that changes ----------------------------------------------------------------

    def refresh(self) -> None:
        """Drop everything that was derived from the tower's weights, and look at it again.

        For the changes that are not noticed by themselves (``docs/cacher.md``). The next frame of
        each stream is dense; totals are kept. If the tower is no longer a supported one, it is left
        without a cacher, and UnsupportedModelError raised.
        """
        if self._watch is not None:
            self._start_over(Change("refresh() was called", is_structural=True))

    def _notice_changes(self) -> None:
        """Start over if the tower is not what it was when the streams' states were computed."""
        if self._watch is not None and (change := self._watch.look()) is not None:
            self._start_over(change)
            self._watch.look()  # the next change counts from here on

    def _start_over(self, change: Change) -> None:
        if change.is_structural:
            check_in_place(self._patches, self._tower.root, owner="cacher", undo="detach")
        for stream in self._streams.values():
            stream.restart(f"the tower changed: {change.what}")
        if change.is_structural:
            timings, self._watch = self._policy.timings, None
            self._remove()
            self._take(self._tower.rescan())
            self._policy.timings = timings
            return
        self._weights.mark_stale()
        if self._policy.graphs is not None:
            self._policy.graphs.clear()
        self._watch = WeightWatch(self._tower)

    # -- streams and totals ------------------------------------------------------------------

    @contextmanager
    def streams(self, names: Sequence[str]) -> Iterator[None]:
        """Inside the block, row i of a batch is the next frame of stream ``names[i]``.

        A batch of k times as many rows has the next k frames of the first stream, then of the
        second, and so on. A string is the name of one stream.

        Raises
        ------
        ValueError
            If a name occurs twice or is empty.
        """
        before, self._active = self._active, checked_names(names)
        try:
            yield
        finally:
            self._active = before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside the block the tower runs as if nothing were attached; no state is touched."""
        before, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = before

    @contextmanager
    def resumed(self) -> Iterator[None]:
        """Inside the block the cacher works although :meth:`paused` is in force around it."""
        with self.paused():
            self._is_paused = False
            yield

    def warmup(self, *args: Any, **kwargs: Any) -> Timings:
        """Make ready for a number of streams, and measure what a cached frame saves.

        Calls the tower with the arguments. Row i of the batch stands for a frame of the i-th of
        as many streams as will be encoded together; their room in the pool is reserved. Each
        kind of frame runs a few times; on a CUDA device its graphs are captured.

        With ``CacheConfig(guard=True)`` frames are dense from then on where a cached one was no
        faster; ``stats()`` says how often and what was measured. No stream is touched.

        Returns
        -------
        Timings
            What was measured; :meth:`use_timings` takes it in another process.

        Raises
        ------
        ValueError
            If there are more rows than ``max_streams``.
        """
        self._is_rehearsal = True
        try:
            with self.resumed(), torch.no_grad():
                self._tower.root(*args, **kwargs)
        finally:
            self._is_rehearsal = False
        assert self._policy.timings is not None
        return self._policy.timings

    def use_timings(self, timings: Timings | None) -> None:
        """Let the guard go by times measured before, or by none."""
        self._policy.timings = timings

    def reset(self, stream: str | None = None) -> None:
        """Forget a stream's frames and free its memory, or those of all streams.

        Totals are kept. The next frame of the stream is dense.

        Raises
        ------
        KeyError
            If there is no such stream.
        """
        if stream is not None and stream not in self._streams:
            known = ", ".join(self._streams) or "none"
            raise KeyError(f"reset: there is no stream {stream!r}; known are: {known}")
        for name in [stream] if stream is not None else list(self._streams):
            self._streams[name].restart("reset")
            self._self_check.met.pop(name, None)

    def remove(self, stream: str) -> None:
        """Forget a stream altogether; its totals stay in those over all streams.

        Raises
        ------
        KeyError
            If there is no such stream.
        """
        self.reset(stream)
        self._removed.merge(self._streams.pop(stream).counters)

    def __contains__(self, stream: object) -> bool:
        """Whether there is a stream of that name."""
        return stream in self._streams

    def stream_state(self, stream: str) -> Stream | None:
        """Return a copy of what is kept of a stream, to be saved; None if there is no such one."""
        self._notice_changes()
        known = self._streams.get(stream)
        return None if known is None else known.detached()

    def restore_stream(self, stream: str, state: Stream) -> None:
        """Take over what :meth:`stream_state` returned, into a place in the pool."""
        if (known := self._streams.get(stream)) is not None:
            known.drop_state()
        check_room(self._streams, [stream], self.config.max_streams)
        restored = state.detached()
        restored.name = stream
        self._policy.restore(restored)
        self._streams[stream] = restored

    def stats(self) -> CacheStats:
        """Return the totals since the cacher was attached, over all streams and for each."""
        promised = self.config.promised
        each = {
            name: CacheStats.of(stream.counters, stream.nbytes, promised)
            for name, stream in list(self._streams.items())  # other threads may add some
        }
        return CacheStats.total(
            each, CacheStats.of(self._removed, 0, promised), free_bytes=self._pool.free_bytes,
            packed_bytes=self._weights.nbytes, timings=self._policy.timings,
            graphs=None if self._policy.graphs is None else self._policy.graphs.stats,
        )  # fmt: skip

    # -- the forward -------------------------------------------------------------------------

    def _check_call(self, module: nn.Module) -> bool:
        """Refuse a call before any layer runs; False if the cacher is paused."""
        self._pending = {}
        if self._is_paused:
            return False
        if module is self._tower.root and self._watch is not None and self._watch.is_taken_apart():
            self._notice_changes()  # before a block runs that may be another one
        self._self_check.enter(module)
        if module.training:
            raise RuntimeError(
                f"{type(module).__name__}: a cached tower is for inference only; call eval() "
                "first, or detach the cacher to train"
            )
        check_room(self._streams, self._active or (DEFAULT_STREAM,), self.config.max_streams)
        return True

    def _first_forward(self, layer: nn.Module, hidden_states: Tensor, *args: Any, **kw: Any) -> Any:
        """Forward of the first layer: encodes the frames through all layers."""
        patch = self._patches[0]
        if self._is_paused or layer is not patch.module:
            return run_stock(patch, layer, hidden_states, *args, **kw)
        self._notice_changes()
        arguments, streams = bind(layer, args, kw), len(self._active or (DEFAULT_STREAM,))
        call = BatchCall(hidden_states, streams, True, sizes_in_row(hidden_states, arguments))
        check = nullcontext() if self._is_rehearsal else self._self_check.around(call, (args, kw))
        with torch.no_grad(), self._weights.active(), check:
            self._pending = self._encode(call, arguments)
        return self._hand_out(0, hidden_states, args, kw)

    def _later_forward(self, number: int) -> Callable[..., Any]:
        """Forward of a later layer: hands out what the first one computed."""

        def forward(layer: nn.Module, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            patch = self._patches[number]
            if not self._pending or layer is not patch.module:
                return run_stock(patch, layer, hidden_states, *args, **kwargs)
            return self._hand_out(number, hidden_states, args, kwargs)

        return forward

    def _hand_out(self, number: int, hidden_states: Tensor, args: Any, kw: dict[str, Any]) -> Any:
        """Return a layer's output, or its input if nobody asked, in the form of its class."""
        weights = (block.layer.parameters() for block in self._tower.blocks)
        output = refusing_gradients(self._pending.pop(number, None), hidden_states, weights)
        output = self._self_check.hand_out(number, hidden_states, output, (args, kw))
        return (output,) if self._tower.blocks[number].returns_tuple else output

    def _undo(self, reason: str) -> None:
        """Forget the streams of a call that was refused; without a reason, take everything off."""
        if not reason:
            self.detach(force=True)
        for name in self._streams.keys() & (self._active or (DEFAULT_STREAM,)):
            self._streams[name].restart(reason)

    def _encode(self, call: BatchCall, arguments: dict[str, Any]) -> Outputs:
        """Encode the frames of a call, each stream's by that stream's state."""
        request = self._watcher.take()
        self._self_check.names_hidden_states = not isinstance(request.hidden, bool)
        output_layers = request.layers(self._tower) | looked_at(self._tower)
        groups, grids, geometry = call.groups(arguments), request.grids, self._tower.geometry
        counts = [len(group.frames) for group in groups]
        if self._is_rehearsal:
            check_rehearsal(self._streams, counts, self.config.max_streams)
            geometry.enter(groups[0].tables, groups[0].frames.shape[1])
            batch = FrameBatch(groups[0].frames, groups[0].mask, output_layers)
            self._policy.timings = self._policy.rehearse(Layout.of(batch.frames, grids[:1]), batch)
            return {}
        owners = shared_out(counts, self._active or (DEFAULT_STREAM,), self._streams)
        parts: list[Outputs] = []
        records: list[FrameRecord] = []
        try:
            for (frames, mask, tables), streams in zip(groups, owners, strict=True):
                geometry.enter(tables, frames.shape[1])
                rows = len(frames) // len(streams)
                for first, stream in zip(range(0, len(frames), rows), streams, strict=True):
                    stream.meet(Layout.of(frames, grids[first : first + rows]))
                    self._self_check.meet(stream, mask, geometry.tables, slice(first, None))
                batch = FrameBatch(frames, mask, output_layers)
                outputs, made = self._policy.encode(streams, batch)
                parts.append(outputs)
                records += made
                grids = grids[len(frames) :]
        except BaseException:
            # Some layers may have written to the states and others not.
            self._undo("the call before failed")
            raise
        self.last_frames = records
        return call.joined(parts)
