# SPDX-License-Identifier: Apache-2.0
"""The files of published benchmarks, one reader for each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from stc_video.evaluation.loaders import (
    egoschema,
    mlvu,
    ovo_bench,
    rekv,
    streaming_bench,
    video_mme,
)
from stc_video.evaluation.queries import QuerySet

__all__ = ["BENCHMARKS", "load_queries"]

_LOADERS: dict[str, Callable[..., QuerySet]] = {
    "ovo-bench": ovo_bench.load,
    "streamingbench": streaming_bench.load,
    "mlvu": mlvu.load,
    "egoschema": egoschema.load,
    "video-mme": video_mme.load,
    "rekv": rekv.load,
}
#: names of the benchmarks
BENCHMARKS = tuple(_LOADERS)


def load_queries(benchmark: str, data: Path, **settings: object) -> QuerySet:
    """Read the questions of a benchmark.

    Parameters
    ----------
    benchmark
        One of `BENCHMARKS`.
    data
        Its file, or the folder of its files.
    **settings
        ``context_seconds`` (StreamingBench), ``subtitles``, a folder (Video-MME).

    Returns
    -------
    QuerySet
        With every row; those that cannot be asked say why.

    Raises
    ------
    DataError
        If the file is missing or in another format, or a setting belongs to another benchmark.
    """
    if benchmark not in _LOADERS:
        raise ValueError(f"benchmark must be one of {', '.join(BENCHMARKS)}, got {benchmark!r}")
    return _LOADERS[benchmark](data, **settings)
