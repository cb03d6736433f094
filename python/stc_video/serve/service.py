# SPDX-License-Identifier: Apache-2.0
"""The parts of a service."""

from __future__ import annotations

import time

from stc_video.loading.video_llm import ChatModel
from stc_video.serve.answers import AnswerDesk
from stc_video.serve.config import ServeConfig
from stc_video.serve.hub import StreamHub
from stc_video.serve.metrics import Metrics


class Service:
    """The model with its streams, the answers under way, and what is counted.

    Parameters
    ----------
    chat
        The model; it is accelerated until the service is closed.
    config
        Limits and settings.

    Attributes
    ----------
    hub, desk, metrics
        Streams, answers, counts.
    """

    def __init__(self, chat: ChatModel, config: ServeConfig) -> None:
        self.chat = chat
        self.config = config
        self.metrics = Metrics()
        self.desk = AnswerDesk(chat.processor.tokenizer, config, self.metrics)
        self.hub = StreamHub(chat, config, self.metrics.frame_seconds.observe)
        self.metrics.watch(self.hub)

    def start(self) -> None:
        """Resume what was saved.

        Raises
        ------
        ValueError
            If a save cannot be resumed.
        """
        self.hub.start()

    def stop_answers(self) -> None:
        """Let the answers under way end with their next tokens."""
        self.desk.stop()

    def close(self) -> None:
        """End answers and streams, save, and give the model back; a second call does nothing."""
        deadline = time.monotonic() + self.config.shutdown_seconds
        self.desk.close(deadline)
        self.hub.close(deadline)
