# SPDX-License-Identifier: Apache-2.0
"""Frames are prepared as by the image processor, to the last bit, or by the processor itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from transformers import BatchFeature

import stc_kernels
from stc_video.models.exact_resize import ExactResize
from stc_video.models.preprocess import Preprocessor, default_processor, patch_processor

if "native" not in stc_kernels.available_backends("frames_to_patches"):
    pytest.skip("the compiled library is not there", allow_module_level=True)


def frames(count: int, height: int, width: int) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return list(rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def by_processor(processor, pictures, **settings) -> torch.Tensor:
    return processor(
        images=pictures, return_tensors="pt", input_data_format="channels_last", **settings
    )["pixel_values"]


@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize("shape", [(90, 160), (32, 40), (20, 30), (1, 9), (64, 64)])
def test_the_pixels_are_those_of_the_processor(shape, resample):
    processor = default_processor("siglip_vision_model", 64, resample=resample)
    pictures = frames(3, *shape)
    got = ExactResize()(processor, pictures)
    assert torch.equal(got, by_processor(processor, pictures))
    assert torch.equal(Preprocessor(processor, 16)(pictures)["pixel_values"], got)


def test_pictures_may_lie_in_memory_in_any_way():
    processor = default_processor("siglip_vision_model", 64)
    (picture,) = frames(1, 90, 160)
    locked = picture.copy()
    locked.flags.writeable = False
    pictures = [
        locked,
        picture[::-1],
        picture[..., ::-1],
        picture.swapaxes(0, 1).copy().swapaxes(0, 1),
    ]
    got = ExactResize()(processor, pictures)
    assert torch.equal(got, by_processor(processor, pictures))


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_fitted_pictures_of_a_processor_that_crops(fit):
    processor = default_processor("clip_vision_model", 48)
    pictures = frames(2, 60, 90)
    prepared = Preprocessor(processor, 16, fit)
    got = prepared(pictures)["pixel_values"]
    images, settings = prepared._fitted(pictures)
    assert torch.equal(got, by_processor(processor, images, **settings))
    assert torch.equal(got, ExactResize()(processor, images, **settings))


@pytest.mark.parametrize("model", ["clip_vision_model", "dinov2"])
@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize("shape", [(90, 160), (161, 90), (57, 31), (48, 48), (20, 33), (1, 9)])
def test_the_middle_of_a_picture_is_cut_out_as_by_the_processor(model, resample, shape):
    processor = default_processor(model, 47, resample=resample)
    processor.size["shortest_edge"] = 52
    pictures = frames(2, *shape)
    got = ExactResize()(processor, pictures)
    assert got.shape == (2, 3, 47, 47)
    assert torch.equal(got, by_processor(processor, pictures))


def test_a_crop_of_more_than_the_picture_is_left_to_the_processor():
    processor = default_processor("clip_vision_model", 48)
    processor.crop_size = {"height": 48, "width": 90}
    assert ExactResize()(processor, frames(1, 60, 90)) is None
    processor.crop_size = {"height": 48, "width": 72}
    assert ExactResize()(processor, frames(1, 60, 90)) is not None


def test_a_processor_that_does_something_else_is_found_out():
    """Its settings say bicubic and 64 x 64, but what it makes is another picture."""
    honest = default_processor("siglip_vision_model", 64)

    class Sharpening(type(honest)):
        def __call__(self, images, **settings):
            return super().__call__([255 - image for image in images], **settings)

    processor = Sharpening(**honest.to_dict())
    pictures = frames(1, 90, 160)
    assert ExactResize()(honest, pictures) is not None
    assert ExactResize()(processor, pictures) is None
    got = Preprocessor(processor, 16)(pictures)["pixel_values"]
    assert torch.equal(got, by_processor(processor, pictures))


def test_changed_settings_are_followed():
    processor = default_processor("siglip_vision_model", 64)
    prepared = Preprocessor(processor, 16)
    pictures = frames(1, 90, 160)
    prepared(pictures)
    processor.image_mean = [0.1, 0.2, 0.3]
    got = prepared(pictures)["pixel_values"]
    assert torch.equal(got, by_processor(processor, pictures))


@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize("shape", [(90, 160), (32, 40), (20, 30), (1, 9), (64, 64)])
def test_the_pixels_are_those_of_a_fast_processor(shape, resample):
    """One that resizes bytes by torch, and puts the scale into mean and std."""
    slow = default_processor("siglip_vision_model", 64, resample=resample)

    class Fast(type(slow)):
        def __call__(self, images, **settings):
            planes = torch.stack([torch.from_numpy(image) for image in images]).permute(0, 3, 1, 2)
            mode = {2: "bilinear", 3: "bicubic"}[self.resample]
            resized = F.interpolate(planes, (64, 64), mode=mode, antialias=True).float()
            mean, std = (
                torch.tensor(given)[:, None, None] * (1 / self.rescale_factor)
                for given in (self.image_mean, self.image_std)
            )
            return BatchFeature({"pixel_values": resized.sub(mean).div(std)})

    processor = Fast(**slow.to_dict())
    pictures = frames(2, *shape)
    got = ExactResize()(processor, pictures)
    assert torch.equal(got, by_processor(processor, pictures))


@pytest.mark.parametrize("name", ["SiglipImageProcessor", "CLIPImageProcessor"])
@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize("shape", [(90, 160), (57, 31), (48, 48), (1, 9)])
def test_the_pixels_are_those_of_processors_based_on_torchvision(name, resample, shape):
    pytest.importorskip("torchvision")
    named_so = not hasattr(transformers, f"{name}Pil")  # before 5
    processor = getattr(transformers, name + "Fast" * named_so)(resample=resample)
    pictures = frames(2, *shape)
    got = ExactResize()(processor, pictures)
    assert torch.equal(got, by_processor(processor, pictures))


@pytest.mark.skipif(
    not hasattr(transformers, "Siglip2ImageProcessor"), reason="this release has no SigLIP2"
)
def test_rows_of_patches_are_left_to_their_processor():
    assert ExactResize()(patch_processor(16, 64), frames(1, 90, 160)) is None
