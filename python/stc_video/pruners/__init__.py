# SPDX-License-Identifier: Apache-2.0
"""Choice of the visual tokens that enter the language model."""

from __future__ import annotations

import inspect
from typing import Any

from stc_video.pruners.attention_capture import AttentionCapture, capture_attention
from stc_video.pruners.base import Attention, KeepAll, PrunedTokens, Pruner
from stc_video.pruners.budget import retained_count
from stc_video.pruners.controls import RandomPruner, UniformPruner
from stc_video.pruners.dtd import DtdPruner
from stc_video.pruners.evs import EvsPruner
from stc_video.pruners.stc import StcPruner
from stc_video.pruners.streaming_assistant import StreamingAssistantPruner
from stc_video.pruners.tome import TomePruner
from stc_video.pruners.tower_merging import TowerMerge, TowerMerger, attach_tome
from stc_video.pruners.vidcom2 import VidCom2Pruner
from stc_video.pruners.visionzip import VisionZipPruner

_PRUNERS: dict[str, type[Pruner]] = {
    "stc": StcPruner,
    "dtd": DtdPruner,
    "streaming_assistant": StreamingAssistantPruner,
    "vidcom2": VidCom2Pruner,
    "visionzip": VisionZipPruner,
    "tome": TomePruner,
    "evs": EvsPruner,
    "uniform": UniformPruner,
    "random": RandomPruner,
    "none": KeepAll,
}

PRUNERS: tuple[str, ...] = tuple(_PRUNERS)


def make_pruner(name: str, **settings: Any) -> Pruner:
    """Make a pruner.

    Parameters
    ----------
    name
        ``"stc"``, ``"dtd"``, ``"streaming_assistant"``, ``"vidcom2"``, ``"visionzip"``,
        ``"tome"``, ``"evs"``, ``"uniform"``, ``"random"`` or ``"none"``.
    **settings
        Settings of that pruner, such as ``tokens_per_frame=64``; see the class of
        that pruner, such as :class:`StcPruner`.

    Returns
    -------
    Pruner
        Call it with the features of some frames to get :class:`PrunedTokens`.

    Raises
    ------
    ValueError
        If there is no such pruner, or a setting is unknown to it or out of range.

    Examples
    --------
    >>> import torch, stc_video
    >>> pruner = stc_video.make_pruner("stc", tokens_per_frame=3)
    >>> kept = pruner(torch.rand(2, 9, 8), grid=(3, 3))
    >>> kept.tokens.shape, kept.counts.tolist()
    (torch.Size([2, 3, 8]), [3, 3])
    """
    if name not in _PRUNERS:
        raise ValueError(f"make_pruner: name must be one of {', '.join(PRUNERS)}, got {name!r}")
    known = _settings_of(_PRUNERS[name])
    if unknown := [setting for setting in settings if setting not in known]:
        raise ValueError(
            f"make_pruner: {name!r} does not take these settings: {', '.join(unknown)}; it takes "
            f"{', '.join(known) or 'none'}"
        )
    return _PRUNERS[name](**settings)


def _settings_of(pruner: type[Pruner]) -> list[str]:
    """Names of the settings that a pruner takes, those that it hands on to its base included."""
    found: list[str] = []
    for base in pruner.__mro__:
        parameters = inspect.signature(base).parameters.values()
        found += [one.name for one in parameters if one.kind is not one.VAR_KEYWORD]
        if not any(one.kind is one.VAR_KEYWORD for one in parameters):
            break
    return list(dict.fromkeys(found))


__all__ = [
    "PRUNERS",
    "Attention",
    "AttentionCapture",
    "DtdPruner",
    "EvsPruner",
    "KeepAll",
    "PrunedTokens",
    "Pruner",
    "RandomPruner",
    "StcPruner",
    "StreamingAssistantPruner",
    "TomePruner",
    "TowerMerge",
    "TowerMerger",
    "UniformPruner",
    "VidCom2Pruner",
    "VisionZipPruner",
    "attach_tome",
    "capture_attention",
    "make_pruner",
    "retained_count",
]
