# SPDX-License-Identifier: Apache-2.0
"""`stc models`: the supported families, from the tables that the package itself uses."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from stc_video.towers.families import TowerFamily


@dataclass(frozen=True)
class ModelsSettings:
    """What `stc models` is given."""

    json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False
    markdown: Annotated[
        bool, typer.Option("--markdown", help="As the tables of docs/models.md.")
    ] = False


WHOLE = ("Whole model", "Sessions", "Exact", "Approximate", "Refused")
TOWERS = ("Vision tower", "In transformers", "Support", "Commands", "Note")


def models(settings: ModelsSettings) -> int:
    """List the supported models: what is exact, approximate and refused of each family."""
    if settings.json:
        tables = {"whole_models": (WHOLE, whole_rows()), "towers": (TOWERS, tower_rows())}
        made = {
            name: [dict(zip(columns, row, strict=True)) for row in rows]
            for name, (columns, rows) in tables.items()
        }
        print(json.dumps({"schema_version": "1.0", **made}, indent=1))
    elif settings.markdown:
        print("\n\n".join(markdown_tables()))
    else:
        _show(WHOLE, whole_rows())
        _show(TOWERS, tower_rows())
    return 0


def whole_rows() -> list[tuple[str, ...]]:
    """A row for each family of whole models."""
    from stc_video.models.families import MODEL_FAMILIES

    return [
        (
            family.name,
            ", ".join(family.memories) or "none",
            family.exact,
            family.approximate or "-",
            family.refused or "-",
        )
        for family in MODEL_FAMILIES
    ]


def tower_rows() -> list[tuple[str, ...]]:
    """A row for each family of vision towers."""
    from stc_video.towers.families import TOWER_FAMILIES

    return [
        (
            family.name,
            ", ".join(family.models),
            family.support,
            _commands(family),
            family.note or "-",
        )
        for family in TOWER_FAMILIES
    ]


def _commands(family: TowerFamily) -> str:
    """Commands that load towers of a family, and of which types if not of all."""
    from stc_video.loading.checkpoint import MODEL_CLASSES

    loaded = {kind.removesuffix("_vision_model").removesuffix("_vision") for kind in MODEL_CLASSES}
    models = family.models
    taken = [model for model in models if model in loaded or family.in_rows]
    if not taken:
        return "-"
    which = "" if len(taken) == len(models) else f" ({', '.join(taken)})"
    return f"run, fidelity, calibrate, prune-study{which}"


def markdown_tables() -> Iterator[str]:
    """Both tables in Markdown."""
    for columns, rows in ((WHOLE, whole_rows()), (TOWERS, tower_rows())):
        lines = [columns, ("---",) * len(columns), *rows]
        yield "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _show(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print what is known of each family, a line for each fact."""
    from rich.console import Console
    from rich.padding import Padding

    console = Console(highlight=False)
    console.print(f"\n{columns[0]}s", style="bold")
    width = max(map(len, columns[1:])) + 2
    for name, *facts in rows:
        console.print(f"  {name}", style="cyan", markup=False)
        for column, fact in zip(columns[1:], facts, strict=True):
            if fact != "-":
                console.print(Padding(f"{column.lower():{width}}{fact}", (0, 0, 0, 4)))
