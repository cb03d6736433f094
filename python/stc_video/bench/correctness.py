# SPDX-License-Identifier: Apache-2.0
"""The check, before any time is taken, that a contender computes what it should.

The first frame of each must be the stock tower's. What follows is compared

- of a dense contender, with the stock tower;
- of the published forward, with the stock tower, where it re-encodes all tokens; under a graph,
  with itself without one;
- of our `stc`, with the published forward;
- of our `motion`, with the plain passage of the changed rows through all layers, below.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from stc_video.bench.cases import Case
from stc_video.bench.contenders import Contender, Dense, Graphed, Ours, Published
from stc_video.bench.paper import attend
from stc_video.bench.towers import replace_forwards
from stc_video.towers.block import Block
from stc_video.towers.pre_norm import PreNormTower

#: largest relative error of a token: of two versions of one sum of products, layers deep
TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}


@dataclass(frozen=True)
class Verdict:
    """Whether a contender is right.

    Attributes
    ----------
    error
        Largest relative error of a token.
    tolerance
        How large it may be.
    problem
        What else is wrong; empty if nothing.
    """

    error: float
    tolerance: float
    problem: str = ""

    @property
    def is_correct(self) -> bool:
        """Whether nothing is wrong; NaN is."""
        return self.error <= self.tolerance and not self.problem


def check(contender: Contender, case: Case, first: Tensor, second: Tensor) -> Verdict:
    """Compare a contender's first two frames with what they should be.

    Parameters
    ----------
    contender
        One that was shown its first frame and its first turn.
    case
        What it was made for.
    first, second
        (S, N, C) what it returned.
    """
    start = relative_error(first, case.tower.encode(contender.clip.first))
    errors = torch.tensor([start, *_errors(contender, case, second)])
    # The largest of some numbers is NaN if one of them is.
    return Verdict(float(errors.max()), TOLERANCE[case.tower.weight.dtype], contender.problem)


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Largest error of a token (S, N, C), as a fraction of the token's length."""
    a, b = got.float(), expected.float()
    return float(((a - b).norm(dim=-1) / b.norm(dim=-1)).max())


def _errors(contender: Contender, case: Case, second: Tensor) -> Iterator[float]:
    shown = contender.clip.turn(0)
    inner = contender.inner if isinstance(contender, Graphed) else contender
    if isinstance(inner, Dense):
        yield relative_error(second, case.tower.encode(shown))
    elif isinstance(inner, Published):
        if contender is not inner:
            yield relative_error(second, inner.encode(shown))
        with _all_rows(inner, case.tower.tokens):
            yield relative_error(inner.encode(shown), case.tower.encode(shown))
    elif isinstance(inner, Ours) and inner.cacher.config.policy == "stc":
        published = Published(case)
        published.start()
        yield relative_error(second, published.encode(shown))
    elif isinstance(inner, Ours):
        rows = torch.cat([record.selected[0][None] for record in inner.records]).long()
        yield from _errors_of_rows(inner, case, second, rows)


def _errors_of_rows(contender: Ours, case: Case, second: Tensor, rows: Tensor) -> Iterator[float]:
    clip = contender.clip
    missed = [set(a) - set(b) for a, b in zip(clip.changed.tolist(), rows.tolist(), strict=True)]
    yield torch.inf if any(missed) else 0.0
    expected = plain_motion(case, clip.first, clip.turn(0), rows)
    if clip.changed.shape[1] < case.patches:
        # What is learned from refreshed tokens changes those left out, so these are not compared.
        index = rows[..., None].expand(-1, -1, second.shape[2])
        second, expected = second.gather(1, index), expected.gather(1, index)
    yield relative_error(second, expected)


@contextmanager
def _all_rows(published: Published, tokens: int) -> Iterator[None]:
    rows = [layer.rows for layer in published.layers]
    try:
        for layer in published.layers:
            layer.rows = tokens
        yield
    finally:
        for layer, count in zip(published.layers, rows, strict=True):
            layer.rows = count


@dataclass
class ChangedRowsLayer:
    """One layer of `motion` in plain PyTorch: given rows pass, with everybody's keys and values.

    Attributes
    ----------
    block
        The layer's parts.
    index
        (S, K, C) int64, the rows of the next frame; None for all of them.
    """

    block: Block
    index: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None
    output: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Encode (S, N, C), of which only the rows are looked at."""
        rows = x if self.index is None else x.gather(1, self.index)
        normed = self.block.norm1(rows)
        self.key = self._replace(self.key, self.block.key(normed))
        self.value = self._replace(self.value, self.block.value(normed))
        middle = rows + attend(self.block, self.block.query(normed), self.key, self.value)
        self.output = self._replace(self.output, middle + self.block.feed_forward(middle))
        return self.output

    def _replace(self, cached: Tensor | None, rows: Tensor) -> Tensor:
        return rows if cached is None or self.index is None else cached.scatter(1, self.index, rows)


def plain_motion(case: Case, first: Tensor, second: Tensor, rows: Tensor) -> Tensor:
    """Encode frames of which some rows (S, K) changed, plainly: (S, N, C)."""
    module = case.tower.twin()
    blocks = PreNormTower.of(module).blocks
    layers = [ChangedRowsLayer(block) for block in blocks]
    replace_forwards(blocks, layers)
    width = module(first).last_hidden_state.shape[2]
    for layer in layers:
        layer.index = rows[..., None].expand(-1, -1, width)
    output: Tensor = module(second).last_hidden_state
    return output
