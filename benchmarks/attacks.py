# SPDX-License-Identifier: Apache-2.0
"""Eight cameras of a service while it is attacked: `make attack`.

For each attack of `attack_kinds.py`, without a token and with a valid one, a real `stc serve` with
a tiny model is started on loopback. Cameras push frames, undisturbed and then under attack, and
their clients time each from sending it to being told that it was seen. Every frame must be
accounted for, `/healthz` must answer, and SIGTERM, in the middle of the attack, must end the
service within ten seconds with all streams saved. A row that fails makes the exit code 1.

    python benchmarks/attacks.py --out benchmarks/results/attacks.csv
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from attack_kinds import ATTACKS
from environment import environment, write_rows
from service import Service, pictures
from websockets.sync.client import ClientConnection, connect

TOKEN = "attacks-are-tried-with-this"
CAMERAS, FPS = 8, 2.0
MOST_RATIO = {"none": 3.0, "valid": 10.0}
MOST_END_SECONDS = 10.0


@dataclass
class Camera:
    """Pushes frames and times each."""

    name: str
    address: str
    sent: dict[int, float] = field(default_factory=dict)
    took: dict[int, float] = field(default_factory=dict)
    told: dict[str, object] = field(default_factory=dict)
    answered: int = 0
    problem: str = ""
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        frames = pictures(int(self.name[-1]))
        try:
            headers = {"Authorization": f"Bearer {TOKEN}"}
            address = f"ws://{self.address}/v1/streams/{self.name}/frames"
            with connect(address, additional_headers=headers) as socket:
                threading.Thread(target=self.listen, args=(socket,), daemon=True).start()
                begin = time.monotonic()
                while not self.stop.wait(max(0, begin + len(self.sent) / FPS - time.monotonic())):
                    self.sent[len(self.sent)] = time.monotonic()
                    socket.send(frames[len(self.sent) % len(frames)])
                end = time.monotonic() + 30
                while self.answered < len(self.sent) and time.monotonic() < end:
                    time.sleep(0.02)
        except Exception as error:
            self.problem = f"{self.name}: {type(error).__name__}: {error}"

    def listen(self, socket: ClientConnection) -> None:
        for message in socket:
            told = json.loads(message)
            if "frame" in told:
                self.told = told
                self.answered += 1
                if told["event"] == "seen":
                    self.took[told["frame"]] = time.monotonic() - self.sent[told["frame"]]


def get(address: str, path: str, timeout: float) -> str:
    connection = http.client.HTTPConnection(address, timeout=timeout)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {TOKEN}"})
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def healthy(address: str, seconds: float) -> float:
    """Part of the calls of /healthz that were answered within two seconds."""
    answers, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            answers.append("ok" in get(address, "/healthz", 2.0))
        except OSError:
            answers.append(False)
        time.sleep(0.25)
    return sum(answers) / len(answers)


def percentile(seconds: list[float], part: float) -> float:
    return sorted(seconds)[math.ceil(part * len(seconds)) - 1] if seconds else math.inf


def memory_mb(process: int) -> float:
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process}/status").read_text())
    return int(found[1]) / 1024 if found else math.nan


def run(name: str, token: str, seconds: float, folder: Path) -> dict[str, object]:
    """One attack on a service of its own; returns its row."""
    options = ["--token", TOKEN, "--save-folder", str(folder), "--max-streams", "12"]
    service = Service("llava-onevision-tiny", 12, 1, options)
    address, port = service.address, service.address.rpartition(":")[2]
    cameras = [Camera(f"camera-{number}", address) for number in range(CAMERAS)]
    threads = [threading.Thread(target=camera.run) for camera in cameras]
    for thread in threads:
        thread.start()
    time.sleep(2)  # to warm up
    before = {camera.name: len(camera.sent) for camera in cameras}
    time.sleep(seconds)
    during = {camera.name: len(camera.sent) for camera in cameras}
    memory = memory_mb(service.process.pid)
    script = Path(__file__).with_name("attack_kinds.py")
    command = [sys.executable, script, name, port, str(seconds + 25)]
    attack = subprocess.Popen(command + ([TOKEN] if token == "valid" else []))
    time.sleep(1.5)  # until it has begun
    health = healthy(address, seconds)
    for camera in cameras:
        camera.stop.set()
    for thread in threads:
        thread.join()
    counts = {entry["id"]: entry for entry in json.loads(get(address, "/v1/streams", 10.0))["data"]}
    quiet, attacked = [], []
    for camera in cameras:
        for frame, took in camera.took.items():
            if frame >= before[camera.name]:
                (quiet if frame < during[camera.name] else attacked).append(took)
    memory = memory_mb(service.process.pid) - memory
    begin = time.monotonic()
    service.process.send_signal(signal.SIGTERM)
    try:
        code = service.process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        service.process.kill()
        code = -9
    ended = time.monotonic() - begin
    attack.terminate()
    attack.wait()
    lost = [
        camera.name
        for camera in cameras
        if not len(camera.sent) == camera.answered == counts[camera.name]["received"]
        or camera.problem
    ]
    saved = sum(_frames(folder / c.name) == counts[c.name]["seen"] for c in cameras)
    ratio = percentile(attacked, 0.99) / percentile(quiet, 0.99)
    row: dict[str, object] = {
        "attack": name,
        "token": token,
        "frames": len(attacked),
        "quiet_p99_ms": round(1e3 * percentile(quiet, 0.99), 1),
        "attacked_p99_ms": round(1e3 * percentile(attacked, 0.99), 1),
        "ratio": round(ratio, 2),
        "dropped": sum(int(counts[c.name]["dropped"]) for c in cameras),
        "lost": len(lost),
        "healthz": round(health, 3),
        "memory_mb": round(memory),
        "log_kb": round(len(service.output) / 1024, 1),
        "end_seconds": round(ended, 2),
        "saved": f"{saved} of {CAMERAS}",
    }
    is_sound = not lost and code == 0 and saved == CAMERAS and ended <= MOST_END_SECONDS
    row["survived"] = is_sound and health == 1.0 and ratio <= MOST_RATIO[token]
    return row


def _frames(save: Path) -> int:
    if not (save / "session.json").is_file():
        return -1
    state = json.loads((save / "session.json").read_text())["state"]
    return int(dict(state["dict"])["session"]["fields"]["frames"])


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKS), choices=list(ATTACKS))
    parser.add_argument("--tokens", nargs="+", default=["none", "valid"], choices=list(MOST_RATIO))
    parser.add_argument("--out", type=Path)
    return parser


def main() -> int:
    arguments = make_parser().parse_args()
    rows = []
    for name in arguments.attacks:
        for token in arguments.tokens:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(run(name, token, arguments.seconds, Path(folder)))
            print(*(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    if arguments.out is not None:
        write_rows(arguments.out, [row | environment() for row in rows])
    return 0 if all(row["survived"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
