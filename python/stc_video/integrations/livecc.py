# SPDX-License-Identifier: Apache-2.0
"""LiveCC (arXiv 2504.16030): a Qwen2-VL that comments on a video while it runs.

The loop is that of the authors' demo: a first turn of six pictures, then two at a time, with the
keys and values kept over the turns.
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stc_video.acceleration import Acceleration, accelerate_with, check_free
from stc_video.cache_argument import cache_argument, cache_of
from stc_video.config import CacheConfig
from stc_video.errors import AttachError, UnsupportedModelError
from stc_video.models.adapter import FrameEncoder
from stc_video.models.conversation import Conversation, ConversationStream
from stc_video.models.pictures import FrameLike, pictures_of
from stc_video.models.qwen_frames import TemporalPatches
from stc_video.models.qwen_vl import QwenVLAdapter
from stc_video.pruners import Pruner

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: pictures of the first turn, of each later one, and per second
FIRST_PICTURES, STEP_PICTURES, FPS = 6, 2, 2.0
#: of a picture after resizing
MAX_PIXELS = 384 * 28 * 28

_QUERY = "Please describe the video."
_SETTINGS = {"max_new_tokens": 16, "repetition_penalty": 1.05}


def apply(
    model: PreTrainedModel,
    cache: str | CacheConfig | None = "motion",
    prune: str | Pruner = "stc",
    tokens_per_frame: int | None = 64,
    **pruner_settings: Any,
) -> Acceleration:
    """Put cacher and pruner on a LiveCC model, for a turn loop over ``generate``.

    The authors' loop then runs as it is: every turn is given the ids of all turns so far, with all
    placeholders, the pixels of the new one, and the cache of the last one. All videos
    of a conversation are one stream. Their patch of ``prepare_inputs_for_generation`` is not
    needed, and with transformers 5 it does not work.

    Positions are those of the authors' patch with transformers 4.5x: time, height and width in the
    first turn, where kept tokens keep theirs; from then on one number per token that is kept.

    Parameters
    ----------
    model
        A ``Qwen2VLForConditionalGeneration`` in eval mode.
    cache, prune, tokens_per_frame, **pruner_settings
        As for :func:`stc_video.accelerate`.

    Returns
    -------
    Acceleration
        The handle; ``restore()`` undoes everything.

    Raises
    ------
    UnsupportedModelError
        If it is another model; it is left untouched.
    AttachError
        If it is accelerated already.
    ValueError
        If a setting is out of range.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind != "qwen2_vl" or not hasattr(model, "generate"):
        raise UnsupportedModelError(
            "livecc: the model must be a Qwen2VLForConditionalGeneration of transformers, got "
            f"{type(model).__name__}"
        )
    check_free(model)
    adapter = _LiveCCAdapter(model, None)
    return accelerate_with(adapter, cache, prune, tokens_per_frame, **pruner_settings)


class _LiveCCAdapter(QwenVLAdapter):
    """The positions of the authors' loop, and one stream per conversation."""

    flat_turns = True

    def __init__(self, model: PreTrainedModel, positions: str | None) -> None:
        super().__init__(model, positions)
        self._live: set[str] = set()
        self._lock = threading.Lock()

    def _begin(self, history: Conversation, frames: FrameEncoder) -> Conversation:
        if history.stream is not None:
            return history
        with self._lock:
            names = (f"livecc:{number}" for number in itertools.count())
            name = next(name for name in names if name not in self._live)
            self._live.add(name)
        stream = ConversationStream(name)
        # The conversation ends when nobody has its cache any more.
        weakref.finalize(stream, self._end, name, frames).atexit = False
        return dataclasses.replace(history, stream=stream)

    def _end(self, name: str, frames: FrameEncoder) -> None:
        frames.forget(name)
        self._live.discard(name)


@dataclass(frozen=True)
class Comment:
    """A comment on a stretch of the video; ``str()`` of it is the text.

    Attributes
    ----------
    start, stop
        The stretch, in seconds.
    text
        The comment.
    ids
        (n,) its tokens, on the CPU.
    """

    start: float
    stop: float
    text: str
    ids: Tensor

    def __str__(self) -> str:
        return self.text


