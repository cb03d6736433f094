# SPDX-License-Identifier: Apache-2.0
"""What `stc eval` shows while it runs, and writes at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from stc_video.cli.environment import environment
from stc_video.cli.output import command_line, show_verdict, text_table
from stc_video.evaluation.page import headline, score_rows, verdict, write_report
from stc_video.evaluation.queries import LETTERS
from stc_video.evaluation.results import Results, gather
from stc_video.evaluation.scoring import is_right
from stc_video.evaluation.scoring.parsers import submitted_letter
from stc_video.report.csv_table import write_csv
from stc_video.report.page import atomic, finite

if TYPE_CHECKING:
    from stc_video.cli.evaluate import EvaluationTask


@contextmanager
def progress(
    console: Console,
    task: EvaluationTask,
    answered: Collection[tuple[str, str]],
    names: Sequence[str],
) -> Iterator[Callable[[Any], None]]:
    """Show answers, the time left, and the accuracy of the first configuration so far."""
    keys = {query.key for query in task.here}
    before = sum(key in keys for _, key in answered)
    columns = (TextColumn("Asking"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
               TextColumn("{task.fields[right]}"))  # fmt: skip
    right = total = 0
    with Progress(*columns, console=console) as bar:
        item = bar.add_task("", total=len(task.here) * len(names), completed=before, right="")

        def show(given: Any) -> None:
            nonlocal right, total
            verdict = is_right(
                task.questions.benchmark, given.query, given.text, given.time, "official"
            )
            if given.configuration == names[0] and verdict is not None:
                right, total = right + verdict, total + 1
            said = f"{100 * right / total:.1f} % right" if total else ""
            bar.update(item, advance=1, right=said)

        yield show


def write_results(task: EvaluationTask, console: Console) -> None:
    """Score all shards that are there, and write and print what came out."""
    folder = task.file.parent
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    results = gather(
        task.questions, task.queries, sorted(folder.glob("answers*.jsonl")), environment()
    )
    data = results.data | {"command": command_line(), "created": created}
    with atomic(folder / "evaluation.json") as file:
        file.write(json.dumps(finite(data), indent=1, allow_nan=False) + "\n")
    page = write_report(
        results,
        folder / "evaluation.html",
        videos=task.videos,
        command=command_line(),
        created=created,
    )
    write_csv(_csv_rows(results), folder / "scores.csv")
    _write_submissions(task, results, folder)
    console.print()
    console.print(headline(results), style="bold")
    for one in data["configurations"]:
        for problem in one["problems"]:
            console.print(
                f"Note: {one['name']}: {problem['count']} x {problem['kind']}, such as "
                f"{problem['examples'][0]}", style="yellow", markup=False,
            )  # fmt: skip
    header, rows = score_rows(results, "official")
    turned = list(zip(header, *rows, strict=True))
    console.print(text_table(turned[0], turned[1:]))
    console.print(f"Report: [bold]{page}[/bold] and {folder / 'evaluation.json'}")
    show_verdict(console, verdict(results))


def _csv_rows(results: Results) -> list[dict[str, object]]:
    """One row for each configuration and part of the questions, with what it costs.

    What is kept of the dense configuration's score is in the row over all questions.
    """
    made: list[dict[str, object]] = []
    for one in results.data["configurations"]:
        cost = {name: one["cost"][name] for name in ("work", "tokens_per_frame", "context_tokens")}
        kept = one.get("against_dense", {}).get("official", {})
        for group in one["groups"]:
            shown = kept if group["by"] == "all" else {}
            made.append({"configuration": one["name"], **group, **cost}
                        | {f"kept{end}": shown.get(name) for end, name in
                           (("", "retention"), ("_low", "low"), ("_high", "high"))})  # fmt: skip
    return made


def _write_submissions(task: EvaluationTask, results: Results, folder: Path) -> None:
    """Write what EgoSchema's validation server takes, for each configuration."""
    if task.questions.benchmark != "egoschema":
        return
    for number, entries in enumerate(results.entries.values()):
        chosen = {key: LETTERS.index(submitted_letter(entry["answer"]))
                  for key, entry in sorted(entries.items())}  # fmt: skip
        with atomic(folder / f"submission-{number}.json") as file:
            file.write(json.dumps(chosen) + "\n")
