# SPDX-License-Identifier: Apache-2.0
"""Schedules of merging: the number of tokens that each block of a tower merges away."""

from __future__ import annotations

from collections.abc import Sequence

from stc_video.pruners.budget import Budget

#: tokens per block if nothing is given
DEFAULT_R = 8


class MergeSchedule:
    """Tokens to merge per block, as given, or such that a number is left after the last one.

    Parameters
    ----------
    blocks
        How many blocks the tower has.
    r
        One number for all blocks, or one for each.
    tokens_per_frame, retention_ratio, video_pruning_rate
        See :class:`stc_video.pruners.budget.Budget`.
    """

    def __init__(
        self,
        blocks: int,
        r: int | Sequence[int] | None,
        tokens_per_frame: int | None,
        retention_ratio: float | None,
        video_pruning_rate: float | None,
    ) -> None:
        self.blocks = blocks
        self.budget = Budget(
            tokens_per_frame, retention_ratio, video_pruning_rate, caller="attach_tome"
        )
        if self.budget.given and r is not None:
            raise ValueError("attach_tome: give r or a number of tokens to be left, not both")
        if r is None:
            r = DEFAULT_R
        self.per_block = [r] * blocks if isinstance(r, int) else list(r)
        if len(self.per_block) != blocks:
            raise ValueError(
                f"attach_tome: r must be one number or one for each of {blocks} blocks, "
                f"got {len(self.per_block)}"
            )
        if any(step < 0 for step in self.per_block):
            raise ValueError(f"attach_tome: r must be at least 0, got {min(self.per_block)}")

    def __repr__(self) -> str:
        if self.budget.given:
            return repr(self.budget)
        return f"r {self.per_block}"

    def steps(self, tokens: int) -> list[int]:
        """Return how many tokens each block merges away of a frame of so many.

        Raises
        ------
        ValueError
            If fewer are to be left than blocks that merge at most half can leave.
        """
        if not self.budget.given:
            steps = []
            for step in self.per_block:
                steps.append(min(step, tokens // 2))
                tokens -= steps[-1]
            return steps
        left = self.budget.count(tokens)
        least = -(-tokens // 2**self.blocks)
        if left < least:
            raise ValueError(
                f"attach_tome: {self.blocks} blocks that merge at most half of their tokens leave "
                f"at least {least} of {tokens}, got {left}"
            )
        steps = []
        for block in range(self.blocks):
            even = (tokens - left) // (self.blocks - block)
            # What the blocks after this one can still halve down to `left`.
            needed = tokens - left * 2 ** (self.blocks - block - 1)
            steps.append(max(even, needed))
            tokens -= steps[-1]
        return steps
