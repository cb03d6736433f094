# SPDX-License-Identifier: Apache-2.0
"""A cacher and a pruner in the authors' code of StreamForest (arXiv 2509.24871)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from stc_video.config import CacheConfig
from stc_video.errors import UnsupportedModelError
from stc_video.integrations.patch_points import Integration, part_of
from stc_video.pruners import Pruner

_WHAT = "stc_video.integrations.streamforest.apply"
#: their ways to encode a video that keep an event memory, by `config.vision_encode_type`
_ENCODERS = ("image_video_memory", "image_video_memory_batch")


def apply(
    model: Any,
    cache: str | CacheConfig | None = "motion",
    prune: str | Pruner = "stc",
    retention_ratio: float | None = 0.25,
    **pruner_settings: Any,
) -> Integration:
    """Put a cacher and a pruner into StreamForest's ``LlavaQwenForCausalLM``.

    Call it once, after their ``load_pretrained_model``. ``generate`` and ``generate_online`` are
    used as before. The tower gets up to 128 frames in one call; the cacher takes them in the order
    of time. The pruner sits behind ``mm_projector.mlp``, where their event memory hands its tokens
    (events, recent frames, the present one) to the language model: in front of it, tokens of a
    fixed number per frame are needed. What it is given is one set of tokens whose size grows with
    the memory, so its number is a fraction, and pruners that compare frames or neighbours are of
    no use there: ``stc``, ``tome``, ``uniform`` and ``random`` are.

    Parameters
    ----------
    model
        Their model, whose ``config.vision_encode_type`` is ``image_video_memory`` or
        ``image_video_memory_batch``.
    cache
        Policy of the cacher on ``get_vision_tower().vision_tower`` (see
        :func:`stc_video.attach_cacher`), or None for none.
    prune
        Name of a pruner (see :func:`stc_video.make_pruner`), or a pruner; ``"none"`` keeps all.
    retention_ratio
        Fraction of the memory's tokens that the language model gets.
    **pruner_settings
        Further settings of the pruner.

    Returns
    -------
    Integration
        The handle, also at ``model.stc``: ``stats()``, ``restore()``. Each call of ``generate`` or
        ``generate_online`` with a video is a video of its own; images pass unchanged.

    Raises
    ------
    UnsupportedModelError
        If the model is none of StreamForest's; it is left untouched.
    AttachError
        If it is patched already.
    ValueError
        If a setting is out of range.
    """
    tower = part_of(model, "get_vision_tower().vision_tower", _WHAT)
    outer = part_of(model, "get_vision_tower()", _WHAT)
    mlp = part_of(model, "get_model().mm_projector.mlp", _WHAT)
    encoder = getattr(part_of(model, "config", _WHAT), "vision_encode_type", None)
    if encoder not in _ENCODERS:
        raise UnsupportedModelError(
            f"{_WHAT}: config.vision_encode_type must be one of {', '.join(_ENCODERS)}, "
            f"got {encoder!r}"
        )
    part_of(model, f"encode_{encoder}", _WHAT)
    settings: dict[str, Any] = dict(pruner_settings)
    if prune != "none" and not isinstance(prune, Pruner):
        settings["retention_ratio"] = retention_ratio
    with Integration.on(model, prune, settings) as handle:
        handle.attach(tower, cache, layer=-1)
        handle.patches.wrap(model, f"encode_{encoder}", _encoding(handle))
        if hasattr(model, "generate_online"):
            handle.patches.wrap(model, "generate_online", _online(handle))
        if cache is not None:
            handle.patches.wrap(outer, "forward", handle.in_time_order)
        handle.patches.after(mlp, lambda tokens: _pruned(handle, tokens))
    return handle


def _encoding(handle: Integration) -> Callable[..., Any]:
    """Their encoder of one video or of some images."""

    def encode(
        stock: Callable[..., Any], images_list: Sequence[Tensor], video_idx_in_batch: Sequence[int]
    ) -> Any:
        if len(video_idx_in_batch) == 0:
            return stock(images_list, video_idx_in_batch)
        with handle.video(starts=True):
            return stock(images_list, video_idx_in_batch)

    return encode


def _online(handle: Integration) -> Callable[..., Any]:
    """Their loop that answers after each frame."""

    def generate_online(stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with handle.video(starts=True):
            return stock(*args, **kwargs)

    return generate_online


def _pruned(handle: Integration, tokens: Tensor) -> Tensor:
    """Tokens (1, N, D) of the whole memory, fewer of them on the video path."""
    if not handle.in_video:
        return tokens
    if handle.keeps_all:
        return handle.pass_all(tokens)
    # The memory is another set of tokens each time: nothing of the last one is of use.
    handle.pruner.reset()
    return handle.prune(tokens).packed()[None]
