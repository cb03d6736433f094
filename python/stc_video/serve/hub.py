# SPDX-License-Identifier: Apache-2.0
"""All streams of a service, on one model."""

from __future__ import annotations

import logging
import re
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stc_video.acceleration import Acceleration, accelerate
from stc_video.config import CacheConfig
from stc_video.errors import DamagedSaveError
from stc_video.folder_lock import FolderLock
from stc_video.loading.video_llm import ChatModel
from stc_video.serve.config import ServeConfig
from stc_video.serve.errors import Refused
from stc_video.serve.streams import LiveStream
from stc_video.session import StreamingSession
from stc_video.session.storage import INDEX, delete_save, remove_left_behind

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
_LOG = logging.getLogger(__name__)


class StreamHub:
    """Makes, finds, saves and resumes streams; the only one to write to its folder of saves.

    Parameters
    ----------
    chat
        The model, which all streams share.
    config
        Limits, and where to save.
    on_seconds
        Called with the time that each frame took until it was seen.

    Attributes
    ----------
    saves, failed_saves, damaged_saves
        How many there were; damaged ones were found at the start and set aside.
    """

    def __init__(
        self, chat: ChatModel, config: ServeConfig, on_seconds: Callable[[float], None]
    ) -> None:
        chat.check_memory(config.memory)
        self.chat = chat
        self.saves = self.failed_saves = self.damaged_saves = 0
        self._config = config
        self._on_seconds = on_seconds
        self._streams: dict[str, LiveStream] = {}
        self._saved: dict[str, int] = {}
        self._folder_lock: FolderLock | None = None
        self._lock = threading.RLock()
        self._ending = threading.Event()
        cache = None
        if config.cache is not None:
            cache = CacheConfig(
                config.cache, calibration=config.calibration, max_streams=config.max_streams
            )
        accelerate(chat.model, cache, config.prune, config.tokens_per_frame)
        untyped: Any = chat.model
        self._handle: Acceleration = untyped.stc
        self._saver = threading.Thread(target=self._autosave, name="autosave", daemon=True)

    def start(self) -> None:
        """Resume what was saved, and save from now on. A damaged save is set aside.

        Raises
        ------
        ValueError
            If a save is of another model or other settings, or there are too many.
        FolderInUseError
            If another service has the folder.
        """
        folder = self._config.save_folder
        if folder is None:
            return
        part = self._config.part
        if part is None:  # else whoever took the part has it
            self._folder_lock = FolderLock(folder)
        for path in sorted(folder.iterdir()):
            if part is not None and not part.has(path.name):
                continue
            if path.is_dir() and _NAME.fullmatch(path.name):
                try:
                    remove_left_behind(path)
                    if (path / INDEX).is_file():
                        self._resume(path)
                except DamagedSaveError as error:
                    self._set_aside(path, error)
            elif (path / INDEX).is_file():
                _LOG.warning("%s is no name of a stream; what is saved there is left alone", path)
        self._saver.start()

    def _set_aside(self, path: Path, error: DamagedSaveError) -> None:
        """Rename a damaged save to what no stream is called, and say so."""
        # Names of streams have no tilde.
        aside = path.with_name(f"{path.name}~damaged-{uuid.uuid4().hex[:8]}")
        path.rename(aside)
        self.damaged_saves += 1
        _LOG.error("stream %s begins anew: %s; the save is now %s", path.name, error, aside)

    def _resume(self, path: Path) -> None:
        try:
            self._check_name(path.name)
            session = StreamingSession.load(
                path, self.chat.model, self.chat.processor, **self._settings()
            )
            self._add(path.name, session)
        except DamagedSaveError:
            raise
        except (ValueError, Refused, OSError) as error:
            reason = error.detail if isinstance(error, Refused) else error
            raise ValueError(
                f"serve: the stream saved in {path} cannot be resumed ({reason}); start with the "
                "settings that it was saved with, or with another --save-folder"
            ) from error
        self._saved[path.name] = session.stats().frames

    # -- streams -----------------------------------------------------------------------------

    def streams(self) -> list[LiveStream]:
        """All streams, in the order of their names."""
        with self._lock:
            return [self._streams[name] for name in sorted(self._streams)]

    def entries(self) -> list[dict[str, Any]]:
        """All streams with their counts, for lists."""
        return [{"id": stream.name, **stream.counts()} for stream in self.streams()]

    def get(self, name: str) -> LiveStream:
        """Find a stream.

        Raises
        ------
        Refused
            With status 404 if there is none of this name.
        """
        stream = self._streams.get(name)
        if stream is None:
            known = ", ".join(sorted(self._streams)) or "none"
            raise Refused(404, f"there is no stream {name!r}; there are: {known}", "no_stream")
        return stream

    def get_or_make(self, name: str) -> LiveStream:
        """Find a stream, or begin one.

        Raises
        ------
        Refused
            If the name is none, or there are as many streams as may be.
        """
        with self._lock:
            if name in self._streams:
                return self._streams[name]
            self._check_name(name)
            session = StreamingSession(self.chat.model, self.chat.processor, **self._settings())
            return self._add(name, session)

    def the_one(self) -> LiveStream:
        """The only stream, for a question that names none.

        Raises
        ------
        Refused
            If there is none, or more than one.
        """
        streams = self.streams()
        if len(streams) != 1:
            known = ", ".join(stream.name for stream in streams) or "none"
            raise Refused(
                400, f"the question must name a stream (video_stream); there are: {known}",
                "no_stream",
            )  # fmt: skip
        return streams[0]

    def remove(self, name: str) -> None:
        """Delete a stream's save, forget the stream, and tell its clients.

        Raises
        ------
        Refused
            With status 404 if there is none; with 500 if the save cannot be deleted, the stream
            goes on then.
        """
        stream = self.get(name)
        with stream.saving:
            self.get(name)  # another request may have deleted it meanwhile
            self._saved.pop(name, None)
            self._delete_save(name)
            with self._lock:
                del self._streams[name]
            stream.end("deleted")
            if stream.join(self._deadline()):
                stream.session.close()
            else:
                _LOG.error("stream %s hangs in the model; its memory is not given back", name)

    def _delete_save(self, name: str) -> None:
        if self._config.save_folder is None:
            return
        try:
            delete_save(self._config.save_folder / name)
        except OSError as error:
            _LOG.exception("the save of stream %s could not be deleted", name)
            raise Refused(
                500, f"the save of stream {name} could not be deleted ({error.strerror}); "
                "the stream goes on", "delete_failed",
            ) from error  # fmt: skip

    def _deadline(self) -> float:
        return time.monotonic() + self._config.shutdown_seconds

    def _check_name(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise Refused(
                400, "the name of a stream must be 1 to 64 letters, digits or any of . _ -, and "
                f"not begin with a point, got {name[:80]!r}", "bad_name",
            )  # fmt: skip
        if len(self._streams) >= self._config.max_streams:
            raise Refused(
                429, f"there are {len(self._streams)} streams already, which is the limit; delete "
                "one first", "too_many_streams",
            )  # fmt: skip

    def _add(self, name: str, session: StreamingSession) -> LiveStream:
        grid = self._handle.adapter.tower_grid
        stream = LiveStream(name, session, grid, self._config, self._on_seconds)
        self._streams[name] = stream
        return stream

    def _settings(self) -> dict[str, Any]:
        return {"memory": self._config.memory, "prefill_chunk": self._config.prefill_chunk}

    # -- saving ------------------------------------------------------------------------------

    def save(self) -> None:
        """Save all streams that have changed since their last save; failures are logged."""
        for stream in self.streams():
            self._save(stream)

    def _save(self, stream: LiveStream) -> None:
        folder, name = self._config.save_folder, stream.name
        if folder is None:
            return
        with stream.saving:
            frames = stream.session.stats().frames
            if self._streams.get(name) is not stream or self._saved.get(name) == frames:
                return
            try:
                stream.session.save(folder / name)
            except Exception:
                self.failed_saves += 1
                _LOG.exception("stream %s could not be saved", name)
            else:
                self.saves += 1
                self._saved[name] = frames

    def _autosave(self) -> None:
        while not self._ending.wait(self._config.autosave_seconds):
            self.save()

    def close(self, deadline: float | None = None) -> None:
        """Let the frames that wait pass, save, and give the model back as it was.

        A stream that hangs beyond a time of ``time.monotonic`` is left out, so that the others are
        saved. A second call does nothing.
        """
        if self._ending.is_set():
            return
        self._ending.set()
        streams, deadline = self.streams(), deadline or self._deadline()
        for stream in streams:
            stream.end("shutdown")
        hanging = [stream for stream in streams if not stream.join(deadline)]
        # Those first that no one can be busy with.
        for stream in streams:
            if stream not in hanging:
                self._save(stream)
                stream.session.close()
        self._streams.clear()
        for stream in hanging:
            _LOG.error("stream %s hangs in the model and is not saved", stream.name)
        if not hanging:
            self._handle.restore()
        if self._folder_lock is not None:
            self._folder_lock.release()
