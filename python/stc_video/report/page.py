# SPDX-License-Identifier: Apache-2.0
"""Pages that load nothing: one HTML file with its styles, scripts, data and pictures."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module, resources
from pathlib import Path
from typing import IO, Any


def write_page(
    path: Path,
    template: str,
    *,
    styles: Sequence[str],
    scripts: Sequence[str],
    data: dict[str, Any],
    **values: Any,
) -> None:
    """Write a page, whole or not at all: see :func:`atomic`.

    Parameters
    ----------
    path
        The file.
    template, styles, scripts
        Names of files in `assets`. Plotly and the scripts come after `data`, in this order.
    data
        What the scripts find as JSON; non-finite numbers become null.
    **values
        For the template.
    """
    import jinja2

    sources = [_asset(name) for name in scripts]
    if scripts:
        plotly: Any = import_module("plotly.offline")  # has no types
        sources.insert(0, plotly.get_plotlyjs())
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, loader=jinja2.FunctionLoader(_asset)
    )
    html = environment.get_template(template).render(
        css="\n".join(_asset(name) for name in styles),
        scripts=sources,
        data=_for_script(data),
        **values,
    )
    with atomic(path) as file:
        file.write(html)


def finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON does not have, by null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


@contextmanager
def atomic(path: Path) -> Iterator[IO[str]]:
    """Open a file beside `path` that takes its place, in one step, when everything was written.

    After an OSError an earlier file is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _for_script(value: dict[str, Any]) -> str:
    """Write JSON that no text inside can turn into markup."""
    text = json.dumps(finite(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _asset(name: str) -> str:
    return (resources.files(__package__) / "assets" / name).read_text(encoding="utf-8")
