# SPDX-License-Identifier: Apache-2.0
"""A cacher and a pruner in the code of LLaVA-NeXT and LLaVA-Video (arXiv 2410.02713)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from stc_video.config import CacheConfig
from stc_video.errors import UnsupportedModelError
from stc_video.integrations.newlines import keep_with_newlines
from stc_video.integrations.patch_points import Integration, part_of
from stc_video.pruners import Pruner

_WHAT = "stc_video.integrations.llava_next.apply"
_SQUARE = "the tokens of a frame must form a square"


def apply(
    model: Any,
    cache: str | CacheConfig | None = "motion",
    prune: str | Pruner = "stc",
    tokens_per_frame: int | None = 64,
    **pruner_settings: Any,
) -> Integration:
    """Put a cacher and a pruner into LLaVA-NeXT's models (LLaVA-Video among them).

    Call it once, after their ``load_pretrained_model``. ``generate(images=..., modalities=
    ["video"])`` is used as before. With ``mm_newline_position="grid"`` each row of a frame's
    tokens ends in a newline token (13 rows of 13 + 1). A newline is kept only where its row kept a
    token, and counts: tokens and newlines together are at most ``tokens_per_frame``.

    Parameters
    ----------
    model
        A ``LlavaQwenForCausalLM`` or another class with their ``LlavaMetaForCausalLM``.
    cache
        Policy of the cacher on ``get_vision_tower().vision_tower`` (see
        :func:`stc_video.attach_cacher`), or None for none.
    prune
        Name of a pruner (see :func:`stc_video.make_pruner`), or a pruner; ``"none"`` keeps all.
        With newlines in a grid it must not merge tokens; without, it must keep the same number of
        each frame.
    tokens_per_frame
        How many tokens of a frame the language model gets, grid newlines included.
    **pruner_settings
        Further settings of the pruner.

    Returns
    -------
    Integration
        The handle, also at ``model.stc``: ``stats()``, ``restore()``. Each video of a call is a
        stream of its own; images pass unchanged.

    Raises
    ------
    UnsupportedModelError
        If the model is none of theirs, or has ``add_faster_video``; it is left untouched.
    AttachError
        If it is patched already.
    ValueError
        If a setting is out of range.
    """
    outer = part_of(model, "get_vision_tower()", _WHAT)
    tower = part_of(outer, "vision_tower", _WHAT)
    config = part_of(model, "config", _WHAT)
    for method in ("prepare_inputs_labels_for_multimodal", "encode_images", "get_2dPool"):
        part_of(model, method, _WHAT)
    if getattr(config, "add_faster_video", False):
        raise UnsupportedModelError(
            f"{_WHAT}: config.add_faster_video must be off, because a frame then has two sets of "
            "tokens"
        )
    merge = getattr(config, "mm_patch_merge_type", "flat")
    newlines = getattr(config, "mm_newline_position", "one_token")
    in_grid = merge.startswith("spatial") and newlines == "grid"
    settings = pruner_settings | {"tokens_per_frame": tokens_per_frame}
    with Integration.on(model, prune, settings) as handle:
        if cache is not None:
            handle.attach(tower, cache, getattr(outer, "select_layer", -1))
            plan: list[tuple[int, bool]] = []
            prepare = "prepare_inputs_labels_for_multimodal"
            handle.patches.wrap(model, prepare, _planned(model, plan))
            handle.patches.wrap(model, "encode_images", _encoded(handle, plan))
            handle.patches.wrap(outer, "forward", handle.in_time_order)
        if in_grid:
            part_of(model, "add_token_per_grid", _WHAT)
            handle.patches.wrap(model, "add_token_per_grid", _in_grid(handle))
        else:
            handle.patches.wrap(model, "get_2dPool", _in_frames(handle))
    return handle


def _planned(model: Any, plan: list[tuple[int, bool]]) -> Callable[..., Any]:
    """Their preparation of a prompt; notes which of the pictures are frames of which video."""
    signature = inspect.signature(model.prepare_inputs_labels_for_multimodal)

    def prepare(stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        images, modalities = given.arguments["images"], given.arguments["modalities"]
        kinds = [modalities] if isinstance(modalities, str) else list(modalities)
        if isinstance(images, list) or (isinstance(images, Tensor) and images.dim() == 5):
            plan[:] = [
                (
                    1 if item.dim() == 3 else len(item),
                    number < len(kinds) and kinds[number] == "video",
                )
                for number, item in enumerate(images)
            ]
        try:
            return stock(*args, **kwargs)
        finally:
            plan.clear()

    return prepare


def _encoded(handle: Integration, plan: list[tuple[int, bool]]) -> Callable[..., Tensor]:
    """Their encoder, which gets the pictures of all items at once, item by item."""

    def encode_images(stock: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        if not any(is_video for _, is_video in plan):
            return stock(images)
        parts = torch.split(images, [count for count, _ in plan])
        encoded = []
        for part, (_, is_video) in zip(parts, plan, strict=True):
            with handle.video(starts=True) if is_video else nullcontext():
                encoded.append(stock(part))
        return torch.cat(encoded)

    return encode_images


def _in_frames(handle: Integration) -> Callable[..., Tensor]:
    """Their pooling of a video's frames, with the pruner behind it."""

    def pool(stock: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        features = stock(*args, **kwargs)
        if handle.keeps_all:
            return handle.pass_all(features)
        handle.pruner.tokens_kept(features.shape[1])
        handle.pruner.reset()
        return handle.prune(features, _grid(features)).tokens

    return pool


def _in_grid(handle: Integration) -> Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]:
    """Their rows with newlines (F, N, D) -> (F * H * (W + 1), D), and the choice among them."""

    def add_token_per_grid(stock: Callable[[Tensor], Tensor], image_feature: Tensor) -> Tensor:
        if handle.keeps_all:
            return handle.pass_all(stock(image_feature))
        grid = _grid(image_feature)
        handle.pruner.reset()
        kept = handle.pruner(image_feature, grid=grid)
        exact = handle.pruner.exact
        budget = handle.pruner.tokens_kept(image_feature.shape[1]) if exact else None
        rows = stock(image_feature)
        mask = keep_with_newlines(kept, grid, budget).flatten()
        handle.count(len(rows), int(mask.sum()))
        return rows[mask]

    return add_token_per_grid


def _grid(features: Tensor) -> tuple[int, int]:
    side = round(features.shape[1] ** 0.5)
    if side * side != features.shape[1]:
        raise ValueError(f"{_WHAT}: {_SQUARE}, got {features.shape[1]}")
    return side, side
