# SPDX-License-Identifier: Apache-2.0
"""Sampling with a generator of its own, so that answers under way do not disturb each other."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor

_LEAST = torch.finfo(torch.float32).tiny


class SeededSampler(LogitsProcessor):
    """Draws each token and leaves `generate` only that one.

    ``session.ask(question, do_sample=False, logits_processor=[SeededSampler(1.0, 0.9, 7)])`` gives
    the same answer each time, whatever other threads draw meanwhile: ``do_sample`` would draw from
    torch's generator, which all threads share. The settings that a checkpoint brings for sampling
    (``top_k`` and others) are not used.

    Parameters
    ----------
    temperature
        Above 0.
    top_p
        The likeliest tokens that have this probability together are drawn from; in (0, 1].
    seed
        Of the generator, -2**63 to 2**63 - 1.
    """

    def __init__(self, temperature: float, top_p: float, seed: int) -> None:
        # Below these, float32 has a zero; what is drawn is the same.
        self._temperature, self._top_p = max(temperature, _LEAST), max(top_p, _LEAST)
        self._seed = seed
        self._generator: torch.Generator | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (1, V) of 0 for the token drawn and of minus infinity for all others."""
        if self._generator is None:
            self._generator = torch.Generator(scores.device).manual_seed(self._seed)
        # Relative to the largest, so that a tiny temperature does not overflow.
        logits = (scores.float() - scores.max()) / self._temperature
        odds = logits.softmax(-1)
        if self._top_p < 1:
            ranked, order = odds.sort(dim=-1, descending=True, stable=True)
            likelier = ranked.cumsum(-1) - ranked
            odds = odds.scatter(-1, order, ranked.masked_fill(likelier >= self._top_p, 0.0))
        drawn = torch.multinomial(odds, 1, generator=self._generator)
        return torch.full_like(scores, -torch.inf).scatter(-1, drawn, 0.0)
