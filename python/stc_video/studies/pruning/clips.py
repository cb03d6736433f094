# SPDX-License-Identifier: Apache-2.0
"""The frames of a clip, encoded once, for studies that go over them many times."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from stc_video.errors import UnsupportedModelError
from stc_video.loading.vision import LoadedModel
from stc_video.pruners import Attention
from stc_video.pruners.attention_capture import AttentionCapture, capture_attention
from stc_video.report.pictures import webp
from stc_video.studies.reference_masks import SaliencyMarker, moved_tokens
from stc_video.towers.pre_norm import PreNormTower
from stc_video.video import VideoError, VideoFrame, VideoSource, open_video
from stc_video.video.location import locate

if TYPE_CHECKING:
    from PIL.Image import Image

#: Height and width of a token in `EncodedClip.pixels`.
CELL = 14
_PICTURE_SIDE = 224


@dataclass(frozen=True, eq=False)
class EncodedClip:
    """A clip as pruners see it, and what moved and stands out in it.

    Attributes
    ----------
    name
        Of the clip, unlike any other of the study.
    times
        Seconds of each frame since the first of the file.
    features
        (F, N, D), every frame encoded densely.
    grid
        (H, W) with H * W = N.
    pixels
        (F, 3, 14 H, 14 W) in [0, 1]: what the model saw.
    moved, salient
        (F, N) bool; see `reference_masks.py`.
    attention
        Of the last layer but one, or None if its tokens are not those of `features`.
    pictures
        WebP of each frame.
    problem
        Why the clip ended early, or None.
    """

    name: str
    times: tuple[float, ...]
    features: Tensor
    grid: tuple[int, int]
    pixels: Tensor
    moved: Tensor
    salient: Tensor
    attention: Attention | None = None
    pictures: tuple[bytes, ...] = field(default=(), repr=False)
    problem: str | None = None

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self.features)

    @property
    def tokens(self) -> int:
        """Tokens of a frame."""
        return self.features.shape[1]

    def attention_of(self, part: slice) -> Attention | None:
        """Return the attention of some frames."""
        whole = self.attention
        if whole is None:
            return None
        return Attention(whole.query[part], whole.key[part], whole.prefix, whole.scale)


def clip_names(paths: Sequence[str | Path]) -> list[str]:
    """Return a name for each clip: that of its file or address, with a number if it was taken."""
    names: list[str] = []
    for path in paths:
        stem = Path(locate(path).name).stem
        name, count = stem, 2
        while name in names:
            name, count = f"{stem} ({count})", count + 1
        names.append(name)
    return names


def open_clips(
    paths: Sequence[str | Path], *, fps: float, max_frames: int | None
) -> list[tuple[str, VideoSource]]:
    """Open every clip before the first is decoded, so that a wrong path is found at once.

    Raises
    ------
    VideoError
        If one cannot be opened; the others are closed again.
    """
    opened: list[tuple[str, VideoSource]] = []
    try:
        for name, path in zip(clip_names(paths), paths, strict=True):
            opened.append((name, open_video(path, fps=fps, max_frames=max_frames)))
    except (VideoError, ValueError):
        for _, source in opened:
            source.close()
        raise
    return opened


def open_at_rates(
    paths: Sequence[str | Path],
    rates: Sequence[float],
    *,
    max_frames: int | None,
    files: ExitStack,
) -> dict[float, list[tuple[str, VideoSource]]]:
    """Open every clip once for each frame rate, to be closed by `files` at the latest.

    Returns
    -------
    dict
        Frames per second -> what `open_clips` returns.

    Raises
    ------
    VideoError
        If one cannot be opened.
    """
    opened = {}
    for fps in rates:
        opened[fps] = open_clips(paths, fps=fps, max_frames=max_frames)
        for _, source in opened[fps]:
            files.callback(source.close)
    return opened


def expected_frames(sources: Iterable[tuple[str, VideoSource]]) -> int | None:
    """Return how many frames clips will have together, for a progress bar; None if unknown."""
    counts = [source.expected_frames for _, source in sources]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def encode_clip(
    name: str,
    source: VideoSource,
    model: LoadedModel,
    marker: SaliencyMarker,
    on_frame: Callable[[], None] = lambda: None,
) -> EncodedClip:
    """Encode every frame of a clip densely.

    Parameters
    ----------
    name
        Of the clip.
    source
        Its frames; closed afterwards.
    model
        The tower, without a cacher.
    marker
        Marks what is salient; the tower's own tokens are used if it is the marker's.
    on_frame
        Is called after each frame.

    Returns
    -------
    EncodedClip
        Of a clip that is damaged further on, the frames before the damage, and its `problem`.

    Raises
    ------
    VideoError
        If not even the first frame can be decoded.
    """
    taken = _Taken(model, marker)
    problem = None
    with source, torch.inference_mode(), taken:
        try:
            for frame in source:
                taken.encode(frame)
                on_frame()
        except VideoError as error:
            if not taken.times:
                raise
            problem = str(error)
    return taken.clip(name, problem)


def _capture(model: LoadedModel) -> AttentionCapture | None:
    """Record the last layer but one, as VisionZip takes it; a tower of one layer has only that.

    None if its tokens are pooled or merged before they are pruned, or it cannot be recorded.
    """
    if model.vision is not None:
        return None
    try:
        return capture_attention(model.tower, max(-2, -len(PreNormTower.of(model.tower).blocks)))
    except UnsupportedModelError:
        return None


def _joined(parts: list[Attention]) -> Attention:
    """Put the attention of consecutive frames together."""
    first = parts[0]
    query = torch.cat([part.query for part in parts])
    key = torch.cat([part.key for part in parts])
    return Attention(query, key, first.prefix, first.scale)


class _Taken:
    """The features and masks of the frames so far."""

    def __init__(self, model: LoadedModel, marker: SaliencyMarker) -> None:
        self._model = model
        self._marker = marker
        self._capture = _capture(model)
        self._attentions: list[Attention] = []
        self.times: list[float] = []
        self._features: list[Tensor] = []
        self._pixels: list[Tensor] = []
        self._salient: list[Tensor] = []
        self._pictures: list[bytes] = []

    def __enter__(self) -> _Taken:
        return self

    def __exit__(self, *_: object) -> None:
        if self._capture is not None:
            self._capture.remove()

    def encode(self, frame: VideoFrame) -> None:
        model = self._model
        inputs = model.pixels([frame.image])
        tokens = self._encoded(inputs)
        picture = model.display(inputs)[0]
        pixels = _pixels(picture, model.feature_grid)
        if self._marker.tower is model.tower:
            salient = self._marker.of_tokens(tokens, model.grid, model.feature_grid)
        else:
            salient = self._marker.of_pixels(pixels, model.feature_grid)
        self.times.append(frame.time)
        self._features.append(model.features(tokens))
        self._pixels.append(pixels)
        self._salient.append(salient.to(model.device))
        self._pictures.append(webp(picture, side=_PICTURE_SIDE, quality=75))

    def _encoded(self, inputs: dict[str, Tensor]) -> Tensor:
        """Run the tower, without its attention from where that turns out not to be recordable."""
        if self._capture is not None:
            try:
                tokens = self._model.encode(inputs)
                self._attentions.append(self._capture.take())
                return tokens
            except UnsupportedModelError:
                self._capture = None  # it has taken itself off
        return self._model.encode(inputs)

    def clip(self, name: str, problem: str | None) -> EncodedClip:
        features, pixels = torch.cat(self._features), torch.cat(self._pixels)
        grid = self._model.feature_grid
        attention = _joined(self._attentions) if self._capture is not None else None
        return EncodedClip(
            name=name,
            times=tuple(self.times),
            features=features,
            grid=grid,
            pixels=pixels.to(features.device),
            moved=moved_tokens(pixels, grid).to(features.device),
            salient=torch.cat(self._salient),
            attention=attention,
            pictures=tuple(self._pictures),
            problem=problem,
        )


def _pixels(picture: Image, grid: tuple[int, int]) -> Tensor:
    """Turn a picture into (1, 3, 14 H, 14 W) in [0, 1]."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255.0
    size = (CELL * grid[0], CELL * grid[1])
    return pixels if tuple(pixels.shape[2:]) == size else interpolate(pixels, size, mode="area")
