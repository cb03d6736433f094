# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium with a camera that shows a test picture, driven by the WebDriver protocol."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from waiting import PATIENCE, wait_for

_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in _NAMES if (found := shutil.which(name))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
    "--autoplay-policy=no-user-gesture-required", "--window-size=1280,1400",
)  # fmt: skip


class Browser:
    """One window."""

    def __init__(self, profile: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._driver = subprocess.Popen(
            [DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._base = f"http://127.0.0.1:{port}"
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self._wait_for_driver()
        made = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._base += f"/session/{made['sessionId']}"

    def _wait_for_driver(self) -> None:
        def answers() -> bool:
            try:
                self._call("GET", "/status")
            except urllib.error.URLError:
                return False
            return True

        wait_for(answers)

    def _call(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._base + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as response:
                return json.loads(response.read())["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(json.loads(error.read())["value"]["message"]) from error

    def open(self, address: str) -> None:
        # The page before is left first: the driver may return while it is still there.
        for each in ("about:blank", address):
            self._call("POST", "/url", {"url": each})
            here = f"location.href === {json.dumps(each)} && document.readyState === 'complete'"
            self.wait_for(here)

    def run(self, script: str) -> Any:
        """Run JavaScript; what it returns comes back."""
        return self._call("POST", "/execute/sync", {"script": script, "args": []})

    def wait_for(self, condition: str) -> Any:
        """Wait until a JavaScript expression is true, and return its value."""
        return wait_for(
            lambda: self.run(f"return {condition}"),
            lambda: (condition, self.text("body"), self.log()),
        )

    def choose_file(self, selector: str, path: Path) -> None:
        """Put a file into a file input."""
        wish = {"using": "css selector", "value": selector}
        (element,) = self._call("POST", "/element", wish).values()
        self._call("POST", f"/element/{element}/value", {"text": str(path)})

    def text(self, selector: str) -> str:
        return self.run(f"return document.querySelector({json.dumps(selector)}).innerText")

    def log(self) -> list[str]:
        """Warnings and errors of the console since the last call."""
        entries = self._call("POST", "/se/log", {"type": "browser"})
        told = [entry["message"] for entry in entries if entry["level"] in ("WARNING", "SEVERE")]
        # A test that reads single pixels is slow, and may be.
        return [message for message in told if "getImageData" not in message]

    def screenshot(self, path: Path) -> None:
        """Write what is shown as PNG, to look at."""
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))

    def close(self) -> None:
        try:
            self._call("DELETE", "")
        finally:
            self._driver.kill()
            self._driver.wait()
