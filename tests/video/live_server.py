# SPDX-License-Identifier: Apache-2.0
"""Live sources on this machine: an HTTP server that sends pieces as they come."""

from __future__ import annotations

import contextlib
import functools
import http.server
import io
import socketserver
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image
from waiting import PATIENCE

MJPEG = "multipart/x-mixed-replace; boundary=frame"
TS = "video/mp2t"


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True


@contextlib.contextmanager
def serving(
    kind: str,
    pieces: Iterable[bytes],
    then: threading.Event | None = None,
    size: int | None = None,
    cut: bool = False,
) -> Iterator[str]:
    """Send pieces to who connects, and wait for an event before closing; yields the address.

    A size in bytes is announced. Without one, the end is told unless it is cut.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # a camera does not wait either

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            if size is not None:
                self.send_header("Content-Length", str(size))
            elif not cut:
                self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            chunked = size is None and not cut
            with contextlib.suppress(OSError):  # the reader has gone
                for piece in pieces:
                    head, tail = (b"%x\r\n" % len(piece), b"\r\n") if chunked else (b"", b"")
                    self.wfile.write(head + piece + tail)
                if then is not None:
                    then.wait(PATIENCE)
                self.wfile.write(b"0\r\n\r\n" if chunked else b"")

    with _Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/live"
        finally:
            if then is not None:
                then.set()
            server.shutdown()


@contextlib.contextmanager
def serving_files(folder: Path) -> Iterator[str]:
    """Serve a folder; yields its address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with _Server(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def paced(pieces: Sequence[bytes], fps: float, first: int = 0) -> Iterator[bytes]:
    """Yield pieces, the first ones at once and the others in their time."""
    begin = time.monotonic()
    for index, piece in enumerate(pieces):
        time.sleep(max(0.0, begin + (index - first) / fps - time.monotonic()))
        yield piece


def grey(level: int) -> np.ndarray:
    return np.full((64, 96, 3), level, np.uint8)


def jpegs(levels: Iterable[int]) -> list[bytes]:
    """Parts of an MJPEG stream, grey pictures of these levels."""
    parts = []
    for level in levels:
        file = io.BytesIO()
        Image.fromarray(grey(level)).save(file, "JPEG")
        head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
        parts.append(head % len(file.getvalue()) + file.getvalue() + b"\r\n")
    return parts


def ts_pieces(levels: Iterable[int], times: Iterable[float]) -> list[bytes]:
    """A transport stream, a piece for each grey picture, with these timestamps in seconds.

    Where times go back another stream begins, as `cat` would join them.
    """
    pieces: list[bytes] = []
    runs: list[list[tuple[int, float]]] = []
    for level, seconds in zip(levels, times, strict=True):
        if not runs or seconds < runs[-1][-1][1]:
            runs.append([])
        runs[-1].append((level, seconds))
    for run in runs:
        _add_stream(pieces, run)
    return pieces


def _add_stream(pieces: list[bytes], run: Sequence[tuple[int, float]]) -> None:
    class File(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            pieces[-1] += bytes(data)
            return len(data)

    with av.open(File(), "w", format="mpegts", options={"flush_packets": "1"}) as container:
        stream: Any = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.gop_size = 1  # every frame stands for itself
        frames = [av.VideoFrame.from_ndarray(grey(level), format="rgb24") for level, _ in run]
        packets = [packet for frame in [*frames, None] for packet in stream.encode(frame)]
        for packet, (_, seconds) in zip(packets, run, strict=True):
            packet.pts = packet.dts = round(seconds * 90000)
            packet.time_base = Fraction(1, 90000)
            pieces.append(b"")
            container.mux(packet)
