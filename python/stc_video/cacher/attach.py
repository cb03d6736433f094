# SPDX-License-Identifier: Apache-2.0
"""Attaching a cacher to a tower."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

from torch import nn

from stc_video.cacher.cacher import Cacher
from stc_video.cacher.varlen_cacher import VarlenCacher
from stc_video.calibration import default_calibration
from stc_video.config import CacheConfig
from stc_video.errors import CalibrationWarning
from stc_video.towers.pre_norm import PreNormTower
from stc_video.towers.varlen import VarlenTower
from stc_video.versions import warn_if_untested


def attach_cacher(
    tower: nn.Module, policy: str | CacheConfig = "motion", **settings: Any
) -> Cacher:
    """Make a vision tower reuse what it computed for earlier frames.

    ``tower(pixel_values)`` works as before. The rows of a batch are consecutive frames of one
    stream, or, inside :meth:`Cacher.streams`, the next frames of several streams.

    Parameters
    ----------
    tower
        A vision model of transformers, LLaVA-NeXT's SigLIP, or the tower of a Qwen-VL and its like
        (see :class:`VarlenCacher`), in eval mode; ``docs/limits.md`` has the list. Its instances
        are patched; its class and its ``state_dict`` are not touched.
    policy
        ``"motion"``, ``"stc"``, or a :class:`CacheConfig`.
    **settings
        Settings of the policy given by name, as in :class:`CacheConfig`: ``quality=0.99``.

    Returns
    -------
    Cacher
        The handle: ``stats()``, ``reset()``, ``streams()``, ``paused()``, ``refresh()``,
        ``detach()``.

    Raises
    ------
    UnsupportedModelError
        If the tower is none of the supported ones, here or in its first call; it is untouched then.
    AttachError
        If it has a cacher already.
    ValueError
        If a setting is out of range, or there is none of that name.

    Warns
    -----
    CalibrationWarning
        Once for each kind of tower that has no calibration of its own.

    Examples
    --------
    >>> from transformers import SiglipVisionConfig, SiglipVisionModel
    >>> import torch, stc_video
    >>> config = SiglipVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    ...     num_attention_heads=4, image_size=56, patch_size=14)
    >>> tower = SiglipVisionModel(config).eval()
    >>> cacher = stc_video.attach_cacher(tower)
    >>> frame = torch.rand(1, 3, 56, 56)
    >>> _ = tower(frame), tower(frame)
    >>> cacher.stats().dense, cacher.stats().unchanged
    (1, 1)
    >>> cacher.detach()
    """
    warn_if_untested()
    config = CacheConfig.of(policy, **settings)
    varlen = VarlenTower.find(tower)
    parts = PreNormTower.of(tower) if varlen is None else varlen
    if config.is_borrowed:
        layers, channels = len(parts.blocks), parts.blocks[0].channels
        _warn_of_calibration(type(tower).__name__, layers, channels, config.promised)
    return VarlenCacher(parts, config) if isinstance(parts, VarlenTower) else Cacher(parts, config)


@cache
def _warn_of_calibration(name: str, layers: int, channels: int, promised: float | None) -> None:
    """Warn, once in a process, of a tower whose streams start with another tower's calibration."""
    if default_calibration().fits(layers, channels):
        return
    held = "no audits hold the quality" if promised is None else f"audits hold {promised:g}"
    warnings.warn(
        f"{name} has no calibration of its own: its streams start with that of a trained DINOv2, "
        f"and {held} from there; `stc calibrate` measures one, for --calibration or "
        "CacheConfig(calibration=...)",
        CalibrationWarning,
        stacklevel=3,
    )
