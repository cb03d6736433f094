# SPDX-License-Identifier: Apache-2.0
"""Which questions are asked here: a part of the videos, a sample of the questions."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from stc_video.evaluation.queries import Query


def sample(queries: Sequence[Query], limit: int | None) -> list[Query]:
    """Choose so many questions, of each task its share, the same ones each time.

    Parameters
    ----------
    queries
        All.
    limit
        How many; None for all.
    """
    if limit is None or limit >= len(queries):
        return list(queries)
    if limit < 1:
        raise ValueError(f"--limit must be at least 1 question, got {limit}")
    by_task: dict[str, list[Query]] = defaultdict(list)
    for query in queries:
        by_task[query.task].append(query)
    exact = {task: limit * len(group) / len(queries) for task, group in by_task.items()}
    shares = {task: int(share) for task, share in exact.items()}
    left = limit - sum(shares.values())
    for task in sorted(exact, key=lambda name: shares[name] - exact[name])[:left]:
        shares[task] += 1
    chosen = {
        query.key
        for task, group in by_task.items()
        for query in sorted(group, key=_rank)[: shares[task]]
    }
    return [query for query in queries if query.key in chosen]


def _rank(query: Query) -> str:
    """A random order that is the same everywhere."""
    return hashlib.sha256(query.key.encode()).hexdigest()


def parse_shard(text: str) -> tuple[int, int]:
    """Read ``i/n``, 1 to n."""
    first, found, last = text.partition("/")
    if not found or not first.isdigit() or not last.isdigit() or not 1 <= int(first) <= int(last):
        raise ValueError(f"--shard must be i/n with i from 1 to n, such as 2/8, got {text!r}")
    return int(first), int(last)


def shard_of(queries: Sequence[Query], shard: tuple[int, int]) -> list[Query]:
    """Questions of every n-th video; the parts of all shards are all questions."""
    number, count = shard
    videos = set(sorted({query.video for query in queries})[number - 1 :: count])
    return [query for query in queries if query.video in videos]


def find_video(folder: Path, video: str) -> Path | None:
    """Find a video below the folder, under its whole path or its name alone."""
    for path in (folder / video, folder / Path(video).name):
        if video and path.is_file():
            return path
    return None
