# SPDX-License-Identifier: Apache-2.0
"""The model's own ``generate`` and ``forward`` with a pruned prompt, for every family."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stc_video.bypassed import refuse_methods
from stc_video.cache_argument import CACHE, cache_of
from stc_video.errors import UnsupportedModelError
from stc_video.models.adapter import FrameEncoder, ModelAdapter
from stc_video.models.call_arguments import PROMPT, check_forward, check_generate, check_pictures
from stc_video.models.conversation import (
    Conversation,
    check_whole,
    conversation_of,
    remember,
    tokens_in,
)
from stc_video.models.generate_settings import (
    CallersView,
    attention_mask,
    check_generation,
    effective_config,
    lengths,
)
from stc_video.models.placeholders import repeated, shortened, with_prompt
from stc_video.models.prompt import Encoder, Numbered, Prompt, Written, make_prompt
from stc_video.pruners import PrunedTokens
from stc_video.towers.gradients import refusing_gradients

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class _Run:
    """A call of ``generate`` with a pruned prompt, which calls ``forward`` step by step."""

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = prompt
        self.cache: Any = None
        self.steps = 0

    def takes(self, arguments: dict[str, Any]) -> bool:
        """Whether a call of forward is a step of it, and not one of, say, a logits processor."""
        ids, cache = arguments.get("input_ids"), arguments.get(CACHE)
        is_step = ids is not None and (
            self._begins(ids, 0, self.prompt.input_ids.shape[1])
            if cache is None
            else cache is self.cache or (self.cache is None and self._fills(cache, ids))
        )
        if not is_step and not self.steps:
            from transformers import __version__

            raise UnsupportedModelError(
                f"accelerated model: generate of transformers {__version__} does not call the "
                "model with the prompt that it was given"
            )
        if is_step:
            self.steps += 1
        return is_step

    def filled(self, cache: Any) -> None:
        """Take note of the cache that a step has filled; some releases make it in the first."""
        if self.cache is None:
            self.cache = cache

    def _fills(self, cache: Any, ids: Tensor) -> bool:
        """Whether the ids are the first new ones of the prompt."""
        past = self.prompt.past
        return tokens_in(cache) == past and self._begins(ids, past, past + ids.shape[1])

    def _begins(self, ids: Tensor, first: int, last: int) -> bool:
        """Whether ids begin with those of the prompt from first to last."""
        own = self.prompt.input_ids[:, first:last]
        if ids.shape[1] < own.shape[1] or len(ids) % len(own):
            return False
        return torch.equal(ids[:, : own.shape[1]], repeated(own, ids))


class PromptedAdapter(ModelAdapter):
    """Runs a model on prompts without the pruned tokens.

    A conversation goes on with the same cache and the whole conversation's ids, as ``generate``
    returned them; pixels are those of the new turn, or of all turns. What was pruned of a cache's
    tokens is remembered with that cache.
    """

    #: how many numbers a position has
    position_axes = 1
    #: arguments of ``generate`` that are refused for this family -> why
    refused: Mapping[str, str] = MappingProxyType({})

    def __init__(self, model: PreTrainedModel, positions: str | None) -> None:
        super().__init__(model, positions)
        check_generation(model)
        whole: Any = model
        refuse_methods(
            {"the model": model, "model.model": getattr(whole, "model", model)},
            ("get_video_features", "get_placeholder_mask"),
            "accelerate",
        )
        # The call of `generate` in this thread, for its steps.
        self._under_way = threading.local()

    # -- what is particular to a family --------------------------------------------------------

    @abstractmethod
    def write_pictures(
        self, arguments: dict[str, Any], written: Written, history: Conversation, encode: Encoder
    ) -> Any:
        """Write features over placeholders and choose what stays; return what to remember."""

    def number(self, numbered: Numbered, history: Conversation, pictures: Any) -> Tensor:
        """Positions (A, B, n) of what stays of the new part; A is 3 or 1.

        Those of the full prompt, or consecutive ones.
        """
        if self.positions == "original":
            places = (numbered.mask.cumsum(-1) - 1).clamp_min(0)[:, numbered.first :]
            return shortened(places, numbered.keep, 0)[None]
        return (numbered.short_mask.cumsum(-1) - 1).clamp_min(0)[None, :, numbered.past :]

    def has_video(self, arguments: dict[str, Any]) -> bool:
        """Whether a call has pictures that may be frames of a video."""
        return arguments.get("pixel_values_videos") is not None

    def kinds(self, ids: Tensor) -> dict[str, Any]:
        """Arguments of the model that tell of each token of a prompt (B, L) what it is."""
        return {}

    def no_pictures(self) -> Any:
        """Return the record of the pictures of a conversation that has none."""
        return None

    def noted(self, history: Conversation) -> None:
        """Take note that the model was given tokens of a conversation."""
        return

    def unknown(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Arguments of forward for a cache, if any, of which no conversation is known."""
        return arguments

    def short_prompt(self, ids: Tensor) -> dict[str, Any]:
        """Arguments of the stock forward for a short prompt with some text (1, n)."""
        return {"input_ids": ids}

    def call(self, stock: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Call the model's own forward."""
        return stock(**arguments)

    def continued(self, given: dict[str, Any], ids: Tensor) -> dict[str, Any]:
        """The same with more text: ids (1, m)."""
        return given | {"input_ids": ids}

    def _begin(self, history: Conversation, frames: FrameEncoder) -> Conversation:
        """Prepare for a turn; without a stream of the conversation each video is one of its own."""
        return history

    # -- the model's own calls ---------------------------------------------------------------

    def forward(
        self, frames: FrameEncoder, stock: Callable[..., Any], arguments: dict[str, Any]
    ) -> Any:
        """Run the model's own forward on a prompt without the pruned tokens."""
        run: _Run | None = getattr(self._under_way, "run", None)
        if run is not None and run.takes(arguments):
            output = self.call(stock, self._step(run.prompt, arguments))
            run.filled(cache_of(output))
            self._remember(run.cache, run.prompt.conversation)
            return output
        check_pictures(arguments)
        history = conversation_of(arguments.get(CACHE))
        has_image = arguments.get("pixel_values") is not None
        if not self.has_video(arguments) and not (history and has_image):
            return stock(**self._going_on(history, arguments))
        check_forward(self.model, arguments, history)
        prompt = self.pruned(frames, arguments)
        given = {
            "inputs_embeds": refusing_gradients(prompt.embeds, prompt.embeds, self._embedders()),
            "position_ids": _position_ids(prompt.positions),
            "attention_mask": prompt.attention_mask,
            **self.kinds(prompt.input_ids),
            **({} if prompt.labels is None else {"labels": prompt.labels}),
        }
        output = self.call(stock, given | _without_prompt(arguments))
        self._remember(cache_of(output), prompt.conversation)
        return output

    def _embedders(self) -> Iterator[Iterator[Tensor]]:
        """Weights that the embeddings of a prompt are made with, which no gradient reaches."""
        whole: Any = self.model
        yield whole.get_input_embeddings().parameters()
        for name, part in whole.model.named_children():
            if name != self.language_model_name:
                yield part.parameters()

    def generate(
        self, frames: FrameEncoder, stock: Callable[..., Any], arguments: dict[str, Any]
    ) -> Any:
        """Run the model's own generate on a prompt without the pruned tokens."""
        check_pictures(arguments)
        history = conversation_of(arguments.get(CACHE))
        if not self.has_video(arguments) and history is None:
            with self._running(None):
                return stock(**arguments)
        config = effective_config(self.model, arguments)
        check_generate(self.model, arguments, config, history, self.refused)
        given: Tensor = arguments["input_ids"]
        lengths(self.model, arguments, config, given.shape[1], 0)  # refuses too small a one
        mask = attention_mask(given, arguments.get("attention_mask"), config)
        prompt = self.pruned(frames, arguments | {"attention_mask": mask})
        return self.generate_from(prompt, given, stock, arguments, config)

    def generate_from(
        self,
        prompt: Prompt,
        given: Tensor,
        stock: Callable[..., Any],
        arguments: dict[str, Any],
        config: Any,
    ) -> Any:
        """Run the model's own generate on a prompt that was given as ids (B, L)."""
        length = prompt.input_ids.shape[1]
        counts = lengths(self.model, arguments, config, given.shape[1], prompt.removed)
        settings = CallersView(given, length).adapted(_without_prompt(arguments)) | counts
        with self._running(_Run(prompt)):
            self.noted(prompt.conversation)
            output = stock(
                input_ids=prompt.input_ids,
                attention_mask=prompt.attention_mask,
                **self.kinds(prompt.input_ids),
                **settings,
            )
        return with_prompt(output, given, length)

    def pruned(self, frames: FrameEncoder, arguments: dict[str, Any]) -> Prompt:
        """Encode and prune the videos of a prompt."""
        cache = arguments.get(CACHE)
        past = tokens_in(cache)
        if past:
            history = conversation_of(cache)
        else:
            history = Conversation.empty(len(arguments["input_ids"]), self.no_pictures())
        if history is None:
            raise ValueError(
                "accelerated model: a video can be added to a cache with tokens only if all of "
                "them were made by an accelerated model, in answers about a video"
            )
        history = self._begin(history, frames)
        stream = history.stream

        def encode(pixels: Tensor, number: int) -> PrunedTokens:
            """Encode and prune a video."""
            own = f"accelerate:{threading.get_ident()}:{number}"
            name = own if stream is None else stream.name
            try:
                return frames.prune(frames.encode(pixels, name), name, self.grid(pixels))
            finally:
                if stream is None:
                    frames.forget(name)

        with torch.no_grad():
            return make_prompt(self, arguments, encode, past, history)

    @contextmanager
    def _running(self, run: _Run | None) -> Iterator[None]:
        """Inside the block, forward in this thread runs steps of a call of ``generate``."""
        before = getattr(self._under_way, "run", None)
        self._under_way.run = run
        try:
            yield
        finally:
            self._under_way.run = before

    # -- arguments of the stock forward ---------------------------------------------------------

    def _step(self, prompt: Prompt, arguments: dict[str, Any]) -> dict[str, Any]:
        """Arguments of a step of ``generate``: embeddings of the prompt, and all positions."""
        ids: Tensor = arguments["input_ids"]
        cache = arguments.get(CACHE)
        start = tokens_in(cache)
        first, count = start - prompt.past, prompt.embeds.shape[1]
        axes, repeats = len(prompt.positions), len(ids) // len(prompt.embeds)
        positions = self._text_positions(prompt.conversation, start, ids, axes)
        if first < count:
            inside = slice(first, min(first + ids.shape[1], count))
            size = inside.stop - first
            own = prompt.positions[:, :, inside].repeat_interleave(repeats, 1)
            positions[:, :, :size] = own.to(positions.device)
            embeds = prompt.embeds[:, inside].repeat_interleave(repeats, 0)
            if size < ids.shape[1]:  # without a cache, prompt and answer come together
                rest = self.embed(ids[:, size:])
                embeds = torch.cat([embeds.to(rest.device), rest], dim=1)
            arguments = arguments | {"input_ids": None, "inputs_embeds": embeds}
        return arguments | {"position_ids": _position_ids(positions)}

    def _going_on(self, history: Conversation | None, arguments: dict[str, Any]) -> dict[str, Any]:
        """Arguments for tokens that go on in a cache."""
        tokens = arguments.get("input_ids")
        tokens = arguments.get("inputs_embeds") if tokens is None else tokens
        if history is None or tokens is None:
            return self.unknown(arguments)
        start, count = tokens_in(arguments.get(CACHE)), tokens.shape[1]
        check_whole(history, start)
        for name in ("position_ids", "cache_position"):
            if arguments.get(name) is not None and history.removed:
                raise ValueError(
                    f"accelerated model: {name} cannot be given for a cache from which tokens were "
                    "pruned; without it the model goes on where it must"
                )
        if arguments.get("position_ids") is None:
            axes = self.position_axes
            positions = self._text_positions(history, start, tokens, axes)
            arguments = arguments | {"position_ids": _position_ids(positions)}
        mask = _mask_going_on(history, start + count, len(tokens), arguments.get("attention_mask"))
        return arguments | {"attention_mask": None if mask is None else mask.to(tokens.device)}

    def _text_positions(
        self, history: Conversation, start: int, tokens: Tensor, axes: int
    ) -> Tensor:
        """Positions (A, B, n) of text behind ``start`` tokens in the cache."""
        offset = history.offset.repeat_interleave(len(tokens) // len(history.offset)).to(
            tokens.device
        )
        positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        return (positions + offset[:, None]).expand(axes, -1, -1).clone()

    def _remember(self, cache: Any, history: Conversation) -> None:
        """Keep with a cache what is known of it."""
        remember(cache, history)
        self.noted(history)


def _without_prompt(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name not in PROMPT}


def _position_ids(positions: Tensor) -> Tensor:
    """Positions (A, B, n) as the model takes them: without an axis for a single number."""
    return positions[0] if len(positions) == 1 else positions


def _mask_going_on(
    history: Conversation, total: int, rows: int, given: Tensor | None
) -> Tensor | None:
    """Mask (B, total) of a cache and what is new, from one of the full conversation or none."""
    short = history.mask.repeat_interleave(rows // len(history.mask), 0)
    new = total - short.shape[1]
    if given is None:
        if bool(short.all()):
            return None
        return torch.cat([short, short.new_ones((rows, new))], dim=1).long()
    if given.dim() != 2 or given.shape[1] == total:
        return given
    kept = history.kept.repeat_interleave(rows // len(history.kept), 0)
    if given.shape[1] != kept.shape[1] + new:
        raise ValueError(
            f"accelerated model: attention_mask must be of the {kept.shape[1] + new} tokens so far "
            f"(of {total} without what was pruned), got {given.shape[1]}"
        )
    kept = torch.cat([kept, kept.new_ones((rows, new))], dim=1).to(given.device)
    return shortened(given, kept, 0)
