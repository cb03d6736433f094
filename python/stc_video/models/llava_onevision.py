# SPDX-License-Identifier: Apache-2.0
"""LLaVA-OneVision: its vision encoder, pruned prompts and sessions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stc_video.errors import UnsupportedModelError
from stc_video.models.adapter import SessionAdapter
from stc_video.models.conversation import Conversation
from stc_video.models.pictures import to_pixels, to_times, warn_if_unprepared
from stc_video.models.placeholders import (
    first_of_the_last,
    kept_places,
    video_token,
)
from stc_video.models.preprocess import Preprocessor, default_processor
from stc_video.models.prompt import Encoder, Written
from stc_video.models.prompted import PromptedAdapter
from stc_video.towers.observers import outputs_of
from stc_video.towers.pre_norm import PreNormTower
from stc_video.versions import VIDEO_MODELS_FROM, require_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class VisionEncoder:
    """Runs the parts that turn a tower's output into language-model tokens, one by one.

    `get_video_features` differs from release to release (tensor or object, with or without the
    newline token); its parts have had the same call since the model was added.

    Parameters
    ----------
    model : LlavaOnevisionForConditionalGeneration
        It is read, not changed.

    Attributes
    ----------
    tower : Module
        The vision tower.

    Raises
    ------
    UnsupportedModelError
        If transformers is of a release that is not supported.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        require_transformers(VIDEO_MODELS_FROM, "LLaVA-OneVision")
        inner: Any = model.model
        self.tower: nn.Module = inner.vision_tower
        self._projector: nn.Module = inner.multi_modal_projector
        self._steps = self._in_order(inner)
        self._layers = _layers_of(self.tower, inner.config.vision_feature_layer)
        self._drop_cls: bool = inner.config.vision_feature_select_strategy == "default"

    def to(self, device: torch.device) -> None:
        """Move the tower and the projector."""
        self.tower.to(device)
        self._projector.to(device)

    def tokens(self, inputs: dict[str, Tensor]) -> Tensor:
        """Run the tower.

        Parameters
        ----------
        inputs : dict
            `pixel_values` (F, 3, h, w).

        Returns
        -------
        Tensor
            (F, T, D): the hidden states that the projector takes. T = 729 at 384 px.
        """
        # Asking for hidden states would keep those of every layer on most releases.
        with outputs_of(self._layers) as outputs:
            self.tower(**inputs)
        return torch.cat(outputs, dim=-1) if len(outputs) > 1 else outputs[0]

    def features(self, tokens: Tensor) -> Tensor:
        """Project and pool the tower's tokens.

        Parameters
        ----------
        tokens : Tensor
            (F, T, D) as `tokens` returns them.

        Returns
        -------
        Tensor
            (F, N, E): what enters the language model per frame. N = 196, a grid of 14 x 14, for
            the 27 x 27 tokens of a tower at 384 px.
        """
        if self._drop_cls:
            tokens = tokens[:, 1:]
        for step in self._steps:
            tokens = step(tokens)
        return tokens

    def _in_order(self, inner: Any) -> Sequence[Callable[[Tensor], Tensor]]:
        """What the tower's tokens pass through."""
        return inner.multi_modal_projector, inner.apply_pooling

    def feature_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Return the grid of `features` for a tower with this token grid: half, rounded up."""
        return (grid[0] + 1) // 2, (grid[1] + 1) // 2

    def preprocessor(self, processor: Any | None) -> Preprocessor:
        """Return what prepares frames for the tower, with settings of the model's processor."""
        return frame_preprocessor(self.tower, processor)


