# SPDX-License-Identifier: Apache-2.0
"""Fingerprints of a model and its settings, which must match when a save is loaded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

import torch

from stc_video.acceleration import Acceleration
from stc_video.config import CacheConfig
from stc_video.pruners.budget import Budget

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_GEOMETRY = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "vocab_size", "image_size", "patch_size",
)  # fmt: skip
_SAMPLED = 64
#: of a memory: a scorer is a function, where the files lie does not matter, and how frames are
#: chosen is decided when a question is asked
_NOT_COMPARED = ("scorer", "disk_folder", "retrieval", "diversity", "recent_frames")


def model_fingerprint(model: PreTrainedModel, *, by_name: bool = False) -> dict[str, Any]:
    """Describe a model: class, geometry, dtype, and a hash of a sample of every weight.

    Parameters
    ----------
    model
        The model.
    by_name
        Hash the names of the weights instead of their shapes, as saves did up to format 2.
        Releases of transformers name the same weights differently.
    """
    config: Any = model.config
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        sample = parameter.detach().flatten()[:_SAMPLED].to("cpu", torch.float64)
        known_by = name if by_name else str(tuple(parameter.shape))
        digest.update(known_by.encode() + sample.numpy().tobytes())
    return {
        "class": type(model).__name__,
        "vision": _geometry(config.vision_config),
        "text": _geometry(config.get_text_config()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "weights" if by_name else "weights_in_order": digest.hexdigest(),
    }


def describe_settings(handle: Acceleration, memory: Any, prefill_chunk: int) -> dict[str, Any]:
    """Describe everything that decides what a session computes."""
    cacher, pruner = handle.cacher, handle.pruner
    public = {
        name: vars(value) if isinstance(value, Budget) else value
        for name, value in vars(pruner).items()
        if not name.startswith("_")
    }
    return _as_json(
        {
            "cache": None if cacher is None else _computing(cacher.config),
            "pruner": {"class": type(pruner).__name__, **public},
            "positions": handle.positions,
            "prefill_chunk": prefill_chunk,
            "memory": {"class": type(memory).__name__, **_as_dict(memory)},
        }
    )


def with_defaults(saved: dict[str, Any], memory: Any) -> dict[str, Any]:
    """Add the settings that did not exist yet when a session was saved, at their defaults.

    Parameters
    ----------
    saved
        What :func:`describe_settings` returned then.
    memory
        The settings of the memory now.

    Returns
    -------
    dict
        The same, with today's names.
    """
    defaults = {"cache": _computing(CacheConfig()), "memory": _as_dict(type(memory)())}
    filled = {
        name: _compared({**values, **saved[name]})
        for name, values in _as_json(defaults).items()
        if isinstance(saved.get(name), dict)
    }
    return saved | filled


def _geometry(config: Any) -> dict[str, Any]:
    return {name: getattr(config, name) for name in _GEOMETRY if hasattr(config, name)}


def _computing(config: CacheConfig) -> dict[str, Any]:
    """The cacher's settings without those that change no result."""
    skipped = ("max_streams", "pack_weights")
    return {name: value for name, value in asdict(config).items() if name not in skipped}


def _as_dict(memory: Any) -> dict[str, Any]:
    assert is_dataclass(memory)
    return _compared(vars(memory))


def _compared(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in _NOT_COMPARED}


def _as_json(value: dict[str, Any]) -> dict[str, Any]:
    """Make it what it will be after it has been written and read; no tuples."""
    plain: dict[str, Any] = json.loads(json.dumps(value, default=repr))
    return plain
