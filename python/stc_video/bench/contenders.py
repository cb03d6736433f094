# SPDX-License-Identifier: Apache-2.0
"""Who competes: the dense tower in several ways, the published forward, and ours."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stc_video.bench.cases import Case
from stc_video.bench.frames import Clip
from stc_video.bench.paper import PublishedLayer
from stc_video.bench.towers import replace_forwards
from stc_video.cacher import FrameRecord, attach_cacher
from stc_video.cacher.graphs import Recording, recorder_for
from stc_video.cacher.stats import Operations
from stc_video.config import CacheConfig
from stc_video.towers.pre_norm import PreNormTower


class Contender(ABC):
    """Encodes the next frame of each stream, in a way of its own.

    Attributes
    ----------
    clip
        The frames that it is shown.
    """

    def __init__(self, clip: Clip) -> None:
        self.clip = clip

    def start(self) -> Tensor:
        """Encode the first frame of each stream, (S, N, C), forgetting any earlier one."""
        return self.encode(self.clip.first)

    @abstractmethod
    def encode(self, frames: Tensor) -> Tensor:
        """Encode frames (S, 3, H, W): (S, N, C)."""

    @property
    def cost(self) -> float:
        """Multiply-adds of the layers for such a frame as a fraction of a dense one's."""
        return 1.0

    @property
    def state_bytes(self) -> int:
        """Bytes kept between frames."""
        return 0

    @property
    def packed_bytes(self) -> int:
        """Second copies of weights, in bytes."""
        return 0

    @property
    def problem(self) -> str:
        """The problem of the frames so far; empty if there was none."""
        return ""


class Dense(Contender):
    """The Hugging Face tower as it is, or compiled."""

    def __init__(self, case: Case, compiled: bool = False) -> None:
        super().__init__(case.clip)
        self.module = case.tower.twin()
        # Each batch gets code of its own, made for its shape.
        self._run = torch.compile(self.module, dynamic=False) if compiled else self.module

    def encode(self, frames: Tensor) -> Tensor:
        """Encode all tokens."""
        output: Tensor = self._run(frames).last_hidden_state
        return output


class Published(Contender):
    """The paper's forward; every frame after the first is a cached one."""

    def __init__(self, case: Case) -> None:
        super().__init__(case.clip)
        self.module: nn.Module = case.tower.twin()
        tower = PreNormTower.of(self.module)
        self.layers = [
            PublishedLayer(block, case.rows, tower.prefix_tokens) for block in tower.blocks
        ]
        replace_forwards(tower.blocks, self.layers)
        self._cost = multiply_adds(tower, case)

    def start(self) -> Tensor:
        """Make the first frame the reference."""
        for layer in self.layers:
            layer.reference = None
        return super().start()

    def encode(self, frames: Tensor) -> Tensor:
        """Encode what differs most from the reference."""
        output: Tensor = self.module(frames).last_hidden_state
        return output

    @property
    def cost(self) -> float:
        """Keys of all tokens, everything else of the selected ones."""
        return self._cost

    @property
    def state_bytes(self) -> int:
        """The references."""
        return sum(layer.nbytes for layer in self.layers)


class Ours(Contender):
    """The tower with a cacher attached."""

    def __init__(self, case: Case, config: CacheConfig, clip: Clip | None = None) -> None:
        super().__init__(clip or case.clip)
        self.module: nn.Module = case.tower.twin()
        self.cacher = attach_cacher(self.module, config)
        self._names = [f"stream {number}" for number in range(case.streams)]
        self._rows, self._tokens = case.rows, case.tower.tokens
        self._starts = 0

    def start(self) -> Tensor:
        """Encode the first frame of each stream, densely."""
        self.cacher.reset()
        self._starts += 1
        return super().start()

    def encode(self, frames: Tensor) -> Tensor:
        """Encode what changed."""
        with self.cacher.streams(self._names):
            output: Tensor = self.module(frames).last_hidden_state
        return output

    @property
    def records(self) -> list[FrameRecord]:
        """Return the output for the last frame of each stream."""
        return self.cacher.last_frames

    @property
    def cost(self) -> float:
        """As counted by the cacher."""
        return self.records[0].cost

    @property
    def state_bytes(self) -> int:
        """The states of the streams."""
        return self.cacher.stats().state_bytes

    @property
    def packed_bytes(self) -> int:
        """The weights once more, in the layout that the CPU multiplies in."""
        return self.cacher.stats().packed_bytes

    @property
    def problem(self) -> str:
        """Say if a frame was not cached, had other rows, or ran without the graph it should."""
        stats = self.cacher.stats()
        dense = self._starts * len(self._names)
        encoded = self._tokens * stats.dense + self._rows * stats.cached
        if stats.dense != dense or stats.unchanged:
            others = stats.dense - dense + stats.unchanged
            return f"{others} frames were not cached, the last one: {self.records[0].reason}"
        if stats.tokens_encoded != encoded:
            return f"it encoded {stats.tokens_encoded} tokens in all instead of {encoded}"
        if stats.graphs is not None and stats.graphs.failures:
            return "; ".join(stats.graphs.failures)
        return ""


