# SPDX-License-Identifier: Apache-2.0
"""Qwen-VL in a session: pairs of pictures, and positions of one video that goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stc_video.memory import VideoPlace
from stc_video.models.adapter import SessionSide
from stc_video.models.pictures import pictures_of, to_times
from stc_video.models.qwen_frames import TemporalPatches

if TYPE_CHECKING:
    from stc_video.models.qwen_vl import QwenVLAdapter

__all__ = ["QwenSessionSide"]


class QwenSessionSide(SessionSide):
    """Two pictures are a frame; the stream is one video.

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
        self._patches = TemporalPatches(adapter.tower, images)
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
        """Frames (F, h, w, P) of as many pairs as there are; a last picture waits for the next."""
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
        """A frame of the last picture twice, as the released processors do it."""
        waiting, self._waiting = self._waiting, []
        frames, times = self._frames(waiting)
        return None if frames is None else (frames, times)

    def _frames(
        self, waiting: list[tuple[Any, float | None]]
    ) -> tuple[Tensor | None, list[float | None]]:
        if not waiting:
            return None, []
        frames = self._patches([picture for picture, _ in waiting])
        return frames, [time for _, time in waiting[:: self._patches.pictures]]

    def place(self, kept: Tensor, grid: tuple[int, int]) -> tuple[Tensor, int, VideoPlace]:
        """(time, height, width) of the kept tokens, (3, n)."""
        if grid != self._grid:
            self._grid, self._number = grid, 0
        here, after = self._end(self._number), self._end(self._number + 1)
        time = self._number * self._step
        rows, columns = torch.div(kept, grid[1], rounding_mode="floor"), kept % grid[1]
        offsets = torch.stack([torch.full_like(kept, time), rows, columns]) - here
        self._number += 1
        return offsets, after - here, VideoPlace(time - here, -here, self._step, max(grid))

    def _end(self, frames: int) -> int:
        """How many positions so many frames of the video take."""
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
