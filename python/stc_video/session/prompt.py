# SPDX-License-Identifier: Apache-2.0
"""The text around a video, by the model's own chat template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stc_video.models.adapter import SessionAdapter

_PROBE = "?"


@dataclass(frozen=True)
class Prompt:
    """The part of a prompt behind the video.

    Attributes
    ----------
    ids
        Its tokens.
    question
        Those of them that the question itself takes.
    """

    ids: list[int]
    question: slice


class PromptTemplate:
    """Writes what comes before and after a video.

    Parameters
    ----------
    processor
        The model's processor, or its tokenizer alone.
    video_token
        Id of the placeholder that stands for the tokens of a video.
    adapter
        Knows what the template is given for a video, what it writes for it, and what belongs there.

    Raises
    ------
    ValueError
        If there is no chat template, or it does not put the video before the question.
    """

    def __init__(self, processor: Any, video_token: int, adapter: SessionAdapter) -> None:
        self.video_token = video_token
        self.tokenizer: Any = getattr(processor, "tokenizer", processor)
        has_template = getattr(processor, "chat_template", None) is not None
        self._writer = processor if has_template else self.tokenizer
        if getattr(self._writer, "chat_template", None) is None:
            raise ValueError("StreamingSession: the processor must have a chat template, got none")
        self._placeholder: str = self.tokenizer.convert_ids_to_tokens(video_token)
        self._adapter, self._mark = adapter, adapter.mark(self.tokenizer, video_token)
        self._special = set(self.tokenizer.all_special_ids) | {
            number
            for number, token in getattr(self.tokenizer, "added_tokens_decoder", {}).items()
            if token.special
        }
        # That of an unknown word is nobody's mark.
        self._special.discard(self.tokenizer.unk_token_id)
        before, _ = self._parts([], _PROBE)
        # A template that begins the text itself is not to have it begun twice.
        begins = before.startswith(getattr(self.tokenizer, "bos_token", None) or before + " ")
        self.prefix: list[int] = (
            self.tokenizer(before, add_special_tokens=not begins).input_ids if before else []
        )

    def prompt(self, turns: Sequence[tuple[str, str]], question: str) -> Prompt:
        """Write a question behind earlier turns (question, answer).

        Raises
        ------
        ValueError
            If one of them has the text that stands for a video, or another special token, with
            which a text could end its turn and speak for somebody else.
        """
        for text in (question, *(part for turn in turns for part in turn)):
            if self._placeholder in text:
                raise ValueError(
                    f"ask: a text must not contain {self._placeholder}, which stands for a video, "
                    f"got {text!r}"
                )
        _, after = self._parts(turns, question)
        question = question if question in after else question.strip()  # by the template
        begin = after.rfind(question)
        fast = bool(getattr(self.tokenizer, "is_fast", False))
        encoding = self.tokenizer(after, add_special_tokens=False, return_offsets_mapping=fast)
        ids: list[int] = encoding.input_ids
        self._check_special(ids, turns)
        if not fast:
            return Prompt(ids, slice(0, len(ids)))
        end = begin + len(question)
        rows = [i for i, (a, b) in enumerate(encoding.offset_mapping) if a < end and b > begin]
        return Prompt(ids, slice(rows[0], rows[-1] + 1))

    def _check_special(self, ids: Sequence[int], turns: Sequence[tuple[str, str]]) -> None:
        """Refuse special tokens that the template has not written."""
        _, plain = self._parts([(_PROBE, _PROBE)] * len(turns), _PROBE)
        template = self.tokenizer(plain, add_special_tokens=False).input_ids
        added = self._special_among(ids) - self._special_among(template)
        if added:
            names = ", ".join(map(str, self.tokenizer.convert_ids_to_tokens(sorted(added))))
            raise ValueError(
                f"ask: a text must not contain special tokens of the model, got {names}"
            )

    def _special_among(self, ids: Sequence[int]) -> Counter[int]:
        return Counter(number for number in ids if number in self._special)

    def _parts(self, turns: Sequence[tuple[str, str]], question: str) -> tuple[str, str]:
        """Text before and after the video."""
        messages: list[dict[str, Any]] = []
        for asked, answered in turns:
            messages += [_message("user", asked), _message("assistant", answered)]
        messages.append(_message("user", question))
        messages[0]["content"].insert(0, {"type": self._adapter.content})
        text = self._writer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        before, placeholder, after = text.partition(self._mark)
        if not placeholder or question.strip() not in after:
            raise ValueError(
                f"StreamingSession: the chat template must write {self._mark} and then the question"
            )
        return before + self._adapter.intro, self._adapter.outro + after


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}
