# SPDX-License-Identifier: Apache-2.0
"""A cacher and a pruner in the authors' code of Dispider (arXiv 2501.03218)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from stc_video.config import CacheConfig
from stc_video.integrations.patch_points import Integration, part_of
from stc_video.pruners import Pruner

_WHAT = "stc_video.integrations.dispider.apply"


def apply(
    model: Any,
    cache: str | CacheConfig | None = "motion",
    prune: str | Pruner = "stc",
    tokens_per_frame: int | None = 60,
    **pruner_settings: Any,
) -> Integration:
    """Put a cacher and a pruner into Dispider's ``LongQwen2ForCausalLM``.

    Call it once, after their ``load_pretrained_model``. The cacher sits on the CLIP tower of the
    compressor, which decides when to answer and sees every clip of 16 frames; the pruner behind
    ``clip_projector``, through which the tokens of the clips that were chosen enter the language
    model. The compressor itself keeps all tokens: it counts on them.

    Parameters
    ----------
    model
        Their model, with its compressor loaded.
    cache
        Policy of the cacher on ``get_compressor().compressor.get_vision_tower().vision_tower``
        (see :func:`stc_video.attach_cacher`), or None for none.
    prune
        Name of a pruner (see :func:`stc_video.make_pruner`), or a pruner, that keeps the same
        number of tokens of each frame (their tensors are stacked); ``"none"`` keeps all.
    tokens_per_frame
        That number, of 144.
    **pruner_settings
        Further settings of the pruner.

    Returns
    -------
    Integration
        The handle, also at ``model.stc``: ``stats()``, ``restore()``. Each call of the compressor
        with clips is a video of its own; a single picture passes unchanged.

    Raises
    ------
    UnsupportedModelError
        If the model is none of Dispider's; it is left untouched.
    AttachError
        If it is patched already.
    ValueError
        If a setting is out of range, or the pruner's number of tokens varies.
    """
    compressor = part_of(model, "get_compressor().compressor", _WHAT)
    outer: nn.Module = part_of(compressor, "get_vision_tower()", _WHAT)
    tower = part_of(outer, "vision_tower", _WHAT)
    layer: int = part_of(outer, "select_layer", _WHAT)
    tokens: int = part_of(compressor, "get_model().mm_projector.resolution", _WHAT)
    projector: nn.Module = part_of(model, "get_model().clip_projector", _WHAT)
    part_of(compressor, "extract_images", _WHAT)
    settings = pruner_settings | {"tokens_per_frame": tokens_per_frame}
    with Integration.on(model, prune, settings) as handle:
        handle.pruner.tokens_kept(tokens)
        handle.attach(tower, cache, layer)
        if cache is not None:
            handle.patches.wrap(compressor, "extract_images", _extracted(handle))
            handle.patches.wrap(outer, "forward", handle.in_time_order)
        handle.patches.after(projector, lambda clips: _pruned(handle, clips, tokens))
    return handle


def _extracted(handle: Integration) -> Callable[..., Tensor]:
    """Their loop over clips of 16 frames, which belong to one video."""

    def extract_images(stock: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        with handle.video(starts=True):
            return stock(*args, **kwargs)

    return extract_images


def _pruned(handle: Integration, clips: Tensor, tokens: int) -> Tensor:
    """Tokens (..., frames * N, D) of clips, k of N of each frame."""
    if clips.shape[-2] % tokens:
        raise ValueError(
            f"{_WHAT}: clip_projector must return whole frames of {tokens} tokens, "
            f"got shape {tuple(clips.shape)}"
        )
    if handle.keeps_all:
        return handle.pass_all(clips)
    side = round(tokens**0.5)
    grid = (side, side) if side * side == tokens else None
    handle.pruner.reset()
    kept = handle.prune(clips.reshape(-1, tokens, clips.shape[-1]), grid)
    return kept.tokens.reshape(*clips.shape[:-2], -1, clips.shape[-1])
