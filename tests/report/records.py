# SPDX-License-Identifier: Apache-2.0
"""Records of runs for tests."""

from __future__ import annotations

import io
from dataclasses import replace

from PIL import Image

from stc_video.report import (
    AnswerRecord,
    FrameRecord,
    ModelFacts,
    RetrievedFrame,
    RunRecord,
    VideoFacts,
)


def picture(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (112, 84), (shade, 90, 140)).save(buffer, "WEBP")
    return buffer.getvalue()


def frame(index: int, *, tokens: int = 12, keep: int | None = 4) -> FrameRecord:
    """One frame of a run that measures every second frame and is dense on the first."""
    dense = index == 0
    return FrameRecord(
        index=index,
        number=5 * index,
        time=0.5 * index,
        kind="dense" if dense else "cached",
        reason="first frame of the stream" if dense else "3 of 12 tokens changed",
        cost=1.0 if dense else 0.25,
        changed=tokens if dense else 3,
        encoded=tuple(1.0 if dense or t % 4 == index % 4 else 0.0 for t in range(tokens)),
        kept=None if keep is None else tuple(range(index % 3, index % 3 + keep)),
        similarity=0.98 if index % 2 else None,
        similarity_worst=0.9 if index % 2 else None,
        seconds={
            "decode": 0.001,
            "preprocess": 0.002,
            "tower": 0.04 if dense else 0.015,
            "project": 0.0,
            "prune": 0.0005,
        },
        dense_seconds=0.04 if index % 2 else None,
        picture=picture(60 + 10 * index),
    )


def answer(frames: int, *retrieved: int) -> AnswerRecord:
    """An answer that was given from some of the frames so far."""
    return AnswerRecord(
        question=f"what is in {frames} frames?",
        answer="a cup",
        time=0.5 * (frames - 1),
        frames=frames,
        retrieved=tuple(RetrievedFrame(i, 0.5 * i, 3 if i % 2 else 1) for i in retrieved),
        layers=3,
        context_tokens=20,
        tokens=2,
        seconds={"retrieve": 0.01, "generate": 0.02, "first_token": 0.015},
    )


def record(frames: int = 6, *, keep: int | None = 4, **changes: object) -> RunRecord:
    """Return a run on a grid of 3 x 4 tokens."""
    made = RunRecord(
        created="2026-01-02T03:04:05+00:00",
        command="stc run clip.mp4 --policy motion",
        status="complete",
        problem=None,
        warnings=(),
        video=VideoFacts("some/clip.mp4", "clip.mp4", "h264", 640, 480, 3.0, 10.0, 2.0),
        model=ModelFacts(
            "a tower", "DINOv2, 12 layers", False, 1, (3, 4), (3, 4), 384, "cpu", "float32"
        ),
        settings={"fps": 2.0, "cache policy": "motion", "threshold": None},
        environment={"python": "3.11", "torch": "2.10"},
        backends={"select_changed": "native"},
        state_bytes=1_500_000,
        resets=0,
        frames=tuple(frame(i, keep=keep) for i in range(frames)),
    )
    return replace(made, **changes)
