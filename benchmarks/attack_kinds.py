# SPDX-License-Identifier: Apache-2.0
"""Attacks on `stc serve`, for `benchmarks/attacks.py`: bounded in number and time, loopback only.

    python benchmarks/attack_kinds.py NAME PORT SECONDS [TOKEN]

Whatever the service answers, an attack goes on until its time is over. With a token it does its
worst as a client that may; without one it tries the same.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import resource
import struct
import sys
import time
import zlib
from collections.abc import Awaitable, Callable
from contextlib import suppress

from PIL import Image
from websockets.asyncio.client import connect

HOST = "127.0.0.1"
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Attacker:
    """One attack under way.

    Parameters
    ----------
    port
        Of the service on this machine.
    seconds
        How long.
    token
        A valid one, or None.
    """

    def __init__(self, port: int, seconds: float, token: str | None) -> None:
        self.port, self.token = port, token
        self.end = time.monotonic() + min(seconds, 60.0)

    @property
    def goes_on(self) -> bool:
        return time.monotonic() < self.end

    @property
    def headers(self) -> str:
        bearer = f"Authorization: Bearer {self.token}\r\n" if self.token else ""
        return f"Host: {HOST}:{self.port}\r\n{bearer}"

    async def open(self) -> Connection:
        return await asyncio.open_connection(HOST, self.port)

    async def many(self, count: int, attack: Callable[[], Awaitable[None]], pause: float) -> None:
        """Keep so many of one kind going, each begun anew when it ends."""

        async def one() -> None:
            while self.goes_on:
                with suppress(Exception):  # refused, closed, out of time
                    await asyncio.wait_for(attack(), max(0.1, self.end - time.monotonic()))
                await asyncio.sleep(pause)

        await asyncio.gather(*(one() for _ in range(count)))

    async def hold(self, data: bytes, trickle: bytes = b"") -> None:
        """Send the beginning of something, and hold the connection."""
        reader, writer = await self.open()
        try:
            writer.write(data)
            while not reader.at_eof():
                try:
                    await asyncio.wait_for(reader.read(65536), 1)
                except asyncio.TimeoutError:
                    writer.write(trickle)
        finally:
            writer.close()

    async def post(self, body: bytes) -> None:
        head = f"POST /v1/streams/camera-0/chat/completions HTTP/1.1\r\n{self.headers}"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        await self.hold(head.encode() + body)

    def socket(self, path: str) -> connect:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        address = f"ws://{HOST}:{self.port}{path}"
        return connect(address, additional_headers=headers, compression=None, max_size=None)

    async def push(self, data: bytes) -> None:
        """Push a picture again and again, to a stream of its own."""
        async with self.socket("/v1/streams/attacker/frames") as socket:
            while self.goes_on:
                await socket.send(data)
                await socket.recv()


# -- item by item ----------------------------------------------------------------------------------


async def long_questions(attacker: Attacker) -> None:
    messages = [{"role": "user", "content": "what is on the table? " * 10_000}]
    body = json.dumps({"messages": messages, "max_tokens": 1}).encode()
    await attacker.many(4, lambda: attacker.post(body), 0.05)


async def longest_questions(attacker: Attacker) -> None:
    """As long as they may be."""
    messages = [{"role": "user", "content": "what is it? " * 340}]
    body = json.dumps({"messages": messages, "max_tokens": 512}).encode()
    await attacker.many(18, lambda: attacker.post(body), 0.05)


async def crowded_png(attacker: Attacker) -> None:
    await attacker.many(1, lambda: attacker.push(png()), 0.2)


async def repeated_scans(attacker: Attacker) -> None:
    await attacker.many(1, lambda: attacker.push(progressive()), 0.2)


async def long_texts(attacker: Attacker) -> None:
    async def send() -> None:
        async with attacker.socket("/v1/streams/attacker/frames") as socket:
            while attacker.goes_on:
                await socket.send("[" * (8 << 20))
                await socket.recv()

    await attacker.many(1, send, 0.2)


async def unfinished_headers(attacker: Attacker) -> None:
    data = f"GET /v1/models HTTP/1.1\r\n{attacker.headers}X: ".encode()
    await attacker.many(140, lambda: attacker.hold(data, b"x"), 0.2)


async def unfinished_bodies(attacker: Attacker) -> None:
    data = f"POST /v1/chat/completions HTTP/1.1\r\n{attacker.headers}Content-Length: 2000\r\n\r\n{{"
    await attacker.many(140, lambda: attacker.hold(data.encode(), b" "), 0.2)


async def idle_connections(attacker: Attacker) -> None:
    await attacker.many(1100, lambda: attacker.hold(b""), 2.0)


async def broken_requests(attacker: Attacker) -> None:
    """Each is worth a line in a log."""
    await attacker.many(8, lambda: attacker.hold(b"\x16\x03\x01 nonsense\r\n\r\n"), 0.02)


async def upgrades(attacker: Attacker) -> None:
    head = f"GET / HTTP/1.1\r\n{attacker.headers}Connection: upgrade\r\nUpgrade: h2c\r\n\r\n"
    await attacker.many(8, lambda: attacker.hold(head.encode()), 0.05)


async def refused_requests(attacker: Attacker) -> None:
    data = f"GET /v1/nothing HTTP/1.1\r\n{attacker.headers}Connection: close\r\n\r\n".encode()
    await attacker.many(8, lambda: attacker.hold(data), 0.05)


async def unfinished_messages(attacker: Attacker) -> None:
    """A message of 16 MB that never ends, on each of 100 WebSockets."""
    numbers = iter(range(10**9))

    async def send() -> None:
        number = next(numbers)
        kind = "watch" if number % 2 else "frames"
        name = "camera-0" if number % 2 else f"attacker-{number % 20}"
        key = f"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n{'Sec-'}"
        key += "WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        head = f"GET /v1/streams/{name}/{kind} HTTP/1.1\r\n{attacker.headers}{key}"
        reader, writer = await attacker.open()
        try:
            writer.write(head.encode())
            if b" 101 " not in await reader.readline():
                return
            writer.write(b"\x82\xff" + struct.pack(">Q", 16 << 20) + bytes(4))
            for _ in range(255):
                writer.write(bytes(1 << 16))
                await writer.drain()
            await reader.read()
        finally:
            writer.close()

    await attacker.many(100, send, 0.2)


async def deaf_watchers(attacker: Attacker) -> None:
    """Watch and never read."""

    async def watch() -> None:
        async with attacker.socket("/v1/streams/camera-0/watch") as socket:
            socket.transport.pause_reading()
            await asyncio.sleep(attacker.end - time.monotonic())

    await attacker.many(100, watch, 0.2)


# -- files -----------------------------------------------------------------------------------------


def png() -> bytes:
    """A small picture with 60 MB of texts in 63 KB."""
    file = io.BytesIO()
    Image.new("RGB", (64, 48)).save(file, "PNG")
    whole = file.getvalue()
    text = b"zTXta\0\0" + zlib.compress(bytes(1_000_000))
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    return whole[:33] + chunk * 60 + whole[33:]


def progressive() -> bytes:
    """A large picture whose last scan is repeated, 1.2 MB."""
    file = io.BytesIO()
    Image.new("RGB", (4096, 4096), (90, 120, 30)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    times = (1_200_000 - last) // len(data[last:-2])
    return data[:last] + data[last:-2] * times + data[-2:]


ATTACKS: dict[str, Callable[[Attacker], Awaitable[None]]] = {
    attack.__name__.replace("_", "-"): attack
    for attack in (
        long_questions,
        longest_questions,
        crowded_png,
        repeated_scans,
        long_texts,
        unfinished_headers,
        unfinished_bodies,
        idle_connections,
        broken_requests,
        upgrades,
        refused_requests,
        unfinished_messages,
        deaf_watchers,
    )
}


def main() -> None:
    name, port, seconds, *token = sys.argv[1:]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    os.nice(5)
    attacker = Attacker(int(port), float(seconds), token[0] if token else None)
    asyncio.run(ATTACKS[name](attacker))


if __name__ == "__main__":
    main()
