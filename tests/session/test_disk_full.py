# SPDX-License-Identifier: Apache-2.0
"""A disk without room under the disk store: no frame is lost uncounted, and none that is there."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tiny_llava import video

from stc_video import MemoryFullError, RekvConfig


@contextmanager
def no_room() -> Iterator[None]:
    """Let every file of more than 1,000 bytes fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("eviction", ["oldest", "refuse"])
def test_a_full_disk_refuses_frames_and_counts_them(open_session, tmp_path, eviction):
    memory = RekvConfig(window_tokens=40, retrieve_tokens=40, host_bytes=0, disk_bytes=1 << 20,
                        disk_folder=tmp_path, eviction=eviction)  # fmt: skip
    session = open_session(memory, prune="stc", tokens_per_frame=6, prefill_chunk=4)
    frames = video(40)

    def held() -> list[int]:
        return sorted(session._memory._blocks)

    session.push(frames[:16])
    before, expected = held(), session.logits("what?")
    with no_room():
        for first in range(16, 32, 4):
            with pytest.raises(MemoryFullError, match="has no room for a block of"):
                session.push(frames[first : first + 4])
    stats = session.stats()
    assert (held(), stats.refused, stats.evicted) == (before, 16, 0)
    assert session.logits("what?").equal(expected)
    kept = {path.stat().st_size for path in tmp_path.rglob("*.safetensors")}
    assert len(kept) == 1  # nothing half-written is left
    session.push(frames[32:])  # there is room again
    stats = session.stats()
    assert len(held()) + stats.refused + stats.evicted == stats.frames == 40
