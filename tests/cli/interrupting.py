# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C in the middle of a study."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path


def interrupt_a_study(arguments: list[object], moment: str, report: Path) -> None:
    """Interrupt a command when it shows a text, and see that the earlier report is left alone.

    ``moment`` is a regular expression: a bar is drawn a few times a second, so that it skips
    numbers. ``report`` is where the command would write; its folder is made.
    """
    report.parent.mkdir()
    report.write_text("an earlier one")
    process = subprocess.Popen(
        [sys.executable, "-m", "stc_video.cli", *map(str, arguments), "--out", report.parent],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "FORCE_COLOR": "1"},  # so that the bar is drawn while it moves
    )
    try:
        assert process.stdout is not None
        seen = ""
        started = time.monotonic()
        while not re.search(moment, seen):
            assert time.monotonic() - started < 120, seen[-500:]
            seen += process.stdout.read(40)
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "no report was written" in printed
    assert "Traceback" not in errors
    assert list(report.parent.iterdir()) == [report]
    assert report.read_text() == "an earlier one"
