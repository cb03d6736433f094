# SPDX-License-Identifier: Apache-2.0
"""patch_plan, frames_to_patches, update_patches_."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import stc_kernels
from stc_kernels import frames_to_patches, patch_plan, update_patches_

OP = "frames_to_patches"
RESAMPLES = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
#: pictures and what they become: smaller, larger, both, one pixel, as they are
SIZES = [
    ((27, 40), (9, 10)),
    ((7, 5), (10, 11)),
    ((6, 20), (9, 7)),
    ((1, 1), (3, 4)),
    ((1, 30), (1, 1)),
    ((9, 1), (1, 5)),
    ((12, 10), (12, 10)),
    ((40, 3), (40, 9)),
    ((5, 33), (2, 33)),
]


#: of them those that the interpreter of Triton gets through in seconds
INTERPRETED = ((7, 5), (1, 1), (9, 1))


@pytest.fixture
def resize(backend, old, new):
    """Two sizes, which are left out where they take the backend too long."""
    if backend == "triton" and old not in INTERPRETED and not torch.cuda.is_available():
        pytest.skip("the interpreter takes too long")
    return old, new


def pictures(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=generator)


def whole(x: Tensor, size: tuple[int, int], resample: str, rounding: str = "pillow") -> Tensor:
    """The bytes of resized pictures, channels last."""
    settings = {"scale": 1.0, "resample": resample, "rounding": rounding}
    plan = patch_plan(tuple(x.shape[1:3]), size, size, **settings)
    return frames_to_patches(x, *plan).view(-1, 3, *size).permute(0, 2, 3, 1).byte()


@pytest.mark.parametrize("resample", RESAMPLES)
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_the_bytes_are_those_of_pillow(resize, resample):
    old, new = resize
    x = pictures(2, *old)
    for picture, got in zip(x, whole(x, new, resample), strict=True):
        image = Image.fromarray(picture.numpy()).resize(new[::-1], RESAMPLES[resample])
        assert torch.equal(got, torch.from_numpy(np.array(image)))


@pytest.mark.parametrize("resample", RESAMPLES)
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_the_bytes_are_those_of_torch(resize, resample):
    """What processors based on torchvision call; Pillow's are one step from them at most."""
    old, new = resize
    x = pictures(2, *old)
    resized = F.interpolate(x.permute(0, 3, 1, 2), new, mode=resample, antialias=True)
    resized = resized.permute(0, 2, 3, 1)
    assert torch.equal(whole(x, new, resample, "torchvision"), resized)
    assert (whole(x, new, resample).int() - resized.int()).abs().max() <= 1


def test_a_large_picture_has_the_bytes_of_pillow_and_of_torch():
    x = pictures(1, 720, 1280)
    got = whole(x, (378, 384), "bicubic")
    image = Image.fromarray(x[0].numpy()).resize((384, 378), Image.Resampling.BICUBIC)
    assert torch.equal(got[0], torch.from_numpy(np.array(image)))
    planes = x.permute(0, 3, 1, 2)
    resized = F.interpolate(planes, (378, 384), mode="bicubic", antialias=True)
    assert torch.equal(whole(x, (378, 384), "bicubic", "torchvision").permute(0, 3, 1, 2), resized)
    resized = F.interpolate(planes.float(), (378, 384), mode="bicubic", antialias=True)
    assert (got.permute(0, 3, 1, 2) - resized.clamp(0, 255)).abs().max() <= 1.5


def stripes(length: int, fraction: int) -> Tensor:
    """Columns whose sums are next to where rounding goes up, on either side of it."""
    return torch.tensor([0, 255, fraction, 128, 1, 254], dtype=torch.uint8).repeat(length)[:length]


