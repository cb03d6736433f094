# SPDX-License-Identifier: Apache-2.0
"""A camera that speaks RTSP: a transport stream in RTP packets, on the connection itself."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence

_SDP = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\n"
    "m=video 0 RTP/AVP 33\r\na=control:track\r\n"
)


@contextlib.contextmanager
def serving_rtsp(pieces: Sequence[bytes], fps: float) -> Iterator[str]:
    """Answer one reader and send it a transport stream; yields the address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_serve, args=(server, pieces, fps), daemon=True)
        thread.start()
        yield f"rtsp://127.0.0.1:{server.getsockname()[1]}/live"


def _serve(server: socket.socket, pieces: Sequence[bytes], fps: float) -> None:
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
                    _send(connection, pieces, fps)


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


def _send(connection: socket.socket, pieces: Sequence[bytes], fps: float) -> None:
    begin, number = time.monotonic(), 0
    for index, piece in enumerate(pieces):
        time.sleep(max(0.0, begin + index / fps - time.monotonic()))
        for start in range(0, len(piece), 7 * 188):
            part = piece[start : start + 7 * 188]
            head = struct.pack(">BBHII", 0x80, 33, number, 9000 * index, 7)
            connection.sendall(b"$\0" + struct.pack(">H", 12 + len(part)) + head + part)
            number += 1
