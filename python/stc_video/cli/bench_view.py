# SPDX-License-Identifier: Apache-2.0
"""The results of `stc bench` in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from stc_video.bench.limits import Outcome
from stc_video.bench.table import Measured, Row, shown_ratio
from stc_video.report.summary import counted

_TICK, _CROSS = "[green]✓[/green]", "[red]✗[/red]"


def case_name(row: Row) -> str:
    """Name the case of a row in a sentence."""
    streams = counted(row.streams, "stream")
    return f"{row.geometry}, {row.dtype}, {streams}, {shown_ratio(row.ratio)} of the tokens"


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
            f"{one.geometry}, {counted(one.streams, 'stream')}, {shown_ratio(one.ratio)}: "
            f"{one.contender} is left out, it {one.reason}",
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
            f"{limit.geometry}, {limit.dtype}, {counted(limit.streams, 'stream')}, "
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
        f"{first.geometry}, {counted(first.layers, 'layer')}, {first.dtype}, "
        f"{counted(first.streams, 'stream')}, "
        f"{shown_ratio(first.ratio)} of {first.tokens} tokens"
    )
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim")
    table.add_column("", no_wrap=True)
    table.add_column("contender", no_wrap=True)
    memory = "MiB kept" if first.peak_mib is None else "MiB peak"
    for column in ("ms", "20-80 %", "of dense", "95 %", "ops", memory):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(_TICK if row.correct else _CROSS, row.contender, *_cells(row))
    return table


def _cells(row: Row) -> tuple[str, ...]:
    memory = row.state_mib if row.peak_mib is None else row.peak_mib
    return (
        _number(row.median_ms),
        _range(_number(row.p20_ms), _number(row.p80_ms)),
        _ratio(row.time_ratio),
        _range(_ratio(row.time_ratio_low), _ratio(row.time_ratio_high)),
        _ratio(row.multiply_adds),
        f"{memory:.0f}",
    )


def _number(value: float | None) -> str:
    """Four digits of a time."""
    return "" if value is None else f"{value:.{max(0, 4 - len(str(int(value))))}f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _range(low: str, high: str) -> str:
    return f"{low}-{high}" if low and high else ""
