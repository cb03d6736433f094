# SPDX-License-Identifier: Apache-2.0
"""A service under load: simulated cameras, questions, and what becomes of every frame.

A real `stc serve` runs as a process of its own. Each camera pushes JPEG frames of a moving picture
at its rate over a WebSocket; clients ask questions in turn, half of them streamed. At the end the
service's own counts must account for every frame that was sent: seen, dropped by back-pressure, or
rejected. Any error of a camera or of an answer ends the run with exit code 1.

    python benchmarks/service.py --out benchmarks/results/service.csv
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from environment import environment, write_rows
from PIL import Image
from websockets.sync.client import ClientConnection, connect

QUESTIONS = ("What is in the picture?", "What has changed?", "Where is the square?")
SIZE = (320, 240)
DRAIN_SECONDS = 60.0


@dataclass
class Findings:
    """What the clients saw; used by several threads."""

    sent: Counter[str] = field(default_factory=Counter)
    told: dict[str, dict[str, object]] = field(default_factory=dict)
    frame_seconds: list[float] = field(default_factory=list)
    first_token_seconds: list[float] = field(default_factory=list)
    answer_seconds: list[float] = field(default_factory=list)
    refused: int = 0
    errors: list[str] = field(default_factory=list)


class Service:
    """`stc serve` in a process of its own."""

    def __init__(self, model: str, cameras: int, threads: int, more: Sequence[str] = ()) -> None:
        command = [sys.executable, "-m", "stc_video.cli", "serve", "--model", model, "--port", "0"]
        options = ["--max-streams", str(cameras), "--threads", str(threads), *more]
        self.process = subprocess.Popen(
            [*command, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200"},
        )
        self.output = ""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if found := re.search(r"at http://([\d.]+:\d+)", line):
                self.address = found[1]
                break
        else:
            raise SystemExit(f"the service did not start: {self.output}")
        # Or a full pipe would stop it.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line

    def end(self) -> int:
        """Let it end, and return its exit code."""
        self.process.terminate()
        code = self.process.wait(timeout=60)
        self._reader.join(timeout=10)
        return code


def get(service: Service, path: str) -> str:
    connection = http.client.HTTPConnection(service.address, timeout=60)
    connection.request("GET", path)
    text = connection.getresponse().read().decode()
    connection.close()
    return text


def pictures(seed: int) -> list[bytes]:
    """A still noisy ground with a square that moves, as JPEG."""
    draw = np.random.default_rng(seed)
    ground = draw.integers(60, 120, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    made = []
    for step in range(16):
        frame = ground.copy()
        left = 10 + 18 * step
        frame[80:140, left : left + 40] = (220, 40 + 10 * (seed % 8), 40)
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=90)
        made.append(buffer.getvalue())
    return made


def camera(service: Service, name: str, fps: float, seconds: float, found: Findings) -> None:
    """Push frames at a steady rate, and read what is told about them."""
    frames = pictures(int(name.rpartition("-")[2]))
    try:
        with connect(f"ws://{service.address}/v1/streams/{name}/frames") as socket:
            reader = threading.Thread(target=listen, args=(socket, name, found))
            reader.start()
            begin = time.monotonic()
            for number in range(math.ceil(fps * seconds)):
                wait = begin + number / fps - time.monotonic()
                if wait > 0:
                    time.sleep(wait)
                socket.send(json.dumps({"timestamp": number / fps}))
                socket.send(frames[number % len(frames)])
                found.sent[name] += 1
            end = time.monotonic() + DRAIN_SECONDS
            while not accounted(found, name) and time.monotonic() < end:
                time.sleep(0.05)
        reader.join()
    except Exception as error:
        found.errors.append(f"{name}: {type(error).__name__}: {error}")


def accounted(found: Findings, name: str) -> bool:
    """Whether the service has told what became of all frames sent."""
    told = found.told.get(name, {})
    rejected = sum(told.get("rejected", {}).values())
    return told.get("seen", 0) + told.get("dropped", 0) + rejected == found.sent[name]


def listen(socket: ClientConnection, name: str, found: Findings) -> None:
    for message in socket:
        told = json.loads(message)
        if told["event"] in ("seen", "dropped", "rejected"):
            found.told[name] = told
        if told["event"] == "seen":
            found.frame_seconds.append(told["seconds"])
        elif told["event"] != "dropped":
            found.errors.append(f"{name}: {told}")


def asker(service: Service, number: int, cameras: int, until: float, found: Findings) -> None:
    """Ask one question after the other."""
    turn = number
    while time.monotonic() < until:
        name = f"camera-{turn % cameras}"
        if not found.told[name]["seen"]:  # and a frame to look at
            time.sleep(0.02)
            turn += 1
            continue
        try:
            ask(service, name, QUESTIONS[turn % len(QUESTIONS)], turn % 2 == 0, found)
        except Exception as error:
            found.errors.append(f"question to {name}: {type(error).__name__}: {error}")
        turn += 1
        time.sleep(0.5)


def ask(service: Service, name: str, question: str, streamed: bool, found: Findings) -> None:
    connection = http.client.HTTPConnection(service.address, timeout=120)
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": 16}
    begin = time.perf_counter()
    connection.request(
        "POST",
        f"/v1/streams/{name}/chat/completions",
        json.dumps({**body, "stream": streamed}),
        {"Content-Type": "application/json"},
    )
    response = connection.getresponse()
    text = response.read().decode()
    took = time.perf_counter() - begin
    connection.close()
    if response.status == 429:
        found.refused += 1
        return
    if response.status != 200 or (streamed and "[DONE]" not in text) or '"error"' in text:
        raise RuntimeError(f"status {response.status}: {text[:300]}")
    found.answer_seconds.append(took)
    first = re.search(r'"first_token": ?([\d.]+)', text)
    if first is not None:
        found.first_token_seconds.append(float(first[1]))


def percentiles(name: str, seconds: list[float]) -> dict[str, object]:
    ordered = sorted(seconds) or [math.nan]
    ranks = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {
        f"{name}_ms_{label}": round(1e3 * ordered[math.ceil(q * len(ordered)) - 1], 2)
        for label, q in ranks.items()
    }


def run(arguments: argparse.Namespace, service: Service) -> tuple[dict[str, object], list[str]]:
    """Run cameras and questions against a service; returns the row and what went wrong."""
    found = Findings()
    names = [f"camera-{number}" for number in range(arguments.cameras)]
    until = time.monotonic() + arguments.seconds
    cameras = [
        threading.Thread(
            target=camera, args=(service, name, arguments.fps, arguments.seconds, found)
        )
        for name in names
    ]
    for thread in cameras:
        thread.start()
    while len(found.told) < len(names) and not found.errors:  # a question needs a stream
        time.sleep(0.02)
    askers = [
        threading.Thread(target=asker, args=(service, number, len(names), until, found))
        for number in range(arguments.askers)
    ]
    for thread in askers:
        thread.start()
    for thread in [*askers, *cameras]:
        thread.join()
    totals = Counter[str]()
    for stream in json.loads(get(service, "/v1/streams"))["data"]:
        rejected = sum(stream["rejected"].values())
        counted = stream["seen"] + stream["dropped"] + rejected + stream["waiting"]
        if not stream["received"] == found.sent[stream["id"]] == counted:
            found.errors.append(f"not every frame is accounted for: {stream}")
        totals.update({"seen": stream["seen"], "dropped": stream["dropped"], "rejected": rejected})
    metrics = get(service, "/metrics")
    if 'outcome="failed"' in metrics:
        found.errors.append("the service counts failed answers")
    code = service.end()
    if code or "Traceback" in service.output:
        found.errors.append(f"the service ended with code {code}: {service.output[-2000:]}")
    row: dict[str, object] = {
        "model": arguments.model,
        "cameras": arguments.cameras,
        "fps": arguments.fps,
        "seconds": arguments.seconds,
        "sent": sum(found.sent.values()),
        **{name: totals[name] for name in ("seen", "dropped", "rejected")},
        "answers": len(found.answer_seconds),
        "refused_questions": found.refused,
        "errors": len(found.errors),
        **percentiles("frame", found.frame_seconds),
        **percentiles("first_token", found.first_token_seconds),
        **percentiles("answer", found.answer_seconds),
    }
    return row, found.errors


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="llava-onevision-tiny")
    parser.add_argument("--cameras", type=int, default=8)
    parser.add_argument("--fps", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--askers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    return parser


def main() -> int:
    arguments = make_parser().parse_args()
    service = Service(arguments.model, arguments.cameras, arguments.threads)
    row, errors = run(arguments, service)
    for name, value in row.items():
        print(f"{name:24} {value}")
    for error in errors:
        print(error, file=sys.stderr)
    if arguments.out is not None and not errors:
        write_rows(arguments.out, [row | environment()])
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
