# SPDX-License-Identifier: Apache-2.0
"""OpenAI's chat completions, as far as a question about a stream has use for them."""

from __future__ import annotations

import time
import uuid
from typing import Any, Literal

from pydantic import BaseModel, Field

from stc_video.session import Answer

__all__ = ["ChatRequest", "Completion", "Message"]


class Part(BaseModel):
    """A part of a message; only text is taken, pictures are pushed as frames."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    @property
    def text(self) -> str:
        """Its text."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


class StreamOptions(BaseModel):
    """What a streamed answer has besides."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """A request; fields of OpenAI's that are not here are ignored."""

    model: str | None = None
    messages: list[Message] = Field(min_length=1)
    video_stream: str | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    n: Literal[1] | None = None

    def conversation(self) -> tuple[list[tuple[str, str]], str]:
        """Return earlier turns (question, answer), and the question.

        Raises
        ------
        ValueError
            If the messages are no such conversation.
        """
        system = [m.text for m in self.messages if m.role in ("system", "developer")]
        rest = [m for m in self.messages if m.role in ("user", "assistant")]
        roles = [m.role for m in rest]
        expected = ["user", "assistant"] * (len(rest) // 2) + ["user"]
        if roles != expected or not all(m.text.strip() for m in rest):
            raise ValueError(
                "messages: user and assistant must take turns, begin and end with user, and say "
                f"something, got {', '.join(roles) or 'none'}"
            )
        texts = [m.text for m in rest]
        # The video comes before everything, and is remembered without a system message.
        texts[0] = "\n".join([*system, texts[0]])
        turns = list(zip(texts[:-1:2], texts[1::2], strict=True))
        return turns, texts[-1]

    def settings(self, most: int) -> dict[str, Any]:
        """Return the settings for `generate`: greedy unless a temperature is asked for."""
        limits = [n for n in (self.max_tokens, self.max_completion_tokens) if n is not None]
        made: dict[str, Any] = {"max_new_tokens": min([*limits, most]), "do_sample": False}
        if self.temperature:
            made |= {"do_sample": True, "temperature": self.temperature}
            made |= {"top_p": self.top_p} if self.top_p is not None else {}
        return made


class Completion:
    """The objects of one answer.

    Parameters
    ----------
    model
        Its name.
    """

    def __init__(self, model: str) -> None:
        self._common = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def piece(self, delta: dict[str, str], **rest: Any) -> dict[str, Any]:
        """One event of a streamed answer."""
        choice = {"index": 0, "delta": delta, "finish_reason": rest.pop("finish_reason", None)}
        return {**self._common, "object": "chat.completion.chunk", "choices": [choice], **rest}

    def usage(self, answer: Answer) -> dict[str, Any]:
        """The event without a choice that ends a streamed answer on request."""
        made = self.piece({}, usage=_usage(answer))
        return {**made, "choices": []}

    def whole(self, answer: Answer, reason: str, facts: dict[str, Any]) -> dict[str, Any]:
        """An answer that is not streamed."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": answer.text},
            "finish_reason": reason,
        }
        return {
            **self._common,
            "object": "chat.completion",
            "choices": [choice],
            "usage": _usage(answer),
            "stc": facts,
        }


def _usage(answer: Answer) -> dict[str, int]:
    prompt, made = answer.context_tokens, len(answer.ids)
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}
