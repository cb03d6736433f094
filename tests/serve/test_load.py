# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the service, in a few seconds: cameras and questions against a process."""

from __future__ import annotations

import service as benchmark


def run(start, options: list[str], **settings: object) -> dict:
    arguments = benchmark.make_parser().parse_args([])
    vars(arguments).update(settings)
    row, errors = benchmark.run(arguments, start(*options))
    assert errors == []
    return row


def test_eight_cameras_and_questions(start) -> None:
    row = run(start, [], seconds=2.0)
    assert row["sent"] == 32
    assert row["seen"] + row["dropped"] == row["sent"]
    assert row["answers"] > 0
    assert 0 < row["frame_ms_p50"] <= row["frame_ms_p99"]
    assert 0 < row["first_token_ms_p50"] <= row["answer_ms_max"]


def test_overload_drops_frames_and_counts_each(start) -> None:
    options = ["--queue", 1, "--max-fps", 10_000]
    row = run(start, options, cameras=3, fps=400.0, seconds=1.0, askers=1)
    assert row["sent"] == 1200
    assert row["dropped"] > 0
    assert row["seen"] > 0
    assert row["seen"] + row["dropped"] == row["sent"]
