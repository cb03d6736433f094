# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C in the middle of a command."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from waiting import PATIENCE


def interrupted(arguments: list[object], moment: str) -> tuple[str, str]:
    """Interrupt a command when it shows a text; returns all that it printed, and its errors.

    ``moment`` is a regular expression: a bar is drawn a few times a second, so that it skips
    numbers.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "stc_video.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "FORCE_COLOR": "1"},  # so that the bar is drawn while it moves
    )
    try:
        assert process.stdout is not None
        seen = ""
        while not re.search(moment, seen):
            more = process.stdout.read(40)
            assert more, (seen, process.communicate())  # it has ended
            seen += more
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    return seen + printed, errors


def interrupt_a_study(arguments: list[object], moment: str, report: Path) -> None:
    """Interrupt a command when it shows a text, and see that the earlier report is left alone.

    ``report`` is where the command would write; its folder is made.
    """
    report.parent.mkdir()
    report.write_text("an earlier one")
    printed, _ = interrupted([*arguments, "--out", report.parent], moment)
    assert "no report was written" in printed
    assert list(report.parent.iterdir()) == [report]
    assert report.read_text() == "an earlier one"
