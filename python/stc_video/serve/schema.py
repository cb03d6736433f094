# SPDX-License-Identifier: Apache-2.0
"""OpenAI's chat completions, as far as a question about a stream has use for them."""

from __future__ import annotations

import json
import secrets
import time
import uuid
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from stc_video.serve.fields import content_text, only, stop_strings
from stc_video.session import Answer
from stc_video.session.sampling import SeededSampler

# A field that is not known is refused: it would have changed the answer elsewhere.
_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
_MOST_SEED = 2**63


class Message(BaseModel):
    """A message of a conversation; clients send back what an answer had besides, as nulls."""

    model_config = _STRICT

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(content_text)]
    name: Annotated[Any, only()] = None
    refusal: Annotated[Any, only()] = None
    annotations: Annotated[Any, only([])] = None
    audio: Annotated[Any, only()] = None
    tool_calls: Annotated[Any, only([])] = None
    function_call: Annotated[Any, only()] = None


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    model_config = _STRICT

    include_usage: bool | None = None
    include_obfuscation: Annotated[Any, only(False)] = None


class ChatRequest(BaseModel):
    """A request. The table in docs/serving.md says what each field does."""

    model_config = _STRICT

    # -- fields that work
    model: str | None = None
    messages: list[Message] = Field(min_length=1)
    video_stream: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-_MOST_SEED, lt=_MOST_SEED)
    stop: Annotated[tuple[str, ...], BeforeValidator(stop_strings)] = ()

    # -- fields that would change the answer, and are not offered
    n: Annotated[Any, only(1)] = None
    frequency_penalty: Annotated[Any, only(0)] = None
    presence_penalty: Annotated[Any, only(0)] = None
    logit_bias: Annotated[Any, only({})] = None
    logprobs: Annotated[Any, only(False)] = None
    top_logprobs: Annotated[Any, only(0)] = None
    response_format: Annotated[Any, only({"type": "text"})] = None
    tools: Annotated[Any, only([])] = None
    tool_choice: Annotated[Any, only("none")] = None
    functions: Annotated[Any, only([])] = None
    function_call: Annotated[Any, only("none")] = None
    modalities: Annotated[Any, only(["text"])] = None
    audio: Annotated[Any, only()] = None
    reasoning_effort: Annotated[Any, only("none")] = None
    verbosity: Annotated[Any, only("medium")] = None
    web_search_options: Annotated[Any, only()] = None
    moderation: Annotated[Any, only()] = None
    store: Annotated[Any, only(False)] = None
    service_tier: Annotated[Any, only("auto", "default")] = None

    # -- fields without an effect on the answer
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None
    prediction: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    user: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        """JSON can write halves of characters, which no tokenizer and no answer can."""
        try:
            json.dumps(value, ensure_ascii=False, default=str).encode()
        except (UnicodeEncodeError, RecursionError):
            raise ValueError(
                "must be Unicode texts, nested a few times at most; got half of a character (a "
                "lone surrogate) or more"
            ) from None
        return value

    @field_validator("stream_options")
    @classmethod
    def _with_stream(cls, value: StreamOptions | None, info: ValidationInfo) -> Any:
        if value is not None and not info.data.get("stream"):
            raise ValueError("must be left out unless stream is true")
        return value

    @property
    def wants_usage(self) -> bool:
        """Whether a streamed answer ends with the numbers of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def conversation(self) -> tuple[list[tuple[str, str]], str]:
        """Return earlier turns (question, answer), and the question.

        Raises
        ------
        ValueError
            If the messages are no such conversation.
        """
        system = [m.content for m in self.messages if m.role in ("system", "developer")]
        rest = [m for m in self.messages if m.role in ("user", "assistant")]
        roles = [m.role for m in rest]
        expected = ["user", "assistant"] * (len(rest) // 2) + ["user"]
        if roles != expected or not all(m.content.strip() for m in rest):
            raise ValueError(
                "messages: user and assistant must take turns, begin and end with user, and say "
                f"something, got {', '.join(roles) or 'none'}"
            )
        texts = [m.content for m in rest]
        # The video comes before everything, and is remembered without a system message.
        texts[0] = "\n".join([*system, texts[0]])
        turns = list(zip(texts[:-1:2], texts[1::2], strict=True))
        return turns, texts[-1]

    def settings(self, most: int) -> dict[str, Any]:
        """Return the settings for `ask`: greedy unless there is a temperature or a top_p."""
        limits = [n for n in (self.max_tokens, self.max_completion_tokens) if n is not None]
        made: dict[str, Any] = {"max_new_tokens": min([*limits, most]), "do_sample": False}
        top_p = 1.0 if self.top_p is None else self.top_p
        temperature = self.temperature
        if temperature is None:  # 1 is OpenAI's default
            temperature = 1.0 if top_p < 1 else 0.0
        if temperature:
            seed = secrets.randbits(63) if self.seed is None else self.seed
            made["logits_processor"] = [SeededSampler(temperature, top_p, seed)]
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

    def whole(self, answer: Answer, facts: dict[str, Any]) -> dict[str, Any]:
        """An answer that is not streamed."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": answer.text},
            "finish_reason": answer.finish_reason,
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
