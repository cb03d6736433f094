# SPDX-License-Identifier: Apache-2.0
"""Everything that the parts of a session share."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from stc_video.acceleration import Acceleration
from stc_video.memory import Memory, MemoryConfig
from stc_video.session.prompt import PromptTemplate
from stc_video.session.stats import StageTimer

if TYPE_CHECKING:
    from stc_video.models.adapter import SessionAdapter


@dataclass(frozen=True)
class SessionParts:
    """Everything that the parts of a session share.

    Attributes
    ----------
    stream
        Name of the stream in cacher and pruner.
    handle
        The accelerated model.
    adapter
        What the model's family adds: how frames are placed in the stream, and how a video ends.
    template
        Writes what comes before and after the video.
    memory, config
        What was seen, and the settings it was made with.
    lock
        Held while the memory, or what waits for it, is read or written.
    prefill_chunk
        How many frames go through the language model together.
    timer
        Notes the times of the stages.
    kind
        Dtype and device of the model when the session began.
    """

    stream: str
    handle: Acceleration
    adapter: SessionAdapter
    template: PromptTemplate
    memory: Memory
    config: MemoryConfig
    lock: AbstractContextManager[Any]
    prefill_chunk: int
    timer: StageTimer
    kind: tuple[torch.dtype, torch.device]

    def check_model(self) -> None:
        """Refuse a model that was cast or moved: what is remembered is of another kind."""
        now = self.handle.model.dtype, self.handle.model.device
        if now != self.kind:
            raise ValueError(
                "StreamingSession: the model must stay as it was when the session began, "
                f"{self.kind[0]} on {self.kind[1]}, got {now[0]} on {now[1]}"
            )
