# SPDX-License-Identifier: Apache-2.0
"""Cameras inside vLLM, the plugin off and on: time of the tower, latency, frames per second.

Each camera sends one frame of a clip a round, as a request with a few tokens of an answer, all
cameras of a round at once; each begins at another place of the clip. Off and on run in processes of
their own. Without ``--model`` the model is a Qwen3-VL with random weights and a tower of 12 blocks,
which says nothing of how many rows a trained tower would encode. In the environment of
`make test-vllm`:

    PYTHONPATH=.:python build/vllm/bin/python benchmarks/vllm_streams.py CLIP.mp4 --out FILE.csv
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from environment import environment, write_rows
from vllm_checkpoints import make_checkpoint

#: of its weights; where they are as large as in the tests, a changed row changes all others, and
#: the quality that is promised takes whole frames
SPREAD = 0.02
TOWER = {"depth": 12, "hidden_size": 512, "intermediate_size": 2048, "num_heads": 8}
PROMPT = (
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What happens?<|im_end|>\n"
    "<|im_start|>assistant\n"
)


def read_frames(clip: str, side: int, every: int) -> list[Any]:
    """Square pictures of a clip, one of so many frames."""
    import cv2
    from PIL import Image

    video, made = cv2.VideoCapture(clip), []
    while (read := video.read())[0]:
        rows = cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB)
        made.append(Image.fromarray(cv2.resize(rows, (side, side), interpolation=cv2.INTER_AREA)))
    return made[::every]


class TowerClock:
    """Sums up the time in the encoder of a model."""

    def __init__(self, model: Any) -> None:
        self.seconds = 0.0
        self._stock = model.embed_multimodal
        model.embed_multimodal = self._timed

    def _timed(self, **kwargs: Any) -> Any:
        self._wait()
        started = time.perf_counter()
        made = self._stock(**kwargs)
        self._wait()
        self.seconds += time.perf_counter() - started
        return made

    @staticmethod
    def _wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()


def measure(options: argparse.Namespace) -> list[dict[str, object]]:
    """Measure in this process, with the plugin as STC_VLLM says."""
    from vllm import LLM, SamplingParams

    frames = read_frames(options.clip, options.side, options.every)
    llm = LLM(
        options.model, dtype=options.dtype, enforce_eager=True, max_model_len=2048,
        max_num_seqs=16, limit_mm_per_prompt={"image": 1, "video": 0},
    )  # fmt: skip
    model = llm.apply_model(lambda model: model)[0]
    clock = TowerClock(model)
    sampling = SamplingParams(temperature=0.0, max_tokens=options.tokens, ignore_eos=True)
    rows = []
    for streams in options.streams:
        encoder = getattr(model, "stc_encoder", None)
        before = (encoder.totals.rows, encoder.totals.rows_encoded) if encoder else (0, 0)
        rounds, clock.seconds = [], 0.0
        for number in range(options.rounds):
            requests = [
                {
                    "prompt": PROMPT,
                    "multi_modal_data": {"image": frames[(41 * at + number) % len(frames)]},
                    "mm_processor_kwargs": {"stc_stream": f"{streams} {at}"} if encoder else {},
                    # Another camera's picture is not the same, though here it may be.
                    "multi_modal_uuids": {"image": f"{streams} {at} {number}"},
                }
                for at in range(streams)
            ]
            started = time.perf_counter()
            llm.generate(requests, sampling, use_tqdm=False)
            rounds.append(time.perf_counter() - started)
            if number == 0:  # whole frames in both cases, and the first call of everything
                clock.seconds = 0.0
        share = 1.0
        if encoder:
            seen = encoder.totals.rows - before[0]
            share = (encoder.totals.rows_encoded - before[1]) / seen
        timed = rounds[1:]
        rows.append(
            {
                "plugin": os.environ["STC_VLLM"],
                "streams": streams,
                "rounds": len(timed),
                "tower_ms_per_frame": round(1e3 * clock.seconds / len(timed) / streams, 2),
                "round_ms_median": round(1e3 * statistics.median(timed), 1),
                "frames_per_second": round(streams * len(timed) / sum(timed), 2),
                "rows_encoded": round(share, 4),
            }
        )
    return rows


def main() -> None:
    """Measure off and on in a process each, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip")
    parser.add_argument("--model", default="", help="a checkpoint; none for random weights")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--side", type=int, default=384, help="pixels of a frame")
    parser.add_argument("--every", type=int, default=2, help="take one of so many frames")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=4, help="of each answer")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--plugin", nargs="+", default=["off", "bytes=4GiB"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if "STC_MEASURE" in os.environ:
        Path(os.environ["STC_MEASURE"]).write_text(json.dumps(measure(options)))
        return
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or str(
            make_checkpoint("qwen3-vl", Path(folder) / "model", SPREAD, **TOWER)
        )
        for plugin in options.plugin:
            found = Path(folder) / "rows.json"
            settings = {
                "STC_VLLM": plugin,
                "STC_MEASURE": str(found),
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            }
            subprocess.run(
                [sys.executable, *sys.argv, "--model", model],
                check=True,
                env={"VLLM_CPU_KVCACHE_SPACE": "2", **os.environ, **settings},
            )
            rows += [row | environment() for row in json.loads(found.read_text())]
    for row in rows:
        print(*list(row.values())[:7], sep="\t")
    if options.out:
        write_rows(options.out, rows)


if __name__ == "__main__":
    main()
