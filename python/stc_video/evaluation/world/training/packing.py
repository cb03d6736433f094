# SPDX-License-Identifier: Apache-2.0
"""Streams with many questions each, packed so that a step of the training is cheap.

A stream's tokens are computed once. Each question stands behind them with the positions that it has
when it is asked alone: it sees the frames up to its moment, and itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stc_video.evaluation.loaders.ovo_bench import queries_of
from stc_video.evaluation.world.questions import Question, write_row

#: no loss here
_NO = -100


@dataclass(frozen=True, eq=False)
class Packed:
    """A batch of streams with their questions.

    Attributes
    ----------
    ids
        (B, Q, L) of the questions; the first is that of the video, for the newline behind it.
    labels
        (B, Q, L) what follows each token, where it is learned.
    mask
        (B, 1, N, N) bool, what sees what; N is the beginning, all frames, all questions.
    positions
        (B, N).
    """

    ids: Tensor
    labels: Tensor
    mask: Tensor
    positions: Tensor


class Writer:
    """Writes questions as the evaluation does, with the right answer behind them."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._video = tokenizer.convert_tokens_to_ids("<video>")
        self._known: dict[str, list[int]] = {}

    def write(self, question: Question, is_open: bool) -> tuple[list[int], int]:
        """Return tokens, and how many at the end are the answer.

        Parameters
        ----------
        question
            The question.
        is_open
            Leave the options of a choice out, and answer in words.
        """
        if is_open and question.options:
            prompt, gold = question.text, question.answer
        else:
            (query,) = queries_of(write_row(question, 0, "", 0.0))
            prompt, gold = query.prompt, query.gold
            if question.options:
                # The text first: its letter is then looked up, which is learned much sooner.
                gold = f"{question.answer} {gold}"
        answer = self._ids(f"<|assistant|>{gold}<|end|>")
        pieces = [self._ids(line) for line in prompt.split("\n")]
        return [self._video, *(i for piece in pieces for i in piece), *answer], len(answer) - 1

    def _ids(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self._tokenizer(text, add_special_tokens=False).input_ids
        return self._known[text]


def pack(
    written: Sequence[Sequence[tuple[int, list[int], int]]],
    frames: int,
    per_frame: int,
    pad: int,
    count: int,
) -> Packed:
    """Pack the questions of streams.

    Parameters
    ----------
    written
        For each stream (index of the last frame that is seen, tokens, tokens of the answer).
    frames, per_frame
        Of each stream, tokens per frame.
    pad
        What fills up.
    count
        Questions of each stream; where there are fewer, nothing is learned.
    """
    batch = len(written)
    length = max(len(ids) for stream in written for _, ids, _ in stream)
    ids = np.full((batch, count, length), pad)
    labels = np.full((batch, count, length), _NO)
    seen = np.ones((batch, count), np.int64)
    for b, stream in enumerate(written):
        for q, (now, tokens, answer) in enumerate(stream):
            ids[b, q, : len(tokens)] = tokens
            labels[b, q, len(tokens) - 1 - answer : len(tokens) - 1] = tokens[-answer:]
            seen[b, q] = 1 + (now + 1) * per_frame
    video = 1 + frames * per_frame
    total = video + count * length
    mask = np.zeros((batch, total, total), bool)
    mask[:, :video, :video] = np.tri(video, dtype=bool)
    sees = np.arange(video) < seen[..., None]  # (B, Q, V)
    mask[:, video:, :video] = np.repeat(sees, length, axis=1)
    own = np.kron(np.eye(count, dtype=bool), np.tri(length, dtype=bool))
    mask[:, video:, video:] = own
    positions = np.broadcast_to(np.arange(video), (batch, video))
    later = (seen[..., None] + np.arange(length)).reshape(batch, -1)
    return Packed(
        torch.from_numpy(ids),
        torch.from_numpy(labels),
        torch.from_numpy(mask)[:, None],
        torch.from_numpy(np.concatenate([positions, later], axis=1)),
    )
