# SPDX-License-Identifier: Apache-2.0
"""From a file to kept tokens: frames per second against the stock way, and how alike.

The stock way decodes, prepares frames with the model's own image processor and encodes them
densely, one after the other. Both ways go over the same frames in turns, in one process. A clip is
scaled and encoded anew (H.264) for each height; with several cameras each has a decoder of its own.

    python benchmarks/end_to_end.py static_camera.mp4 --out benchmarks/results/end_to_end.csv
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TypeVar

import av
import torch
from environment import environment, write_rows
from torch import Tensor

from stc_video import CacheConfig, attach_cacher, make_pruner
from stc_video.loading.vision import LoadedModel, load_model
from stc_video.video import VideoFrame, ahead, open_video

MODELS = {"dinov2-s": None, "siglip-base": "siglip-base", "siglip-so400m": "siglip-so400m"}
SETTINGS = {
    "default": CacheConfig(),
    "quality 0.993, no audits": CacheConfig(quality=0.993, audits=False),
}
TOKENS = 64
#: one part of so many is the beginning
BEGINNING = 4
T = TypeVar("T")


@dataclass
class Pass:
    """One way over all frames."""

    wall: float = 0.0
    cpu: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    tokens: list[Tensor] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    cost: float = 1.0

    @property
    def later(self) -> float:
        """Seconds a frame behind the beginning, in which libraries and the cacher get ready."""
        begin = len(self.ends) // BEGINNING
        return (self.ends[-1] - self.ends[begin]) / (len(self.ends) - 1 - begin)

    def add(self, stage: str, seconds: float) -> None:
        self.stages[stage] = self.stages.get(stage, 0.0) + seconds


def scaled(clip: Path, height: int, seconds: float, path: Path) -> Path:
    """Write the beginning of a clip with another height, 16 to 9, at its own frame rate."""
    width = height * 16 // 9 // 2 * 2
    with av.open(str(clip)) as source, av.open(str(path), "w") as target:
        stream = source.streams.video[0]
        rate = Fraction(stream.average_rate)
        out = target.add_stream("libx264", rate=rate, options={"preset": "veryfast"})
        out.width, out.height, out.pix_fmt = width, height, "yuv420p"
        frames = itertools.islice(source.decode(stream), math.ceil(seconds * rate))
        for number, frame in enumerate(frames):
            picture = frame.reformat(width, height, "yuv420p", interpolation="BICUBIC")
            picture.pts, picture.time_base = number, 1 / rate
            target.mux(out.encode(picture))
        target.mux(out.encode(None))
    return path


def steps(clip: Path, options: argparse.Namespace, files: ExitStack) -> Iterator[list[VideoFrame]]:
    """The next frame of every camera."""
    cameras = [
        files.enter_context(open_video(clip, fps=options.fps, max_frames=options.frames))
        for _ in range(options.cameras)
    ]
    return map(list, zip(*cameras, strict=True))


def stock(model: LoadedModel, clip: Path, options: argparse.Namespace) -> Pass:
    """Decode, prepare and encode one frame after the other."""
    done = Pass()
    processor = model.preprocessor.processor
    with ExitStack() as files:
        for frames in steps(clip, options, files):
            for frame in frames:
                begin = time.perf_counter()
                pixels = processor(images=[frame.image], return_tensors="pt")["pixel_values"]
                prepared = time.perf_counter()
                tokens = model.encode({"pixel_values": pixels.to(model.device, model.dtype)})
                done.add("encode", time.perf_counter() - prepared)
                done.add("preprocess", prepared - begin)
                done.add("decode", frame.decoding)
                done.tokens.append(tokens)
                done.ends.append(time.perf_counter())
    return done


def ours(model: LoadedModel, clip: Path, options: argparse.Namespace, config: CacheConfig) -> Pass:
    """Decode, prepare, encode what changed and prune; with --ahead in three threads."""
    done = Pass()
    names = [f"camera {number}" for number in range(options.cameras)]
    pruner = make_pruner("stc", tokens_per_frame=TOKENS)
    cacher = attach_cacher(model.tower, policy=config)

    def prepared(frames: list[VideoFrame]) -> dict[str, Tensor]:
        begin = time.perf_counter()
        inputs = model.pixels([frame.image for frame in frames])
        done.add("preprocess", time.perf_counter() - begin)
        done.add("decode", sum(frame.decoding for frame in frames))
        return inputs

    with ExitStack() as files, cacher.streams(names):
        files.callback(cacher.detach)
        decoded = options.stage(steps(clip, options, files))
        for inputs in files.enter_context(closing(options.stage(map(prepared, decoded)))):
            begin = time.perf_counter()
            tokens = model.encode(inputs)
            features = model.features(tokens)
            encoded = time.perf_counter()
            for row, name in enumerate(names):
                pruner(features[row : row + 1], grid=model.feature_grid, stream=name)
            done.add("prune", time.perf_counter() - encoded)
            done.add("encode", encoded - begin)
            done.tokens += tokens.split(1)
            done.ends += [time.perf_counter()] * len(tokens)
        done.cost = cacher.stats().cost
    return done


def one_by_one(items: Iterable[T]) -> Generator[T, None, None]:
    """Go through the stages of a frame one after the other."""
    yield from items


def timed(way: Callable[[], Pass]) -> Pass:
    """Measure a way, decoders and threads of its own included."""
    begin, cpu = time.perf_counter(), time.process_time()
    done = way()
    done.wall, done.cpu = time.perf_counter() - begin, time.process_time() - cpu
    return done


def similarity(tokens: list[Tensor], dense: list[Tensor], cameras: int) -> float:
    """Mean cosine over all frames but each camera's first."""
    pairs = zip(tokens[cameras:], dense[cameras:], strict=True)
    return statistics.mean(
        torch.cosine_similarity(a.float(), b.float(), dim=-1).mean().item() for a, b in pairs
    )


