# SPDX-License-Identifier: Apache-2.0
"""A page in headless Chromium: its errors, its requests, and what a script did with it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from waiting import PATIENCE

CHROMIUM = next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome", "chrome")
        if (found := shutil.which(name))
    ),
    None,
)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

# Runs before everything else on the page.
WATCH = """<script>
window.seen = {errors: [], violations: []};
addEventListener("error", (e) => seen.errors.push(String(e.message)));
addEventListener("unhandledrejection", (e) => seen.errors.push(String(e.reason)));
document.addEventListener("securitypolicyviolation", (e) => seen.violations.push(e.blockedURI));
</script>"""

# Around the script of a test, which uses the page once it has loaded and notes in `seen`.
USE = """<script>
addEventListener("load", async () => {
  const pause = (ms) => new Promise((done) => setTimeout(done, ms));
  const by = (id) => document.getElementById(id);
  const key = (key) =>
    document.body.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
  try {
    await pause(200);
    %s
    seen.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  } catch (error) { seen.errors.push(String(error.stack)); }
  seen.requests = performance.getEntriesByType("resource").map((r) => r.name)
    .filter((name) => !name.startsWith("data:"));
  const out = document.createElement("pre");
  out.id = "seen"; out.textContent = JSON.stringify(seen);
  document.body.append(out);
});
</script>"""


def browse(page: Path, use: str, tmp_path: Path, width: int = 1280) -> dict:
    """Open a page in headless Chromium, run a script on it, and return what was seen."""
    text = page.read_text().replace("<head>", "<head>" + WATCH, 1)
    watched = tmp_path / "watched.html"
    watched.write_text(text.replace("</body>", USE % use + "</body>"))
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},1400",
            "--virtual-time-budget=15000",
            "--dump-dom",
            watched.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    seen: dict = json.loads(html.unescape(found[1]))
    seen["console"] = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    # Scripts read single pixels, which the browser finds slow.
    seen["console"] = [line for line in seen["console"] if "getImageData" not in line]
    return seen
