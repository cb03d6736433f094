# SPDX-License-Identifier: Apache-2.0
"""`stc models`: the supported families, from the tables that the package itself uses."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from stc_video.towers.families import TowerFamily


@dataclass(frozen=True)
class ModelsSettings:
    """What `stc models` is given."""

    name: Annotated[
        str | None,
        typer.Argument(
            help="Part of a family's name or model type, or the folder of a model.",
            show_default="every family",
        ),
    ] = None
    json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False
    markdown: Annotated[
        bool, typer.Option("--markdown", help="As the tables of docs/models.md.")
    ] = False


WHOLE = ("Whole model", "Sessions", "Exact", "Approximate", "Refused")
TOWERS = ("Vision tower", "In transformers", "Support", "Commands", "Note")


def models(settings: ModelsSettings) -> int:
    """List the supported models: what is exact, approximate and refused of each family.

    Exit code: 0 done, 2 no family has that name.
    """
    whole, towers = whole_rows(settings.name), tower_rows(settings.name)
    if not whole and not towers:
        raise ValueError(
            f"no family has {settings.name!r} in its name or model types, and there is no such "
            "folder; `stc models` lists every family"
        )
    if settings.json:
        tables = {"whole_models": (WHOLE, whole), "towers": (TOWERS, towers)}
        made = {
            name: [dict(zip(columns, row, strict=True)) for row in rows]
            for name, (columns, rows) in tables.items()
        }
        print(json.dumps({"schema_version": "1.0", **made}, indent=1))
    elif settings.markdown:
        print("\n\n".join(_markdown(*table) for table in ((WHOLE, whole), (TOWERS, towers))))
    else:
        _show(WHOLE, whole)
        _show(TOWERS, towers)
    return 0


def whole_rows(wanted: str | None = None) -> list[tuple[str, ...]]:
    """A row for each family of whole models, or for those that are wanted."""
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
        if _is_wanted(wanted, family.name, family.classes)
    ]


def tower_rows(wanted: str | None = None) -> list[tuple[str, ...]]:
    """A row for each family of vision towers, or for those that are wanted."""
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
        if _is_wanted(wanted, family.name, family.models)
    ]


def _is_wanted(wanted: str | None, name: str, types: Iterable[str]) -> bool:
    """Whether a family has the model of a folder, or a text in its name or model types."""
    if wanted is None:
        return True
    if (config := Path(wanted) / "config.json").is_file():
        return not _types_of(config).isdisjoint(types)
    return any(_letters(wanted) in _letters(text) for text in (name, *types))


def _letters(text: str) -> str:
    """A name however it is written: Qwen2.5-VL, qwen2_5_vl."""
    return "".join(filter(str.isalnum, text.lower()))


def _types_of(path: Path) -> set[str]:
    """Types of a model and of its tower, from its configuration."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        parts = [config, config.get("vision_config") or {}]
        kinds = [str(part.get("model_type", "")) for part in parts]
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError) as error:
        raise ValueError(f"{path} is no configuration of a model: {error}") from error
    return {_module(kind) for kind in kinds}


def _module(kind: str) -> str:
    """The module in transformers.models of a model type."""
    return kind.removesuffix("_vision_model").removesuffix("_vision")


def _commands(family: TowerFamily) -> str:
    """Commands that load towers of a family, and of which types if not of all."""
    from stc_video.loading.checkpoint import MODEL_CLASSES

    loaded = {_module(kind) for kind in MODEL_CLASSES}
    models = family.models
    taken = [model for model in models if model in loaded or family.in_rows]
    if not taken:
        return "-"
    which = "" if len(taken) == len(models) else f" ({', '.join(taken)})"
    return f"run, fidelity, calibrate, prune-study{which}"


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _show(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print what is known of each family, a line for each fact."""
    if not rows:
        return
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
