# SPDX-License-Identifier: Apache-2.0
"""A camera that speaks RTSP: MPEG-2 video in RTP packets, on the connection itself."""

from __future__ import annotations

import contextlib
import io
import socket
import struct
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import av
from live_server import grey

_SDP = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\n"
    "m=video 0 RTP/AVP 32\r\na=control:track\r\n"
)


@contextlib.contextmanager
def serving_rtsp(frames: Iterable[list[bytes]]) -> Iterator[str]:
    """Answer one reader and send it the packets of frames; yields the address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_serve, args=(server, frames), daemon=True)
        thread.start()
        yield f"rtsp://127.0.0.1:{server.getsockname()[1]}/live"


def _serve(server: socket.socket, frames: Iterable[list[bytes]]) -> None:
    with contextlib.suppress(OSError):
        connection, _ = server.accept()
        with connection, connection.makefile("rb") as requests:
            while True:
                head = list(iter(lambda: requests.readline().decode().strip(), ""))
                if not head:
                    return
                method = head[0].split()[0]
                fields = dict(line.split(": ", 1) for line in head[1:])
                _answer(connection, method, fields)
                if method == "PLAY":
                    _send(connection, frames)


def _answer(connection: socket.socket, method: str, fields: dict[str, str]) -> None:
    lines, body = [f"CSeq: {fields['CSeq']}", "Session: 1"], ""
    if method == "OPTIONS":
        lines.append("Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN")
    elif method == "DESCRIBE":
        body = _SDP
        lines += ["Content-Type: application/sdp", f"Content-Length: {len(body)}"]
    elif method == "SETUP":
        lines.append("Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
    text = "\r\n".join(["RTSP/1.0 200 OK", *lines, "", body])
    connection.sendall(text.encode())


def _send(connection: socket.socket, frames: Iterable[list[bytes]]) -> None:
    for packets in frames:
        for packet in packets:
            connection.sendall(b"$\0" + struct.pack(">H", len(packet)) + packet)


def rtp_packets(levels: Iterable[int], fps: int) -> list[list[bytes]]:
    """RTP packets of each grey picture."""
    frames: list[list[bytes]] = []

    class File(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            if not 192 <= bytes(data)[1] < 224:  # RTCP
                frames[-1].append(bytes(data))
            return len(data)

    with av.open(File(), "w", format="rtp") as container:
        stream: Any = container.add_stream("mpeg2video", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.gop_size = 1
        for level in [*levels, None]:
            frame = None
            if level is not None:
                frame = av.VideoFrame.from_ndarray(grey(level), format="rgb24")
            for packet in stream.encode(frame):
                frames.append([])
                container.mux(packet)
    return frames