class NextVideoEncoder(VisionEncoder):
    """The parts of a LLaVA-NeXT-Video, which pools in front of the projector."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        config: Any = model.config
        self._stride = int(config.spatial_pool_stride)

    def _in_order(self, inner: Any) -> Sequence[Callable[[Tensor], Tensor]]:
        """What the tower's tokens pass through."""
        return inner.vision_resampler, inner.multi_modal_projector

    def feature_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Return the grid of `features` for a tower with this token grid: a part, rounded down."""
        return grid[0] // self._stride, grid[1] // self._stride


class LlavaOnevisionAdapter(PromptedAdapter):
    """Runs a LLaVA-OneVision on prompts without the pruned tokens."""

    allowed_positions = ("repacked", "original")
    encoder: type[VisionEncoder] = VisionEncoder

    def __init__(self, model: PreTrainedModel, positions: str | None) -> None:
        super().__init__(model, positions)
        self.vision = self.encoder(model)
        self.tower = self.vision.tower
        config: Any = self.tower.config
        size = config.image_size // config.patch_size
        self.tower_grid = size, size
        self._grid = self.vision.feature_grid(self.tower_grid)

    def features(self, pixels: Tensor, streams: int) -> Tensor:
        """Run tower, projector and pooling on frames (F, 3, h, w)."""
        return self.vision.features(self.vision.tokens({"pixel_values": pixels}))

    def grid(self, pixels: Tensor | None = None) -> tuple[int, int]:
        """(H, W) of the tokens of a frame, the same for all."""
        return self._grid

    def newline(self) -> Tensor | None:
        """Embedding (D,) of what ends a video."""
        model: Any = self.model
        newline: Tensor = model.model.image_newline
        return newline

    def session_adapter(self, processor: Any) -> SessionAdapter:
        """Prepare for a session with the model's processor or tokenizer."""
        return _LlavaSessionAdapter(self, getattr(processor, "image_processor", None))

    def write_pictures(
        self, arguments: dict[str, Any], written: Written, history: Conversation, encode: Encoder
    ) -> None:
        """Write images, and the kept tokens and the newline of each video."""
        self._write_images(arguments, written)
        self._write_videos(arguments.get("pixel_values_videos"), written, encode)

    def _write_images(self, arguments: dict[str, Any], written: Written) -> None:
        """Write the tokens of images, of which none is pruned."""
        model: Any = self.model
        is_image = written.ids == int(model.config.image_token_id)
        count = int(is_image.sum())
        if arguments.get("pixel_values") is None or (written.past and not count):
            return  # those of earlier turns may be given again
        taken = ("pixel_values", "image_sizes", "batch_num_images")
        given = {name: arguments[name] for name in taken if arguments.get(name) is not None}
        output = model.model.get_image_features(**given)
        features = torch.cat(list(getattr(output, "pooler_output", output)))
        if len(features) != count:
            raise ValueError(
                f"accelerated model: the images need {len(features)} placeholders, got {count}"
            )
        written.embeds[is_image] = features.to(written.embeds)

    def _write_videos(self, pixels: Any, written: Written, encode: Encoder) -> None:
        model: Any = self.model
        is_video = written.ids == video_token(model)
        videos = _videos(pixels)
        per_frame = self._grid[0] * self._grid[1]
        newline = self.newline()
        ending = [] if newline is None else [newline[None]]
        counts = [len(video) * per_frame + len(ending) for video in videos]
        placeholders = int(is_video.sum())
        first = first_of_the_last(counts, placeholders)
        if first is None or (first and not written.past):
            frames = " or ".join(map(str, sorted({len(video) for video in videos}))) or "no"
            raise ValueError(
                f"accelerated model: {len(videos)} videos of {frames} frames need "
                f"{sum(counts)} placeholders ({per_frame} per frame and {len(ending)} per "
                f"video), got {placeholders}"
            )
        stay, features = [], []
        for number, video in enumerate(videos[first:]):
            kept = encode(video, number)
            stay.append(kept_places(kept, per_frame).to(written.ids.device))
            stay.append(is_video.new_ones(len(ending)))
            features += [kept.packed(), *(row.to(kept.tokens) for row in ending)]
        if stay:
            written.keep[is_video] = torch.cat(stay)
            rows = torch.cat(features).to(written.embeds)
            # Each placeholder that stays has one row of features.
            written.embeds[is_video & written.keep] = rows


class LlavaNextVideoAdapter(LlavaOnevisionAdapter):
    """Runs a LLaVA-NeXT-Video on prompts without the pruned tokens."""

    encoder = NextVideoEncoder

    def newline(self) -> None:
        """Nothing ends a video."""
        return


def _videos(pixels: Any) -> list[Tensor]:
    """Videos (F, 3, h, w) of a tensor (V, F, 3, h, w), or of a list of them of any lengths."""
    if pixels is None:
        return []
    videos: list[Tensor] = []
    for video in pixels:
        videos += [video] if video.dim() == 4 else list(video)
    for video in videos:
        if video.dim() != 4 or not len(video):
            raise ValueError(
                "accelerated model: pixel_values_videos must be (V, F, 3, h, w), or a list of "
                f"(F, 3, h, w), got a video of shape {tuple(video.shape)}"
            )
    return videos


class _LlavaSessionAdapter(SessionAdapter):
    """Pictures of the tower's size, positions in one row, a newline behind the video."""

    def __init__(self, adapter: LlavaOnevisionAdapter, images: Any) -> None:
        self._adapter = adapter
        self._is_original = adapter.positions == "original"
        self._preprocessor = frame_preprocessor(adapter.tower, images)
        config: Any = adapter.tower.config
        self._size = int(config.image_size)
        self._has_seen = False

    def prepare(
        self, pictures: Any, timestamps: Sequence[float] | float | None
    ) -> tuple[Tensor | None, list[float | None]]:
        """Make a frame of each picture, (F, 3, S, S)."""
        if not self._has_seen:
            self._has_seen = True
            warn_if_unprepared(pictures, self._size)
        pixels = to_pixels(pictures, self._preprocessor, self._size)
        return pixels, to_times(timestamps, len(pixels))

    def place(self, kept: Tensor, grid: tuple[int, int]) -> tuple[Tensor, int, None]:
        """Place a frame, with one position per token."""
        if self._is_original:
            return kept, grid[0] * grid[1], None
        return torch.arange(len(kept)), len(kept), None

    def ending(self) -> Tensor | None:
        """Embedding of the newline token."""
        return self._adapter.newline()


def frame_preprocessor(tower: nn.Module, processor: Any | None) -> Preprocessor:
    """Return what prepares frames for the tower.

    The processor of the whole model cuts images into tiles; a video frame is one picture.

    Parameters
    ----------
    tower : Module
        The vision tower.
    processor : object, optional
        The model's image or video processor, whose mean, deviation and resampling are taken over.

    Returns
    -------
    Preprocessor
        For frames of any size.
    """
    config: Any = tower.config
    keep = {k: getattr(processor, k, None) for k in ("image_mean", "image_std", "resample")}
    override = {k: v for k, v in keep.items() if v is not None}
    image_processor = default_processor(config.model_type, config.image_size, **override)
    return Preprocessor(image_processor, config.patch_size)


def _layers_of(tower: nn.Module, chosen: int | Sequence[int]) -> list[nn.Module]:
    """Layers whose outputs are the chosen hidden states; 0 would be the input of the first."""
    blocks = PreNormTower.of(tower).blocks
    numbers = [chosen] if isinstance(chosen, int) else list(chosen)
    outputs = [number % (len(blocks) + 1) for number in numbers]
    if 0 in outputs:
        raise UnsupportedModelError(
            "LLaVA-OneVision: vision_feature_layer must name outputs of layers of the tower, "
            f"got {chosen}"
        )
    return [blocks[number - 1].layer for number in outputs]
