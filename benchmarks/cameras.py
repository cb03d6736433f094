# SPDX-License-Identifier: Apache-2.0
"""How many cameras a machine keeps up with: decoded, encoded in one call, pruned, none dropped.

A clip is scaled and repeated for as long as it takes, and played by every camera in its own time,
each a little later than the one before. Run it on a quiet machine:

    python benchmarks/cameras.py static_camera.mp4 --cameras 4 16 --minutes 10 \
        --out benchmarks/results/cameras.csv
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from end_to_end import MODELS, SETTINGS
from environment import environment, write_rows

from stc_video import CacheConfig, attach_cacher, make_pruner
from stc_video.loading.vision import LoadedModel, load_model
from stc_video.video import CameraLoop, VideoFrame, open_video
from stc_video.video.live import LiveVideo

TOKENS = 64


def repeated(clip: Path, height: int, seconds: float, path: Path) -> Path:
    """Write a clip again and again, with another height, at its own frame rate."""
    with av.open(str(clip)) as source:
        stream = source.streams.video[0]
        rate = Fraction(stream.average_rate)
        width = height * stream.width // stream.height // 2 * 2
        pictures = [
            frame.reformat(width, height, "yuv420p", interpolation="BICUBIC")
            for frame in source.decode(stream)
        ]
    with av.open(str(path), "w") as target:
        out = target.add_stream("libx264", rate=rate, options={"preset": "veryfast"})
        out.width, out.height, out.pix_fmt = width, height, "yuv420p"
        frames = itertools.islice(itertools.cycle(pictures), int(seconds * rate))
        for number, picture in enumerate(frames):
            picture.pts, picture.time_base = number, 1 / rate
            target.mux(out.encode(picture))
        target.mux(out.encode(None))
    return path


class Camera:
    """A file played in its own time, which notes when each frame came."""

    def __init__(self, path: Path, fps: float, delay: float) -> None:
        self.video = LiveVideo(str(path), fps, threading.Event(), fast=False)
        self.came: dict[int, float] = {}
        self._delay = delay

    def __iter__(self) -> Iterator[VideoFrame]:
        time.sleep(self._delay)
        for frame in self.video:
            self.came[frame.index] = time.perf_counter()
            yield frame


def measure(
    model: LoadedModel, path: Path, cameras: int, config: CacheConfig, options: argparse.Namespace
) -> dict[str, object]:
    """Let some cameras run to the end of the file."""
    sources = {
        f"camera {number}": Camera(path, options.fps, number / cameras / options.fps)
        for number in range(cameras)
    }
    seconds = dict.fromkeys(("preprocess", "encode", "prune", "decode"), 0.0)
    pruner = make_pruner("stc", tokens_per_frame=TOKENS)
    cacher = attach_cacher(model.tower, policy=config)
    waits: list[float] = []
    sizes: list[int] = []
    begin, cpu = time.perf_counter(), time.process_time()
    with CameraLoop(sources, wait=options.wait) as loop:
        for frames in loop:
            marks = [time.perf_counter()]
            inputs = model.pixels([frame.image for frame in frames.values()])
            marks.append(time.perf_counter())
            with cacher.streams(list(frames)):
                features = model.features(model.encode(inputs))
            marks.append(time.perf_counter())
            for row, name in enumerate(frames):
                pruner(features[row : row + 1], grid=model.feature_grid, stream=name)
            marks.append(time.perf_counter())
            for stage, (first, last) in zip(seconds, itertools.pairwise(marks), strict=False):
                seconds[stage] += last - first
            seconds["decode"] += sum(frame.decoding for frame in frames.values())
            waits += [marks[-1] - sources[name].came[frame.index] for name, frame in frames.items()]
            sizes.append(len(frames))
    wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
    stats = cacher.stats()
    cacher.detach()
    if loop.errors:
        raise RuntimeError(f"cameras broke off: {loop.errors}")
    late = sum(source.video.skipped for source in sources.values())
    return {
        "cameras": cameras,
        "minutes": round(wall / 60, 2),
        "frames": sum(sizes),
        "dropped": sum(loop.lost.values()) + late,
        "frames_a_call": round(float(np.mean(sizes)), 2),
        "cost": round(stats.cost, 4),
        "median_ms": round(1e3 * float(np.median(waits)), 1),
        "p99_ms": round(1e3 * float(np.percentile(waits, 99)), 1),
        "cpu_s_a_camera_minute": round(cpu / (wall / 60) / cameras, 2),
        **{f"{stage}_ms_a_frame": round(1e3 * s / sum(sizes), 2) for stage, s in seconds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip", type=Path)
    parser.add_argument("--model", choices=MODELS, default="dinov2-s")
    parser.add_argument("--settings", choices=SETTINGS, nargs="+", default=list(SETTINGS))
    parser.add_argument("--height", type=int, default=360)
    parser.add_argument("--cameras", type=int, nargs="+", default=[16])
    parser.add_argument("--fps", type=float, default=2.0)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--wait", type=float, default=0.02, help="for other cameras, in seconds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--note", default="", help="what to know about the machine")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        model = load_model(MODELS[options.model])
        path = repeated(options.clip, options.height, 60 * options.minutes, Path(folder) / "c.mp4")
        with open_video(path, max_frames=1) as video:
            [first] = video
        model.encode(model.pixels([first.image]))  # the first call loads libraries
        for setting in options.settings:
            for cameras in options.cameras:
                shared = {"clip": options.clip.stem, "height": options.height, "model": model.name}
                values = measure(model, path, cameras, SETTINGS[setting], options)
                shared |= {"setting": setting, "fps": options.fps, "wait": options.wait}
                rows.append(shared | values | {"note": options.note} | environment())
                print(rows[-1], flush=True)
                if options.out is not None:
                    write_rows(options.out, rows)


if __name__ == "__main__":
    main()
