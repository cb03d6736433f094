# SPDX-License-Identifier: Apache-2.0
"""What the ``motion`` policy decides about a frame: which tokens are encoded, and how."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stc_video.cacher.motion.changes import NOTHING_SEEN, Conditions, Look, motion_state
from stc_video.cacher.motion.control import Effort, EffortControl
from stc_video.cacher.motion.promise import Ledger, PromiseKeeper, Way
from stc_video.cacher.policy import NONFINITE
from stc_video.cacher.stats import CACHED, DENSE, UNCHANGED, Operations
from stc_video.cacher.streams import Stream
from stc_video.config import CacheConfig


@dataclass(frozen=True)
class Plan:
    """What is done with a frame.

    Attributes
    ----------
    reason
        Why, in words.
    changed
        How many tokens changed.
    indices
        (1, K) int32 rows to encode, class token and registers among them; None for all rows.
    similarity
        (N,) cosine of each token with the input at which it was last encoded, if compared.
    refreshed, left_out
        (R,) and (U,) int64, the tokens encoded though they had not changed, and those not encoded.
    with_tail
        Whether the last layers run for all tokens.
    is_kept
        Whether what is computed goes into the state.
    spent
        Cost of an attempt that is not handed out, as a fraction of a dense frame's.
    audit
        Why the frame is encoded both ways; empty if it is not.
    shown
        Error of the cached features as far as the refreshed tokens showed it.
    conditions
        How the patches changed as a whole.
    measured
        Mean cosine of an audited frame's cached features to its dense ones.
    weighed
        Of a frame that is dense for the promise alone: what was seen of it, and the part of the
        tokens that a cached frame would have encoded.
    stale
        What the others were off by.
    """

    reason: str
    changed: int
    indices: Tensor | None = None
    similarity: Tensor | None = None
    refreshed: Tensor | None = None
    left_out: Tensor | None = None
    with_tail: bool = False
    is_kept: bool = True
    spent: float = 0.0
    audit: str = ""
    shown: float | None = None
    conditions: Conditions = NOTHING_SEEN
    measured: float | None = None
    weighed: tuple[Look, float] | None = None
    stale: float = 0.0

    @property
    def kind(self) -> str:
        """The kind of frame, as in :class:`FrameRecord`."""
        if self.indices is None:
            return DENSE
        return CACHED if self.indices.shape[1] else UNCHANGED


class Planner:
    """Decides by the settings, by what is seen of a frame, and by the stream's effort.

    Parameters
    ----------
    config
        The settings.
    control
        Sets the streams' efforts.
    keeper
        Keeps what is promised; None if nothing is.
    pinned
        Class token and registers, which are always encoded.
    operations
        Of each layer.
    pays
        Tells whether a cached frame of so many tokens is faster than a dense one.
    describe_guard
        Says why not.
    """

    def __init__(
        self,
        config: CacheConfig,
        control: EffortControl,
        keeper: PromiseKeeper | None,
        pinned: int,
        operations: list[Operations],
        pays: Callable[[int], bool],
        describe_guard: Callable[[int], str],
    ) -> None:
        self.config = config
        self.control = control
        self.keeper = keeper
        self.pinned = pinned
        self.operations = operations
        self.pays = pays
        self.describe_guard = describe_guard
        layers = len(operations)
        tail = round(layers / 4) if config.tail_layers is None else config.tail_layers
        if tail >= layers:
            raise ValueError(
                f"attach_cacher: tail_layers must be below the number of layers ({layers}), "
                f"got {tail}"
            )
        self.head = layers - tail

    @property
    def has_tail(self) -> bool:
        """Whether any layers may run for all tokens."""
        return self.head < len(self.operations)

    def plan(self, stream: Stream, look: Look, tokens: int) -> Plan:
        """Choose the rows to encode, and let the others grow staler."""
        patches = tokens - self.pinned
        if not look.is_finite:
            return Plan(NONFINITE, patches, is_kept=False)
        if look.similarity is None or look.is_changed is None:
            return Plan(stream.restart_reason or "first frame of the stream", patches)
        count = look.changed
        rows = 0 if look.is_repeated else self._bucket(count, patches)
        if rows == 0 and (self.keeper is None or self.keeper.may_repeat(ledger_of(stream))):
            nothing = look.similarity.new_empty((1, 0), dtype=torch.int32)
            return Plan("nothing changed", 0, nothing, look.similarity)
        if rows == 0:
            return Plan("a repeated frame, and the last one was not good enough", 0)
        reason = self._reason_for_dense(stream, count, rows, tokens)
        if rows is None or reason:
            return Plan(reason, count, similarity=look.similarity)
        audit = ""
        if self.keeper is not None:
            way, audit = self.keeper.before(ledger_of(stream), look.conditions)
            if way is Way.DENSE:
                stream.counters.for_promise += 1
                share = (rows + self.pinned) / tokens
                return Plan(audit, count, similarity=look.similarity, weighed=(look, share))
        order = self._order(stream, look)
        encoded, left_out = order.split([rows + self.pinned, patches - rows])
        motion_state(stream).staleness[encoded] = 0.0
        return Plan(
            f"{count} tokens changed, {rows - count} refreshed",
            count,
            encoded.sort().values.int()[None],
            look.similarity,
            refreshed=encoded[count + self.pinned :],
            left_out=left_out,
            with_tail=self.runs_tail(rows, patches, effort_of(stream)),
            audit=audit,
            conditions=look.conditions,
        )

    def bucket_sizes(self, patches: int) -> list[int]:
        """Numbers of patches that a cached frame may encode, ascending."""
        return [max(1, math.floor(share * patches)) for share in self.config.buckets]

    def runs_tail(self, rows: int, patches: int, effort: Effort) -> bool:
        """Whether the last layers run for all tokens when so many patches are encoded."""
        is_many = rows >= self.config.tail_from * patches
        return self.has_tail and is_many and self.control.allows_tail(effort)

    def cost(self, rows: int, tokens: int, with_tail: bool) -> float:
        """Operations of a cached frame of so many rows as a fraction of a dense one's."""
        operations, head = self.operations, self.head
        first = sum(layer.rows(rows, tokens) for layer in operations[:head])
        tail_rows = tokens if with_tail else rows
        last = sum(layer.rows(tail_rows, tokens) for layer in operations[head:])
        return (first + last) / sum(layer.dense(tokens) for layer in operations)

    def _reason_for_dense(self, stream: Stream, count: int, rows: int | None, tokens: int) -> str:
        """Say why a frame is encoded densely; empty if it is not."""
        patches = tokens - self.pinned
        if rows is None:
            return f"{count / max(1, patches):.0%} of the tokens changed"
        encoded = rows + self.pinned
        if not self.pays(encoded):
            stream.counters.guarded += 1
            return self.describe_guard(encoded)
        effort = effort_of(stream)
        with_tail = self.runs_tail(rows, patches, effort)
        if self.keeper is None and not self.control.is_worth_trying(
            effort, self.cost(encoded, tokens, with_tail)
        ):
            return "cached frames were encoded densely after all lately"
        return ""

    def _order(self, stream: Stream, look: Look) -> Tensor:
        """All tokens: class token and registers, the changed ones, then the stalest first."""
        state = motion_state(stream)
        assert look.similarity is not None
        assert look.is_changed is not None
        state.staleness += (1.0 - look.similarity) + self.config.age_rate
        rank = torch.where(look.is_changed, torch.inf, state.staleness)
        rank[: self.pinned] = torch.inf
        return torch.sort(rank, descending=True, stable=True).indices

    def _bucket(self, changed: int, patches: int) -> int | None:
        """How many patches to encode; None for all of them, 0 for nothing to do."""
        sizes = self.bucket_sizes(patches)
        if changed > sizes[-1]:
            return None
        # The refresh yields when the largest bucket is full of changed tokens.
        wanted = min(changed + math.floor(self.config.refresh * patches), sizes[-1])
        return next(size for size in sizes if size >= wanted) if wanted else 0


def effort_of(stream: Stream) -> Effort:
    """Return the effort of a stream that has a state."""
    assert stream.effort is not None
    return stream.effort


def ledger_of(stream: Stream) -> Ledger:
    """Return the ledger of a stream, which is started if it has none."""
    if stream.ledger is None:
        stream.ledger = Ledger()
    return stream.ledger
