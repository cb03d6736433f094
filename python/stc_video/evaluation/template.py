# SPDX-License-Identifier: Apache-2.0
"""The words around a question: each benchmark's own here, or those of a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Formatter
from types import MappingProxyType

from stc_video.evaluation.queries import LETTERS, DataError

#: name of a piece of text -> its words, with fields in braces
Words = Mapping[str, str]

#: of MLVU, EgoSchema and ReKV's format
BEST_OPTION: Words = MappingProxyType({
    "choice": "Question: {question}\nOptions:\n{options}\nOnly give the best option.\n"
    "Best option: (",
    "option": "({letter}) {text}",
    "between": "\n",
})  # fmt: skip


def read_template(path: Path, default: Words) -> dict[str, str]:
    """Read a file of words, an object of JSON.

    Parameters
    ----------
    path
        The file.
    default
        The benchmark's words. What the file lacks stays as it is here, and every text of the file
        may have the fields that it has here.

    Raises
    ------
    DataError
        If it is another file, or has a name or a field that is unknown.
    """
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"--template {path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"--template {path} is not valid JSON: {error}") from error
    if not isinstance(given, dict) or not all(isinstance(text, str) for text in given.values()):
        raise DataError(f"--template {path} must be an object of texts: {', '.join(default)}")
    for name, text in given.items():
        if name not in default:
            raise DataError(f"--template {path}: {name!r} is none of {', '.join(default)}")
        allowed = _fields(default[name])
        try:
            wrong = _fields(text) - allowed
        except ValueError as error:
            raise DataError(f"--template {path}: {name}: {error}") from error
        if wrong:
            raise DataError(
                f"--template {path}: {name} may have the fields {', '.join(sorted(allowed))}, "
                f"got {', '.join(sorted(wrong))}"
            )
    return {**default, **given}


def _fields(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name is not None}


def write_options(choices: Sequence[str], words: Words) -> str:
    """Write options, each behind its letter."""
    pairs = zip(LETTERS, choices, strict=False)
    made = (words["option"].format(letter=letter, text=text) for letter, text in pairs)
    return words["between"].join(made)


def as_text(words: Words) -> str:
    """Write all words, for the record."""
    return "\n---\n".join(f"{name}: {text}" for name, text in words.items())
