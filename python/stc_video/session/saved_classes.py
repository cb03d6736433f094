# SPDX-License-Identifier: Apache-2.0
"""The names under which classes stand in saves; they stay when a class moves or is renamed."""

from __future__ import annotations

import importlib
from dataclasses import fields
from typing import Any

from torch import Tensor

#: name in a save -> home of the dataclass
SAVED_CLASSES = {
    "counters": "stc_video.cacher.stats:Counters",
    "effort": "stc_video.cacher.motion.state:Effort",
    "frame": "stc_video.memory.base:Frame",
    "layout": "stc_video.cacher.streams:Layout",
    "ledger": "stc_video.cacher.motion.state:Ledger",
    "merged-tokens": "stc_video.cacher.varlen_cacher:Merged",
    "motion-history": "stc_video.cacher.motion.state:MotionHistory",
    "motion-state": "stc_video.cacher.motion.state:MotionState",
    "novelty-state": "stc_video.pruners.novelty:StreamState",
    "packed-stream": "stc_video.cacher.varlen_cacher:VarlenStream",
    "session": "stc_video.session.saving:SavedSession",
    "stc-pruner-memory": "stc_video.pruners.stc:FrameMeans",
    "stc-state": "stc_video.cacher.stc.state:StcState",
    "stream": "stc_video.cacher.streams:Stream",
    "token-bucket": "stc_video.pruners.budget:TokenBucket",
    "video-place": "stc_video.memory.base:VideoPlace",
}
#: saves of format 1 named the module and class of their time
_FORMAT_1 = {
    "stc_video.cacher.packed_frames:Merged": "merged-tokens",
    "stc_video.cacher.packed_frames:PackedStream": "packed-stream",
    "stc_video.cacher.policies.effort:Effort": "effort",
    "stc_video.cacher.stats:Counters": "counters",
    "stc_video.cacher.stream_state:Layout": "layout",
    "stc_video.cacher.stream_state:MotionState": "motion-state",
    "stc_video.cacher.stream_state:StcState": "stc-state",
    "stc_video.cacher.stream_state:Stream": "stream",
    "stc_video.memory.base:Frame": "frame",
    "stc_video.memory.base:VideoPlace": "video-place",
    "stc_video.pruners.stc:_Memory": "stc-pruner-memory",
    "stc_video.session.saving:SavedSession": "session",
}
#: positions are counted from the first that was free, and may lie before it
_SIGNED = {"video-place"}
_NAMES = {home: name for name, home in SAVED_CLASSES.items()}
#: annotation -> what a save may have there; other annotations are not looked at
_TYPES: dict[str, tuple[type, ...]] = {
    "bool": (bool,), "float": (float, int), "int": (int,), "str": (str,), "Tensor": (Tensor,),
    "None": (type(None),),
}  # fmt: skip


def name_of(kind: type) -> str | None:
    """Return the name of a class in saves; None if its instances cannot be saved."""
    return _NAMES.get(f"{kind.__module__}:{kind.__qualname__}")


def make_instance(name: str, values: dict[str, Any]) -> Any:
    """Make an instance from a name and fields in a save.

    Raises
    ------
    ValueError
        If there is no such name, a field is unknown or not of its type, a count is below 0, or a
        field without a default is missing.
    """
    name = _FORMAT_1.get(name, name)
    home = SAVED_CLASSES.get(name)
    if home is None:
        raise ValueError(
            f"{name!r} is none of the parts that a save may have: {', '.join(SAVED_CLASSES)}"
        )
    module, _, class_name = home.partition(":")
    kind: Any = getattr(importlib.import_module(module), class_name)
    values = _converted(name, values)
    types = {field.name: str(field.type) for field in fields(kind)}
    if unknown := values.keys() - types.keys():
        raise ValueError(f"{_NAMES[home]} has no field {', '.join(sorted(unknown))}")
    signed = name in _SIGNED
    for field_name, value in values.items():
        if not _fits(value, types[field_name], signed):
            from_zero = " from 0" if "int" in types[field_name] and not signed else ""
            raise ValueError(
                f"{_NAMES[home]}.{field_name} must be {types[field_name]}{from_zero}, "
                f"got {value!r:.80}"
            )
    try:
        return kind(**values)
    except TypeError as error:  # names the fields that are missing
        raise ValueError(f"{_NAMES[home]} is incomplete: {error}") from error


def _fits(value: Any, annotation: str, signed: bool) -> bool:
    """Whether a value is of an annotated type; whole numbers are counts unless they are signed."""
    parts = annotation.split(" | ")
    if any(part not in _TYPES for part in parts):
        return True
    if isinstance(value, bool) and "bool" not in parts:
        return False
    if not signed and "int" in parts and isinstance(value, int) and value < 0:
        return False
    return isinstance(value, tuple(kind for part in parts for kind in _TYPES[part]))


def _converted(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Fields of a class as they are named now, from a save in which they may be older."""
    if name == "effort" and "doubt" in values:
        return {"redo_rate" if key == "doubt" else key: value for key, value in values.items()}
    if name in ("stream", "packed-stream") and "effort" in values:
        # Streams held what `motion` had learned in fields of their own.
        learned = {key: values[key] for key in ("effort", "ledger") if values.get(key) is not None}
        rest = {key: value for key, value in values.items() if key not in ("effort", "ledger")}
        history = make_instance("motion-history", learned) if learned else None
        return rest | {"history": history}
    return values
