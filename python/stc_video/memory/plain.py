# SPDX-License-Identifier: Apache-2.0
"""Everything in one cache, as the stock model would hold it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stc_video.cache_argument import cache_argument
from stc_video.errors import MemoryFullError
from stc_video.memory.base import Context, Frame, Memory, Reading, Snapshot
from stc_video.memory.config import PlainConfig
from stc_video.memory.decoder import pieces
from stc_video.memory.deepstack import deepstack_arguments, joined
from stc_video.memory.held_cache import (
    copied,
    empty_cache,
    load_tensors,
    tensors_of,
    undo_point,
)
from stc_video.memory.masks import layer_masks, pictures_of
from stc_video.memory.restoring import check_counts, check_fields
from stc_video.memory.rotary import layer_rotaries
from stc_video.rotary import apply_rotary


class PlainMemory(Memory):
    """Keeps every token on the device and refuses to pass a limit.

    Parameters
    ----------
    language_model
        Without its head, such as ``Qwen2Model``.
    config
        The limit.
    """

    def __init__(self, language_model: nn.Module, config: PlainConfig) -> None:
        untyped: Any = language_model
        self._model = untyped
        self._width = int(untyped.config.hidden_size)
        self._config = config
        self._cache: Any = empty_cache(untyped.config)
        self._position = 0

    @property
    def tokens(self) -> int:
        """Number of tokens held."""
        return int(self._cache.get_seq_length())

    def begin(self, prefix: Tensor) -> None:
        """Start anew with the embeddings (P, D) of what comes before the video."""
        self.clear()
        if len(prefix):
            self._feed(self._cache, prefix, torch.arange(len(prefix)))
        self._position = len(prefix)

    def append(self, frames: Sequence[Frame]) -> None:
        """Take in the next frames."""
        new = sum(len(frame.embeds) for frame in frames)
        if self.tokens + new > self._config.max_tokens:
            raise MemoryFullError(
                f"memory: a plain memory of {self._config.max_tokens} tokens (max_tokens) holds "
                f"{self.tokens} and cannot take {new} more; use memory='rekv' for long streams"
            )
        positions, position = [], self._position
        for frame in frames:
            positions.append(position + frame.offsets)
            position += frame.span
        if new:
            embeds = joined([frame.embeds for frame in frames])
            places = torch.cat(positions, dim=-1)
            self._feed(self._cache, embeds, places, pictures_of(frames))
        self._position = position

    def context(
        self, prompt: Tensor, question: slice, text: str, reading: Reading | None = None
    ) -> Context:
        """Copy the cache and add the prompt but for its last token."""
        reading = reading or Reading()
        with reading.lock:
            cache, held = self._copy(), self.tokens
        for rows in pieces(len(prompt) - 1):
            reading.check()
            self._feed(cache, prompt[rows], torch.arange(held + rows.start, held + rows.stop))
        return Context(cache, held + len(prompt) - 1, None)

    def _copy(self) -> Any:
        """The cache with keys turned on: an answer goes on at the number of tokens."""
        cache = copied(self._cache)
        # Attention sees differences only; a recurrent state knows no positions.
        if shift := self.tokens - self._position:
            for layer, rotary in zip(cache.layers, layer_rotaries(self._model), strict=True):
                if getattr(layer, "keys", None) is not None:
                    table = rotary.shift_table(torch.tensor([shift]))
                    layer.keys = apply_rotary(layer.keys, *table)
        return cache

    def nbytes(self) -> dict[str, int]:
        """Bytes of the cache."""
        return {"cache": sum(tensor.nbytes for tensor in tensors_of(self._cache).values())}

    def snapshot(self) -> Snapshot:
        """Describe everything that is held."""
        values = {"position": self._position, "layers": len(self._cache.layers)}
        return Snapshot(values=values, tensors=tensors_of(self._cache))

    def restore(self, snapshot: Snapshot) -> None:
        """Take over everything from a snapshot."""
        self.clear()
        check_fields(snapshot.values, ("position", "layers"))
        check_counts(snapshot.values, "position", "layers")
        self._position = snapshot.values["position"]
        device = next(self._model.parameters()).device
        held = {name: tensor.to(device) for name, tensor in snapshot.tensors.items()}
        load_tensors(self._cache, held, snapshot.values["layers"])

    def clear(self) -> None:
        """Forget everything."""
        self._cache, self._position = empty_cache(self._model.config), 0

    def _feed(
        self,
        cache: Any,
        embeds: Tensor,
        positions: Tensor,
        pictures: Sequence[tuple[int, int]] = (),
    ) -> None:
        """Run tokens (n, D) at positions (n,) or (3, n); a failure leaves the cache as it was."""
        before = undo_point(cache)
        given = deepstack_arguments(embeds[None], self._width)
        if pictures:
            count, held = len(embeds), int(cache.get_seq_length())
            given["attention_mask"] = layer_masks(
                self._model.config, embeds, count, held + count, pictures
            )
        try:
            self._model(
                **given,
                position_ids=positions.unsqueeze(-2).to(embeds.device),
                use_cache=True,
                **cache_argument(self._model, cache),
            )
        except BaseException:
            cache.layers[:] = before
            raise
