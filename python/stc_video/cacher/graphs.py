# SPDX-License-Identifier: Apache-2.0
"""Passes of fixed shapes, recorded once and replayed: CUDA graphs on a GPU.

A recorded pass reads buffers of its own, into which each run's inputs are copied. It writes to the
states of the streams, whose slabs never move, and may return tensors of its own, which the next run
overwrites.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

#: a pass: reads its arguments, writes to states, may return something
Pass = Callable[..., Any]


class GraphWarning(RuntimeWarning):
    """A pass could not be recorded, or is not kept; it runs without a graph."""


class Recording(Protocol):
    """A pass on fixed buffers, and what it returned last."""

    nbytes: int
    result: Any

    def replay(self) -> None:
        """Run it on what the buffers hold now."""


class Recorder(Protocol):
    """Makes recordings."""

    def record(self, run: Pass, inputs: Sequence[Tensor]) -> Recording:
        """Record a pass that reads these buffers."""


@dataclass
class PlainRecording:
    """A pass that is simply called again, on a device without graphs."""

    run: Pass
    inputs: Sequence[Tensor]
    nbytes: int = 0
    result: Any = None

    def replay(self) -> None:
        """Call it."""
        self.result = self.run(*self.inputs)


class PlainRecorder:
    """Records nothing."""

    def record(self, run: Pass, inputs: Sequence[Tensor]) -> PlainRecording:
        """Keep the pass and its buffers."""
        return PlainRecording(run, inputs)


class CudaRecording:
    """A CUDA graph in a memory pool of its own."""

    def __init__(self, run: Pass, inputs: Sequence[Tensor]) -> None:
        # What a library sets up in its first call must not happen during the capture. A pass
        # gives the same states however often it is run on the same inputs.
        side = torch.cuda.Stream(inputs[0].device)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                run(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize(inputs[0].device)
        before = torch.cuda.memory_reserved(inputs[0].device)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads, such as one that generates an answer, may use the device meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self.result = run(*inputs)
        self.nbytes = max(0, torch.cuda.memory_reserved(inputs[0].device) - before)

    def replay(self) -> None:
        """Launch the graph."""
        self._graph.replay()


class CudaRecorder:
    """Captures CUDA graphs."""

    def record(self, run: Pass, inputs: Sequence[Tensor]) -> CudaRecording:
        """Capture a pass."""
        return CudaRecording(run, inputs)


@dataclass(frozen=True)
class GraphStats:
    """Totals of the recorded passes.

    Attributes
    ----------
    kept
        How many are kept now.
    recorded, replayed, evicted
        How many were recorded, run from a recording, and dropped to stay within the limit.
    nbytes
        Memory of the kept ones, in bytes.
    failures
        Why passes could not be recorded, each reason once; those run without a graph.
    """

    kept: int = 0
    recorded: int = 0
    replayed: int = 0
    evicted: int = 0
    nbytes: int = 0
    failures: tuple[str, ...] = ()


@dataclass
class _Entry:
    inputs: tuple[Tensor, ...]
    recording: Recording

    @property
    def nbytes(self) -> int:
        return self.recording.nbytes + sum(tensor.nbytes for tensor in self.inputs)


@dataclass
class GraphCache:
    """Recorded passes, the least recently used ones dropped beyond a limit in bytes.

    Attributes
    ----------
    recorder
        Makes the recordings.
    limit
        How many bytes they may take in all.
    """

    recorder: Recorder
    limit: int
    _entries: OrderedDict[tuple[Hashable, Hashable], _Entry] = field(default_factory=OrderedDict)
    _unrecorded: set[tuple[Hashable, Hashable]] = field(default_factory=set)
    _totals: GraphStats = field(default_factory=GraphStats)

    def run(self, owner: Hashable, key: Hashable, run: Pass, inputs: tuple[Tensor, ...]) -> Any:
        """Run a pass, from its recording if there can be one.

        Parameters
        ----------
        owner
            Whose buffers the pass writes to; see :meth:`forget`.
        key
            What tells this owner's passes apart; passes of one key differ in their inputs only.
        run
            The pass.
        inputs
            Its arguments; they may change or go as soon as this returns.

        Returns
        -------
        object
            What the pass returned; the next run of this key may overwrite it.
        """
        name = (owner, key)
        entry = self._entries.get(name)
        if entry is None and name not in self._unrecorded:
            entry = self._record(name, run, inputs)
        if entry is None:
            return run(*inputs)
        self._entries.move_to_end(name)
        for buffer, value in zip(entry.inputs, inputs, strict=True):
            buffer.copy_(value, non_blocking=True)
        entry.recording.replay()
        self._totals = replace(self._totals, replayed=self._totals.replayed + 1)
        return entry.recording.result

    def forget(self, owner: Hashable) -> None:
        """Drop the recordings of an owner that is going."""
        for name in [name for name in self._entries if name[0] == owner]:
            del self._entries[name]
        self._unrecorded = {name for name in self._unrecorded if name[0] != owner}

    def clear(self) -> None:
        """Drop all recordings."""
        self._entries.clear()
        self._unrecorded.clear()

    @property
    def stats(self) -> GraphStats:
        """Totals so far."""
        nbytes = sum(entry.nbytes for entry in self._entries.values())
        return replace(self._totals, kept=len(self._entries), nbytes=nbytes)

    def _record(
        self, name: tuple[Hashable, Hashable], run: Pass, inputs: tuple[Tensor, ...]
    ) -> _Entry | None:
        with torch.inference_mode(False):
            buffers = tuple(tensor.detach().clone() for tensor in inputs)
        try:
            entry = _Entry(buffers, self.recorder.record(run, buffers))
        except RuntimeError as error:  # torch.AcceleratorError and out of memory are among them
            self._refuse(name, f"recording a pass failed: {str(error).splitlines()[0]}")
            return None
        if entry.nbytes > self.limit:
            self._refuse(
                name,
                f"a recorded pass takes {entry.nbytes} bytes, more than graph_bytes allows "
                f"({self.limit})",
            )
            return None
        self._entries[name] = entry
        self._totals = replace(self._totals, recorded=self._totals.recorded + 1)
        self._make_room()
        return entry

    def _make_room(self) -> None:
        while sum(entry.nbytes for entry in self._entries.values()) > self.limit:
            self._entries.popitem(last=False)
            self._totals = replace(self._totals, evicted=self._totals.evicted + 1)

    def _refuse(self, name: tuple[Hashable, Hashable], reason: str) -> None:
        self._unrecorded.add(name)
        if reason not in self._totals.failures:
            failures = (*self._totals.failures, reason)
            self._totals = replace(self._totals, failures=failures)
            warnings.warn(f"{reason}; it runs without a graph", GraphWarning, stacklevel=2)


def recorder_for(device: torch.device) -> Recorder:
    """Return what records passes on a device."""
    return CudaRecorder() if device.type == "cuda" else PlainRecorder()
