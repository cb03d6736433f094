# SPDX-License-Identifier: Apache-2.0
"""Accidents that happen to saved sessions, drawn at random."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["DAMAGES", "draw_damage"]


def draw_damage(kind: str, save: Path, other: Path, draw: random.Random) -> str:
    """Damage a save, perhaps with files of another one, and say how."""
    return DAMAGES[kind](save, other, draw)


def _files(save: Path) -> list[Path]:
    return sorted(path for path in save.rglob("*") if path.is_file() and path.name != ".lock")


def _records(save: Path) -> list[Path]:
    return [path for path in _files(save) if path.stem.isdigit()]


def _flip(save: Path, other: Path, draw: random.Random) -> str:
    path = draw.choice(_files(save))
    content = bytearray(path.read_bytes())
    bit = draw.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    return f"bit {bit} of {path.name}"


def _flip_index(save: Path, other: Path, draw: random.Random) -> str:
    path = save / "session.json"
    content = bytearray(path.read_bytes())
    bit = draw.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    return f"bit {bit} of {path.name}"


def _truncate(save: Path, other: Path, draw: random.Random) -> str:
    path = draw.choice(_files(save))
    content = path.read_bytes()
    left = draw.randrange(len(content))
    path.write_bytes(content[:left])
    return f"{path.name} cut at {left}"


def _append(save: Path, other: Path, draw: random.Random) -> str:
    path = draw.choice(_files(save))
    path.write_bytes(path.read_bytes() + draw.randbytes(draw.randint(1, 100)))
    return f"something behind {path.name}"


def _zero(save: Path, other: Path, draw: random.Random) -> str:
    path = draw.choice(_files(save))
    content = bytearray(path.read_bytes())
    first = draw.randrange(len(content))
    size = min(draw.choice((1, 512, len(content))), len(content) - first)
    content[first : first + size] = bytes(size)
    path.write_bytes(content)
    return f"{size} zeros at {first} of {path.name}"


def _swap(save: Path, other: Path, draw: random.Random) -> str:
    records = _records(save)
    if len(records) < 2:
        return _flip(save, other, draw)
    one, two = draw.sample(records, 2)
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    return f"{one.name} and {two.name} swapped"


def _foreign(save: Path, other: Path, draw: random.Random) -> str:
    mine = draw.choice(_files(save))
    theirs = [path for path in _files(other) if path.name == mine.name]
    theirs = theirs or _records(other) or _files(other)
    source = draw.choice(theirs)
    mine.write_bytes(source.read_bytes())
    return f"{mine.name} is {source.name} of another save"


def _remove(save: Path, other: Path, draw: random.Random) -> str:
    path = draw.choice([path for path in _files(save) if path.name != "session.json"])
    path.unlink()
    return f"{path.name} removed"


def _edit(save: Path, other: Path, draw: random.Random) -> str:
    """Change, drop or add one field anywhere in ``session.json``."""
    path = save / "session.json"
    values = json.loads(path.read_text())
    places = list(_places(values))
    holder, key = draw.choice(places)
    how = draw.choice(("change", "drop", "add"))
    if how == "change":
        holder[key] = _another(holder[key], draw)
    elif how == "drop":
        del holder[key]
    elif isinstance(holder, dict):
        holder[f"new {draw.random()}"] = 1
    else:
        holder.append(1)
    path.write_text(json.dumps(values))
    return f"{how} {key!r:.60}"


def _places(value: Any) -> Any:
    """Each container in a JSON value with each of its keys."""
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def _another(value: Any, draw: random.Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return draw.choice((value + 1, -1 - value, value * 2 + 3, 1e999, str(value), None))
    if isinstance(value, str):
        return draw.choice((value + "x", "", 7))
    return draw.choice((None, 3, [], {})) if value else 5


DAMAGES: dict[str, Callable[[Path, Path, random.Random], str]] = {
    "a bit of any file": _flip,
    "a bit of session.json": _flip_index,
    "cut off": _truncate,
    "something behind": _append,
    "zeros": _zero,
    "records swapped": _swap,
    "a file of another save": _foreign,
    "a file removed": _remove,
    "a field edited": _edit,
}


def copy(save: Path, target: Path) -> Path:
    """Copy a save to a place where there is none any more."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(save, target)
    return target
