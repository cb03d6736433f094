# SPDX-License-Identifier: Apache-2.0
"""Qwen3-VL and Qwen3.5: a time in front of each frame, and features for the first layers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stc_video.memory import VideoPlace
from stc_video.memory.deepstack import deepstack_arguments
from stc_video.models.adapter import SessionAdapter
from stc_video.models.qwen_vl import QwenSessionAdapter, QwenVLAdapter
from stc_video.towers.patching import PatchedMethod

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Qwen3VLAdapter(QwenVLAdapter):
    """Runs a Qwen3-VL or Qwen3.5, with or without experts, on prompts without the pruned tokens.

    Deepstack features (Qwen3-VL) are pruned with their tokens: each token is one row with them, and
    the language model's forward is given its part of the row while a call is under way.
    """

    normalisation = MappingProxyType({"image_mean": [0.5] * 3, "image_std": [0.5] * 3})

    def __init__(self, model: PreTrainedModel, positions: str | None) -> None:
        super().__init__(model, positions)
        taps = getattr(self.tower.config, "deepstack_visual_indexes", None)
        self.deep = len(taps or ())
        self._width = int(model.config.get_text_config().hidden_size)
        self._rows = threading.local()

    def attach(self) -> None:
        """Put a forward on the language model that is given more than embeddings."""
        if not self.deep:
            return
        language: Any = self.language_model
        # Another package may have one there, such as that which moves tensors between devices.
        stock, before, rows = language.forward, vars(language).get("forward"), self._rows

        def forward(_: Any, *args: Any, **kwargs: Any) -> Any:
            given = getattr(rows, "given", None)
            return stock(*args, **kwargs if given is None else kwargs | given)

        language.forward = PatchedMethod(forward, language, "forward", before)

    def restore(self) -> None:
        """Take everything off."""
        super().restore()
        language: Any = self.language_model
        ours = vars(language).get("forward")
        if isinstance(ours, PatchedMethod):
            del language.forward
            if ours.before is not None:
                language.forward = ours.before

    def call(self, stock: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Call the model's own forward, with what deepstack adds to these embeddings."""
        embeds = arguments.get("inputs_embeds")
        if embeds is None or embeds.shape[-1] == self._width:
            return stock(**arguments)
        given = deepstack_arguments(embeds.to(self.model.device), self._width)
        with self._giving(given):
            return stock(**arguments | {"inputs_embeds": given["inputs_embeds"]})

    @contextmanager
    def _giving(self, given: dict[str, Any]) -> Iterator[None]:
        """Inside the block, the language model is given these arguments in this thread."""
        self._rows.given = given
        try:
            yield
        finally:
            self._rows.given = None

    def session_adapter(self, processor: Any) -> SessionAdapter:
        """Prepare for a session with the model's processor or tokenizer."""
        return _Qwen3SessionAdapter(self, processor)


class _Qwen3SessionAdapter(QwenSessionAdapter):
    """A session on a Qwen3-VL: each frame is a picture of its own behind the text of its time.

    A frame whose pictures have no times is said to be a second behind the one before, the first
    one at zero.
    """

    def __init__(self, adapter: Qwen3VLAdapter, processor: Any) -> None:
        super().__init__(adapter, getattr(processor, "image_processor", None))
        self._tokenizer: Any = getattr(processor, "tokenizer", processor)
        config: Any = adapter.model.config
        self._start, self._stop = config.vision_start_token_id, config.vision_end_token_id

    def mark(self, tokenizer: Any, placeholder: int) -> str:
        """Return the text that a chat template writes for a whole video."""
        marks = (self._start, placeholder, self._stop)
        return "".join(tokenizer.convert_ids_to_tokens(list(marks)))

    def frame_text(self, time: float | None) -> tuple[list[int], list[int]]:
        """Ids of a frame's time and of the marks around a picture."""
        seconds = float(self._number) if time is None else time
        said = self._tokenizer(f"<{seconds:.1f} seconds>", add_special_tokens=False).input_ids
        return [*said, self._start], [self._stop]

    def place(self, kept: Tensor, grid: tuple[int, int]) -> tuple[Tensor, int, VideoPlace | None]:
        """Place a frame, with (time, height, width) of the kept tokens, (3, n)."""
        self._number += 1
        rows, columns = torch.div(kept, grid[1], rounding_mode="floor"), kept % grid[1]
        return torch.stack([torch.zeros_like(kept), rows, columns]), max(grid), None

    def _time(self, times: Sequence[float | None]) -> float | None:
        """When a frame of pictures with these times was taken: halfway, as the processor says."""
        known = [time for time in times if time is not None]
        return (known[0] + known[-1]) / 2 if known else None
