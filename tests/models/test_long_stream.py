# SPDX-License-Identifier: Apache-2.0
"""A long stream neither grows nor drifts.

STC_STREAM_FRAMES=100000 makes it a very long one.
"""

from __future__ import annotations

import os

import cacher_stream
import pytest
import transformers
from packaging.version import Version

FRAMES = int(os.environ.get("STC_STREAM_FRAMES", "2000"))


@pytest.mark.parametrize("policy", ["motion", "stc"])
def test_bytes_memory_and_likeness_stay(policy):
    row = cacher_stream.run(policy, FRAMES)
    assert 0.1 < row["cost"] < 0.8
    assert row["worst_likeness"] < 1.0
    assert row["likeness_last_third"] > 0.9


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("4.57"),
    reason="older releases draw other weights, with which the noise shows less",
)
def test_drift_would_be_noticed(monkeypatch):
    """A scene that grows noisier makes the same check fail."""
    stock = cacher_stream.next_picture

    def restless(picture, number, generator):
        made = stock(picture, number, generator)
        return (
            made
            if number < 300
            else stock(stock(stock(made, 1, generator), 1, generator), 1, generator)
        )

    monkeypatch.setattr(cacher_stream, "next_picture", restless)
    with pytest.raises(RuntimeError, match="likeness to dense went from"):
        cacher_stream.run("stc", 900)
