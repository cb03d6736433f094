# SPDX-License-Identifier: Apache-2.0
"""A live stream: a session, the frames that wait for it, and a thread that pushes them."""

from __future__ import annotations

import base64
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stc_video.errors import MemoryFullError
from stc_video.serve.config import ServeConfig
from stc_video.serve.limits import TokenBucket
from stc_video.serve.pictures import decode_picture
from stc_video.serve.plain_files import PictureError
from stc_video.serve.queue import FrameQueue, QueuedFrame
from stc_video.session import PushedFrame, StreamingSession

#: why a frame is not taken
REASONS = ("malformed", "too_large", "rate", "memory_full", "failed")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SeenFrame:
    """A frame that the model has seen, for those who watch.

    Attributes
    ----------
    picture
        The file as it came.
    facts
        What JSON can hold: time, tokens encoded anew and kept, their grids, counts.
    """

    picture: bytes
    facts: dict[str, Any]


class LiveStream:
    """Takes frames as they come and lets the session see as many as it can.

    Every frame received is counted as seen, dropped, or rejected with a reason; what is in none
    of these counts is waiting, or under way.

    Parameters
    ----------
    name
        Of the stream.
    session
        Its session.
    grid
        (H, W) of the tower's patch tokens, or None if it differs from video to video.
    config
        Limits.
    on_seconds
        Called with the time from the arrival of each frame until it was seen.

    Attributes
    ----------
    received, seen, dropped
        Frames.
    rejected
        Frames by reason.
    pushing
        Whether a client is connected that pushes; set by who connects it.
    saving
        Held while the session is saved or given up.
    """

    def __init__(
        self,
        name: str,
        session: StreamingSession,
        grid: tuple[int, int] | None,
        config: ServeConfig,
        on_seconds: Callable[[float], None],
    ) -> None:
        self.name = name
        self.session = session
        self.received = self.seen = self.dropped = 0
        self.rejected: Counter[str] = Counter()
        self.pushing = False
        self.saving = threading.Lock()
        self._grid = grid
        self._config = config
        self._on_seconds = on_seconds
        self._queue = FrameQueue(config.queue_frames)
        self._rate = TokenBucket(config.max_fps, config.max_fps)
        self._watchers: set[Callable[[SeenFrame], None]] = set()
        self._on_end: set[Callable[[str], None]] = set()
        self._ended: str | None = None
        self._counting = threading.Lock()
        self._worker = threading.Thread(target=self._work, name=f"stream {name}", daemon=True)
        self._worker.start()

    @property
    def waiting(self) -> int:
        """Frames that wait."""
        return len(self._queue)

    def counts(self) -> dict[str, Any]:
        """Totals of all frames so far."""
        with self._counting:
            return {
                "received": self.received,
                "seen": self.seen,
                "dropped": self.dropped,
                "rejected": dict(self.rejected),
                "waiting": self.waiting,
            }

    def on_end(self, tell: Callable[[str], None]) -> Callable[[], None]:
        """Call somebody with the reason when the stream ends; returns the way to undo it."""
        self._on_end.add(tell)
        if self._ended is not None:
            tell(self._ended)
        return lambda: self._on_end.discard(tell)

    @property
    def watchers(self) -> int:
        """Number of clients that watch."""
        return len(self._watchers)

    def watch(self, watcher: Callable[[SeenFrame], None]) -> Callable[[], None]:
        """Call somebody with each frame seen, in the stream's thread; returns the way to end it."""
        self._watchers.add(watcher)
        return lambda: self._watchers.discard(watcher)

    # -- coming in ---------------------------------------------------------------------------

    def put(self, frame: QueuedFrame) -> None:
        """Take a frame from the network; never waits."""
        with self._counting:
            self.received += 1
        if len(frame.data) > self._config.max_frame_bytes:
            most = self._config.max_frame_bytes
            text = f"a frame must have at most {most} bytes, got {len(frame.data)}"
            self._reject(frame, "too_large", text)
            return
        if self._rate.take():
            most_fps = f"{self._config.max_fps:g} frames per second are accepted"
            self._reject(frame, "rate", most_fps)
            return
        out = self._queue.put(frame)
        if out is not None:
            with self._counting:
                self.dropped += 1
            out.reply({"event": "dropped", "frame": out.id, **self.counts()})

    def _reject(self, frame: QueuedFrame, reason: str, message: str) -> None:
        with self._counting:
            self.rejected[reason] += 1
        told = {"event": "rejected", "frame": frame.id, "reason": reason, "message": message}
        frame.reply({**told, **self.counts()})

    # -- the stream's thread -----------------------------------------------------------------

    def _work(self) -> None:
        while (frame := self._queue.get()) is not None:
            try:
                picture = decode_picture(frame.data, self._config.max_frame_pixels)
                pushed = self.session.push(picture, frame.time)
            except PictureError as error:
                self._reject(frame, "malformed", str(error))
            except MemoryFullError as error:
                self._reject(frame, "memory_full", str(error))
            except Exception:
                # Whatever one frame does, the next ones are served.
                _LOG.exception("stream %s: a frame failed", self.name)
                self._reject(frame, "failed", "the model failed on this frame; see the log")
            else:
                self._tell(frame, pushed[-1] if pushed else None)

    def _tell(self, frame: QueuedFrame, pushed: PushedFrame | None) -> None:
        """Count a frame that was seen, and tell its sender and who watches.

        None stands for a picture that waits for others to make a frame.
        """
        with self._counting:
            self.seen += 1
        took = time.perf_counter() - frame.arrived
        self._on_seconds(took)
        facts = {
            "event": "seen",
            "frame": frame.id,
            "number": None if pushed is None else pushed.number,
            "time": frame.time,
            "seconds": took,
            "tokens_kept": 0 if pushed is None else len(pushed.kept),
            **self.counts(),
        }
        watchers = list(self._watchers)
        if watchers and pushed is not None:
            seen = SeenFrame(frame.data, facts | self._tokens(pushed))
            for watcher in watchers:
                watcher(seen)
        frame.reply(facts)

    def _tokens(self, pushed: PushedFrame) -> dict[str, Any]:
        """Tokens that were encoded anew (one byte each, as base64), and those that were kept."""
        made: dict[str, Any] = {"kept": pushed.kept, "feature_grid": pushed.grid}
        record = pushed.record
        if record is not None and self._grid is not None:
            heat = (255 * record.encoded[record.prefix_tokens :]).round().byte()
            made |= {
                "kind": record.kind,
                "reason": record.reason,
                "cost": record.cost,
                "grid": self._grid,
                "encoded": base64.b64encode(bytes(heat.tolist())).decode(),
            }
        return made

    def end(self, reason: str) -> None:
        """Take no more frames, and tell those who are connected why; what waits is still seen."""
        self._ended = reason
        self._queue.close()
        for tell in list(self._on_end):
            tell(reason)

    def join(self, deadline: float) -> bool:
        """Wait for the frames that wait, until a time of ``time.monotonic``; whether all passed."""
        self._worker.join(max(0.0, deadline - time.monotonic()))
        return not self._worker.is_alive()
