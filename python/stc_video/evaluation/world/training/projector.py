# SPDX-License-Identifier: Apache-2.0
"""First part of the training: the projector learns to put words for what is there into tokens.

Each pooled token is compared with the embeddings of words: of what stands in its quarter of the
picture, of how that looks, and of the quarter. The decoder then reads tokens that are like words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stc_video.evaluation.world.scenes import CARD, PLACES, SHAPES, Frame
from stc_video.evaluation.world.vocabulary import LOOKS, NONE

KINDS = (NONE, *SHAPES, CARD)
_LOOKS = (NONE, *LOOKS)
_BATCH = 48
#: deviation of noise on features, as a part of theirs; without it signs are learned by heart
_NOISE = 0.6
_TOKEN_LENGTH, _WORD_LENGTH = 10.0, 7.0


@dataclass(frozen=True, eq=False)
class Words:
    """Token ids of the words that tokens are compared with, for kind, look and place."""

    groups: Sequence[Tensor]

    @classmethod
    def of(cls, tokenizer: Any) -> Words:
        """Look the words up."""
        groups = (KINDS, _LOOKS, PLACES)
        return cls([torch.tensor(tokenizer.convert_tokens_to_ids(list(g))) for g in groups])

    def logits(self, tokens: Tensor, embedding: Tensor) -> list[Tensor]:
        """Likeness (..., n) of tokens (..., D) to the words of each group."""
        return [tokens @ embedding[group].T for group in self.groups]


def labels(scenes: Sequence[Sequence[Frame]], grid: int) -> npt.NDArray[np.int64]:
    """Index in each group of words for each token, (S, F, grid * grid, 3)."""
    quarter = quarters(grid)
    made = np.zeros((len(scenes), len(scenes[0]), grid * grid, 3), np.int64)
    made[..., 2] = quarter
    for s, scene in enumerate(scenes):
        for f, frame in enumerate(scene):
            for thing in frame:
                at = quarter == thing.place
                made[s, f, at, 0] = KINDS.index(thing.kind)
                made[s, f, at, 1] = _LOOKS.index(thing.look)
    return made


def quarters(grid: int) -> npt.NDArray[np.int64]:
    """Index of the quarter of the picture in which each token is, (grid * grid,)."""
    rows, columns = np.divmod(np.arange(grid * grid), grid)
    made: npt.NDArray[np.int64] = (rows * 2 // grid) * 2 + columns * 2 // grid
    return made


@torch.no_grad()
def scale(projector: nn.Module, embedding: Tensor, tokens: Tensor) -> Tensor:
    """Bring tokens and words to the scale of the decoder's states; returns the tokens.

    Once trained, a token is some fifty times as long as a word that no token was compared with.
    What a layer adds would drown the one and be drowned by the other.
    """
    last: nn.Linear = projector.linear_2  # type: ignore[assignment]
    factor = _TOKEN_LENGTH / float(tokens.norm(dim=-1).mean())
    last.weight.mul_(factor)
    last.bias.mul_(factor)
    embedding.mul_(_WORD_LENGTH / embedding.norm(dim=-1, keepdim=True).clamp_min(1e-6))
    made: Tensor = tokens * factor
    return made


def project(projector: nn.Module, features: Tensor) -> Tensor:
    """Project and pool as LLaVA-OneVision does: (B, T, D) to (B, T / 4, E)."""
    x: Tensor = projector(features)
    side = int(x.shape[1] ** 0.5)
    # Bilinear interpolation to half an even size is the mean of each two by two.
    x = x.view(len(x), side // 2, 2, side // 2, 2, -1).mean((2, 4))
    return x.flatten(1, 2)


def train_projector(
    projector: nn.Module,
    embedding: nn.Parameter,
    words: Words,
    features: npt.NDArray[np.float16],
    truth: npt.NDArray[np.int64],
    steps: int,
    seed: int,
    show: Callable[[str], None],
) -> None:
    """Train a projector and the embeddings of words.

    Parameters
    ----------
    projector, embedding
        Are trained in place.
    words
        Which rows of the embedding are what.
    features
        (N, T, D), of mean 0 and deviation 1 once `projector` has standardised them.
    truth
        (N, tokens, 3) as :func:`labels` gives them.
    steps, seed
        How long, and in which order.
    show
        Is told how it goes.
    """
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    noise = _NOISE * torch.from_numpy(features[::37]).float().flatten(0, 1).std(0)
    optimizer = torch.optim.AdamW([*projector.parameters(), embedding], 3e-3, weight_decay=0.02)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        rows = np.sort(random.choice(len(features), _BATCH, replace=False))
        batch = torch.from_numpy(features[rows]).float()
        batch += noise * torch.randn_like(batch)
        wanted = torch.from_numpy(truth[rows])
        found = words.logits(project(projector, batch), embedding)
        losses = [cross_entropy(x.flatten(0, 1), wanted[..., g].flatten())
                  for g, x in enumerate(found)]  # fmt: skip
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        plan.step()
        if step % 25 == 24 or step + 1 == steps:
            shown = " ".join(f"{x.item():.3f}" for x in losses)
            show(f"projector {step + 1}/{steps}: loss of kind, look, place {shown}")


@torch.no_grad()
def accuracy(
    projector: nn.Module,
    embedding: Tensor,
    words: Words,
    features: npt.NDArray[np.float16],
    truth: npt.NDArray[np.int64],
) -> list[float]:
    """Part of the quarters with something in them for which kind, and look, are read rightly."""
    found = words.logits(project(projector, torch.from_numpy(features).float()), embedding)
    made = []
    quarter = torch.from_numpy(truth[..., 2])
    for group in (0, 1):
        scores = torch.zeros(len(truth), 4, found[group].shape[-1])
        scores.scatter_add_(
            1, quarter[..., None].expand_as(found[group]), found[group].log_softmax(-1)
        )
        wanted = torch.zeros(len(truth), 4, dtype=torch.long)
        wanted.scatter_(1, quarter, torch.from_numpy(truth[..., group]))
        there = wanted > 0
        made.append(float((scores.argmax(-1)[there] == wanted[there]).float().mean()))
    return made