@pytest.mark.parametrize("resample", RESAMPLES)
@pytest.mark.parametrize("width", [9, 64, 300])
def test_sums_that_are_nearly_halves_are_rounded_right(backend, width, resample):
    """Where a kernel adds up the high bits of weights first, the low ones decide these."""
    if backend == "triton":
        pytest.skip("the interpreter takes too long")
    rows = torch.stack([stripes(width, fraction) for fraction in (63, 64, 127, 191)])
    x = rows[None, :, :, None].expand(-1, -1, -1, 3)
    for new in (2, 7, width // 2):
        plan = patch_plan((4, width), (5, new), (5, new), scale=1.0, resample=resample)
        for low in (0, 2**21):
            columns = plan.columns.clone()
            columns[:, 1:] += low // columns.shape[1]
            moved = plan._replace(columns=columns)
            expected = frames_to_patches(x, *moved, backend="reference")
            assert torch.equal(frames_to_patches(x, *moved), expected)


@pytest.mark.parametrize("taps", [1, 2, 9, 255, 256, 257, 700])
def test_weights_of_any_size_wrap_around(backend, taps):
    if backend == "triton":
        pytest.skip("the interpreter takes too long")
    generator = torch.Generator().manual_seed(taps)
    x = pictures(1, 9, 701)
    for largest in (2**15, 2**22, 2**31 - 1):
        weights = [
            torch.randint(-largest, largest, (count, taps), generator=generator, dtype=torch.int64)
            for count, taps in ((4, min(taps, 9)), (5, taps))
        ]
        starts = [torch.tensor([0, 8, 1, 3]), torch.tensor([700, 0, 1, 300, 444])]
        rows, columns = (
            torch.cat([start[:, None], weight], 1).int()
            for start, weight in zip(starts, weights, strict=True)
        )
        values = torch.rand(3, 256)
        expected = frames_to_patches(x, rows, columns, values, 2, 2, backend="reference")
        assert torch.equal(frames_to_patches(x, rows, columns, values, 2, 2), expected)


def test_the_layout_is_that_of_a_convolution(backend):
    conv = torch.nn.Conv2d(3, 8, (3, 4), stride=(3, 4)).requires_grad_(False)
    x = pictures(2, 30, 20)
    settings = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
    pixels = frames_to_patches(x, *patch_plan((30, 20), (11, 9), (11, 9), **settings))
    patches = frames_to_patches(x, *patch_plan((30, 20), (11, 9), (3, 4), **settings))
    assert patches.shape == (2, 3 * 2, 3 * 3 * 4)
    embedded = conv(pixels.view(2, 3, 11, 9)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patches @ conv.weight.flatten(1).T + conv.bias, embedded)


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_any_layout_and_batch(backend, dtype, batch):
    x = pictures(batch, 13, 17)
    plan = patch_plan((13, 17), (8, 6), (4, 3), mean=(0.1, 0.2, 0.3), dtype=dtype)
    expected = frames_to_patches(x, *plan, backend="reference")
    assert expected.shape == (batch, 4, 36)
    assert expected.dtype == dtype
    channels_first = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    wide = torch.cat([x, x], 2)[:, :, :17]
    every_other = torch.stack([x, x], 2).flatten(1, 2)[:, ::2]
    for other in (x, channels_first, wide, every_other, x.transpose(1, 2).clone().transpose(1, 2)):
        assert torch.equal(frames_to_patches(other, *plan), expected)


def test_normalisation_is_that_of_the_values(backend):
    x = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(-1, -1, -1, 3)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    plan = patch_plan((16, 16), (16, 16), (16, 16), mean=mean, std=std)
    got = frames_to_patches(x, *plan).view(3, 256)
    scaled = (np.arange(256) * (1 / 255)).astype(np.float32)
    expected = (scaled - np.float32(mean)[:, None]) / np.float32(std)[:, None]
    assert np.array_equal(got.numpy(), expected)
    settings = {"mean": mean, "std": std, "rounding": "torchvision"}
    got = frames_to_patches(x, *patch_plan((16, 16), (16, 16), (16, 16), **settings)).view(3, 256)
    mean_of_bytes, std_of_bytes = (
        torch.tensor(given)[:, None] * (1 / (1 / 255)) for given in (mean, std)
    )
    assert torch.equal(got, torch.arange(256).float().sub(mean_of_bytes).div(std_of_bytes))


@pytest.mark.parametrize("resample", RESAMPLES)
@pytest.mark.parametrize(("old", "new"), [*SIZES, ((40, 40), (16, 16))])
def test_an_update_makes_the_patches_of_the_new_pictures(resize, resample):
    old, new = resize
    generator = torch.Generator().manual_seed(1)
    patch = (max(1, new[0] // 4), max(1, new[1] // 3))
    plan = patch_plan(old, new, patch, resample=resample)
    previous = pictures(2, *old)
    current = previous.clone()
    patches = frames_to_patches(previous, *plan, backend="reference")
    for _ in range(3):
        row, column, channel = (int(torch.randint(n, (), generator=generator)) for n in (*old, 3))
        current[1, row, column, channel] += 1
        before = patches.clone()
        changed = update_patches_(patches, current, previous, *plan)
        assert torch.equal(patches, frames_to_patches(current, *plan, backend="reference"))
        assert not changed[0].any()
        assert changed[(patches != before).any(-1)].all()
        previous = current.clone()


def test_an_update_overwrites_only_what_sees_a_change(backend, dtype):
    plan = patch_plan((40, 40), (16, 16), (4, 4), dtype=dtype)
    previous = pictures(1, 40, 40)
    current = previous.clone()
    current[0, 2, 38] ^= 255
    patches = torch.full((1, 16, 96), 7.0, dtype=dtype)[..., ::2]
    changed = update_patches_(patches, current, previous, *plan)
    assert changed.nonzero().tolist() == [[0, 3]]
    new = frames_to_patches(current, *plan)
    assert torch.equal(patches[0, 3], new[0, 3])
    assert (patches[0, [i for i in range(16) if i != 3]] == 7).all()
    assert not update_patches_(patches, current, current, *plan).any()


def test_an_update_takes_pictures_of_any_layout(backend):
    plan = patch_plan((20, 24), (9, 9), (3, 3))
    previous = pictures(1, 20, 24)
    current = previous.clone()
    current[:, 3:5, 20:24] += 3
    expected = frames_to_patches(current, *plan, backend="reference")
    for layout in (lambda t: t, lambda t: t.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)):
        patches = frames_to_patches(previous, *plan)
        changed = update_patches_(patches, layout(current), previous, *plan)
        assert torch.equal(patches, expected)
        assert 0 < int(changed.sum()) < changed.numel()


def test_several_threads_give_the_same():
    x = pictures(2, 300, 400)
    y = x.clone()
    y[:, 100:160, 30:200] += 1
    plan = patch_plan((300, 400), (112, 112), (14, 14))
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            patches = frames_to_patches(x, *plan)
            changed = update_patches_(patches, y, x, *plan)
            results.append((patches, changed))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


X = pictures(2, 9, 7)
PLAN = patch_plan((9, 7), (5, 6), (2, 3))
PATCHES = torch.zeros(2, 4, 18)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: patch_plan((9, 7), (5, 6), (6, 3)), ValueError, r"patch_size must be at most size \(5, 6\), got \(6, 3\)"),
        (lambda: patch_plan((0, 7), (5, 6), (2, 3)), ValueError, "picture_size must be between 1 and 65535, got 0 x 7"),
        (lambda: patch_plan((9, 7), (5, 2**16), (2, 3)), ValueError, "size must be between 1 and 65535"),
        (lambda: patch_plan((9, 7, 3), (5, 6), (2, 3)), ValueError, "picture_size must be a height and a width"),
        (lambda: patch_plan((9, 7), (5, 6), (2, 3.5)), TypeError, "patch_size must be an integer, got float"),
        (lambda: patch_plan((9, 7), (5, 6), (2, 3), resample="nearest"), ValueError, "resample must be one of bicubic, bilinear, got 'nearest'"),
        (lambda: patch_plan((9, 7), (5, 6), (2, 3), rounding="up"), ValueError, "rounding must be one of pillow, torchvision, got 'up'"),
        (lambda: patch_plan((9, 7), (5, 6), (2, 3), scale=0, rounding="torchvision"), ValueError, "scale must not be 0 with the rounding of torchvision"),
        (lambda: patch_plan((9, 7), (5, 6), (2, 3), std=(1.0, 0.0, 1.0)), ValueError, "std must not be 0"),
        (lambda: patch_plan((9, 7), (5, 6), (2, 3), mean=(1.0, 0.0)), ValueError, "mean must be three numbers"),
        (lambda: patch_plan((9, 7), (5, 6), (2, 3), dtype=torch.float64), TypeError, "dtype must be float32, float16 or bfloat16"),
        (lambda: frames_to_patches(X[0], *PLAN), ValueError, r"pictures must have shape \(B, H, W, 3\), got \(9, 7, 3\)"),
        (lambda: frames_to_patches(X.float(), *PLAN), TypeError, "pictures must be uint8, got float32"),
        (lambda: frames_to_patches(X[:, :2], *PLAN), ValueError, "the weights of rows must be between 1 and 2"),
        (lambda: frames_to_patches(X, PLAN.rows.long(), *PLAN[1:]), TypeError, "rows must be int32, got int64"),
        (lambda: frames_to_patches(X, *PLAN[:2], PLAN.values[:, :255], 2, 3), ValueError, r"values must have shape \(3, 256\)"),
        (lambda: frames_to_patches(X, *PLAN[:3], 6, 3), ValueError, r"patch_height must be between 1 and 5 \(rows\), got 6"),
        (lambda: frames_to_patches(X, *PLAN[:3], 2, 0), ValueError, "patch_width must be between 1 and 6"),
        (lambda: frames_to_patches(X, *PLAN[:3], 2, "3"), TypeError, "patch_width must be an integer"),
        (lambda: frames_to_patches(X, PLAN.rows.to("meta"), *PLAN[1:]), ValueError, "rows must be on the device of pictures"),
        (lambda: update_patches_(PATCHES[:1], X, X, *PLAN), ValueError, r"patches must have shape \(2, 4, 18\)"),
        (lambda: update_patches_(PATCHES.half(), X, X, *PLAN), TypeError, "patches must have the dtype of values"),
        (lambda: update_patches_(PATCHES, X, X[:, 1:], *PLAN), ValueError, r"previous must have shape \(2, 9, 7, 3\)"),
        (lambda: update_patches_(PATCHES[:1].expand(2, -1, -1), X, X, *PLAN), ValueError, "patches must not overlap itself"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_patches_that_share_memory_with_the_plan_are_refused(backend):
    values = torch.zeros(1000)
    plan = PLAN._replace(values=values[:768].view(3, 256))
    with pytest.raises(ValueError, match="values must not share memory with patches"):
        update_patches_(values[144:288].view(2, 4, 18), X, X, *plan)


def test_an_update_is_for_inference_only(backend):
    patches = torch.nn.Parameter(PATCHES.clone())
    with pytest.raises(RuntimeError, match="is for inference only: call it under"):
        update_patches_(patches, X, X ^ 1, *PLAN)
    assert not patches.any()
    with torch.no_grad():
        assert update_patches_(patches, X, X ^ 1, *PLAN).all()
    assert torch.equal(patches.detach(), frames_to_patches(X, *PLAN))


def test_a_lazy_negation_is_refused():
    with pytest.raises(ValueError, match="patches must not be a lazy negation"):
        update_patches_(torch._neg_view(PATCHES), X, X, *PLAN)


def test_windows_outside_the_picture_are_moved_inside(backend):
    """As nothing of a plan is looked at on a GPU."""
    rows = PLAN.rows.clone()
    rows[0, 0], rows[1, 0] = -5, 2**31 - 1
    inside = PLAN.rows.clone()
    inside[0, 0], inside[1, 0] = 0, 9 - (rows.shape[1] - 1)
    got = frames_to_patches(X, rows, *PLAN[1:])
    assert torch.equal(got, frames_to_patches(X, inside, *PLAN[1:], backend="reference"))


def test_it_compiles(backend):
    if backend == "triton":
        pytest.skip("the interpreter's kernels are the same when compiled code calls them")
    torch.compiler.reset()

    def function(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        patches = frames_to_patches(x, *PLAN) + 0
        return patches, update_patches_(patches, y, x, *PLAN)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    other = X ^ 1
    for got, expected in zip(compiled(X, other), function(X, other), strict=True):
        assert torch.equal(got, expected)


def test_the_native_kernels_are_in_the_library():
    backends = stc_kernels.available_backends(OP)
    if "native" not in backends:
        pytest.skip(backends.unavailable["native"])
    assert "native" in stc_kernels.available_backends("update_patches_")
