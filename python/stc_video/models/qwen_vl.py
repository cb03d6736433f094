# SPDX-License-Identifier: Apache-2.0
"""Qwen2-VL and Qwen2.5-VL: their vision towers, pruned prompts and sessions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from stc_video.cache_argument import CACHE
from stc_video.errors import UnsupportedModelError
from stc_video.memory import VideoPlace
from stc_video.models.adapter import FrameEncoder, SessionAdapter
from stc_video.models.conversation import Conversation, conversation_of, tokens_in
from stc_video.models.pictures import pictures_of, to_times
from stc_video.models.placeholders import shortened, video_token
from stc_video.models.prompt import Encoder, Numbered, Written
from stc_video.models.prompted import PromptedAdapter
from stc_video.models.qwen_frames import TemporalPatches
from stc_video.models.qwen_prompt import QwenPictures, positions, token_rows, write_pictures

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_GUIDANCE = "the model's own generate numbers the second prompt wrongly"
_ASSISTANT = "the model's own generate hands it positions of three numbers"


class QwenVLAdapter(PromptedAdapter):
    """Runs a Qwen2-VL or Qwen2.5-VL on prompts without the pruned tokens."""

    allowed_positions = ("original",)
    position_axes = 3
    refused = MappingProxyType({"guidance_scale": _GUIDANCE, "assistant_model": _ASSISTANT})
    #: of pictures, where the processor does not say
    normalisation: Mapping[str, Any] = MappingProxyType({})
    #: how many features of its tower a token has besides that which enters the language model
    deep = 0
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
        self.tower: nn.Module = inner.visual
        self._merge = int(inner.visual.spatial_merge_size)
        self._inner = inner
        self._deltas_before = inner.rope_deltas
        # Caches with one number per position, which is that of tokens.
        self._plain: WeakSet[Any] = WeakSet()

    def restore(self) -> None:
        """Put back the offset of positions that the model remembers of its last call."""
        self._inner.rope_deltas = self._deltas_before

    def features(self, pixels: Tensor, streams: int) -> Tensor:
        """Run tower and merger on temporal patches (F, h, w, P) of some streams."""
        frames, height, width = pixels.shape[:3]
        grid = torch.tensor([[frames // streams, height, width]] * streams, device=pixels.device)
        output = self.tower(pixels.flatten(0, 2).type(self.model.dtype), grid_thw=grid)
        tokens = token_rows(output)
        return tokens.view(frames, -1, tokens.shape[-1])

    def grid(self, pixels: Tensor | None = None) -> tuple[int, int] | None:
        """(H, W) of the tokens of temporal patches (F, h, w, P)."""
        if pixels is None:
            return None
        return pixels.shape[1] // self._merge, pixels.shape[2] // self._merge

    def temporal_patches(self, images: Any | None) -> TemporalPatches:
        """Return what makes frames of pictures, with settings of the model's image processor."""
        return TemporalPatches(self.tower, images, **self.normalisation)

    def session_adapter(self, processor: Any) -> SessionAdapter:
        """Prepare for a session with the model's processor or tokenizer."""
        return QwenSessionAdapter(self, getattr(processor, "image_processor", None))

    def before_answer(self, cache: Any) -> None:
        """Give what follows in a cache the position of its number of tokens."""
        self._plain.add(cache)

    def kept_ids(self, ids: Tensor, cache: Any) -> Tensor:
        """Select the ids of a conversation (1, L) that are in its cache, (1, n)."""
        history = conversation_of(cache)
        if history is None:
            return ids
        kept = torch.ones_like(ids, dtype=torch.bool)
        kept[:, : history.kept.shape[1]] = history.kept.to(ids.device)
        return ids[kept][None]

    def short_prompt(self, ids: Tensor) -> dict[str, Any]:
        """Return a prompt of some text around a video of one token."""
        model: Any = self.model
        config: Any = self.tower.config
        values = config.in_channels * config.temporal_patch_size * config.patch_size**2
        rows = torch.linspace(-1, 1, self._merge**2 * values, device=ids.device)
        config = model.config
        marks = (config.vision_start_token_id, config.video_token_id, config.vision_end_token_id)
        picture = torch.tensor([marks], device=ids.device)
        half = ids.shape[1] // 2
        given = {
            "pixel_values_videos": rows.view(self._merge**2, -1).to(model.dtype),
            "video_grid_thw": torch.tensor([[1, self._merge, self._merge]], device=ids.device),
        }
        return self.continued(given, torch.cat([ids[:, :half], picture, ids[:, half:]], dim=1))

    def continued(self, given: dict[str, Any], ids: Tensor) -> dict[str, Any]:
        """The same with more text: ids (1, m)."""
        arguments = given | {"input_ids": ids}
        if "mm_token_type_ids" in inspect.signature(self._inner.get_rope_index).parameters:
            arguments["mm_token_type_ids"] = 2 * (ids == video_token(self.model)).int()
        return arguments

    # -- prompts -----------------------------------------------------------------------------

    def no_pictures(self) -> QwenPictures:
        """Return the record of a conversation without pictures."""
        return QwenPictures()

    def write_pictures(
        self, arguments: dict[str, Any], written: Written, history: Conversation, encode: Encoder
    ) -> QwenPictures:
        """Write images, and the kept tokens of each video."""
        return write_pictures(self.model, arguments, written, history.pictures, encode)

    def number(self, numbered: Numbered, history: Conversation, pictures: QwenPictures) -> Tensor:
        """Positions (3, B, n): those of the full prompt, or consecutive ones."""
        if numbered.past and self.flat_turns:
            start = numbered.past + int(history.offset)
            count = int(numbered.keep.sum())
            numbers = torch.arange(start, start + count, device=numbered.ids.device)
            return numbers.expand(3, 1, -1)
        full = positions(self.model, numbered.ids, numbered.mask, pictures)[:, :, numbered.first :]
        return torch.stack([shortened(part, numbered.keep, 0) for part in full])

    def noted(self, history: Conversation) -> None:
        """Leave the right offset of positions on the model, for calls that it computes them in."""
        self._inner.rope_deltas = history.offset[:, None].to(self.model.device)

    def unknown(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Arguments with the positions of tokens that go on in a cache of a session."""
        cache, tokens = arguments.get(CACHE), arguments.get("input_ids")
        tokens = arguments.get("inputs_embeds") if tokens is None else tokens
        if cache is None or tokens is None or cache not in self._plain:
            return arguments
        start = tokens_in(cache)
        numbers = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        return arguments | {"position_ids": numbers.expand(3, len(tokens), -1)}

    def generate(
        self, frames: FrameEncoder, stock: Callable[..., Any], arguments: dict[str, Any]
    ) -> Any:
        """Run the model's own generate on a prompt without the pruned tokens."""
        cache = arguments.get(CACHE)
        if cache is not None and cache in self._plain:
            # `generate` looks at it, though the positions are given; another call left it.
            self._inner.rope_deltas = torch.zeros((1, 1), dtype=torch.int64)
        return super().generate(frames, stock, arguments)


class QwenSessionAdapter(SessionAdapter):
    """A session on a Qwen-VL: two pictures make a frame, and the stream is one video.

    Frame k has the time k (Qwen2.5-VL: k times the tokens per second, for a second per frame), its
    rows and columns are counted from where the video began, and text goes on behind the largest of
    all numbers, as transformers 4.57 has it. Pictures of another size begin another video.

    Parameters
    ----------
    adapter
        Of the model.
    images
        The model's image processor, or None.
    """

    def __init__(self, adapter: QwenVLAdapter, images: Any) -> None:
        self._adapter = adapter
        self._patches = adapter.temporal_patches(images)
        config: Any = adapter.tower.config
        self._step = int(getattr(config, "tokens_per_second", None) or 1)
        self._waiting: list[tuple[Any, float | None]] = []
        self._grid = (0, 0)
        self._number = 0

    @property
    def is_incomplete(self) -> bool:
        """Whether a picture waits for a second one."""
        return bool(self._waiting)

    def prepare(
        self, pictures: Any, timestamps: Sequence[float] | float | None
    ) -> tuple[Tensor | None, list[float | None]]:
        """Make frames (F, h, w, P) of pairs of pictures; a last one waits for the next."""
        if self._is_prepared(pictures):
            return pictures, to_times(timestamps, len(pictures))
        new = pictures_of(pictures)
        if not new:
            raise ValueError("push: frames must be one or more frames, got none")
        shapes = {picture.shape for picture in new}
        if len(shapes) > 1:
            raise ValueError(f"push: frames of one call must have one size, got {sorted(shapes)}")
        times = to_times(timestamps, len(new))
        if self._waiting and self._waiting[0][0].shape not in shapes:
            raise ValueError(
                f"push: a frame of {self._waiting[0][0].shape[:2]} waits for a second one of that "
                f"size, got {new[0].shape[:2]}; call flush() before pictures of another size"
            )
        waiting = [*self._waiting, *zip(new, times, strict=True)]
        whole = len(waiting) - len(waiting) % self._patches.pictures
        # The caller may use the array again for the next picture.
        self._waiting = [(picture.copy(), time) for picture, time in waiting[whole:]]
        return self._frames(waiting[:whole])

    def _is_prepared(self, pictures: Any) -> bool:
        """Whether they are a float tensor (F, h, w, P)."""
        if not isinstance(pictures, Tensor) or not pictures.is_floating_point():
            return False
        if pictures.dim() != 4 or not len(pictures):
            return False
        return bool(pictures.shape[3] == self._patches.values)

    def complete(self) -> tuple[Tensor, list[float | None]] | None:
        """Make a frame of the last picture twice, as the released processors do."""
        waiting, self._waiting = self._waiting, []
        frames, times = self._frames(waiting)
        return None if frames is None else (frames, times)

    def _frames(
        self, waiting: list[tuple[Any, float | None]]
    ) -> tuple[Tensor | None, list[float | None]]:
        if not waiting:
            return None, []
        frames = self._patches([picture for picture, _ in waiting])
        every = self._patches.pictures
        times = [time for _, time in waiting]
        return frames, [self._time(times[at : at + every]) for at in range(0, len(times), every)]

    def _time(self, times: Sequence[float | None]) -> float | None:
        """When a frame of pictures with these times was taken."""
        return times[0]

    def place(self, kept: Tensor, grid: tuple[int, int]) -> tuple[Tensor, int, VideoPlace | None]:
        """Place a frame, with (time, height, width) of the kept tokens, (3, n)."""
        if grid != self._grid:
            self._grid, self._number = grid, 0
        here, after = self._end(self._number), self._end(self._number + 1)
        time = self._number * self._step
        rows, columns = torch.div(kept, grid[1], rounding_mode="floor"), kept % grid[1]
        offsets = torch.stack([torch.full_like(kept, time), rows, columns]) - here
        self._number += 1
        return offsets, after - here, VideoPlace(time - here, -here, self._step, max(grid))

    def _end(self, frames: int) -> int:
        """Return how many positions so many frames of the video take."""
        return max((frames - 1) * self._step + 1, *self._grid) if frames else 0

    def before_answer(self, cache: Any) -> None:
        """Number the answer by tokens: the memory moves all keys such that they end there."""
        self._adapter.before_answer(cache)

    def state(self) -> Any:
        """Number and grid of the video's frames; a waiting picture is completed before a save."""
        return {"number": self._number, "grid": self._grid}

    def restore(self, state: Any) -> None:
        """Go on with a saved stream, or begin one."""
        self._waiting = []
        self._grid = (0, 0) if state is None else state["grid"]
        self._number = 0 if state is None else state["number"]
