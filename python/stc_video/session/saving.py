# SPDX-License-Identifier: Apache-2.0
"""The state of a session, taken out of it and put back."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stc_video.errors import DamagedSaveError
from stc_video.folder_lock import FolderLock
from stc_video.memory import Frame, Snapshot
from stc_video.session.fingerprint import describe_settings, model_fingerprint, with_defaults
from stc_video.session.state_tree import pack, unpack
from stc_video.session.storage import INDEX, read_save, write_save

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stc_video.session.intake import Intake
    from stc_video.session.parts import SessionParts

_PARTS = frozenset({"memory", "state", "model", "settings"})


@dataclass
class SavedSession:
    """State of a session itself, beside its memory.

    Attributes
    ----------
    frames, tokens_seen, tokens_kept, refused
        Totals.
    turns
        Questions and answers of the dialogue.
    waiting
        Frames that wait for their prefill chunk.
    side
        What the model's family remembers of the stream.
    """

    frames: int
    tokens_seen: int
    tokens_kept: int
    refused: int
    turns: list[tuple[str, str]]
    waiting: list[Frame]
    side: Any


# An inference tensor could later not be written to outside of inference mode.
@torch.inference_mode(False)
def read_save_of(folder: Path, model: PreTrainedModel) -> Snapshot:
    """Read a save, and refuse it if it is damaged or of another model."""
    snapshot = read_save(folder)
    values = snapshot.values
    if values.keys() != _PARTS or not all(isinstance(part, dict) for part in values.values()):
        raise DamagedSaveError(
            f"load: the save in {folder} is damaged: {INDEX} must have the objects "
            f"{', '.join(sorted(_PARTS))}, got {', '.join(sorted(values))}"
        )
    known = values["model"]
    found = model_fingerprint(model, by_name="weights" in known)
    for part in ("vision", "text"):
        # Which sizes a configuration tells differs between releases of transformers.
        shared = known.get(part, {}).keys() & found[part].keys()
        known, found = (d | {part: {k: d[part][k] for k in sorted(shared)}} for d in (known, found))
    _check_same("model", known, found)
    return snapshot


class Saver:
    """Saves a session, from its first save into a folder on as the only one that may."""

    def __init__(self, parts: SessionParts, intake: Intake) -> None:
        self._parts, self._intake = parts, intake
        self._lock: FolderLock | None = None
        self.begin()

    def begin(self) -> None:
        """Begin a new stream: nothing in a folder is a part of it."""
        self._identifier = uuid.uuid4().hex

    def save(self, folder: Path, turns: list[tuple[str, str]]) -> None:
        """Save the state with the turns of the dialogue."""
        self._take(folder.resolve())
        intake, handle = self._intake, self._parts.handle
        saved = SavedSession(
            frames=intake.frames,
            tokens_seen=intake.tokens_seen,
            tokens_kept=intake.tokens_kept,
            refused=intake.refused,
            turns=turns,
            waiting=intake.waiting,
            side=self._parts.adapter.state(),
        )
        stream, snapshot = self._parts.stream, self._parts.memory.snapshot()
        tensors: dict[str, Tensor] = {}
        with handle.tower_lock:
            cacher = None if handle.cacher is None else handle.cacher.stream_state(stream)
        state = {
            "session": saved,
            "cacher": cacher,
            "pruner": handle.pruner.stream_state(stream),
        }
        snapshot.values = {
            "memory": snapshot.values,
            "state": pack(state, tensors),
            "model": model_fingerprint(handle.model),
            "settings": self._settings(),
        }
        snapshot.tensors |= tensors
        write_save(folder, snapshot, self._identifier)

    @torch.inference_mode(False)
    def restore(self, folder: Path, snapshot: Snapshot) -> list[tuple[str, str]]:
        """Put a new session into a saved state; returns the turns of the dialogue."""
        known = with_defaults(snapshot.values["settings"], self._parts.config)
        _check_same("settings", known, self._settings())
        device = self._parts.handle.model.device
        try:
            state = unpack(snapshot.values["state"], snapshot.tensors, device)
            saved: SavedSession = state["session"]
            _check_session(saved)
            held = Snapshot(snapshot.values["memory"], snapshot.tensors, snapshot.records)
            self._parts.memory.restore(held)
        except (LookupError, TypeError, ValueError) as error:
            reason = f"has no {error}" if isinstance(error, KeyError) else error
            raise DamagedSaveError(
                f"load: the save in {folder} is damaged: {INDEX}: {reason}"
            ) from error
        self._take_over(saved, state["cacher"], state["pruner"])
        return saved.turns

    def close(self) -> None:
        """Let others save into the folder."""
        if self._lock is not None:
            self._lock.release()

    def _take(self, folder: Path) -> None:
        if self._lock is None or not self._lock.is_on(folder):
            before, self._lock = self._lock, FolderLock(folder)
            if before is not None:
                before.release()

    def _take_over(self, saved: SavedSession, cacher: Any, pruner: Any) -> None:
        """Put cacher, pruner, side and intake into the state."""
        handle, stream = self._parts.handle, self._parts.stream
        if handle.cacher is not None and cacher is not None:
            cacher.name = stream
            with handle.tower_lock:
                handle.cacher.restore_stream(stream, cacher)
        if pruner is not None:
            handle.pruner.restore_stream(stream, pruner)
        for frame in saved.waiting:
            # Positions are used on the CPU.
            object.__setattr__(frame, "offsets", frame.offsets.cpu())
        self._intake.restore(saved)
        self._parts.adapter.restore(saved.side)

    def _settings(self) -> dict[str, Any]:
        parts = self._parts
        return describe_settings(parts.handle, parts.config, parts.prefill_chunk)


def _check_session(saved: Any) -> None:
    """Refuse totals and turns that no session has."""
    if not isinstance(saved, SavedSession):
        raise ValueError(f"the session must be one, got {saved!r:.80}")
    if saved.tokens_kept > saved.tokens_seen or saved.refused > saved.frames:
        raise ValueError(
            f"of {saved.frames} frames and {saved.tokens_seen} tokens, {saved.refused} cannot be "
            f"refused and {saved.tokens_kept} kept"
        )
    if not all(
        isinstance(turn, tuple) and len(turn) == 2 and all(isinstance(text, str) for text in turn)
        for turn in saved.turns
    ):
        raise ValueError(f"turns must be pairs of texts, got {saved.turns!r:.80}")
    if not all(isinstance(frame, Frame) for frame in saved.waiting):
        raise ValueError(f"waiting must be frames, got {saved.waiting!r:.80}")


def _check_same(what: str, saved: dict[str, Any], found: dict[str, Any]) -> None:
    """Refuse a save of another model, or of other settings."""
    different = [key for key in saved | found if saved.get(key) != found.get(key)]
    if different:
        key = different[0]
        raise ValueError(
            f"load: the {what} must be as when the session was saved; {key} was "
            f"{saved.get(key)}, got {found.get(key)}"
        )
