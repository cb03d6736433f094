#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Copy a tree of CUDA sources with every asm statement replaced by a call of a function.

``asm volatile("mma.x.y {%0, %1}, [%2];" : "+f"(a), "=r"(b) : "l"(c));`` becomes
``emu::ptx::run_mma_x_y(a, b, c);``: the name is that of the instruction, and the operands come in
the order in which its text names them, immediates included, so a wrong number in the text stays
wrong. Everything else is copied byte by byte; lines keep their numbers.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

_STATEMENT = re.compile(r"\basm\s+volatile\s*\(")


def _brackets(text: str, start: int = 0) -> list[tuple[int, str, int]]:
    """Return place, character and depth after it of all that is not in quotes."""
    found, depth, quoted, at = [], 0, False, start
    while at < len(text):
        character = text[at]
        if character == '"':
            quoted = not quoted
        elif quoted:
            at += character == "\\"
        else:
            depth += (character in "([{") - (character in ")]}")
            found.append((at, character, depth))
        at += 1
    return found


def _split(text: str, separator: str) -> list[str]:
    """Split where the separator is in no quotes and no brackets."""
    places = [at for at, c, depth in _brackets(text) if c == separator and depth == 0]
    ends = [*places, len(text)]
    return [text[start:end] for start, end in zip([0, *(p + 1 for p in places)], ends, strict=True)]


def _call(inside: str) -> str:
    """Return the call for what stands between the parentheses of a statement."""
    sections = _split(inside, ":")
    template = "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', sections[0]))
    template = template.replace("\\n", " ").strip()
    operands = []
    for section in sections[1:3]:
        for operand in _split(section, ","):
            if match := re.match(r'\s*"[^"]*"\s*\((.*)\)\s*$', operand, re.DOTALL):
                operands.append(match.group(1).strip())
    if template.count(";") != 1:
        raise SystemExit(f"rewrite_asm: one instruction a statement, got {template}")
    name, _, arguments = template.rstrip("; ").partition(" ")
    order = re.findall(r"%(\d+)|(?<![\w%.])(\d+)(?![\w.])", arguments)
    chosen = [operands[int(number)] if number else literal for number, literal in order]
    return f"emu::ptx::run_{name.replace('.', '_')}({', '.join(chosen)})"


def rewrite(text: str) -> str:
    """Return a source whose asm statements are calls, in the same lines."""
    parts, at = [], 0
    for match in _STATEMENT.finditer(text):
        end = next(place for place, _, depth in _brackets(text, match.end() - 1) if depth == 0)
        call = re.sub(r"\s*\n\s*", " ", _call(text[match.end() : end]))
        lines = text[match.start() : end].count("\n")
        parts += [text[at : match.start()], call, "\n" * lines]
        at = end + 1
    if not parts:
        return text
    text = "".join([*parts, text[at:]])
    first = text.index("#include")
    line = text[:first].count("\n") + 1
    return f'{text[:first]}#include "emu_ptx.h"\n#line {line}\n{text[first:]}'


def main() -> None:
    """Copy what has changed, so that the others keep their times."""
    source, target = map(Path, sys.argv[1:3])
    for path in sorted(source.rglob("*")):
        if path.suffix not in {".cuh", ".cu", ".h", ".cpp"}:
            continue
        text = rewrite(path.read_text())
        copy = target / path.relative_to(source)
        if copy.exists() and copy.read_text() == text:
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text)


if __name__ == "__main__":
    main()
