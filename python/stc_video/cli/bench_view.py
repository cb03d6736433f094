# SPDX-License-Identifier: Apache-2.0
"""How `stc bench` shows its results in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from stc_video.bench.limits import Outcome
from stc_video.bench.table import Measured, Row, shown_ratio

__all__ = ["show_case", "show_limits"]

_TICK, _CROSS = "[green]✓[/green]", "[red]✗[/red]"


def show_case(console: Console, case: Measured) -> None:
    """Print the table of one case, and what could not be measured."""
    if case.rows:
        console.print(_case_table(case.rows))
    for row in case.rows:
        if not row.correct:
            why = row.problem or f"a token's relative error is {row.error:.2g}"
            console.print(f"{row.contender} is wrong: {why}", style="red", markup=False)
    for one in case.left_out:
        console.print(
            f"{one.geometry}, {_streams(one.streams)}, {shown_ratio(one.ratio)}: {one.contender} "
            f"is left out, it {one.reason}",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )
    console.print()


def show_limits(console: Console, outcomes: Sequence[Outcome]) -> None:
    """Print which limits are kept."""
    table = Table(title="Limits", title_justify="left", box=None, pad_edge=False)
    for column in ("", "case", "contender", "compared with"):
        table.add_column(column, no_wrap=True)
    for column in ("at most", "measured"):
        table.add_column(column, justify="right")
    for outcome in outcomes:
        limit, measured = outcome.limit, outcome.measured
        table.add_row(
            _TICK if outcome.holds else _CROSS,
            f"{limit.geometry}, {limit.dtype}, {_streams(limit.streams)}, "
            f"{shown_ratio(limit.ratio)}",
            limit.contender,
            limit.baseline,
            f"{limit.at_most:g}",
            "not measured" if measured is None else f"{measured:.3f}",
        )
    console.print(table)


def _case_table(rows: Sequence[Row]) -> Table:
    first = rows[0]
    title = (
        f"{first.geometry}, {first.layers} layers, {first.dtype}, {_streams(first.streams)}, "
        f"{shown_ratio(first.ratio)} of {first.tokens} tokens"
    )
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    table.add_column("contender", no_wrap=True)
    for column in ("median ms", "20-80 %", "of best dense", "95 %", "operations", "MiB"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(_TICK if row.correct else _CROSS, row.contender, *_cells(row))
    return table


def _cells(row: Row) -> tuple[str, ...]:
    memory = f"{row.state_mib:.0f} kept" if row.peak_mib is None else f"{row.peak_mib:.0f} peak"
    if row.median_ms is None or row.p20_ms is None or row.p80_ms is None:
        return ("", "", "", "", f"{row.multiply_adds:.3f}", memory)
    ratio = "" if row.time_ratio is None else f"{row.time_ratio:.3f}"
    interval = (
        ""
        if row.time_ratio_low is None or row.time_ratio_high is None
        else f"{row.time_ratio_low:.3f}-{row.time_ratio_high:.3f}"
    )
    return (
        f"{row.median_ms:.2f}",
        f"{row.p20_ms:.2f}-{row.p80_ms:.2f}",
        ratio,
        interval,
        f"{row.multiply_adds:.3f}",
        memory,
    )


def _streams(count: int) -> str:
    return f"{count} stream{'s' if count > 1 else ''}"
