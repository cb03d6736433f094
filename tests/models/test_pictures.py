# SPDX-License-Identifier: Apache-2.0
"""Pictures and timestamps of every type: right, or refused in one sentence."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from stc_video.models.pictures import pictures_of, to_times

HEIGHT, WIDTH = 24, 40
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
GREY = (COLUMNS * 255 // (WIDTH - 1)).astype(np.uint8)
RGB = np.stack([GREY, ROWS * 255 // (HEIGHT - 1), 255 - GREY], -1).astype(np.uint8)
ALPHA = np.where(COLUMNS < 20, 255, 100).astype(np.uint8)
GREY_RGB = np.repeat(GREY[..., None], 3, 2)
DEEP = GREY.astype(np.uint16) * 257


def check(frame: object, expected: np.ndarray, most: int = 0) -> None:
    [picture] = pictures_of(frame)
    assert picture.dtype == np.uint8
    assert picture.shape == expected.shape
    assert np.abs(picture.astype(int) - expected.astype(int)).max() <= most


# -- PIL -------------------------------------------------------------------------------------


def of_16_bits(kind: str) -> Image.Image:
    return Image.frombytes(kind, (WIDTH, HEIGHT), DEEP.astype("<u2" if kind != "I;16B" else ">u2"))


def transparent_palette() -> Image.Image:
    image = Image.fromarray(RGB).quantize(16)
    image.info["transparency"] = 3
    return image


PIL_KINDS: dict[str, tuple[Callable[[], Image.Image], np.ndarray, int]] = {
    "L": (lambda: Image.fromarray(GREY), GREY_RGB, 0),
    "LA": (lambda: Image.merge("LA", [Image.fromarray(a) for a in (GREY, ALPHA)]), GREY_RGB, 0),
    "La": (lambda: PIL_KINDS["LA"][0]().convert("La"), GREY_RGB, 3),
    "1": (lambda: Image.fromarray(GREY > 127), np.where(GREY_RGB > 127, 255, 0), 0),
    "I;16": (lambda: of_16_bits("I;16"), GREY_RGB, 0),
    "I;16B": (lambda: of_16_bits("I;16B"), GREY_RGB, 0),
    "F": (lambda: Image.fromarray((GREY / 255).astype(np.float32)), GREY_RGB, 0),
    "RGB": (lambda: Image.fromarray(RGB), RGB, 0),
    "RGBA": (lambda: Image.fromarray(np.dstack([RGB, ALPHA])), RGB, 0),
    "RGBa": (lambda: Image.fromarray(np.dstack([RGB, ALPHA])).convert("RGBa"), RGB, 3),
    "RGBX": (lambda: Image.fromarray(RGB).convert("RGBX"), RGB, 0),
    "CMYK": (lambda: Image.fromarray(RGB).convert("CMYK"), RGB, 1),
    "YCbCr": (lambda: Image.fromarray(RGB).convert("YCbCr"), RGB, 3),
    "HSV": (lambda: Image.fromarray(RGB).convert("HSV"), RGB, 8),
    "LAB": (lambda: Image.fromarray(RGB).convert("LAB"), RGB, 40),
    "P": (lambda: Image.fromarray(GREY).convert("P"), GREY_RGB, 0),
    "P with transparency": (
        transparent_palette, np.asarray(Image.fromarray(RGB).quantize(16).convert("RGB")), 0
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", PIL_KINDS)
def test_every_mode_of_pil(kind: str) -> None:
    make, expected, most = PIL_KINDS[kind]
    image = make()
    assert image.mode == kind.split()[0]
    check(image, expected, most)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.fromarray(GREY.astype(np.int32) * 257), "mode I has 32-bit values of an unknown"),
        (Image.fromarray(GREY.astype(np.float32)), "between 0 and 1, got 0 to 255; divide by 255"),
        (Image.new("RGB", (0, 4)), r"at least one pixel .* got shape \(4, 0, 3\)"),
    ],
)
def test_a_mode_that_says_too_little_is_refused(image: Image.Image, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pictures_of(image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_phones_picture_is_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "PNG", exif=exif)
    turned = [RGB, RGB[:, ::-1], RGB[::-1, ::-1], RGB[::-1], RGB.swapaxes(0, 1),
              np.rot90(RGB, 3), RGB[::-1, ::-1].swapaxes(0, 1), np.rot90(RGB)]  # fmt: skip
    check(Image.open(file), turned[orientation - 1])


# -- PyAV ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["rgb24", "bgr24", "rgba", "argb", "gbrp", "gbrp10le", "rgb48be", "rgba64le", "gbrpf32le",
     "yuv444p", "yuvj444p", "yuv444p12le", "yuva444p", "yuv422p10le", "nv12", "p010le"],
)  # fmt: skip
def test_frames_of_pyav(name: str) -> None:
    smooth = np.repeat(np.repeat(RGB, 4, 0), 4, 1)
    frame = av.VideoFrame.from_ndarray(smooth, format="rgb24").reformat(format=name)
    [picture] = pictures_of(frame)
    error = np.abs(picture.astype(int) - smooth.astype(int))
    assert error.mean() < 4


@pytest.mark.parametrize("name", ["gray", "gray10le", "gray12le", "gray16le", "gray16be"])
def test_grey_frames_of_pyav(name: str) -> None:
    frame = av.VideoFrame.from_ndarray(GREY, format="gray").reformat(format=name)
    check(frame, GREY_RGB, 3)


@pytest.mark.parametrize("name", ["gray32le", "rgb565be"])
def test_a_pixel_format_that_ffmpeg_cannot_turn_into_rgb(name: str) -> None:
    if name not in av.video.format.names:
        pytest.skip(f"this FFmpeg has no {name}")
    with pytest.raises(ValueError, match=f"pixel format {name} cannot be shown"):
        pictures_of(av.VideoFrame(8, 8, name))


def test_sound_is_no_picture() -> None:
    sound = av.AudioFrame(format="s16", layout="mono", samples=8)
    with pytest.raises(TypeError, match="a PyAV frame must be of video, got AudioFrame"):
        pictures_of(sound)


# -- arrays and tensors ----------------------------------------------------------------------

CHW = RGB.transpose(2, 0, 1)
ARRAYS: dict[str, tuple[np.ndarray, np.ndarray]] = {
    "HWC": (RGB, RGB),
    "CHW": (CHW, RGB),
    "HW": (GREY, GREY_RGB),
    "HW1": (GREY[..., None], GREY_RGB),
    "1HW": (GREY[None], GREY_RGB),
    "HW4": (np.dstack([RGB, ALPHA]), RGB),
    "4HW": (np.dstack([RGB, ALPHA]).transpose(2, 0, 1), RGB),
    "uint16": (RGB.astype(np.uint16) * 257, RGB),
    "big-endian uint16": ((RGB.astype(np.uint16) * 257).astype(">u2"), RGB),
    "bool": (GREY > 127, np.where(GREY_RGB > 127, 255, 0)),
    "float16": ((RGB / 255).astype(np.float16), RGB),
    "float32": ((RGB / 255).astype(np.float32), RGB),
    "float64": (RGB / 255, RGB),
    "big-endian float32": ((RGB / 255).astype(">f4"), RGB),
    "not contiguous": (np.repeat(np.repeat(RGB, 2, 0), 3, 1)[::2, ::3], RGB),
    "mirrored view": (np.ascontiguousarray(RGB[:, ::-1])[:, ::-1], RGB),
    "Fortran order": (np.asfortranarray(RGB), RGB),
    "read-only": (np.frombuffer(RGB.tobytes(), np.uint8).reshape(RGB.shape), RGB),
    "one pixel": (RGB[:1, :1], RGB[:1, :1]),
    "three rows": (RGB[:3], RGB[:3]),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays(kind: str) -> None:
    check(*ARRAYS[kind])
    array, expected = ARRAYS[kind]
    if array.ndim == 3:
        assert [p.shape for p in pictures_of(np.stack([array] * 2))] == [expected.shape] * 2


TENSORS: dict[str, tuple[torch.Tensor, np.ndarray]] = {
    "CHW": (torch.from_numpy(CHW.copy()), RGB),
    "HWC": (torch.from_numpy(RGB), RGB),
    "HW": (torch.from_numpy(GREY), GREY_RGB),
    "not contiguous": (torch.from_numpy(RGB).movedim(-1, 0), RGB),
    "uint16": (torch.from_numpy(DEEP), GREY_RGB),
    "bool": (torch.from_numpy(GREY > 127), np.where(GREY_RGB > 127, 255, 0)),
    "float32": (torch.from_numpy(CHW / 255).float(), RGB),
    "float64": (torch.from_numpy(CHW / 255), RGB),
    "with a gradient": (torch.from_numpy(CHW / 255).requires_grad_(), RGB),
    "three columns": (torch.from_numpy(CHW[:, :, :3].copy()), RGB[:, :3]),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors(kind: str) -> None:
    check(*TENSORS[kind])


def test_half_precision_keeps_what_it_can() -> None:
    for dtype, most in ((torch.float16, 0), (torch.bfloat16, 1)):
        check(torch.from_numpy(CHW / 255).to(dtype), RGB, most)


@pytest.mark.parametrize(
    ("frame", "error", "message"),
    [
        (RGB.astype(np.int32), TypeError, "uint8, uint16, bool, or float .* got int32"),
        (RGB.astype(np.int8), TypeError, "got int8"),
        (RGB.astype(np.uint32), TypeError, "got uint32"),
        (RGB.astype(complex), TypeError, "got complex128"),
        (RGB.astype(object), TypeError, "got object"),
        (torch.from_numpy(CHW.astype(np.int64)), TypeError, "got int64"),
        (RGB.astype(np.float32), ValueError, "between 0 and 1, got 0 to 255; divide by 255"),
        (RGB / 255 - 0.5, ValueError, "between 0 and 1, got -0.5 to 0.5"),
        (np.full((4, 4, 3), np.nan), ValueError, "between 0 and 1, got nan to nan"),
        (np.where(RGB == 7, np.nan, 0.5), ValueError, "between 0 and 1, got nan to nan"),
        (np.full((4, 4, 3), np.inf), ValueError, "got inf to inf"),
        (RGB[:0], ValueError, r"at least one pixel .* got shape \(0, 40, 3\)"),
        (RGB[..., :2], ValueError, r"C of 1, 3 or 4.* got shape \(24, 40, 2\)"),
        (np.zeros((8, 24, 40), np.uint8), ValueError, r"got shape \(8, 24, 40\)"),
        (np.zeros((2, 2, 4, 4, 3), np.uint8), ValueError, r"got shape \(2, 2, 4, 4, 3\)"),
        (np.uint8(3), TypeError, "got uint8"),
        (np.zeros((), np.uint8), ValueError, r"got shape \(\)"),
        ("clip.mp4", TypeError, "PIL images, PyAV frames, NumPy arrays or tensors, got str"),
        (b"\xff\xd8", TypeError, "got bytes"),
        ([RGB, None], TypeError, "got NoneType"),
    ],
)
def test_what_is_no_picture_is_refused(frame: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        pictures_of(frame)
    assert "\n" not in str(caught.value)


def test_kinds_can_be_mixed() -> None:
    frames = [Image.fromarray(RGB), RGB, [torch.from_numpy(CHW.copy()), np.stack([RGB, RGB])]]
    assert all(np.array_equal(picture, RGB) for picture in pictures_of(frames))
    assert len(pictures_of(frames)) == 5


# -- timestamps ------------------------------------------------------------------------------

HALF = [
    1.5, Fraction(3, 2), Decimal("1.5"), np.float32(1.5), np.float64(1.5), np.longdouble(1.5),
    np.array(1.5), torch.tensor(1.5), torch.tensor(1.5, dtype=torch.bfloat16),
    timedelta(seconds=1.5), np.timedelta64(1500, "ms"), np.timedelta64(1_500_000_000, "ns"),
]  # fmt: skip


@pytest.mark.parametrize("time", HALF, ids=repr)
def test_timestamps_of_every_type(time: object) -> None:
    assert to_times(time, 1) == to_times([time], 1) == [1.5]
    assert to_times((time, time), 2) == [1.5, 1.5]
    assert isinstance(to_times(time, 1)[0], float)


@pytest.mark.parametrize(
    "times",
    [
        [2, 3], (2, 3), range(2, 4), np.array([2, 3]), np.array([2, 3], ">i2"),
        torch.tensor([2, 3]), torch.tensor([2.0, 3.0]), np.array([2, 3], "m8[s]"),
        np.array([2_000_000_000, 3_000_000_000], "m8[ns]"), iter([2, 3]),
    ],
)  # fmt: skip
def test_several_timestamps(times: object) -> None:
    assert to_times(times, 2) == [2.0, 3.0]


@pytest.mark.parametrize(
    ("time", "error"),
    [
        (True, TypeError), (np.True_, TypeError), (torch.tensor(True), TypeError),
        ("1.5", TypeError), (b"1", TypeError), (1j, TypeError), (None, TypeError),
        (datetime(2026, 1, 1), TypeError), (np.datetime64("2026-01-01"), TypeError),
        (float("nan"), ValueError), (float("inf"), ValueError), (Decimal("NaN"), ValueError),
        (Decimal("sNaN"), ValueError), (torch.tensor(float("nan")), ValueError),
        (np.float32("-inf"), ValueError), (10**400, ValueError),
        (np.timedelta64("NaT"), ValueError),
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_time_is_refused(time: object, error: type) -> None:
    with pytest.raises(error, match=r"a timestamp must be a .*number of seconds, got"):
        to_times([time], 1)


def test_as_many_timestamps_as_frames() -> None:
    assert to_times(None, 2) == [None, None]
    for times in (1.0, [1.0], [1.0, 2.0, 3.0], torch.zeros(3), []):
        with pytest.raises(ValueError, match="one for each of 2 frames, got"):
            to_times(times, 2)
