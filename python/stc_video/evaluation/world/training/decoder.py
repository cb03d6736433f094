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
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stc_video.evaluation.queries import LETTERS
from stc_video.evaluation.world.questions import Balance
from stc_video.evaluation.world.scenes import CARD, Frame
from stc_video.evaluation.world.streams import ask_about, follows
from stc_video.evaluation.world.training.hints import HINTS, KINDS, Hints, hints_of
from stc_video.evaluation.world.training.packing import Packed, Writer, pack
from stc_video.evaluation.world.training.projector import quarters

_NO = -100
_HINT_LAYER = 3  # after which what is known of a kind is to be read
#: phrases that stand for a kind
_ABOUT = {
    CARD: (
        "Which sign is on the card now?",
        "Which sign was on the card when it was last seen?",
    )
}
_LENGTHS = (3, 6)  # frames of a scene in a stream


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
    grow
        Part of the training after which streams are longest.
    most
        Frames of the longest streams.
    hints
        Weight of the hints.
    open
        Part of the choices that are asked without their options.
    """

    steps: int = 1500
    streams: int = 8
    questions: int = 16
    rate: float = 2e-3
    noise: float = 0.1
    pruned: float = 0.3
    grow: float = 0.35
    most: int = 24
    hints: float = 1.0
    open: float = 0.15


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
    # States have a deviation of 1 where the head reads them.
    model.lm_head.weight.copy_(embedding / embedding.norm(dim=-1, keepdim=True).clamp_min(1e-6))


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
        self._kinds = {
            tokenizer.convert_tokens_to_ids(word): number
            for number, kind in enumerate(KINDS)
            for word in (kind, *_ABOUT.get(kind, ()))
        }
        inner = model.model
        self.hints = Hints(model.config.text_config.hidden_size)
        self.parameters = [*inner.language_model.parameters(), *model.lm_head.parameters(),
                           inner.image_newline, *self.hints.parameters()]  # fmt: skip
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
        batch, tokens, known, names = self._batch(random, step / self._settings.steps)
        logits, states = self._run(batch, tokens)
        wanted = batch.labels.flatten(0, 1)
        loss = cross_entropy(logits[wanted >= 0], wanted[wanted >= 0])
        labelled = (known != _NO).any(-1)
        hints = self.hints(states[:, 1:][labelled], known[labelled])
        self.optimizer.zero_grad()
        (loss + self._settings.hints * hints.mean()).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        right = ((logits.detach().argmax(-1) == wanted) | (wanted < 0)).all(-1).tolist()
        made = {"loss": loss.item(), **dict(zip(HINTS, hints.tolist(), strict=True))}
        named = [(ok, n) for ok, n in zip(right, names, strict=True) if n]
        for name in dict.fromkeys(n for _, n in named):
            hits = [ok for ok, n in named if n == name]
            made[name] = sum(hits) / len(hits)
        made["all"] = sum(ok for ok, n in named) / len(named)
        return made

    def _run(self, batch: Packed, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B * Q, L, V) for the questions, and the states (B, N, D) that hints are read from."""
        inner = self._model.model
        embedding = inner.language_model.embed_tokens
        count, questions, length = batch.ids.shape
        written = embedding(batch.ids).clone()
        written[:, :, 0] = inner.image_newline
        begin = embedding(torch.tensor([self._begin])).expand(count, 1, -1)
        x = torch.cat([begin, tokens, written.flatten(1, 2)], dim=1)
        made = inner.language_model(
            inputs_embeds=x,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            use_cache=False,
            output_hidden_states=True,
        )
        asked = made.last_hidden_state[:, -questions * length :]
        logits: Tensor = self._model.lm_head(asked.reshape(count * questions, length, -1))
        return logits, made.hidden_states[_HINT_LAYER]

    def _batch(
        self, random: np.random.Generator, share: float
    ) -> tuple[Packed, Tensor, Tensor, list[str]]:
        """Questions, tokens (B, V, E), hints (B, V + Q * L, hints) and names of the questions."""
        settings = self._settings
        longest = 3 + (settings.most - 3) * min(1.0, share / settings.grow)
        frames = int(random.integers(3, round(longest) + 1))
        written, names, rows, histories = [], [], [], []
        for _ in range(settings.streams):
            chosen = self._compose(random, frames)
            rows.append(self._tokens[[s for s, _ in chosen], [f for _, f in chosen]])
            history = [self._scenes[scene][frame] for scene, frame in chosen]
            asked = ask_about(random, history, settings.questions, self._balance)
            stream = []
            for now, question in asked:
                is_open = bool(question.options) and random.random() < settings.open
                stream.append((now, *self._writer.write(question, is_open)))
                names.append(f"{question.task}{'*' if is_open else ''}")
            names += [""] * (settings.questions - len(asked))
            written.append(stream)
            histories.append(history)
        tokens = torch.stack(rows)  # (B, F, N, E)
        tokens = tokens + torch.from_numpy(
            random.normal(0, settings.noise * self._deviation, tokens.shape).astype(np.float32)
        )
        hints = [hints_of(history) for history in histories]
        per_frame = tokens.shape[2]
        labels = [_hints_of_tokens(*pair, per_frame) for pair in zip(histories, hints, strict=True)]
        known = torch.from_numpy(np.stack(labels))
        if random.random() < settings.pruned:
            kept = _some(random, tokens)
            tokens, known = (x.gather(2, kept.expand(*kept.shape[:3], x.shape[-1]))
                             for x in (tokens, known))  # fmt: skip
        packed = pack(written, frames, tokens.shape[2], self._pad, settings.questions)
        asked_of = self._hints_of_words(packed.ids.numpy(), written, hints)
        return packed, tokens.flatten(1, 2), torch.cat([known.flatten(1, 2), asked_of], 1), names

    def _hints_of_words(
        self,
        ids: npt.NDArray[np.int64],
        written: Sequence[Sequence[tuple[int, list[int], int]]],
        hints: Sequence[npt.NDArray[np.int64]],
    ) -> Tensor:
        """Labels (B, Q * L, hints) of the words for kinds in questions."""
        made = np.full((*ids.shape, len(HINTS)), _NO)
        for word, number in self._kinds.items():
            for b, q, at in np.argwhere(ids == word):
                made[b, q, at] = hints[b][written[b][q][0], number]
        return torch.from_numpy(made).flatten(1, 2)

    def _compose(self, random: np.random.Generator, frames: int) -> list[tuple[int, int]]:
        """(scene, frame) of scenes that can follow each other; a frame may stay for a while."""
        chosen: list[tuple[int, int]] = []
        last: Sequence[Frame] | None = None
        while len(chosen) < frames:
            number = int(random.integers(len(self._scenes)))
            scene = self._scenes[number]
            if last is None or follows(last, scene):
                length = max(len(scene), int(random.integers(_LENGTHS[0], _LENGTHS[1] + 1)))
                more = random.integers(len(scene), size=length - len(scene)).tolist()
                chosen += [(number, frame) for frame in sorted([*range(len(scene)), *more])]
                last = scene
        return chosen[:frames]


def _hints_of_tokens(
    history: Sequence[Frame], hints: npt.NDArray[np.int64], tokens: int
) -> npt.NDArray[np.int64]:
    """Labels (F, N, hints) of the tokens: of the kind that is in their quarter."""
    made = np.full((len(history), tokens, len(HINTS)), _NO)
    quarter = quarters(round(tokens**0.5))
    for time, frame in enumerate(history):
        for thing in frame:
            made[time, quarter == thing.place] = hints[time, KINDS.index(thing.kind)]
    return made


def _some(random: np.random.Generator, tokens: Tensor) -> Tensor:
    """Which tokens (B, F, kept, 1) of each frame stay: as many of each, others, in their order."""
    count, frames, total, _ = tokens.shape
    kept = int(random.choice((4, 6, 8, 12)))
    order = random.random((count, frames, total)).argsort(-1)[..., :kept]
    return torch.from_numpy(np.sort(order, axis=-1))[..., None]
