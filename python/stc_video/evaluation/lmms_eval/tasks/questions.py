# SPDX-License-Identifier: Apache-2.0
"""StreamingBench for lmms-eval: its CSV files, asked and scored as by `stc eval`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

from stc_video.evaluation.loaders.rows import Rows
from stc_video.evaluation.loaders.streaming_bench import PROACTIVE, from_table
from stc_video.evaluation.queries import DataError, Query
from stc_video.evaluation.scoring import PARSERS, is_right


def process_docs(dataset: datasets.Dataset) -> datasets.Dataset:
    """Turn rows into questions; a row that cannot be asked ends the run in one sentence."""
    queries = from_table(dataset, Rows())
    for query in queries:
        if query.problem or query.task == PROACTIVE:
            why = query.problem or "proactive questions are asked by stc eval only"
            raise DataError(f"StreamingBench: {query.key}: {why}")
    names = ("key", "video", "time", "question", "prompt", "task", "gold", "choices")
    rows = [{name: getattr(query, name) for name in names} for query in queries]
    # With a fingerprint, datasets does not pickle everything that the function can reach.
    return dataset.map(
        lambda _, index: rows[index],
        with_indices=True,
        remove_columns=dataset.column_names,
        load_from_cache_file=False,
        new_fingerprint=hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16],
    )


def doc_to_visual(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any]) -> list[str]:
    """Name the video up to the time of the question, as a fragment: ``path#t=start,end``."""
    folder, context = (lmms_eval_specific_kwargs.get(n) for n in ("data_dir", "context_seconds"))
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    path = (Path(folder) if folder else home / "streamingbench") / doc["video"]
    if not path.is_file():
        raise DataError(f"StreamingBench: {path} is missing; data_dir is where the videos are")
    start = 0.0 if context is None else max(0.0, doc["time"] - context)
    return [f"{path}#t={start:g},{doc['time']:g}"]


def process_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, bool | None]:
    """Score an answer by both parsers."""
    query = Query(**{**doc, "choices": tuple(doc["choices"])})
    return {name: is_right("streamingbench", query, results[0].strip(), None, name)
            for name in PARSERS}  # fmt: skip


def percent(verdicts: Sequence[bool | None]) -> float:
    """Micro average of those that count, in percent."""
    counted = [verdict for verdict in verdicts if verdict is not None]
    return 100 * sum(counted) / len(counted) if counted else float("nan")
