#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What pixel values from a decoder's own planes would save, and how far they are from those of RGB.

Today FFmpeg turns each sampled frame into RGB, and `frames_to_patches` resizes that. Here the
planes of YUV 4:2:0 are resized by the same operator, the two of a quarter of the size with weights
of pairs added up, as FFmpeg repeats their pixels; the colours come after it. The ways take turns on
the frames of a clip, scaled and encoded anew for each height. "kernels" is what operators of one
and two channels could take: the parts of the time that the channels used have of all three. All
of it is CPU time on one thread.

    python benchmarks/yuv_planes.py static_camera.mp4 --others bikes.mp4 handheld.mp4
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import av
import numpy as np
import torch
from end_to_end import scaled
from environment import environment, write_rows
from torch import Tensor

from stc_kernels import PatchPlan, frames_to_patches, patch_plan
from stc_video.models.preprocess import default_processor
from stc_video.video.picture import rgb_of

RESULTS = Path(__file__).parent / "results"
SIDE, EDGE = 224, 256
T = TypeVar("T")
#: of the luma, by AVColorSpace: what red and blue count for
WEIGHTS = {1: (0.2126, 0.0722), 2: (0.299, 0.114), 5: (0.299, 0.114), 6: (0.299, 0.114)}


class Planes:
    """The way from planes to the pixel values of DINOv2: the middle of the picture."""

    def __init__(self, height: int, width: int) -> None:
        size = (EDGE * height // min(height, width), EDGE * width // min(height, width))
        processor = default_processor("dinov2", SIDE)
        processor.size = {"shortest_edge": EDGE}
        self.mean = torch.tensor(processor.image_mean).view(3, 1, 1)
        self.std = torch.tensor(processor.image_std).view(3, 1, 1)

        def middle(plan: PatchPlan) -> PatchPlan:
            top, left = ((side - SIDE) // 2 for side in size)
            rows, columns = plan.rows[top : top + SIDE], plan.columns[left : left + SIDE]
            return plan._replace(rows=rows, columns=columns)

        whole, shape = (height, width), (SIDE, SIDE)
        of_processor = {"mean": processor.image_mean, "std": processor.image_std}
        self.rgb_plan = middle(patch_plan(whole, size, shape, **of_processor))
        self.luma_plan = middle(patch_plan(whole, size, shape, scale=1.0))
        self.chroma_plan = self.luma_plan._replace(
            rows=folded(self.luma_plan.rows, height // 2),
            columns=folded(self.luma_plan.columns, width // 2),
        )

    def from_rgb(self, picture: Tensor) -> Tensor:
        return frames_to_patches(picture[None], *self.rgb_plan).view(3, SIDE, SIDE)

    def luma(self, y: Tensor) -> Tensor:
        return resized(y[..., None].expand(-1, -1, 3), self.luma_plan)[:1]

    def chroma(self, u: Tensor, v: Tensor) -> Tensor:
        return resized(torch.stack((u, v, v), -1), self.chroma_plan)[:2]

    def colours(self, luma: Tensor, chroma: Tensor, space: int, is_full: bool) -> Tensor:
        red, blue = WEIGHTS[space]
        first, second = (1.0, 1.0) if is_full else (255 / 219, 255 / 224)
        luma, (u, v) = (luma - 16 * (not is_full)) * first, (chroma - 128) * second
        r, b = luma[0] + 2 * (1 - red) * v, luma[0] + 2 * (1 - blue) * u
        g = (luma[0] - red * r - blue * b) / (1 - red - blue)
        return (torch.stack((r, g, b)).clamp(0, 255) / 255 - self.mean) / self.std

    def from_frame(self, frame: av.VideoFrame) -> Tensor:
        y, u, v = planes(frame)
        is_full = frame.color_range == 2 or frame.format.name == "yuvj420p"
        return self.colours(self.luma(y), self.chroma(u, v), int(frame.colorspace), is_full)

    def differences(self, frame: av.VideoFrame) -> Tensor:
        """Between both ways, in units of a byte."""
        rgb = self.from_rgb(torch.from_numpy(rgb_of(frame)))
        return (self.from_frame(frame) - rgb) * self.std * 255


def resized(picture: Tensor, plan: PatchPlan) -> Tensor:
    return frames_to_patches(picture[None], *plan).view(3, SIDE, SIDE)


def folded(taps: Tensor, side: int) -> Tensor:
    """The weights of pixels each of which stands for two."""
    count = min((taps.shape[1] - 1) // 2 + 1, side)
    out = torch.zeros(len(taps), 1 + count, dtype=torch.int32)
    out[:, 0] = (taps[:, 0] // 2).clamp(max=side - count)
    for k in range(taps.shape[1] - 1):
        place = (taps[:, :1] + k) // 2 - out[:, :1]
        out[:, 1:].scatter_add_(1, place.clamp(max=count - 1).long(), taps[:, 1 + k : 2 + k])
    return out


def planes(frame: av.VideoFrame) -> list[Tensor]:
    """The bytes of a frame, where the decoder put them."""
    return [
        torch.from_numpy(np.ndarray((p.height, p.line_size), np.uint8, p)[:, : p.width])
        for p in frame.planes
    ]


def made(height: int, width: int) -> dict[str, av.VideoFrame]:
    """Squares of pure colours, and noise that is no colour at all in many places."""
    generator = np.random.default_rng(0)
    squares = generator.integers(0, 2, (height // 8, width // 8, 3), np.uint8) * 255
    picture = np.ascontiguousarray(squares.repeat(8, 0).repeat(8, 1))
    noise = generator.integers(0, 256, (height * 3 // 2, width), np.uint8)
    return {
        "squares": av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p"),
        "noise": av.VideoFrame.from_ndarray(noise, format="yuv420p"),
    }


def decoded(clip: Path, frames: int) -> Iterator[av.VideoFrame]:
    """The first frames of a clip."""
    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        yield from itertools.islice(container.decode(stream), frames)


def error_row(name: str, frames: list[av.VideoFrame]) -> dict[str, object]:
    way = Planes(frames[0].height, frames[0].width)
    found = torch.stack([way.differences(frame) for frame in frames])
    return {
        "clip": name,
        "size": f"{frames[0].height}x{frames[0].width}",
        "format": frames[0].format.name,
        "space": int(frames[0].colorspace),
        "mean": f"{found.mean():.2f}",
        "mean_of_sizes": f"{found.abs().mean():.2f}",
        "within_1": f"{(found.abs() <= 1).float().mean():.4f}",
        "within_3": f"{(found.abs() <= 3).float().mean():.4f}",
        "most": f"{found.abs().max():.1f}",
    }


def time_row(clip: Path, height: int, frames: int, repeats: int, folder: Path) -> dict[str, object]:
    """CPU milliseconds a frame: of each frame the least of the repeats, and of those the mean."""
    with av.open(str(clip)) as container:
        seconds = float(frames / container.streams.video[0].average_rate)
    path = scaled(clip, height, seconds, folder / f"{height}.mp4")
    runs = [stages(decoded(path, frames)) for _ in range(repeats)]
    ms = {
        stage: statistics.mean(map(min, zip(*(run[stage] for run in runs), strict=True)))
        for stage in runs[0]
    }
    ms["rgb"] = ms["to_rgb"] + ms["rgb_resize"]
    ms["planes"] = ms["luma"] + ms["chroma"] + ms["colours"]
    ms["kernels"] = (ms["rgb_resize"] + 2 * ms["chroma_resize"]) / 3
    ms["kernels_save"] = (ms["rgb"] - ms["kernels"]) / (ms["decode"] + ms["rgb"])
    return {"clip": clip.stem, "height": height, **{k: f"{v:.2f}" for k, v in ms.items()}}


def stages(frames: Iterator[av.VideoFrame]) -> dict[str, list[float]]:
    """CPU milliseconds of each stage on each frame behind the first."""
    taken: dict[str, list[float]] = {}

    def timed(stage: str, call: Callable[[], T]) -> T:
        begin = time.process_time()
        result = call()
        taken.setdefault(stage, []).append(1e3 * (time.process_time() - begin))
        return result

    first = next(frames)
    way = Planes(first.height, first.width)
    while (frame := timed("decode", lambda: next(frames, None))) is not None:
        picture = timed("to_rgb", partial(rgb_of, frame))
        timed("rgb_resize", partial(way.from_rgb, torch.from_numpy(picture)))
        y, u, v = planes(frame)
        luma = timed("luma", partial(way.luma, y))
        chroma = timed("chroma", partial(way.chroma, u, v))
        timed("chroma_resize", partial(resized, torch.stack((u, v, v), -1), way.chroma_plan))
        timed("colours", partial(way.colours, luma, chroma, 2, False))
    taken["decode"].pop()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("clip", type=Path)
    parser.add_argument("--others", type=Path, nargs="*", default=[], help="for differences alone")
    parser.add_argument("--heights", type=int, nargs="+", default=[360, 1080, 2160])
    parser.add_argument("--frames", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--note", default="", help="what to know about the machine")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    shared = {"note": options.note} | environment()
    errors = [error_row(name, [frame]) for name, frame in made(1080, 1920).items()]
    for clip in (options.clip, *options.others):
        errors.append(error_row(clip.stem, list(decoded(clip, options.frames))))
        print(errors[-1])
    write_rows(options.out / "yuv_planes_errors.csv", [row | shared for row in errors])
    with tempfile.TemporaryDirectory() as folder:
        times = []
        for height in options.heights:
            times.append(
                time_row(options.clip, height, options.frames, options.repeats, Path(folder))
            )
            print(times[-1])
    write_rows(options.out / "yuv_planes.csv", [row | shared for row in times])


if __name__ == "__main__":
    main()
