# SPDX-License-Identifier: Apache-2.0
"""The command line: `stc run`, `stc bench`, `stc serve`, `stc chat`, the studies, `stc doctor`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from stc_video.errors import install_hint

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        What follows the program's name; taken from the process by default.

    Raises
    ------
    SystemExit
        Always: 0 done, 1 ended early, 2 bad input, 130 interrupted.
    """
    try:
        from stc_video.cli.app import run_app
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] not in ("typer", "rich", "click"):
            raise
        print(f"the package {error.name} is missing: {install_hint('cli')}", file=sys.stderr)
        sys.exit(2)
    sys.exit(run_app(arguments))
