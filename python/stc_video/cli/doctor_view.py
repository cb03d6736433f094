# SPDX-License-Identifier: Apache-2.0
"""Show a diagnosis, as tables or as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from stc_video.cli.doctor import Diagnosis, OperatorBackends

SCHEMA_VERSION = "1.0"


def to_dict(diagnosis: Diagnosis) -> dict[str, object]:
    """Return what `stc doctor --json` prints."""
    return {"schema_version": SCHEMA_VERSION, "ok": diagnosis.ok, **asdict(diagnosis)}


def show(diagnosis: Diagnosis, *, as_json: bool) -> None:
    """Print a diagnosis to stdout.

    Parameters
    ----------
    diagnosis : Diagnosis
        What was found.
    as_json : bool
        As one JSON object instead of tables.
    """
    if as_json:
        print(json.dumps(to_dict(diagnosis), indent=1, default=str))
        return
    console = Console(highlight=False)
    console.print(_versions(diagnosis))
    console.print(_devices(diagnosis))
    console.print(_operators(diagnosis))
    for reason in _reasons(diagnosis.operators):
        console.print(reason, style="dim", markup=False)
    for finding in diagnosis.findings:
        console.print(f"\nFound: {finding.problem}", style="yellow", markup=False)
        console.print(f"To do: {finding.remedy}", markup=False)
    if diagnosis.untested:
        console.print(f"\nNewer than tested: {', '.join(diagnosis.untested)}", style="yellow")
    console.print()
    console.print(_checks(diagnosis))
    if diagnosis.ok:
        console.print("Ready: `stc run` works on this machine.", style="bold green")
    else:
        console.print("Not ready: `stc run` cannot work yet, see above.", style="bold red")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, header_style="dim", overflow="fold")
    return table


def _versions(diagnosis: Diagnosis) -> Table:
    table = _table("Versions", "package", "version", "")
    for name, version in diagnosis.versions.items():
        hint = diagnosis.install.get(name, "")
        table.add_row(name, version or "[yellow]not installed[/yellow]", hint)
    return table


def _devices(diagnosis: Diagnosis) -> Table:
    table = _table("\nMachine and build", "", "")
    for device in diagnosis.devices:
        name, _, what = device.partition(": ")
        table.add_row(name, what)
    for name, value in diagnosis.build.items():
        table.add_row(f"build: {name}", str(value))
    return table


def _operators(diagnosis: Diagnosis) -> Table:
    table = _table("\nOperators", "operator", "device", "runs on", "also there", "missing")
    for row in diagnosis.operators:
        missing = ", ".join(row.missing)
        table.add_row(row.op, row.device, row.chosen, ", ".join(row.others), missing)
    return table


def _reasons(operators: list[OperatorBackends]) -> list[str]:
    """Say each reason once, not once per operator."""
    reasons = {
        f"missing {name} on {row.device}: {reason}"
        for row in operators
        for name, reason in row.missing.items()
    }
    chosen = {
        f"measured times choose on {row.device}: {row.measured}"
        for row in operators
        if row.measured is not None
    }
    return sorted(reasons) + sorted(chosen)


def _checks(diagnosis: Diagnosis) -> Table:
    table = _table("Main job", "check", "", "")
    for check in diagnosis.checks:
        mark = "[green]OK[/green]" if check.ok else "[bold red]failed[/bold red]"
        table.add_row(check.name, mark, check.detail)
    return table
