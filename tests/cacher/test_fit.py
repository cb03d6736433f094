# SPDX-License-Identifier: Apache-2.0
"""How a picture gets into the shape of the model's: cropped, padded, stretched, or as trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stc_video.models.preprocess import Preprocessor, default_processor, patch_processor

SIDE, PATCH = 56, 14


def preprocessor(kind: str) -> Preprocessor:
    if kind == "dinov2 that crops a rim":
        size = {"shortest_edge": 64}
        return Preprocessor(default_processor("dinov2", SIDE, size=size), PATCH)
    return Preprocessor(default_processor(kind, SIDE), PATCH)


KINDS = ["siglip_vision_model", "clip_vision_model", "dinov2", "dinov2 that crops a rim"]


def wide() -> np.ndarray:
    """Red edge, grey, blue edge; twice as wide as high."""
    image = np.full((64, 128, 3), 128, np.uint8)
    image[:, :24], image[:, -24:] = (250, 0, 0), (0, 0, 250)
    return image


def shown(prepare: Preprocessor, frame: np.ndarray) -> np.ndarray:
    inputs = prepare([frame])
    assert inputs["pixel_values"].shape == (1, 3, SIDE, SIDE)
    return np.asarray(prepare.pictures(inputs)[0]).astype(int)


def is_red(colour: np.ndarray) -> bool:
    return bool(colour[0] > 220 and colour[2] < 40)


@pytest.mark.parametrize("kind", KINDS)
def test_stretched_and_padded_it_is_the_whole_picture(kind: str) -> None:
    middle = SIDE // 2
    stretched = shown(preprocessor(kind).with_fit("stretch"), wide())
    assert is_red(stretched[2, 2])
    assert is_red(stretched[-3, 8])
    assert is_red(stretched[middle, -3][::-1])  # blue
    made = preprocessor(kind)
    padded = shown(made.with_fit("pad"), wide())
    assert is_red(padded[middle, 2])
    assert is_red(padded[middle, -3][::-1])
    mean = np.asarray(made.processor.image_mean) * 255
    assert np.abs(padded[2] - mean).max() < 3  # above the picture
    assert np.abs(padded[-3] - mean).max() < 3
    for fit in ("pad", "stretch"):
        assert made.with_fit(fit).seen(64, 128) == (64, 128)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("turned", [False, True])
def test_cropped_it_is_the_middle(kind: str, turned: bool) -> None:
    frame = wide().swapaxes(0, 1) if turned else wide()
    picture = shown(preprocessor(kind).with_fit("crop"), frame)
    assert np.abs(picture[:, SIDE // 2] - 128).max() < 12
    assert np.abs(picture[SIDE // 2] - 128).max() < 12
    rows, columns = preprocessor(kind).with_fit("crop").seen(*frame.shape[:2])
    side = 56 if kind.endswith("rim") else 64
    assert (rows, columns) == pytest.approx((side, side))


@pytest.mark.parametrize("kind", KINDS)
def test_left_alone_it_is_what_the_processor_does(kind: str) -> None:
    made = preprocessor(kind)
    expected = made.processor(images=[wide()], return_tensors="pt")["pixel_values"]
    assert torch.equal(made([wide()])["pixel_values"], expected)
    if kind == "siglip_vision_model":
        assert made.seen(64, 128) == (64, 128)
    else:
        assert torch.equal(made.with_fit("crop")([wide()])["pixel_values"], expected)
        assert made.seen(64, 128) == made.with_fit("crop").seen(64, 128)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_a_picture_of_the_models_shape_is_only_resized(fit: str) -> None:
    square = wide()[:, 32:96]
    for kind in KINDS[:3]:
        picture = shown(preprocessor(kind).with_fit(fit), square)
        assert np.array_equal(picture, shown(preprocessor(kind), square))


def test_a_model_for_pictures_of_every_shape_has_nothing_to_fit() -> None:
    pytest.importorskip("transformers.models.siglip2")
    made = Preprocessor(patch_processor(16, 64), 16)
    assert made.seen(64, 128) == (64, 128)
    assert made.with_fit(None).fit is None
    with pytest.raises(ValueError, match="--fit pad: this model takes whole pictures of any shape"):
        made.with_fit("pad")
