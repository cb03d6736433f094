# SPDX-License-Identifier: Apache-2.0
"""What `stc eval` itself costs: everything that is neither decoding nor the model.

    python benchmarks/evaluation_overhead.py [--out benchmarks/results]

Counted is the processor time of the thread that runs the pass, which other work on the machine does
not change much: the whole of it, less what is spent in sessions and in the decoder. The model is as
small as a video language model gets, so that the share is an upper bound.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from stc_video.evaluation import runner as running
from stc_video.evaluation.answers import AnswerFile
from stc_video.evaluation.configurations import Configuration
from stc_video.evaluation.loaders import load_queries
from stc_video.loading.video_llm import load_chat_model
from stc_video.report.csv_table import write_csv

SECONDS, QUESTIONS = 60, 20
DENSE = Configuration("dense", policy="none", prune="none", memory="plain")
STC = Configuration("motion, stc-64, rekv")


class Spent:
    """Adds up the processor time of calls."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return the call, timed."""

        def run(*args: Any, **settings: Any) -> Any:
            begin = time.thread_time()
            try:
                return call(*args, **settings)
            finally:
                self.seconds += time.thread_time() - begin

        return run

    def frames(self, source: Any) -> Any:
        """Yield frames, of which the decoding is timed."""
        step = self.timed(iter(source).__next__)
        try:
            while True:
                yield step()
        except StopIteration:
            return


def write_video(path: Path) -> None:
    """Write a clip of a minute with a moving square."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for index in range(4 * SECONDS):
            image = np.full((240, 320, 3), 90, np.uint8)
            left = 4 * index % 280
            image[100:140, left : left + 40] = (230, 120, 20)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def measure(folder: Path, configuration: Configuration) -> dict[str, object]:
    """Run one pass."""
    rows = [
        {"id": n, "task": "EPM", "video": "a.mp4", "realtime": 3 * n, "question": "what?",
         "options": ["a", "b", "c", "d"], "gt": 0}
        for n in range(QUESTIONS)
    ]  # fmt: skip
    (folder / "o.json").write_text(json.dumps(rows))
    queries = load_queries("ovo-bench", folder / "o.json").queries
    chat, model, decoder = load_chat_model("llava-onevision-tiny"), Spent(), Spent()
    with AnswerFile(folder / configuration.name, {}, resume=False) as answers:
        made = running.Runner(chat, [configuration], running.Sampling(), folder, answers)
        [contender] = made._contenders
        for name in ("push", "ask", "flush", "reset", "stats"):
            setattr(contender.session, name, model.timed(getattr(contender.session, name)))
        opened = made._open

        class Video:
            def __init__(self, *where: Any) -> None:
                self.source = decoder.timed(opened)(*where)

            def __enter__(self) -> Video:
                return self

            def __exit__(self, *error: object) -> None:
                self.source.close()

            def __iter__(self) -> Any:
                return decoder.frames(self.source)

            def __getattr__(self, name: str) -> Any:
                return getattr(self.source, name)

        made._open = Video  # type: ignore[method-assign, assignment]
        begin = time.thread_time()
        made.run(queries)
        total = time.thread_time() - begin
        made.close()
    own = total - model.seconds - decoder.seconds
    return {
        "configuration": configuration.name,
        "frames": SECONDS,
        "questions": QUESTIONS,
        "total_seconds": total,
        "model_seconds": model.seconds,
        "decoder_seconds": decoder.seconds,
        "harness_seconds": own,
        "harness_share": own / total,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    out = parser.parse_args().out
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_video(folder / "a.mp4")
        rows = [measure(folder, configuration) for configuration in (DENSE, STC)]
    for row in rows:
        print(row)
    write_csv(rows, out / "evaluation_overhead.csv")


if __name__ == "__main__":
    main()
