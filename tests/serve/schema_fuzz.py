# SPDX-License-Identifier: Apache-2.0
"""Run by `make schema-fuzz`: no request that schemathesis makes up may get status 500.

python schema_fuzz.py SCHEMATHESIS SECONDS
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from pictures import jpeg
from websockets.sync.client import connect

OPTIONS = (
    "--model llava-onevision-tiny --port 0 --threads 1 --max-new-tokens 4 "
    "--questions-per-minute 1000000"
)
#: names of what is there, so that requests come beyond "not found"; DELETE makes up its own
NAMES = """
[[operations]]
include-name = "POST /v1/streams/{name}/chat/completions"
parameters = { name = "door" }

[[operations]]
include-path-regex = "^/v1/streams/{stream}/"
parameters = { stream = "door" }

[[operations]]
include-path-regex = "/models/{name}$"
parameters = { name = "llava-onevision-tiny" }
"""


def main(schemathesis: str, seconds: str) -> int:
    service = subprocess.Popen(
        [sys.executable, "-m", "stc_video.cli", "serve", *OPTIONS.split()],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200"},
    )
    try:
        assert service.stdout is not None
        address = None
        while address is None and (line := service.stdout.readline()):
            address = re.search(r"at http://([\d.]+:\d+)", line)
        assert address is not None, "the service did not start"
        with connect(f"ws://{address[1]}/v1/streams/door/frames") as socket:
            socket.send(jpeg())
            socket.recv()
            checks = ["--checks", "not_a_server_error", "--max-time", seconds]
            schema = f"http://{address[1]}/openapi.json"
            # Where it keeps what it has found.
            home = Path(schemathesis).resolve().parents[1]
            config = home / "schemathesis.toml"
            config.write_text(NAMES, encoding="utf-8")
            options = ["--config-file", config, "run", schema, *checks]
            command = [Path(schemathesis).absolute(), *options]
            return subprocess.run(command, cwd=home).returncode
    finally:
        service.terminate()
        service.wait(timeout=30)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
