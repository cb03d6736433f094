# SPDX-License-Identifier: Apache-2.0
"""InternVL, SmolVLM and Gemma 3: models whose processors hand over frames as pictures.

``pixel_values`` then holds the frames of videos and the tiles of images alike, and one placeholder
stands for both. What tells them apart is their number: two or more pictures of a single tile in a
prompt are the frames of a video, all those of a row of one stream; a picture that is alone, or has
several tiles, is an image, of which nothing is pruned.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stc_video.errors import UnsupportedModelError
from stc_video.models.adapter import SessionAdapter
from stc_video.models.conversation import Conversation
from stc_video.models.pictures import to_pixels, to_times, warn_if_unprepared
from stc_video.models.placeholders import kept_places
from stc_video.models.preprocess import Preprocessor, square_processor, square_side
from stc_video.models.prompt import Encoder, Written
from stc_video.models.prompted import PromptedAdapter
from stc_video.versions import VIDEO_MODELS_FROM, require_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PictureAdapter(PromptedAdapter):
    """Runs a model on prompts without the pruned tokens of frames that came as pictures."""

    allowed_positions = ("repacked", "original")
    #: attribute of the inner model that is the tower
    tower_name = "vision_tower"
    #: what a chat template is given for a video, what it writes there, and the text around that
    content, mark, intro, outro = "video", "<video>", "", ""
    #: mean and deviation of each colour where the processor does not say
    normalisation: tuple[Sequence[float], Sequence[float]]

    def __init__(self, model: PreTrainedModel, positions: str | None) -> None:
        super().__init__(model, positions)
        require_transformers(VIDEO_MODELS_FROM, type(model).__name__)
        self._inner: Any = model.model
        self.tower = getattr(self._inner, self.tower_name)
        config: Any = self.tower.config
        self.side, self._patch = square_side(config.image_size), square_side(config.patch_size)
        rows = self.side // self._patch
        self.tower_grid = rows, rows
        self.tokens = self._tokens(rows * rows)
        side = math.isqrt(self.tokens)
        self._grid = side, side

    def _tokens(self, patches: int) -> int:
        """N: tokens of a picture with so many patches."""
        raise NotImplementedError

    @property
    def placeholder(self) -> int:
        """Id of the placeholder of a picture's token."""
        config: Any = self.model.config
        return int(config.image_token_id)

    def project(self, tokens: Tensor) -> Tensor:
        """Tokens (F, N, D) for the language model from those of the tower, (F, T, C)."""
        raise NotImplementedError

    def features(self, pixels: Tensor, streams: int) -> Tensor:
        """Run tower and projector on frames (F, 3, S, S).

        The model's own function for it would leave out black frames of SmolVLM.
        """
        return self.project(self.tower(pixel_values=pixels).last_hidden_state)

    def grid(self, pixels: Tensor | None = None) -> tuple[int, int]:
        """(H, W) of the tokens of a frame, the same for all."""
        return self._grid

    def has_video(self, arguments: dict[str, Any]) -> bool:
        """Whether a call has pictures that may be frames of a video."""
        return arguments.get("pixel_values") is not None

    def tiles(self, arguments: dict[str, Any]) -> Tensor:
        """All pictures and parts of pictures of a call, (T, 3, S, S), in the order of the text."""
        pixels: Tensor = arguments["pixel_values"]
        return pixels

    def write_pictures(
        self, arguments: dict[str, Any], written: Written, history: Conversation, encode: Encoder
    ) -> None:
        """Write images, and the kept tokens of each row's frames."""
        runs = [_runs(row) for row in (written.ids == self.placeholder).tolist()]
        tiles = self._new_tiles(arguments, runs, bool(written.past))
        at, number = 0, 0
        for row, places in enumerate(runs):
            counts = [(stop - start) // self.tokens for start, stop in places]
            single = [where for where, count in enumerate(counts) if count == 1]
            frames = single if len(single) > 1 else []
            firsts = [at + sum(counts[:where]) for where in range(len(counts))]
            if frames:
                shown = tiles[[firsts[where] for where in frames]]
                chosen = [places[where][0] for where in frames]
                self._write_frames(shown, chosen, row, written, encode, number)
                number += 1
            for where in sorted(set(range(len(counts))) - set(frames)):
                part = tiles[firsts[where] : firsts[where] + counts[where]]
                with self.tower_lock:
                    rows = self.features(part.to(self.model.device, self.model.dtype), 1)
                written.embeds[row, slice(*places[where])] = rows.flatten(0, 1).to(written.embeds)
            at += sum(counts)

    def _write_frames(
        self,
        frames: Tensor,
        starts: list[int],
        row: int,
        written: Written,
        encode: Encoder,
        number: int,
    ) -> None:
        """Write the kept tokens of frames whose placeholders begin at these places of a row."""
        kept = encode(frames.to(self.model.device, self.model.dtype), number)
        within = torch.arange(self.tokens, device=written.ids.device)
        places = (torch.tensor(starts, device=written.ids.device)[:, None] + within).flatten()
        stay = kept_places(kept, self.tokens).to(places.device)
        written.keep[row, places] = stay
        written.embeds[row, places[stay]] = kept.packed().to(written.embeds)

    def _new_tiles(
        self, arguments: dict[str, Any], runs: list[list[tuple[int, int]]], goes_on: bool
    ) -> Tensor:
        """The tiles of new pictures: the last ones, if those of the whole conversation were given.

        Raises
        ------
        ValueError
            If pictures and placeholders do not fit.
        """
        lengths = [stop - start for row in runs for start, stop in row]
        needed, rest = divmod(sum(lengths), self.tokens)
        if arguments.get("pixel_values") is None:
            tiles = torch.empty((0, 3, self.side, self.side))
        else:
            tiles = self.tiles(arguments)
        whole = not rest and not any(length % self.tokens for length in lengths)
        if not whole or len(tiles) < needed or (len(tiles) > needed and not goes_on):
            raise ValueError(
                f"accelerated model: {len(tiles)} pictures and parts of pictures need "
                f"{len(tiles) * self.tokens} placeholders ({self.tokens} each), got {sum(lengths)}"
            )
        return tiles[len(tiles) - needed :]

    def preprocessor(self, processor: Any | None) -> Preprocessor:
        """Return what makes squares of frames, with settings of the model's image processor."""
        made = square_processor(self.side, processor, *self.normalisation)
        return Preprocessor(made, self._patch)

    def session_adapter(self, processor: Any) -> SessionAdapter:
        """Prepare for a session with the model's processor or tokenizer."""
        return _PictureSessionAdapter(self, processor)

    def around(self, number: int, time: float | None) -> tuple[str, str]:
        """Text before and behind frame ``number`` of a stream."""
        raise NotImplementedError


class PictureEncoder:
    """The parts that turn pictures into tokens of the language model, one by one.

    Parameters
    ----------
    adapter
        Of a model.

    Attributes
    ----------
    tower : Module
        The vision tower.
    """

    def __init__(self, adapter: PictureAdapter) -> None:
        self._adapter = adapter
        self.tower = adapter.tower

    def to(self, device: torch.device) -> None:
        """Move the tower and the projector."""
        model: Any = self._adapter.model
        model.model.to(device)

    def tokens(self, inputs: dict[str, Tensor]) -> Tensor:
        """Run the tower on ``pixel_values`` (F, 3, S, S): (F, T, C)."""
        tokens: Tensor = self.tower(**inputs).last_hidden_state
        return tokens

    def features(self, tokens: Tensor) -> Tensor:
        """Project the tower's tokens: (F, N, D)."""
        return self._adapter.project(tokens)

    def feature_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Return the grid of `features`."""
        return self._adapter.grid()

    def preprocessor(self, processor: Any | None) -> Preprocessor:
        """Return what prepares frames for the tower, with settings of the model's processor."""
        return self._adapter.preprocessor(processor)


class InternVLAdapter(PictureAdapter):
    """Runs an InternVL: a picture of 448 x 448 is 256 tokens, a frame begins with its number."""

    normalisation = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    def __init__(self, model: PreTrainedModel, positions: str | None) -> None:
        super().__init__(model, positions)
        config: Any = model.config
        if config.vision_feature_layer != -1:
            raise UnsupportedModelError(
                "accelerate: vision_feature_layer of an InternVL must be -1, the last one, got "
                f"{config.vision_feature_layer}"
            )
        self._prefix = int(config.vision_feature_select_strategy == "default")

    def project(self, tokens: Tensor) -> Tensor:
        """Tokens (F, N, D) for the language model from those of the tower, (F, T, C)."""
        square = tokens[:, self._prefix :].unflatten(1, self.tower_grid)
        ratio = self._inner.config.downsample_ratio
        shuffled = self._inner.pixel_shuffle(square, scale_factor=ratio).flatten(1, 2)
        projected: Tensor = self._inner.multi_modal_projector(shuffled)
        return projected

    def _tokens(self, patches: int) -> int:
        return int(patches * self._inner.config.downsample_ratio**2)

    def around(self, number: int, time: float | None) -> tuple[str, str]:
        """Text before and behind frame ``number`` of a stream."""
        return f"{chr(10) if number else ''}Frame{number + 1}: <img>", "</img>"


class SmolVLMAdapter(PictureAdapter):
    """Runs a SmolVLM: pictures come by prompt, padded with pictures of zeros."""

    language_model_name = "text_model"
    tower_name = "vision_model"
    normalisation = ((0.5,) * 3, (0.5,) * 3)
    outro = "\n\n"

    def _tokens(self, patches: int) -> int:
        return patches // int(self._inner.config.scale_factor) ** 2

    def project(self, tokens: Tensor) -> Tensor:
        """Tokens (F, N, D) for the language model from those of the tower, (F, T, C)."""
        projected: Tensor = self._inner.connector(tokens)
        return projected

    def tiles(self, arguments: dict[str, Any]) -> Tensor:
        """All pictures that are no padding, (T, 3, S, S)."""
        pixels: Tensor = arguments["pixel_values"]
        is_real = (pixels != 0).flatten(2).any(-1)
        masks = arguments.get("pixel_attention_mask")
        if masks is not None and not bool(masks[is_real].all()):
            raise ValueError(
                "accelerated model: pictures must fill their squares, got pixel_attention_mask "
                "with parts of pictures left out; let the processor resize them"
            )
        return pixels[is_real]

    def around(self, number: int, time: float | None) -> tuple[str, str]:
        """Text before and behind frame ``number`` of a stream; its time is at least its number."""
        seconds = int(number if time is None else time)
        said = f"\nFrame from {seconds // 60:02d}:{seconds % 60:02d}:"
        return f"{said}<fake_token_around_image><global-img>", "<fake_token_around_image>"


class Gemma3Adapter(PictureAdapter):
    """Runs a Gemma 3, which reads the tokens of a picture in both directions."""

    normalisation = ((0.5,) * 3, (0.5,) * 3)
    # Its template knows pictures only; newlines in a row are one token.
    content, mark, intro, outro = "image", "<start_of_image>", "\n\n", "\n\n"
    bidirectional = True

    def project(self, tokens: Tensor) -> Tensor:
        """Tokens (F, N, D) for the language model from those of the tower, (F, T, C)."""
        projected: Tensor = self._inner.multi_modal_projector(tokens)
        return projected

    def _tokens(self, patches: int) -> int:
        return int(self._inner.config.mm_tokens_per_image)

    def kinds(self, ids: Tensor) -> dict[str, Any]:
        """Arguments of the model that tell of each token of a prompt (B, L) what it is."""
        return {"token_type_ids": (ids == self.placeholder).long()}

    def write_pictures(
        self, arguments: dict[str, Any], written: Written, history: Conversation, encode: Encoder
    ) -> None:
        """Write images, and the kept tokens of each row's frames."""
        from transformers.models.gemma3 import modeling_gemma3

        in_turns = hasattr(modeling_gemma3, "get_block_sequence_ids_for_mask")
        if written.past and not in_turns and (written.ids == self.placeholder).any():
            raise UnsupportedModelError(
                "accelerated model: a Gemma 3 of this release of transformers reads pictures in "
                "both directions only in the first turn; give the whole conversation without cache"
            )
        super().write_pictures(arguments, written, history, encode)

    def session_adapter(self, processor: Any) -> SessionAdapter:
        """Prepare for a session, in which the tokens of each frame see each other.

        Raises
        ------
        UnsupportedModelError
            If a frame is more than a layer sees: releases of transformers differ in what it sees.
        """
        window = self._inner.config.get_text_config().sliding_window
        if self.tokens > window:
            raise UnsupportedModelError(
                f"StreamingSession: a picture of Gemma 3 must fit into the {window} tokens that "
                f"its layers see (sliding_window), got one of {self.tokens}"
            )
        return super().session_adapter(processor)

    def around(self, number: int, time: float | None) -> tuple[str, str]:
        """Text before and behind frame ``number`` of a stream: an empty line for each of two."""
        return f"{self.intro + self.outro if number else ''}{self.mark}", "<end_of_image>"


class _PictureSessionAdapter(SessionAdapter):
    """Pictures of the tower's size, each behind its number or time, positions in one row."""

    def __init__(self, adapter: PictureAdapter, processor: Any) -> None:
        self._adapter = adapter
        self._is_original = adapter.positions == "original"
        self._tokenizer: Any = getattr(processor, "tokenizer", processor)
        self._preprocessor = adapter.preprocessor(getattr(processor, "image_processor", None))
        self.content, self.intro, self.outro = adapter.content, adapter.intro, adapter.outro
        self._number, self._has_seen = 0, False

    def mark(self, tokenizer: Any, placeholder: int) -> str:
        """Return the text that a chat template writes for a whole video."""
        return self._adapter.mark

    def prepare(
        self, pictures: Any, timestamps: Sequence[float] | float | None
    ) -> tuple[Tensor | None, list[float | None]]:
        """Make a frame of each picture, (F, 3, S, S)."""
        size = self._adapter.side
        if not self._has_seen:
            self._has_seen = True
            warn_if_unprepared(pictures, size)
        pixels = to_pixels(pictures, self._preprocessor, size)
        return pixels, to_times(timestamps, len(pixels))

    def frame_text(self, time: float | None) -> tuple[list[int], list[int]]:
        """Ids of the text before and behind the tokens of the next frame."""
        before, after = (
            self._tokenizer(text, add_special_tokens=False).input_ids
            for text in self._adapter.around(self._number, time)
        )
        return before, after

    def place(self, kept: Tensor, grid: tuple[int, int]) -> tuple[Tensor, int, None]:
        """Place a frame, with one position per token."""
        self._number += 1
        if self._is_original:
            return kept, grid[0] * grid[1], None
        return torch.arange(len(kept)), len(kept), None

    def state(self) -> Any:
        """How many frames there were."""
        return {"number": self._number}

    def restore(self, state: Any) -> None:
        """Go on with a saved stream, or begin one."""
        self._number = 0 if state is None else state["number"]


def _runs(marks: list[bool]) -> list[tuple[int, int]]:
    """Start and stop of each run of placeholders in a row."""
    runs, at = [], 0
    for is_picture, group in itertools.groupby(marks):
        count = sum(1 for _ in group)
        if is_picture:
            runs.append((at, at + count))
        at += count
    return runs