def measure(model: LoadedModel, clip: Path, options: argparse.Namespace) -> list[dict[str, object]]:
    """Rows of one source and one model."""
    stock(model, clip, options)  # the first calls load libraries
    pairs: dict[str, list[tuple[Pass, Pass]]] = {name: [] for name in SETTINGS}
    for _ in range(options.pairs):
        dense = timed(partial(stock, model, clip, options))
        for name, config in SETTINGS.items():
            pairs[name].append((dense, timed(partial(ours, model, clip, options, config))))
    return [row(name, found, options) for name, found in pairs.items()]


def row(
    name: str, pairs: list[tuple[Pass, Pass]], options: argparse.Namespace
) -> dict[str, object]:
    """Medians over the pairs."""
    frames = len(pairs[0][0].tokens)
    ratios = sorted(dense.wall / cached.wall for dense, cached in pairs)
    values: dict[str, object] = {
        "setting": name,
        "ahead": options.ahead,
        "cameras": options.cameras,
        "fps": options.fps,
        "frames": frames,
        "cost": round(pairs[0][1].cost, 4),
        "similarity": round(similarity(pairs[0][1].tokens, pairs[0][0].tokens, options.cameras), 5),
        "pairs": len(pairs),
        "times_faster": round(statistics.median(ratios), 3),
        "least": round(ratios[0], 3),
        "most": round(ratios[-1], 3),
        "times_faster_later": round(
            statistics.median(dense.later / cached.later for dense, cached in pairs), 3
        ),
        "times_less_cpu": round(statistics.median(a.cpu / b.cpu for a, b in pairs), 3),
    }
    for way, done in (("stock", [a for a, _ in pairs]), ("ours", [b for _, b in pairs])):
        for clock in ("wall", "cpu"):
            values[f"{way}_{clock}_ms"] = milliseconds([getattr(p, clock) for p in done], frames)
        for stage in ("decode", "preprocess", "encode", "prune"):
            seconds = [p.stages.get(stage, 0.0) for p in done]
            values[f"{way}_{stage}_ms"] = milliseconds(seconds, frames)
    return values


def milliseconds(seconds: list[float], frames: int) -> float:
    """Median per frame."""
    return round(1e3 * statistics.median(seconds) / frames, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", type=Path, nargs="+")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS)[:2])
    parser.add_argument("--heights", type=int, nargs="+", default=[1080, 360])
    parser.add_argument("--cameras", type=int, default=1)
    parser.add_argument("--fps", type=float, default=5.0)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ahead", action="store_true", help="stages in threads of their own")
    parser.add_argument("--note", default="", help="what to know about the machine")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.stage = ahead if options.ahead else one_by_one
    torch.set_num_threads(options.threads)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for name in options.models:
            model = load_model(MODELS[name])
            for clip in options.clips:
                for height in options.heights:
                    path = Path(folder) / f"{clip.stem}_{height}.mp4"
                    source = (
                        path
                        if path.exists()
                        else scaled(clip, height, options.frames / options.fps, path)
                    )
                    for values in measure(model, source, options):
                        shared = {"clip": clip.stem, "height": height, "model": model.name}
                        rows.append(shared | values | {"note": options.note} | environment())
                        print(rows[-1], flush=True)
                        if options.out is not None:
                            write_rows(options.out, rows)


if __name__ == "__main__":
    main()