class LiveCC:
    """Comments on a running video, turn by turn.

    Parameters
    ----------
    model
        A LiveCC model: a ``Qwen2VLForConditionalGeneration`` in eval mode. If :func:`apply` was
        not called on it yet, it is until :meth:`close`.
    processor
        The model's processor, or its tokenizer; it must have a chat template.
    query
        What to say about the video; it goes with the first turn.
    cache, prune, tokens_per_frame
        As for :func:`apply`.
    max_pixels
        Of a picture after resizing.
    **settings
        For ``generate``; by default 16 new tokens per turn and a repetition penalty of 1.05.

    Attributes
    ----------
    past_ids
        (1, L) ids of all turns so far with all placeholders, without the last token that was made,
        as in the authors' loop; None before the first turn.
    kept_ids
        (1, n) those of them that were not pruned; n is the length of the cache.
    past_key_values
        The cache.

    Examples
    --------
    >>> with LiveCC(model, processor) as commentary:  # doctest: +SKIP
    ...     for picture in camera_at_two_per_second:
    ...         for comment in commentary.push(picture):
    ...             print(comment)
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Any,
        query: str = _QUERY,
        *,
        cache: str | CacheConfig | None = "motion",
        prune: str | Pruner = "stc",
        tokens_per_frame: int | None = 64,
        max_pixels: int = MAX_PIXELS,
        **settings: Any,
    ) -> None:
        self._template = _Template(processor, model)
        handle = getattr(model, "stc", None)
        if isinstance(handle, Acceleration) and not isinstance(handle.adapter, _LiveCCAdapter):
            raise AttachError(
                "LiveCC: this model is accelerated already, not by livecc.apply; call "
                "model.stc.restore() first"
            )
        self._owns = not isinstance(handle, Acceleration)
        self._handle = apply(model, cache, prune, tokens_per_frame) if self._owns else handle
        self._model: Any = model
        self._query = query
        self._settings = _SETTINGS | settings
        images = getattr(processor, "image_processor", None)
        self._patches = TemporalPatches(
            self._model.model.visual, images, min_pixels=4 * 28 * 28, max_pixels=max_pixels
        )
        self.reset()

    def __enter__(self) -> LiveCC:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reset(self) -> None:
        """Forget the video; the next picture is the first of a new one."""
        self._waiting: list[Any] = []
        self._pictures = 0
        self.past_ids: Tensor | None = None
        self.past_key_values: Any = None

    def close(self) -> None:
        """Forget the video, and restore the model if this object accelerated it."""
        self.reset()
        if self._owns and self._handle is not None:
            self._handle.restore()

    def push(self, pictures: FrameLike) -> Iterator[Comment]:
        """Take in the next pictures, two per second of video, and comment when there are enough.

        Parameters
        ----------
        pictures
            One or several, as for :meth:`stc_video.StreamingSession.push`, all of one size.

        Yields
        ------
        Comment
            One per turn: after the first six pictures, then after every two.
        """
        # The caller may use the array again for the next picture.
        self._waiting += [picture.copy() for picture in pictures_of(pictures)]
        while len(self._waiting) >= (count := self._turn_size):
            turn, self._waiting = self._waiting[:count], self._waiting[count:]
            start = self._pictures / FPS
            self._pictures += count
            ids = self.turn(self._patches(turn), start, self._pictures / FPS)
            text = self._template.tokenizer.decode(ids, skip_special_tokens=True)
            yield Comment(start, self._pictures / FPS, text, ids)

    def turn(self, pixels: Tensor, start: float, stop: float) -> Tensor:
        """Run one turn over prepared temporal patches.

        Parameters
        ----------
        pixels
            (T, h, w, P) temporal patches, in the processor's order of rows.
        start, stop
            The stretch of the video, in seconds.

        Returns
        -------
        Tensor
            (n,) the tokens that were made, on the CPU.
        """
        frames, height, width = pixels.shape[:3]
        tokens = frames * height * width // self._model.model.visual.spatial_merge_size**2
        query = self._query if self.past_ids is None else None
        new = self._template.turn(start, stop, tokens, query, is_first=self.past_ids is None)
        ids = torch.tensor([new], device=self._model.device)
        if self.past_ids is not None:
            ids = torch.cat([self.past_ids, ids], dim=1)
        generation = self._model.generate(
            input_ids=ids,
            pixel_values_videos=pixels.flatten(0, 2).to(self._model.device),
            video_grid_thw=torch.tensor([[frames, height, width]], device=self._model.device),
            return_dict_in_generate=True,
            **cache_argument(self._model, self.past_key_values),
            **self._settings,
        )
        self.past_key_values = cache_of(generation)
        self.past_ids = generation.sequences[:, :-1]
        answer: Tensor = generation.sequences[0, ids.shape[1] :].cpu()
        return answer

    @property
    def kept_ids(self) -> Tensor | None:
        """Ids of the tokens in the cache, (1, n)."""
        if self.past_ids is None:
            return None
        adapter = self._handle.adapter if self._handle is not None else None
        assert isinstance(adapter, QwenVLAdapter)
        return adapter.kept_ids(self.past_ids, self.past_key_values)

    @property
    def _turn_size(self) -> int:
        return STEP_PICTURES if self._pictures else FIRST_PICTURES


class _Template:
    """Writes the turns as the authors do, by the model's own chat template."""

    def __init__(self, processor: Any, model: Any) -> None:
        self.tokenizer: Any = getattr(processor, "tokenizer", processor)
        has_template = getattr(processor, "chat_template", None) is not None
        self._writer = processor if has_template else self.tokenizer
        if getattr(self._writer, "chat_template", None) is None:
            raise ValueError("LiveCC: the processor must have a chat template, got none")
        self._placeholder: str = self.tokenizer.convert_ids_to_tokens(model.config.video_token_id)

    def turn(
        self, start: float, stop: float, tokens: int, query: str | None, *, is_first: bool
    ) -> list[int]:
        """Ids of a turn with a video of so many tokens."""
        content: list[dict[str, str]] = [
            {"type": "text", "text": f"Time={start:.1f}-{stop:.1f}s"},
            {"type": "video"},
        ]
        if query:
            content.append({"type": "text", "text": query})
        text: str = self._writer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        if text.count(self._placeholder) != 1:
            raise ValueError(
                f"LiveCC: the chat template must write {self._placeholder} once for a video, got "
                f"{text!r}"
            )
        if not is_first:  # only the first turn has the system prompt; the last answer ends here
            text = "<|im_end|>\n" + text[text.index("<|im_start|>user") :]
        text = text.replace(self._placeholder, self._placeholder * tokens)
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids
