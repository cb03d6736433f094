# SPDX-License-Identifier: Apache-2.0
"""Checks of single fields of a request, each ending in a sentence for the client."""

from __future__ import annotations

import json
from typing import Any

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

#: the word for programs when a field is known and its value is not offered
UNSUPPORTED = "unsupported_value"
_MOST_STOPS = 4
_MOST_SHOWN = 80
# Of a text part; the last one is about OpenAI's cache and has no effect.
_PART = {"type", "text", "prompt_cache_breakpoint"}


def only(*allowed: Any) -> AfterValidator:
    """Accept null and the given values, which ask for nothing, in a field that is not offered."""

    def check(value: Any) -> None:
        if value is None or any(_same(value, one) for one in allowed):
            return
        choices = " or ".join(json.dumps(one) for one in (None, *allowed))
        text = f"must be left out or {choices}; nothing else is offered here, got {shown(value)}"
        # As a value of its own, because pydantic would read its braces.
        raise PydanticCustomError(UNSUPPORTED, "{sentence}", {"sentence": text})

    return AfterValidator(check)


def _same(value: Any, allowed: Any) -> bool:
    """Equality of JSON values: 0 is 0.0, but false is not 0."""
    return isinstance(value, bool) == isinstance(allowed, bool) and bool(value == allowed)


def content_text(content: Any) -> str:
    """Return the text of a message: of a text, or of the text parts of a list."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError(f"must be a text or a list of text parts, got {shown(content)}")
    return "\n".join(map(_part_text, content))


def _part_text(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("image_url", "video_url"):
        raise ValueError(
            f"must have text parts only, got one of type {kind}: a picture cannot come with a "
            "question, push it to the stream as a frame"
        )
    if kind != "text" or not isinstance(part.get("text"), str) or set(part) - _PART:
        allowed = '{"type": "text", "text": "..."}'
        raise ValueError(f"must have parts {allowed} only, got {shown(part)}")
    return str(part["text"])


def stop_strings(stop: Any) -> tuple[str, ...]:
    """Return the stop strings of a text, a list of at most four, or null."""
    strings = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if (
        not isinstance(strings, list)
        or len(strings) > _MOST_STOPS
        or not all(isinstance(one, str) and one for one in strings)
    ):
        raise ValueError(
            f"must be a text or a list of at most {_MOST_STOPS} texts, none of them empty, got "
            + shown(stop)
        )
    return tuple(strings)


def shown(value: Any) -> str:
    """Write a value as JSON, cut off if it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 3] + "..."
