# SPDX-License-Identifier: Apache-2.0
"""The state of a session, taken out of it and put back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from stc_video.acceleration import Acceleration
from stc_video.memory import Frame, Memory, Snapshot
from stc_video.session.state_tree import pack, unpack

__all__ = ["SavedSession", "check_same", "describe", "take_over"]


@dataclass
class SavedSession:
    """What a session holds itself, beside its memory.

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


def describe(saved: SavedSession, handle: Acceleration, stream: str, memory: Memory) -> Snapshot:
    """Collect the state of session, memory, cacher and pruner."""
    snapshot = memory.snapshot()
    tensors: dict[str, Tensor] = {}
    state = {
        "session": saved,
        "cacher": None if handle.cacher is None else handle.cacher.stream_state(stream),
        "pruner": handle.pruner.stream_state(stream),
    }
    snapshot.values = {"memory": snapshot.values, "state": pack(state, tensors)}
    snapshot.tensors |= tensors
    return snapshot


def take_over(
    snapshot: Snapshot, handle: Acceleration, stream: str, memory: Memory
) -> SavedSession:
    """Put memory, cacher and pruner into a described state, and return the session's own."""
    device = handle.model.device
    state = unpack(snapshot.values["state"], snapshot.tensors, device)
    memory.restore(Snapshot(snapshot.values["memory"], snapshot.tensors, snapshot.records))
    if handle.cacher is not None and state["cacher"] is not None:
        state["cacher"].name = stream
        handle.cacher.restore_stream(stream, state["cacher"])
    if state["pruner"] is not None:
        handle.pruner.restore_stream(stream, state["pruner"])
    saved: SavedSession = state["session"]
    for frame in saved.waiting:
        # Positions are used on the CPU.
        object.__setattr__(frame, "offsets", frame.offsets.cpu())
    return saved


def check_same(what: str, saved: dict[str, Any], found: dict[str, Any]) -> None:
    """Refuse a save of another model, or of other settings."""
    different = [key for key in saved | found if saved.get(key) != found.get(key)]
    if different:
        key = different[0]
        raise ValueError(
            f"load: the {what} must be as when the session was saved; {key} was "
            f"{saved.get(key)}, got {found.get(key)}"
        )
