# SPDX-License-Identifier: Apache-2.0
"""A long stream neither grows nor drifts.

STC_STREAM_FRAMES=100000 makes it a very long one.
"""

from __future__ import annotations

import os

import cacher_stream
import pytest

FRAMES = int(os.environ.get("STC_STREAM_FRAMES", "2000"))


@pytest.mark.parametrize("policy", ["motion", "stc"])
def test_bytes_memory_and_likeness_stay(policy):
    row = cacher_stream.run(policy, FRAMES)
    assert 0.1 < row["cost"] < 0.8
    assert row["worst_likeness"] < 1.0
    assert row["likeness_last_third"] > 0.9


def test_drift_would_be_noticed(monkeypatch):
    """A scene that turns into one cut after another makes the same check fail."""
    stock = cacher_stream.next_picture

    def restless(picture, number, generator):
        return stock(picture, 97 if number >= 300 else number, generator)  # one cut after another

    monkeypatch.setattr(cacher_stream, "next_picture", restless)
    with pytest.raises(RuntimeError, match="likeness to dense went from"):
        cacher_stream.run("stc", 900)
