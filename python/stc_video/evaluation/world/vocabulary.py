# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of the small model: a token per word, and per phrase that never changes."""

from __future__ import annotations

import re
from typing import Any

from stc_video.evaluation.queries import LETTERS
from stc_video.evaluation.world.questions import HAPPENED, UNABLE
from stc_video.evaluation.world.scenes import CARD, COLOURS, PLACES, SHAPES, SIGNS

#: what stands for nothing being there, when the projector is trained
NONE = "nothing"
LOOKS = (*COLOURS, *SIGNS)

#: the parts of all questions that are always the same; those around them are OVO-Bench's prompts
_PHRASES = (
    "Answer with the letter of the right option only.",
    "How many times in all have they been seen to show the",
    "up to now? Answer with a number.",
    "A tutorial on shapes is shown. Is this step being carried out at this moment: the",
    "is shown?",
    "Answer with Yes or No only.",
    "Does the video up to now show enough to answer this question?",
    "What colour is the",
    "What colour was the",
    "Which sign is on the card now?",
    "Which sign was on the card when it was last seen?",
    "when it was last seen?",
    "Which shape is",
    "Which shape was seen first?",
    "Which shape was seen together with the sign",
    "Which of these came first?",
    "Where is the",
    "now?",
    "How many things are there now?",
    "What happened to the",
    "just now?",
    *PLACES,
    *HAPPENED,
    UNABLE,
    *(f"{letter}." for letter in LETTERS[:4]),
)
_SPECIAL = ("<|pad|>", "<|user|>", "<|assistant|>", "<|end|>", "<image>", "<video>", "<|unknown|>")
_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}<|user|>"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'video' %}<video>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% else %}<|assistant|>{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{{ message['content'][0]['text'] }}{% endif %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer() -> Any:
    """Make the tokenizer, with its chat template; a word that it does not have is unknown."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for phrase in _PHRASES for word in re.findall(r"\w+", phrase)})
    texts = (*_SPECIAL, *_PHRASES, *SHAPES, CARD, *COLOURS, *SIGNS, *LETTERS[:4], "Yes", "No",
             *words, "?", ".", ":")  # fmt: skip
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    raw = Tokenizer(models.WordLevel(numbers, "<|unknown|>"))
    fixed = sorted(map(re.escape, _PHRASES), key=len, reverse=True)
    # What the pattern matches stays, what is between goes.
    pattern = Regex("|".join([*fixed, r"[0-9]", r"[A-Za-z]+", r"[^\sA-Za-z0-9]"]))
    raw.pre_tokenizer = pre_tokenizers.Split(pattern, "removed", invert=True)
    raw.add_special_tokens(list(_SPECIAL[:-1]))
    make: Any = PreTrainedTokenizerFast
    tokenizer = make(
        tokenizer_object=raw,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        unk_token="<|unknown|>",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer
