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
from stc_video.evaluation.template import Words, read_template

__all__ = ["BENCHMARKS", "load_queries"]

_LOADERS: dict[str, tuple[Callable[..., QuerySet], Words]] = {
    "ovo-bench": (ovo_bench.load, ovo_bench.WORDS),
    "streamingbench": (streaming_bench.load, streaming_bench.WORDS),
    "mlvu": (mlvu.load, mlvu.WORDS),
    "egoschema": (egoschema.load, egoschema.WORDS),
    "video-mme": (video_mme.load, video_mme.WORDS),
    "rekv": (rekv.load, rekv.WORDS),
}
#: names of the benchmarks
BENCHMARKS = tuple(_LOADERS)


def load_queries(
    benchmark: str, data: Path, *, template: Path | None = None, **settings: object
) -> QuerySet:
    """Read the questions of a benchmark.

    Parameters
    ----------
    benchmark
        One of `BENCHMARKS`.
    data
        Its file, or the folder of its files.
    template
        A file with other words, for `read_template`.
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
    load, words = _LOADERS[benchmark]
    if template is not None:
        settings["words"] = read_template(template, words)
    return load(data, **settings)
