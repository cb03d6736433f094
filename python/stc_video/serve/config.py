# SPDX-License-Identifier: Apache-2.0
"""Settings of the service, validated when they are made."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path

from stc_video.calibration import Calibration
from stc_video.memory import MemoryConfig, RekvConfig
from stc_video.serve.parts import Part

#: of each stream by default, which does not have the machine for itself
MEMORY = RekvConfig(host_bytes=1 << 30)
_TOKEN = re.compile(r"[A-Za-z0-9._~-]{16,256}")


@dataclass(frozen=True)
class ServeConfig:
    """Settings of the service: its address, what it may hold, and what it refuses.

    Attributes
    ----------
    host, port
        Where it listens. Another host than loopback needs a token. Port 0: any free one.
    token
        What a client must present; None for none.
    max_streams
        Streams at a time.
    queue_frames
        Frames of a stream that may wait for the model; one more pushes the oldest out.
    max_frame_bytes, max_frame_pixels
        Largest picture, compressed and decoded.
    max_fps
        Frames per second of a stream that are accepted; further ones are refused and counted.
    max_body_bytes
        Largest body of a request.
    max_questions, max_waiting
        Questions that are answered at a time, and that may wait; one more gets status 429.
    questions_per_minute
        Of all clients together; one more gets status 429.
    max_prompt_tokens
        Longest question with its earlier turns, in tokens; a longer one gets status 400.
    max_new_tokens
        Longest answer, whatever a request asks for.
    max_connections, max_peer_connections
        With a whole request or a WebSocket at a time, of all and of one address; one more gets
        status 503.
    max_unfinished
        Connections without a whole request; one more pushes the oldest of the address that has
        most of them out.
    request_seconds
        Within which a request must be whole.
    max_watchers
        Clients at a time that watch a stream.
    save_folder
        Where streams are saved, each in a folder of its name, and resumed from at the start;
        None for no saves.
    autosave_seconds
        Time between saves of streams that have changed.
    shutdown_seconds
        How long requests under way may go on when the service ends, and after them frames.
    memory
        Of each stream.
    part
        Which part of all streams is here, of several replicas on one folder of saves; None for all.
    cache, prune, tokens_per_frame, prefill_chunk
        As for :class:`StreamingSession`.
    calibration
        What a stream of the policy ``motion`` starts with; None for the package's.
    """

    host: str = "127.0.0.1"
    port: int = 8077
    token: str | None = field(default=None, repr=False)
    max_streams: int = 16
    queue_frames: int = 4
    max_frame_bytes: int = 8 << 20
    max_frame_pixels: int = 1 << 24
    max_fps: float = 30.0
    max_body_bytes: int = 256 << 10
    max_questions: int = 2
    max_waiting: int = 16
    questions_per_minute: int = 240
    max_prompt_tokens: int = 4096
    max_new_tokens: int = 512
    max_connections: int = 128
    max_peer_connections: int = 96
    max_unfinished: int = 64
    request_seconds: float = 10.0
    max_watchers: int = 8
    save_folder: Path | None = None
    autosave_seconds: float = 60.0
    shutdown_seconds: float = 3.0
    part: Part | None = None
    memory: MemoryConfig = MEMORY
    cache: str | None = "motion"
    calibration: Calibration | None = None
    prune: str = "stc"
    tokens_per_frame: int = 64
    prefill_chunk: int = 8

    @property
    def max_message_bytes(self) -> int:
        """Largest message that is read; one above ``max_frame_bytes`` so that this can be said."""
        return 2 * self.max_frame_bytes

    def __post_init__(self) -> None:
        """Check every value."""
        for name in (
            "max_streams", "queue_frames", "max_frame_bytes", "max_frame_pixels", "max_fps",
            "max_body_bytes", "max_questions", "questions_per_minute", "max_prompt_tokens",
            "max_new_tokens", "max_connections", "max_peer_connections", "max_unfinished",
            "max_watchers", "request_seconds", "autosave_seconds", "shutdown_seconds",
        ):  # fmt: skip
            if not getattr(self, name) > 0:
                raise ValueError(f"serve: {name} must be above 0, got {getattr(self, name)}")
        if self.max_waiting < 0 or not 0 <= self.port <= 65535:
            raise ValueError(
                "serve: max_waiting must be from 0 and port from 0 to 65535, got "
                f"{self.max_waiting} and {self.port}"
            )
        if self.token is not None and not _TOKEN.fullmatch(self.token):
            raise ValueError(
                "serve: the token must be 16 to 256 letters, digits or any of . _ ~ -, got "
                f"{len(self.token)} characters"
            )
        if self.token is None and not is_loopback(self.host):
            raise ValueError(
                f"serve: {self.host} can be reached from other machines, which needs a token: set "
                "STC_SERVE_TOKEN or give --token-file"
            )


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
