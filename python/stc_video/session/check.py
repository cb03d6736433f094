# SPDX-License-Identifier: Apache-2.0
"""A check of each kind of memory against the stock model, by a few tokens."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from stc_video.bypassed import refuse_hooks
from stc_video.memory import (
    Frame,
    Memory,
    MemoryConfig,
    RekvConfig,
    VideoPlace,
    make_memory,
)
from stc_video.models.self_check import SETTINGS, compare, failures, short_ids
from stc_video.session.answer import generate_behind

if TYPE_CHECKING:
    from stc_video.acceleration import Acceleration

#: tokens in front of the video, of its frame, of the question, and in all
_PREFIX, _FRAME, _QUESTION = 2, 2, 3
_TOKENS = _PREFIX + _FRAME + _QUESTION


def check_memory(handle: Acceleration, config: MemoryConfig) -> None:
    """Compare what a memory makes of a few tokens with what the stock model makes of them.

    The first session on an accelerated model does so, and the first with another kind of memory.

    Raises
    ------
    UnsupportedModelError
        If they differ by more than rounding, or there are hooks that would not be called.
    """
    model: Any = handle.model
    kind = type(config).__name__
    name = f"StreamingSession: {type(model).__name__}"
    # Frames go to the language model past these two.
    refuse_hooks({"the model": model, "model.model": model.model}, name, ours=handle.replaced)
    if kind in handle.checked:
        return
    probe = handle.probe()
    model, adapter = probe.model, cast(Any, probe.adapter)
    with failures(name), torch.no_grad():
        ids = short_ids(model, _TOKENS)
        memory = make_memory(adapter.language_model, _small(config))
        try:
            prompt = ids[0, -_QUESTION:].tolist()
            embeds = model.get_input_embeddings()(ids[0])
            context = _filled(memory, embeds, adapter.bidirectional)
            adapter.before_answer(context.cache)
            output = generate_behind(model, context, prompt, int(ids[0, 0]), None, dict(SETTINGS))
        finally:
            memory.clear()
        whole = torch.cat([ids, output.sequences[:, -2:-1].to(ids)], dim=1)
        shown = whole.clone()
        shown[:, _PREFIX : _PREFIX + _FRAME] = adapter.placeholder
        kinds = adapter.kinds(shown)
        stock = probe.call_stock("forward")(input_ids=whole, use_cache=False, **kinds)
    compare(f"{name} with a {kind}", torch.cat(output.logits), stock.logits[0, -2:])
    handle.checked.add(kind)


def _filled(memory: Memory, embeds: Tensor, bidirectional: bool) -> Any:
    """Context of a question behind a frame of text."""
    memory.begin(embeds[:_PREFIX])
    place = VideoPlace(time=0, origin=0, step=_FRAME, side=_FRAME)
    rows = (0, _FRAME) if bidirectional else None
    tokens, offsets = embeds[_PREFIX : _PREFIX + _FRAME], torch.arange(_FRAME)
    memory.append([Frame(tokens, offsets, _FRAME, 0, None, place, rows)])
    return memory.context(embeds[-_QUESTION:], slice(0, _QUESTION - 1), "?")


def _small(config: MemoryConfig) -> MemoryConfig:
    """The same kind of memory with little room, and nothing of the user's."""
    if not isinstance(config, RekvConfig):
        return type(config)()
    return dataclasses.replace(
        RekvConfig(), window_tokens=64, retrieve_tokens=64, host_bytes=1 << 20, slab_bytes=1 << 18
    )
