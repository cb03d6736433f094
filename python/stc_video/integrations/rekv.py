# SPDX-License-Identifier: Apache-2.0
"""A cacher and a pruner in the authors' code of ReKV (arXiv 2503.00540, `LlavaOneVision_ReKV`).

This is for people who run that code. Our own memory after the same paper is
:mod:`stc_video.memory.rekv`, which needs none of it.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from stc_video.config import CacheConfig
from stc_video.errors import AttachError, UnsupportedModelError
from stc_video.integrations.patch_points import Integration, part_of
from stc_video.pruners import Pruner

_WHAT = "stc_video.integrations.rekv.apply"
#: settings of their memory that are counted in tokens of a frame
_BLOCKS = ("block_size", "exc_block_size")


def apply(
    model: Any,
    cache: str | CacheConfig | None = "motion",
    prune: str | Pruner = "stc",
    tokens_per_frame: int | None = 64,
    **pruner_settings: Any,
) -> Integration:
    """Put a cacher and a pruner into ReKV's ``LlavaOneVision_ReKV``.

    Call it once, between their ``load_model()`` and the first video. ``encode_init_prompt``,
    ``encode_video`` and ``question_answering`` are used as before. Their memory keeps one frame
    per block, so the block size becomes the number of tokens kept, and ``n_frame_tokens`` too.
    ``n_local`` stays a number of tokens and ``topk`` a number of frames: with 64 of 196 tokens the
    window reaches three times as far back, and an answer is made from a third of the tokens;
    raise ``topk`` to compare at equal context.

    Parameters
    ----------
    model
        What their ``load_model()`` returns, with no video encoded.
    cache
        Policy of the cacher on ``model.vision_tower`` (see :func:`stc_video.attach_cacher`), or
        None for none.
    prune
        Name of a pruner (see :func:`stc_video.make_pruner`), or a pruner, that keeps the same
        number of tokens of each frame; ``"none"`` keeps all.
    tokens_per_frame
        That number, of 196.
    **pruner_settings
        Further settings of the pruner.

    Returns
    -------
    Integration
        The handle, also at ``model.stc``: ``stats()``, ``restore()``. A new video, which begins
        with ``encode_init_prompt()``, starts cacher and pruner afresh.

    Raises
    ------
    UnsupportedModelError
        If the model is none of ReKV's; it is left untouched.
    AttachError
        If it is patched already, or holds a video.
    ValueError
        If a setting is out of range, or the pruner's number of tokens varies.
    """
    tower = part_of(model, "vision_tower", _WHAT)
    tokens = part_of(model, "n_frame_tokens", _WHAT)
    layer = part_of(model, "config.vision_feature_layer", _WHAT)
    for method in ("_get_video_features", "encode_init_prompt", "encode_video"):
        part_of(model, method, _WHAT)
    attentions = list(_attentions(part_of(model, "language_model", _WHAT)))
    if not attentions:
        raise UnsupportedModelError(
            f"{_WHAT}: the language model of {type(model).__name__} has none of ReKV's attention "
            "forwards; load the model with their load_model()"
        )
    _refuse_a_video(model, "apply")
    settings = pruner_settings | {"tokens_per_frame": tokens_per_frame}
    with Integration.on(
        model, prune, settings, lambda: _refuse_a_video(model, "restore")
    ) as handle:
        kept = handle.pruner.tokens_kept(tokens)
        handle.attach(tower, cache, layer)
        handle.patches.wrap(model, "_get_video_features", _encoded(handle, tokens))
        handle.patches.wrap(model, "encode_init_prompt", _restarted(handle))
        if kept != tokens:
            handle.patches.set(model, "n_frame_tokens", kept)
            for attention, forward in attentions:
                ours = types.MethodType(_resized(forward, tokens, kept), attention)
                handle.patches.set(attention, "forward", ours)
    return handle


def _encoded(handle: Integration, tokens: int) -> Callable[..., Tensor]:
    """Their frame encoder, with the cacher awake, and the pruner behind it."""

    def encode(stock: Callable[[Tensor], Tensor], pixel_values_videos: Tensor) -> Tensor:
        batch, frames = pixel_values_videos.shape[:2]
        if batch != 1:
            raise ValueError(f"{_WHAT}: one video at a time, got a batch of {batch}")
        if handle.keeps_all and handle.cacher is None:
            return handle.pass_all(stock(pixel_values_videos))
        with handle.video():
            features = handle.in_time_order(
                lambda part: stock(part[None]).view(len(part), tokens, -1), pixel_values_videos[0]
            )
        side = round(tokens**0.5)
        grid = (side, side) if side * side == tokens else None
        return handle.prune(features.view(frames, tokens, -1), grid).tokens.flatten(0, 1)[None]

    return encode


def _restarted(handle: Integration) -> Callable[..., Any]:
    """Their first step of a video, with cacher and pruner started afresh."""

    def encode_init_prompt(stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        handle.reset()
        return stock(*args, **kwargs)

    return encode_init_prompt


def _attentions(language_model: nn.Module) -> Iterator[tuple[nn.Module, types.FunctionType]]:
    """Attention modules that carry ReKV's forward, and the function."""
    for module in language_model.modules():
        forward = getattr(module.__dict__.get("forward"), "__func__", None)
        if forward is None or "rekv_attention_forward" not in forward.__globals__:
            continue
        if callable(inspect.getclosurevars(forward).nonlocals.get("forward")):
            yield module, forward


def _resized(forward: types.FunctionType, tokens: int, kept: int) -> Callable[..., Any]:
    """Their attention forward, made once more by their own functions, for smaller frames.

    Which settings the model was loaded with is known to the function alone, which closes over
    them.
    """
    theirs = forward.__globals__
    make = theirs["rekv_attention_forward"]
    inner = inspect.getclosurevars(forward).nonlocals["forward"]
    closed_over = inspect.getclosurevars(inner).nonlocals
    settings = {k: closed_over[k] for k in inspect.signature(make).parameters if k in closed_over}
    for name in _BLOCKS:
        size = settings.get(name)
        if size is None or size % tokens:
            raise UnsupportedModelError(
                f"{_WHAT}: {name} of ReKV's memory must be a multiple of the {tokens} tokens of a "
                f"frame, got {size}"
            )
        settings[name] = size // tokens * kept
    resized: Callable[..., Any] = theirs["huggingface_forward"](make(**settings))
    return resized


def _refuse_a_video(model: Any, what: str) -> None:
    if getattr(model, "kv_cache", None) is not None:
        raise AttachError(
            f"{what}: the model holds a video in blocks of {model.n_frame_tokens} tokens; call "
            "model.clear_cache() (or set model.kv_cache = None) first"
        )
