# SPDX-License-Identifier: Apache-2.0
"""The plan of a frame under the ``motion`` policy: which of its tokens are encoded, and how.

A plan is made from what is seen of a frame and known of its stream, without changing either;
:meth:`Planner.commit` then enters it into the stream's state.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stc_video.cacher.motion.ahead import Ahead, ranked
from stc_video.cacher.motion.changes import NOTHING_SEEN, Conditions, FrameChange
from stc_video.cacher.motion.control import EffortControl
from stc_video.cacher.motion.promise import PromiseKeeper, Way
from stc_video.cacher.motion.state import Effort, motion_history, motion_state
from stc_video.cacher.policy import NONFINITE
from stc_video.cacher.stats import CACHED, DENSE, UNCHANGED, Operations
from stc_video.cacher.streams import Stream
from stc_video.config import CacheConfig


@dataclass(frozen=True)
class Weighed:
    """A frame that could be cached, and is dense only because the promise would not be kept.

    It costs nothing to see what caching it would have done: the stale outputs are there.

    Attributes
    ----------
    left_out
        (N,) bool, the tokens that had not changed.
    share
        The part of the tokens that a cached frame would have encoded.
    """

    left_out: Tensor
    share: float


@dataclass(frozen=True)
class Plan:
    """The way in which a frame is encoded, and, once that is done, what came of it.

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
    staleness
        (N,) what the tokens' staleness is after the frame; None if all tokens are encoded, or none.
    with_tail
        Whether the last layers run for all tokens.
    is_kept
        Whether what is computed goes into the state; not for a frame with NaN or Inf.
    is_guarded
        Whether it is dense because a cached frame is no faster here.
    is_skipped
        Whether it is dense because too many cached frames were encoded densely after all.
    weighed
        What it tells about cached frames, if it is dense for the promise alone.
    ahead
        Of a cached frame that was encoded before all of this was known, what was kept for it.
    conditions
        How the patches changed as a whole.
    audit
        Why the frame is encoded both ways to be measured; empty if it is not.
    is_redone
        Whether it was encoded the cached way first, and then densely.
    spent
        Cost of the first of these two, as a fraction of a dense frame's.
    shown
        Error of its cached features as far as the refreshed tokens showed it.
    measured
        Mean cosine of an audited frame's cached features to its dense ones.
    stale
        Of a weighed frame, what the tokens that had not changed were off by.
    """

    reason: str
    changed: int
    indices: Tensor | None = None
    similarity: Tensor | None = None
    refreshed: Tensor | None = None
    left_out: Tensor | None = None
    staleness: Tensor | None = None
    with_tail: bool = False
    is_kept: bool = True
    is_guarded: bool = False
    is_skipped: bool = False
    weighed: Weighed | None = None
    ahead: Ahead | None = None
    conditions: Conditions = NOTHING_SEEN
    audit: str = ""
    is_redone: bool = False
    spent: float = 0.0
    shown: float | None = None
    measured: float | None = None
    stale: float = 0.0

    @property
    def kind(self) -> str:
        """The kind of frame, as in :class:`FrameRecord`."""
        if self.indices is None:
            return DENSE
        return CACHED if self.indices.shape[1] else UNCHANGED

    def redone(self, reason: str, spent: float, shown: float | None, *, is_audit: bool) -> Plan:
        """Return the plan to encode the frame densely as well, after it was encoded cached."""
        return Plan(
            reason,
            self.changed,
            similarity=self.similarity,
            conditions=self.conditions,
            audit=reason if is_audit else "",
            is_redone=True,
            spent=spent,
            shown=shown,
        )


class Planner:
    """Plans frames by the settings, by what changed in them, and by the stream's history.

    Parameters
    ----------
    config
        The settings.
    control
        Sets the streams' efforts.
    keeper
        Keeps what is promised; None if nothing is.
    prefix_tokens
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
        prefix_tokens: int,
        operations: list[Operations],
        pays: Callable[[int], bool],
        describe_guard: Callable[[int], str],
    ) -> None:
        self.config = config
        self.control = control
        self.keeper = keeper
        self.prefix_tokens = prefix_tokens
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
        #: operations of a cached frame of so many rows as a fraction of a dense one's, by number
        #: of rows and of tokens, and whether there is a tail
        self.cost = functools.lru_cache(maxsize=1024)(self._cost_of)
        self._rows_for: dict[tuple[int, torch.device], Tensor] = {}

    @property
    def has_tail(self) -> bool:
        """Whether any layers may run for all tokens."""
        return self.head < len(self.operations)

    def plan(self, stream: Stream, change: FrameChange, tokens: int) -> Plan:
        """Choose which rows of a stream's next frame to encode."""
        patches = tokens - self.prefix_tokens
        if not change.is_finite:
            return Plan(NONFINITE, patches, is_kept=False)
        if change.similarity is None or change.is_changed is None:
            return Plan(stream.restart_reason or "first frame of the stream", patches)
        history, similarity = motion_history(stream), change.similarity
        rows = 0 if change.is_repeated else self._bucket(change.changed, patches)
        if rows == 0 and (self.keeper is None or self.keeper.may_repeat(history.ledger)):
            nothing = similarity.new_empty((1, 0), dtype=torch.int32)
            return Plan("nothing changed", 0, nothing, similarity)
        if rows == 0:
            return Plan("a repeated frame, and the last one was not good enough", 0)
        if rows is None:
            part = f"{change.changed / max(1, patches):.0%}"
            return Plan(f"{part} of the tokens changed", change.changed, similarity=similarity)
        dense = self._dense_for_cost(history.effort, change, rows, tokens)
        if dense is not None:
            return dense
        audit = ""
        if self.keeper is not None:
            way, audit = self.keeper.decide(history.ledger, change.conditions)
            if way is Way.DENSE:
                weighed = Weighed(~change.is_changed, (rows + self.prefix_tokens) / tokens)
                return Plan(audit, change.changed, similarity=similarity, weighed=weighed)
        return self._cached(stream, change, rows, audit)

    def commit(self, stream: Stream, plan: Plan) -> None:
        """Enter a plan into its stream's state, before the frame is encoded."""
        stream.counters.guarded += plan.is_guarded
        stream.counters.for_promise += plan.weighed is not None
        if plan.is_skipped:
            self.control.skip(motion_history(stream).effort)
        if plan.staleness is not None:
            motion_state(stream).staleness.copy_(plan.staleness)
        if stream.slot is not None:
            is_cached = plan.indices is not None and plan.indices.shape[1]
            stream.slot.expected = is_cached - self.prefix_tokens if is_cached else None

    def expected(self, stream: Stream, tokens: int) -> int | None:
        """Number of patches that the next frame encodes if it changes about as the last one did.

        None if that is not known, or the frame may be a dense one whatever changes in it.
        """
        rows = None if stream.slot is None else stream.slot.expected
        if rows is None:
            return None
        history = motion_history(stream)
        if self._dense_for_cost(history.effort, FrameChange(True), rows, tokens) is not None:
            return None
        if self.keeper is not None:
            way, _ = self.keeper.decide(history.ledger, NOTHING_SEEN)
            return None if way is Way.DENSE else rows
        return rows

    def rows_for(self, patches: int, device: torch.device) -> Tensor:
        """Numbers of patches to encode, by number of those that changed; -1 for a dense frame."""
        key = patches, device
        if key not in self._rows_for:
            rows = [self._bucket(count, patches) for count in range(patches + 1)]
            table = torch.tensor([-1 if count is None else count for count in rows])
            self._rows_for[key] = table.to(device)
        return self._rows_for[key]

    def bucket_sizes(self, patches: int) -> list[int]:
        """Numbers of patches that a cached frame may encode, ascending."""
        return [max(1, math.floor(share * patches)) for share in self.config.buckets]

    def runs_tail(self, rows: int, patches: int, effort: Effort) -> bool:
        """Whether the last layers run for all tokens when so many patches are encoded."""
        is_many = rows >= self.config.tail_from * patches
        return self.has_tail and is_many and self.control.allows_tail(effort)

    def _cost_of(self, rows: int, tokens: int, with_tail: bool) -> float:
        operations, head = self.operations, self.head
        first = sum(layer.rows(rows, tokens) for layer in operations[:head])
        tail_rows = tokens if with_tail else rows
        last = sum(layer.rows(tail_rows, tokens) for layer in operations[head:])
        return (first + last) / sum(layer.dense(tokens) for layer in operations)

    def _dense_for_cost(
        self, effort: Effort, change: FrameChange, rows: int, tokens: int
    ) -> Plan | None:
        """Plan a dense frame if a cached one would not be cheaper; None if it is."""
        count, similarity = change.changed, change.similarity
        encoded = rows + self.prefix_tokens
        if not self.pays(encoded):
            reason = self.describe_guard(encoded)
            return Plan(reason, count, similarity=similarity, is_guarded=True)
        if self.keeper is not None:
            return None
        with_tail = self.runs_tail(rows, tokens - self.prefix_tokens, effort)
        if self.control.is_worth_trying(effort, self.cost(encoded, tokens, with_tail)):
            return None
        reason = "cached frames were encoded densely after all lately"
        return Plan(reason, count, similarity=similarity, is_skipped=True)

    def _cached(self, stream: Stream, change: FrameChange, rows: int, audit: str) -> Plan:
        """Plan a cached frame: the changed tokens are encoded, and then the stalest."""
        assert change.similarity is not None
        assert change.is_changed is not None
        count, prefix = change.changed, self.prefix_tokens
        patches = len(change.similarity) - prefix
        ahead = change.ahead
        if ahead is None:
            seen = change.similarity[None], change.is_changed[None]
            (order,), (staleness,) = ranked([stream], *seen, prefix, self.config.age_rate)
        else:
            order, staleness = ahead.order, ahead.staleness
            ahead = ahead if ahead.rows == rows + prefix else None
        encoded, left_out = order.split([rows + prefix, patches - rows])
        return Plan(
            f"{count} tokens changed, {rows - count} refreshed",
            count,
            encoded.sort().values.int()[None] if ahead is None else ahead.indices,
            change.similarity,
            refreshed=encoded[count + prefix :],
            left_out=left_out,
            staleness=staleness.index_fill(0, encoded, 0.0),
            with_tail=self.runs_tail(rows, patches, motion_history(stream).effort),
            ahead=ahead,
            conditions=change.conditions,
            audit=audit,
        )

    def _bucket(self, changed: int, patches: int) -> int | None:
        """Number of patches to encode; None for all of them, 0 for nothing to do."""
        sizes = self.bucket_sizes(patches)
        if changed > sizes[-1]:
            return None
        # The refresh yields when the largest bucket is full of changed tokens.
        least = min(changed + math.floor(self.config.refresh * patches), sizes[-1])
        return next(size for size in sizes if size >= least) if least else 0
