# SPDX-License-Identifier: Apache-2.0
"""Qwen2-VL and Qwen2.5-VL: their vision side, and their calls with a pruned prompt."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from stc_video.cache_argument import CACHE, cache_of
from stc_video.errors import UnsupportedModelError
from stc_video.models.adapter import FrameEncoder, ModelAdapter, SessionSide
from stc_video.models.placeholders import with_prompt
from stc_video.models.qwen_prompt import Conversation, QwenPrompt, make_prompt
from stc_video.pruners import PrunedTokens
from stc_video.towers.packed_vision import PackedTower

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["QwenVLAdapter"]

#: arguments that a pruned prompt stands for
_REPLACED = (
    "input_ids", "attention_mask", "position_ids", "pixel_values", "pixel_values_videos",
    "image_grid_thw", "video_grid_thw", "second_per_grid_ts", "mm_token_type_ids", "labels",
)  # fmt: skip


class QwenVLAdapter(ModelAdapter):
    """Runs a Qwen2-VL or Qwen2.5-VL on prompts without the pruned tokens.

    A conversation goes on with the same cache and the whole conversation's ids, as
    ``generate`` returned them; pixels are those of the new turn. What was pruned of a cache's
    tokens is remembered with that cache.
    """

    allowed_positions = ("original",)
    #: whether turns after the first are numbered like text
    flat_turns = False

    def __init__(self, model: PreTrainedModel, positions: str | None) -> None:
        super().__init__(model, positions)
        inner: Any = getattr(model, "model", None)
        missing = [
            p for p in ("visual", "language_model", "get_rope_index") if not hasattr(inner, p)
        ]
        if missing:
            from transformers import __version__

            raise UnsupportedModelError(
                f"accelerate: {type(model).__name__} of transformers {__version__} has no "
                f"model.{missing[0]}; supported is transformers from 4.57 on"
            )
        tower = PackedTower.find(inner.visual)
        if tower is None:
            raise UnsupportedModelError(
                f"accelerate: {type(inner.visual).__name__} is not the tower of a Qwen-VL"
            )
        self.tower: nn.Module = inner.visual
        self._merge = tower.merge
        self._inner = inner
        self._deltas_before = inner.rope_deltas
        self._caches: WeakKeyDictionary[Any, Conversation] = WeakKeyDictionary()
        # Caches with one number per position, which is that of tokens.
        self._plain: WeakSet[Any] = WeakSet()
        # The prompt that `generate` is called with, for its steps.
        self._under_way = threading.local()

    def restore(self) -> None:
        """Put back the positions' offset that the model remembers of its last call."""
        self._inner.rope_deltas = self._deltas_before

    def features(self, pixels: Tensor, streams: int) -> Tensor:
        """Run tower and merger on temporal patches (F, h, w, P) of some streams."""
        frames, height, width = pixels.shape[:3]
        grid = torch.tensor([[frames // streams, height, width]] * streams, device=pixels.device)
        made = self.tower(pixels.flatten(0, 2).type(self.model.dtype), grid_thw=grid)
        tokens: Tensor = getattr(made, "pooler_output", made)
        return tokens.view(frames, -1, tokens.shape[-1])

    def grid(self, pixels: Tensor | None = None) -> tuple[int, int] | None:
        """(H, W) of the tokens of temporal patches (F, h, w, P)."""
        if pixels is None:
            return None
        return pixels.shape[1] // self._merge, pixels.shape[2] // self._merge

    def session_side(self, processor: Any) -> SessionSide:
        """Prepare for a session with the model's processor or tokenizer."""
        from stc_video.models.qwen_session import QwenSessionSide

        return QwenSessionSide(self, getattr(processor, "image_processor", None))

    def number_by_tokens(self, cache: Any) -> None:
        """Give what follows in a cache the position of its number of tokens."""
        self._plain.add(cache)

    def kept_ids(self, ids: Tensor, cache: Any) -> Tensor:
        """Those of a conversation's ids (1, L) that are in its cache, (1, n)."""
        said = self._said(cache)
        if said is None:
            return ids
        kept = torch.ones_like(ids, dtype=torch.bool)
        kept[:, : said.kept.shape[1]] = said.kept.to(ids.device)
        return ids[kept][None]

    # -- the model's own calls ---------------------------------------------------------------

    def forward(
        self, frames: FrameEncoder, stock: Callable[..., Any], arguments: dict[str, Any]
    ) -> Any:
        """Run the model's own forward on a prompt without the pruned tokens."""
        prompt: QwenPrompt | None = getattr(self._under_way, "prompt", None)
        if prompt is not None:
            return stock(**self._step(prompt, arguments))
        if arguments.get("pixel_values_videos") is not None and "input_ids" in arguments:
            prompt = self._pruned(frames, arguments)
            arguments = {k: v for k, v in arguments.items() if k not in _REPLACED}
            made = stock(
                inputs_embeds=prompt.embeds,
                position_ids=prompt.positions,
                attention_mask=prompt.attention_mask,
                **prompt.extra,
                **arguments,
            )
            self._remember(cache_of(made), prompt.conversation)
            return made
        return stock(**self._placed(arguments))

    def generate(
        self, frames: FrameEncoder, stock: Callable[..., Any], arguments: dict[str, Any]
    ) -> Any:
        """Run the model's own generate on a prompt without the pruned tokens."""
        given = arguments.get("input_ids")
        has_video = arguments.get("pixel_values_videos") is not None
        cache = arguments.get(CACHE)
        goes_on = self._said(cache) is not None
        if given is None or not (has_video or goes_on):
            if cache is not None and cache in self._plain:
                # `generate` looks at it, though the positions are given; another call left it.
                self._inner.rope_deltas = torch.zeros((1, 1), dtype=torch.int64)
            return stock(**arguments)
        prompt = self._pruned(frames, arguments)
        arguments = {k: v for k, v in arguments.items() if k not in _REPLACED}
        if arguments.get("max_length") is not None:
            arguments["max_length"] -= prompt.removed
        with self._steps_of(prompt):
            made = stock(
                input_ids=prompt.input_ids, attention_mask=prompt.attention_mask, **arguments
            )
        return with_prompt(made, given, prompt.input_ids.shape[1])

    def _pruned(self, frames: FrameEncoder, arguments: dict[str, Any]) -> QwenPrompt:
        cache = arguments.get(CACHE)
        past = 0 if cache is None else int(cache.get_seq_length())
        said = self._said(cache) if past else Conversation.empty(len(arguments["input_ids"]))
        if said is None:
            raise ValueError(
                "accelerated model: a video can be added to a cache with tokens only if all of "
                "them were made by this accelerated model"
            )

        said = self._begin(said, frames)

        def encode(pixels: Tensor, number: int) -> PrunedTokens:
            """Encode and prune a video (T, h, w, P)."""
            own = f"accelerate:{threading.get_ident()}:{number}"
            stream = own if said.stream is None else said.stream.name
            try:
                features = frames.encode(pixels, stream)
                return frames.prune(features, stream, self.grid(pixels))
            finally:
                if said.stream is None:
                    frames.forget(stream)

        with torch.no_grad():
            return make_prompt(
                self.model, arguments, encode, past, said, flat_turns=self.flat_turns
            )

    def _begin(self, said: Conversation, frames: FrameEncoder) -> Conversation:
        """Prepare for a turn; without a stream of the conversation each video is one of its own."""
        return said

    @contextmanager
    def _steps_of(self, prompt: QwenPrompt) -> Iterator[None]:
        """Inside the block, forward runs steps of ``generate`` for this prompt."""
        self._under_way.prompt = prompt
        self._inner.rope_deltas = prompt.conversation.offset[:, None].to(self.model.device)
        try:
            yield
        finally:
            self._under_way.prompt = None

    def _step(self, prompt: QwenPrompt, arguments: dict[str, Any]) -> dict[str, Any]:
        """Arguments of a step of ``generate``: embeddings of the prompt, and all positions."""
        ids: Tensor = arguments["input_ids"]
        cache = arguments.get(CACHE)
        start = 0 if cache is None else int(cache.get_seq_length())
        first, count = start - prompt.past, prompt.embeds.shape[1]
        last = first + ids.shape[1]
        repeats = len(ids) // len(prompt.embeds)
        positions = self._text_positions(prompt.conversation, start, ids, repeats)
        if first < count:
            inside = slice(first, min(last, count))
            size = inside.stop - first
            own = prompt.positions[:, :, inside].repeat_interleave(repeats, 1)
            positions[:, :, :size] = own.to(positions.device)
            embeds = prompt.embeds[:, inside].repeat_interleave(repeats, 0)
            if size < ids.shape[1]:  # without a cache, prompt and answer come together
                rest = self.model.get_input_embeddings()(ids[:, size:])
                embeds = torch.cat([embeds.to(rest.device), rest], dim=1)
            arguments = arguments | {"input_ids": None, "inputs_embeds": embeds}
        self._remember(cache, prompt.conversation)
        return arguments | {"position_ids": positions}

    def _placed(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Arguments with the positions of tokens that go on in a cache of ours."""
        cache, tokens = arguments.get(CACHE), arguments.get("input_ids")
        tokens = arguments.get("inputs_embeds") if tokens is None else tokens
        if cache is None or tokens is None:
            return arguments
        start = int(cache.get_seq_length())
        if cache in self._plain:
            places = torch.arange(start, start + tokens.shape[1], device=tokens.device)
            return arguments | {"position_ids": places.expand(3, len(tokens), -1)}
        said = self._said(cache)
        if said is None or arguments.get("position_ids") is not None:
            return arguments
        repeats = len(tokens) // len(said.kept)
        return arguments | {"position_ids": self._text_positions(said, start, tokens, repeats)}

    def _text_positions(
        self, said: Conversation, start: int, tokens: Tensor, repeats: int
    ) -> Tensor:
        """Positions (3, B, n) of text behind ``start`` tokens in the cache."""
        offset = said.offset.repeat_interleave(repeats).to(tokens.device)
        places = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        return (places + offset[:, None]).expand(3, -1, -1).clone()

    def _said(self, cache: Any) -> Conversation | None:
        """What is known of a cache with tokens."""
        if cache is None or not cache.get_seq_length():
            return None
        return self._caches.get(cache)

    def _remember(self, cache: Any, said: Conversation) -> None:
        """Keep with a cache what is known of it."""
        if cache is not None:
            self._caches[cache] = said
        # Whoever asks the model itself for positions gets the right ones, too.
        self._inner.rope_deltas = said.offset[:, None].to(self.model.device)
