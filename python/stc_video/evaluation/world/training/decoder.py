# SPDX-License-Identifier: Apache-2.0
"""Second part of the training: the decoder learns to answer, from tokens of the library.

Streams are put together anew for every step from scenes that are encoded and projected already.
They get longer, and the questions harder, as the training goes on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stc_video.evaluation.queries import LETTERS
from stc_video.evaluation.world.questions import FAMILIES, Balance
from stc_video.evaluation.world.scenes import Frame
from stc_video.evaluation.world.streams import ask_about, follows
from stc_video.evaluation.world.training.packing import Packed, Writer, pack

_NOW = ("colour now", "sign now", "shape now", "place now", "count now", "is now")
_BEGIN = 1  # tokens before the video


@dataclass(frozen=True)
class DecoderSettings:
    """How the decoder is trained.

    Attributes
    ----------
    steps
        How many.
    streams, questions
        Per step; per stream.
    rate
        Highest learning rate.
    noise
        Deviation of noise on the tokens, as a part of theirs.
    pruned
        Part of the steps in which frames keep 4 to 12 tokens at random.
    easy, long
        Part of the training with questions about now alone; from which on streams are longest.
    most
        Scenes of the longest streams.
    """

    steps: int = 440
    streams: int = 8
    questions: int = 16
    rate: float = 2e-3
    noise: float = 0.15
    pruned: float = 0.25
    easy: float = 0.2
    long: float = 0.4
    most: int = 7


def learning_rate(step: int, settings: DecoderSettings) -> float:
    """Warm-up over 5 % of the steps, then a cosine down to 3 %."""
    warm = max(1, settings.steps // 20)
    if step < warm:
        return settings.rate * (step + 1) / warm
    share = (step - warm) / max(1, settings.steps - warm)
    return settings.rate * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * share)))


@torch.no_grad()
def begin_decoder(model: Any, tokenizer: Any, seed: int) -> None:
    """Give a decoder weights from which it soon learns to look things up.

    The first query head of a key head begins like it, so that a token attends to tokens like
    itself, and its output like the transposed value, so that it copies what it finds (mimetic
    initialisation, arXiv 2305.09828). In the first layer those of the last key head attend to the
    token before. The head begins as the embedding.
    """
    random = torch.Generator().manual_seed(seed)
    text = model.config.text_config
    width = text.hidden_size // text.num_attention_heads
    shared = text.num_attention_heads // text.num_key_value_heads
    for number, layer in enumerate(model.model.language_model.layers):
        for part in layer.modules():
            if isinstance(part, nn.Linear):
                part.weight.normal_(0.0, part.in_features**-0.5, generator=random)
        layer.mlp.down_proj.weight *= 0.5
        attention = layer.self_attn
        attention.o_proj.weight *= 0.5
        for head in range(text.num_key_value_heads):
            own = slice(head * width, (head + 1) * width)
            first = slice(head * shared * width, (head * shared + 1) * width)
            attention.o_proj.weight[:, first] = attention.v_proj.weight[own].T
            if number or head + 1 < text.num_key_value_heads:
                attention.q_proj.weight[first] = attention.k_proj.weight[own]
            else:
                _look_one_back(attention, own, first)
    embedding = model.model.language_model.embed_tokens.weight
    for letter in LETTERS[:4]:
        mark = tokenizer.convert_tokens_to_ids(f"{letter}.")
        embedding[mark].normal_(0.0, float(embedding.std()), generator=random)
        embedding[tokenizer.convert_tokens_to_ids(letter)] = embedding[mark]
    model.lm_head.weight.copy_(embedding)


def _look_one_back(attention: Any, key: slice, query: slice) -> None:
    """Let a query head prefer the token before, by biases that its rotation turns into a peak."""
    half, base = (key.stop - key.start) // 2, 10_000.0
    attention.k_proj.weight[key] *= 0.2
    attention.q_proj.weight[query] *= 0.2
    for pair in range(2):  # the two fastest, which tell neighbours apart
        angle, strength = base ** (-pair / half), 5.3
        attention.k_proj.bias[key.start + pair] = strength
        attention.q_proj.bias[query.start + pair] = strength * math.cos(angle)
        attention.q_proj.bias[query.start + pair + half] = -strength * math.sin(angle)


class Decoder:
    """Trains the decoder of a model.

    Parameters
    ----------
    model
        The model; its decoder, head and newline are trained in place.
    tokenizer
        Its tokenizer.
    tokens
        (S, F, N, E): the scenes, projected and pooled.
    scenes
        What is to be seen in them.
    settings, seed
        How.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        tokens: Tensor,
        scenes: Sequence[Sequence[Frame]],
        settings: DecoderSettings,
        seed: int,
    ) -> None:
        self._model, self._writer = model, Writer(tokenizer)
        self._pad, self._begin = tokenizer.pad_token_id, tokenizer.convert_tokens_to_ids("<|user|>")
        self._tokens, self._scenes, self._deviation = tokens, scenes, float(tokens.std())
        self._settings, self._seed = settings, seed
        self._balance = Balance(slack=20)
        inner = model.model
        self.parameters = [*inner.language_model.parameters(), *model.lm_head.parameters(),
                           inner.image_newline]  # fmt: skip
        self.optimizer = torch.optim.AdamW(
            self.parameters, settings.rate, betas=(0.9, 0.98), weight_decay=0.02
        )

    def step(self, step: int) -> dict[str, float]:
        """Learn from one batch; every step has a seed of its own, so that a run can go on.

        Returns
        -------
        dict
            Loss, part of right answers by family of question, and ``all`` of them.
        """
        random = np.random.default_rng((self._seed, step))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self._settings)
        batch, tokens, names = self._batch(random, step / self._settings.steps)
        logits = self._logits(batch, tokens)
        wanted = batch.labels.flatten(0, 1)
        loss = cross_entropy(logits[wanted >= 0], wanted[wanted >= 0])
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        right = ((logits.detach().argmax(-1) == wanted) | (wanted < 0)).all(-1).tolist()
        made = {"loss": loss.item()}
        for name in dict.fromkeys(n for n in names if n):
            hits = [ok for ok, n in zip(right, names, strict=True) if n == name]
            made[name] = sum(hits) / len(hits)
        return made

    def _logits(self, batch: Packed, tokens: Tensor) -> Tensor:
        """(B * Q, L, V) for the questions."""
        inner = self._model.model
        embedding = inner.language_model.embed_tokens
        count, questions, length = batch.ids.shape
        written = embedding(batch.ids).clone()
        written[:, :, 0] = inner.image_newline
        begin = embedding(torch.tensor([self._begin])).expand(count, 1, -1)
        x = torch.cat([begin, tokens, written.flatten(1, 2)], dim=1)
        states = inner.language_model(
            inputs_embeds=x,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            use_cache=False,
        ).last_hidden_state
        asked = states[:, -questions * length :].reshape(count * questions, length, -1)
        made: Tensor = self._model.lm_head(asked)
        return made

    def _batch(self, random: np.random.Generator, share: float) -> tuple[Packed, Tensor, list[str]]:
        settings = self._settings
        easy = share < settings.easy
        longest = 1 if easy else 2 + math.floor(
            (settings.most - 1) * min(1.0, (share - settings.easy) / settings.long)
        )  # fmt: skip
        count = int(random.integers(1, min(longest, settings.most) + 1))
        families = _NOW if easy else tuple(FAMILIES)
        written, names, rows = [], [], []
        for _ in range(settings.streams):
            chosen = self._compose(random, count)
            rows.append(self._tokens[torch.tensor(chosen)].flatten(0, 1))
            history = [frame for scene in chosen for frame in self._scenes[scene]]
            asked = ask_about(random, history, settings.questions, self._balance, families)
            stream = []
            for now, question in asked:
                is_open = bool(question.options) and random.random() < (0.5 if easy else 0.15)
                stream.append((now, *self._writer.write(question, is_open)))
                names.append(f"{question.task}{'*' if is_open else ''}")
            names += [""] * (settings.questions - len(asked))
            written.append(stream)
        tokens = torch.stack(rows)  # (B, F, N, E)
        tokens = tokens + torch.from_numpy(
            random.normal(0, settings.noise * self._deviation, tokens.shape).astype(np.float32)
        )
        if random.random() < settings.pruned:
            tokens = _some(random, tokens)
        per_frame = tokens.shape[2]
        packed = pack(written, tokens.shape[1], per_frame, self._pad, settings.questions)
        return packed, tokens.flatten(1, 2), names

    def _compose(self, random: np.random.Generator, count: int) -> list[int]:
        """Scenes that can follow each other."""
        chosen: list[int] = []
        while len(chosen) < count:
            scene = int(random.integers(len(self._scenes)))
            if not chosen or follows(self._scenes[chosen[-1]], self._scenes[scene]):
                chosen.append(scene)
        return chosen


def _some(random: np.random.Generator, tokens: Tensor) -> Tensor:
    """Keep as many tokens of each frame, others in each, in their order."""
    count, frames, total, width = tokens.shape
    kept = int(random.choice((4, 6, 8, 12)))
    order = random.random((count, frames, total)).argsort(-1)[..., :kept]
    rows = torch.from_numpy(np.sort(order, axis=-1))[..., None].expand(-1, -1, -1, width)
    return tokens.gather(2, rows)
