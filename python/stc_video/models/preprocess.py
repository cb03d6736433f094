# SPDX-License-Identifier: Apache-2.0
"""Preprocessing of frames for a tower, and the way back to the picture that it saw."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stc_video.errors import UnsupportedModelError
from stc_video.models.exact_resize import ExactResize, side_of

if TYPE_CHECKING:
    from PIL.Image import Image

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_BICUBIC = 3
_BILINEAR = 2


@dataclass(frozen=True, eq=False)
class Preprocessor:
    """Turns frames into the inputs of a tower by a Hugging Face image processor.

    Attributes
    ----------
    processor : object
        The image processor (PIL or NumPy based, no torchvision).
    patch_size : int
        Height and width of a token in pixels of the model's input.
    fit : str or None
        How a picture of another shape gets into the model's: "crop" takes the middle, "pad" puts
        the whole on a ground of the processor's mean colour, "stretch" bends the whole. None is
        the processor's own way, with which the model was trained.
    """

    processor: Any
    patch_size: int
    fit: str | None = None
    _exact_resize: ExactResize = field(default_factory=ExactResize, init=False, repr=False)

    def __call__(self, frames: Sequence[npt.NDArray[np.uint8]]) -> dict[str, Tensor]:
        """Prepare frames.

        Parameters
        ----------
        frames : sequence of ndarray
            (H, W, 3) uint8 RGB, all of one size.

        Returns
        -------
        dict
            Keyword arguments of the tower, float32 on the CPU: `pixel_values` (F, 3, h, w), or for
            towers with a variable number of patches `pixel_values` (F, P, 3 * patch * patch) with
            `pixel_attention_mask` and `spatial_shapes`, without padding.
        """
        images = list(frames)
        settings: dict[str, Any] = {}
        if self.fit is not None:
            images, settings = self._fitted(images)
        exact = self._exact_resize(self.processor, images, **settings)
        if exact is not None:
            return {"pixel_values": exact}
        # Without the format a frame three pixels high would be taken for channels-first.
        out = self.processor(
            images=images, return_tensors="pt", input_data_format="channels_last", **settings
        )
        pixels: Tensor = out["pixel_values"]
        if "spatial_shapes" not in out:
            return {"pixel_values": pixels}
        # All frames of a video have one shape, so the padding is the same tail in each: cut it.
        shapes: Tensor = out["spatial_shapes"]
        tokens = int(shapes[0].prod())
        return {
            "pixel_values": pixels[:, :tokens],
            "pixel_attention_mask": out["pixel_attention_mask"][:, :tokens],
            "spatial_shapes": shapes,
        }

    def with_fit(self, fit: str | None) -> Preprocessor:
        """Return the same with another `fit`.

        Raises
        ------
        ValueError
            If the model takes pictures of every shape.
        """
        if fit is not None and self._shape() is None:
            raise ValueError(
                f"--fit {fit}: this model takes whole pictures of any shape; leave --fit out"
            )
        return replace(self, fit=fit)

    def seen(self, height: int, width: int) -> tuple[float, float]:
        """Return rows and columns of a picture's pixels that the model gets to see."""
        shape = self._shape()
        if shape is None or self.fit in ("pad", "stretch"):
            return height, width
        if not self._crops():
            side = min(height / shape[0], width / shape[1])
            return (side * shape[0], side * shape[1]) if self.fit == "crop" else (height, width)
        edge = side_of(self.processor.size, "shortest_edge")
        scale = (edge / min(height, width),) * 2 if edge else (
            side_of(self.processor.size, "height") / height,
            side_of(self.processor.size, "width") / width,
        )  # fmt: skip
        return min(height, shape[0] / scale[0]), min(width, shape[1] / scale[1])

    def _crops(self) -> bool:
        return bool(getattr(self.processor, "do_center_crop", False))

    def _shape(self) -> tuple[int, int] | None:
        """Height and width of the model's pictures, None if they are those of the frames."""
        size = self.processor.crop_size if self._crops() else getattr(self.processor, "size", None)
        height, width = side_of(size, "height"), side_of(size, "width")
        return (height, width) if height and width else None

    def _fitted(
        self, frames: list[npt.NDArray[np.uint8]]
    ) -> tuple[list[npt.NDArray[np.uint8]], dict[str, Any]]:
        """Give frames the shape of the model's pictures, and the settings to only resize them."""
        shape = self._shape()
        assert shape is not None
        if self.fit == "crop" and self._crops():
            return frames, {}
        if self.fit == "crop":
            frames = [_middle(frame, shape) for frame in frames]
        elif self.fit == "pad":
            mean = np.asarray(self.processor.image_mean) * 255
            frames = [_padded(frame, shape, mean.round().astype(np.uint8)) for frame in frames]
        size = {"height": shape[0], "width": shape[1]}
        return frames, {"size": size, "do_center_crop": False} if self._crops() else {}

    def grid(self, inputs: dict[str, Tensor]) -> tuple[int, int]:
        """Return rows and columns of the patch tokens for such inputs."""
        if "spatial_shapes" in inputs:
            rows, columns = inputs["spatial_shapes"][0].tolist()
            return int(rows), int(columns)
        height, width = inputs["pixel_values"].shape[-2:]
        return height // self.patch_size, width // self.patch_size

    def pictures(self, inputs: dict[str, Tensor]) -> list[Image]:
        """Turn prepared frames back into pictures: exactly the part that the model saw.

        Parameters
        ----------
        inputs : dict
            What calling this object returned, on any device and in any dtype.

        Returns
        -------
        list of PIL.Image.Image
            One per frame; the token grid covers each from edge to edge.
        """
        from PIL import Image

        pixels = self.shown(inputs)
        mean = torch.tensor(self.processor.image_mean).view(3, 1, 1)
        std = torch.tensor(self.processor.image_std).view(3, 1, 1)
        colours = ((pixels * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        return [Image.fromarray(c.permute(1, 2, 0).numpy()) for c in colours]

    def shown(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the pictures (F, 3, rows * patch, columns * patch), still normalised."""
        rows, columns = self.grid(inputs)
        side = self.patch_size
        pixels = inputs["pixel_values"].detach().float().cpu()
        if "spatial_shapes" in inputs:
            patches = pixels.reshape(-1, rows, columns, side, side, 3)
            pixels = patches.permute(0, 5, 1, 3, 2, 4).reshape(-1, 3, rows * side, columns * side)
        # A picture whose sides are no multiple of the patch loses its rim in the tower too.
        return pixels[..., : rows * side, : columns * side]


def square_side(size: int | Sequence[int]) -> int:
    """A side of a square that some configurations describe by two."""
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise UnsupportedModelError(f"pictures must be squares, got {height} x {width}")
    return height


def _middle(frame: npt.NDArray[np.uint8], shape: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Cut the largest part of a shape out of the middle."""
    side = min(frame.shape[0] / shape[0], frame.shape[1] / shape[1])
    rows, columns = max(1, round(side * shape[0])), max(1, round(side * shape[1]))
    top, left = (frame.shape[0] - rows) // 2, (frame.shape[1] - columns) // 2
    return frame[top : top + rows, left : left + columns]


def _padded(
    frame: npt.NDArray[np.uint8], shape: tuple[int, int], colour: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    """Put a frame into the middle of the smallest ground of a shape that holds it."""
    side = max(frame.shape[0] / shape[0], frame.shape[1] / shape[1])
    rows, columns = round(side * shape[0]), round(side * shape[1])
    ground = np.empty((rows, columns, 3), np.uint8)
    ground[:] = colour
    top, left = (rows - frame.shape[0]) // 2, (columns - frame.shape[1]) // 2
    ground[top : top + frame.shape[0], left : left + frame.shape[1]] = frame
    return ground


def _processors_have_backends() -> bool:
    """Whether processors without torchvision have names of their own (transformers after 5.0)."""
    import transformers

    return hasattr(transformers, "SiglipImageProcessorPil")


def load_processor(folder: str | Path) -> Any | None:
    """Load the image processor that belongs to a model.

    Parameters
    ----------
    folder : str or Path
        A folder or an id on the Hugging Face hub.

    Returns
    -------
    object or None
        None if the model comes without one.
    """
    import transformers

    auto: Any = transformers.AutoImageProcessor  # has no types
    # The same switch under two names: processors that need no torchvision.
    choice = {"backend": "pil"} if _processors_have_backends() else {"use_fast": False}
    try:
        return auto.from_pretrained(folder, **choice)
    except (OSError, ValueError) as error:
        # transformers has no exception of its own for "there is none".
        missing = ("preprocessor_config.json", "Unrecognized image processor", "image processor")
        if any(text in str(error) for text in missing):
            logging.getLogger(__name__).info("%s has no image processor: %s", folder, error)
            return None
        raise


def default_processor(model_type: str, image_size: int, **override: Any) -> Any:
    """Build the image processor with which models of this type were trained.

    Parameters
    ----------
    model_type : str
        Of the vision tower: "siglip_vision_model", "clip_vision_model", "dinov2" and so on.
    image_size : int
        Height and width of the tower's input in pixels.
    **override
        Settings to replace, such as `image_mean`.

    Returns
    -------
    object
        An image processor.
    """
    if model_type.startswith("siglip"):
        mean, std = _HALF
        settings: dict[str, Any] = {
            "size": {"height": image_size, "width": image_size},
            "resample": _BICUBIC,
        }
        make = processor_class("SiglipImageProcessor")
    else:
        clip = model_type.startswith("clip")
        mean, std = _CLIP if clip else _IMAGENET
        settings = {
            "size": {"shortest_edge": image_size},
            "crop_size": {"height": image_size, "width": image_size},
            "resample": _BICUBIC,
        }
        make = processor_class("CLIPImageProcessor" if clip else "BitImageProcessor")
    settings.update(image_mean=list(mean), image_std=list(std), do_convert_rgb=False)
    settings.update(override)
    return make(**settings)


def square_processor(
    size: int, processor: Any | None, mean: Sequence[float], std: Sequence[float]
) -> Any:
    """Build an image processor that makes squares of whole pictures, as for frames of a video.

    Mean, deviation and resampling are those of the model's own processor, if there is one.
    """
    keep = {k: getattr(processor, k, None) for k in ("image_mean", "image_std", "resample")}
    settings = {"image_mean": list(mean), "image_std": list(std)}
    settings |= {k: v for k, v in keep.items() if v is not None}
    return default_processor("siglip", size, **settings)


def patch_processor(patch_size: int, max_num_patches: int) -> Any:
    """Build the image processor of towers with a variable number of patches (SigLIP2 NaFlex)."""
    make = processor_class("Siglip2ImageProcessor")
    mean, std = _HALF
    return make(
        patch_size=patch_size,
        max_num_patches=max_num_patches,
        resample=_BILINEAR,
        image_mean=list(mean),
        image_std=list(std),
        do_convert_rgb=False,
    )


def processor_class(name: str) -> Callable[..., Any]:
    """Return the class that needs no torchvision, under the name that this release gives it."""
    import transformers

    found: Callable[..., Any] = getattr(
        transformers, name + "Pil" if _processors_have_backends() else name
    )
    return found
