# SPDX-License-Identifier: Apache-2.0
"""Feed a camera to vLLM as a named stream, one request per chunk, and ask questions meanwhile.

Needs ``openai``, ``av`` and ``pillow``, and a server with the plugin on (docs/vllm.md):

    STC_VLLM=on vllm serve Qwen/Qwen3-VL-8B-Instruct
    python vllm_camera.py --name "camera 1" clip.mp4          # or rtsp://..., /dev/video0

Each line that is typed is a question about the last frames. Frames go to the server as they come,
so that a question finds them encoded; its vision tower works on what changed in a frame.
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator
from typing import Any

import av
import openai


def frames(source: str, fps: float) -> Iterator[str]:
    """Pictures of a file or camera as data URLs, so many per second, at the pace of their clock."""
    started = next_at = None
    with av.open(source) as container:
        for frame in container.decode(video=0):
            at = float(frame.time or 0.0)
            if started is None:
                started, next_at = time.monotonic() - at, at
            if at < next_at:
                continue
            next_at += 1.0 / fps
            time.sleep(max(0.0, started + at - time.monotonic()))
            data = io.BytesIO()
            frame.to_image().save(data, "JPEG", quality=95)
            yield "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


class Camera:
    """The last frames of a stream, and the requests that show them to the server."""

    def __init__(self, client: openai.OpenAI, model: str, name: str, window: int) -> None:
        self.client, self.model, self.name = client, model, name
        # Each frame with what no other has.
        self.window: deque[tuple[str, str]] = deque(maxlen=window)
        self.has_begun = threading.Event()

    def show(self, frame: str) -> None:
        """Let the server encode a frame; a single token of an answer is asked for."""
        self.window.append((frame, uuid.uuid4().hex))
        self._send([self.window[-1]], "Go on.", max_tokens=1)
        self.has_begun.set()

    def ask(self, question: str) -> str:
        """Ask about the last frames, once there are some."""
        self.has_begun.wait()
        return self._send(list(self.window), question, max_tokens=200)

    def end(self) -> None:
        """Tell the server that it may forget the stream."""
        if self.window:
            self._send([self.window[-1]], "The end.", max_tokens=1, field="stc_end")

    def _send(
        self, shown: list[tuple[str, str]], text: str, max_tokens: int, field: str = "stc_stream"
    ) -> str:
        pictures: list[Any] = [
            {"type": "image_url", "image_url": {"url": frame}, "uuid": f"{field}:{self.name}/{key}"}
            for frame, key in shown
        ]
        answer = self.client.chat.completions.create(
            model=self.model,
            messages=[{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}],
            max_tokens=max_tokens,
        )
        return answer.choices[0].message.content or ""


def main() -> None:
    """Feed the camera until it ends, and answer what is typed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="a file, a device or an address that FFmpeg opens")
    parser.add_argument("--url", default="http://localhost:8000/v1")
    parser.add_argument("--name", default="camera", help="of the stream")
    parser.add_argument("--fps", type=float, default=2.0)
    parser.add_argument("--window", type=int, default=8, help="frames that a question sees")
    options = parser.parse_args()
    client = openai.OpenAI(base_url=options.url, api_key="none")
    camera = Camera(client, client.models.list().data[0].id, options.name, options.window)

    def answer() -> None:
        for question in sys.stdin:
            print(camera.ask(question.strip()), flush=True)

    asking = threading.Thread(target=answer, daemon=True)
    asking.start()
    for frame in frames(options.source, options.fps):
        camera.show(frame)
    if not camera.window:
        sys.exit(f"{options.source} has no frames")
    asking.join()
    camera.end()


if __name__ == "__main__":
    main()