class Graphed(Contender):
    """Another contender, whose frames after the first are replayed from a CUDA graph."""

    def __init__(self, inner: Contender) -> None:
        super().__init__(inner.clip)
        self.inner = inner
        self._input = self.clip.turn(0).clone()
        self._output = self._input
        self._recording: Recording | None = None

    def start(self) -> Tensor:
        """Encode the first frame, and record what the next ones do."""
        first = self.inner.start()
        self._recording = recorder_for(self._input.device).record(self._run, [self._input])
        return first

    def encode(self, frames: Tensor) -> Tensor:
        """Replay; the output is overwritten by the next call."""
        assert self._recording is not None
        self._input.copy_(frames)
        self._recording.replay()
        return self._output

    @property
    def cost(self) -> float:
        """The inner contender's."""
        return self.inner.cost

    @property
    def state_bytes(self) -> int:
        """The inner contender's."""
        return self.inner.state_bytes

    def _run(self, frames: Tensor) -> None:
        self._output = self.inner.encode(frames)


@dataclass(frozen=True)
class Kind:
    """A contender by its name.

    Attributes
    ----------
    about
        What it is.
    make
        Makes one for a case.
    is_dense
        Whether it encodes all tokens, and so may be what the others are compared with.
    is_compiled
        Whether it needs torch.compile.
    needs_cuda
        Whether it runs on a CUDA device alone.
    is_ours
        Whether it is the package's cacher.
    """

    about: str
    make: Callable[[Case], Contender]
    is_dense: bool = False
    is_compiled: bool = False
    needs_cuda: bool = False
    is_ours: bool = False


def stc_config(case: Case) -> CacheConfig:
    """Settings of the `stc` policy, with no dense frame after the first."""
    ratio = share(case.rows, case.tower.tokens)
    return CacheConfig("stc", ratio=ratio, interval=10**9, max_streams=case.streams, guard=False)


def motion_config(case: Case, *, refresh: bool) -> CacheConfig:
    """Settings of the `motion` policy, with one size of cached frames."""
    patches = case.tower.tokens - case.tower.prefix_tokens
    return CacheConfig(
        buckets=(share(case.patches, patches),),
        refresh=CacheConfig.refresh if refresh else 0.0,
        tail_layers=0,
        redo_from=None,
        audits=False,
        max_streams=case.streams,
        guard=False,
    )


def share(part: int, whole: int) -> float:
    """A fraction of `whole` whose floor is `part`, however it is rounded."""
    return min(1.0, (part + 0.5) / whole)


def multiply_adds(tower: PreNormTower, case: Case) -> float:
    """Cost of a cached frame of the paper's forward."""
    operations = [Operations.of(block, block.channels) for block in tower.blocks]
    done = sum(layer.rows_with_fresh_keys(case.rows, case.tower.tokens) for layer in operations)
    return done / sum(layer.dense(case.tower.tokens) for layer in operations)


def _motion(case: Case) -> Contender:
    return Ours(case, motion_config(case, refresh=False))


def _motion_refresh(case: Case) -> Contender:
    return Ours(case, motion_config(case, refresh=True), case.half_clip)


KINDS = {
    "dense-eager": Kind("the Hugging Face tower with SDPA", Dense, is_dense=True),
    "dense-compiled": Kind(
        "the same under torch.compile",
        lambda case: Dense(case, compiled=True),
        is_dense=True,
        is_compiled=True,
    ),
    "dense-graph": Kind(
        "the same under a CUDA graph",
        lambda case: Graphed(Dense(case)),
        is_dense=True,
        needs_cuda=True,
    ),
    "dense-compiled-graph": Kind(
        "the compiled one under a CUDA graph",
        lambda case: Graphed(Dense(case, compiled=True)),
        is_dense=True,
        is_compiled=True,
        needs_cuda=True,
    ),
    "paper-eager": Kind("STC-Cacher's forward in plain PyTorch", Published),
    "paper-graph": Kind(
        "the same under a CUDA graph", lambda case: Graphed(Published(case)), needs_cuda=True
    ),
    "stc": Kind("our `stc` policy", lambda case: Ours(case, stc_config(case)), is_ours=True),
    "motion": Kind("our `motion` policy; all rows changed", _motion, is_ours=True),
    "motion-refresh": Kind(
        "the same; half of the rows changed, half are refreshed and learned from",
        _motion_refresh,
        is_ours=True,
    ),
}
