# SPDX-License-Identifier: Apache-2.0
"""A tokenizer for models with random weights, which have learned none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

#: as LLaVA-OneVision's: the video before the question, turns in ChatML
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'video' %}<video>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(config: Any) -> PreTrainedTokenizerFast:
    """Make a tokenizer of one token per byte, with the placeholders where a model has them.

    Parameters
    ----------
    config
        Of a LLaVA-OneVision: ``image_token_id`` and ``video_token_id`` of at least 259.

    Returns
    -------
    PreTrainedTokenizerFast
        With a chat template. Ids without a token decode to nothing.

    Raises
    ------
    ValueError
        If a placeholder's id is one of a byte.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    special = {"<|pad|>": 256, "<|im_start|>": 257, "<|im_end|>": 258,
               "<image>": config.image_token_id, "<video>": config.video_token_id}  # fmt: skip
    if len(set(special.values())) < len(special) or min(special.values()) < 256:
        raise ValueError(
            "byte tokenizer: the ids of <image> and <video> must be at least 259 and different, "
            f"got {config.image_token_id} and {config.video_token_id}"
        )
    raw = Tokenizer(models.BPE(vocabulary | special, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(list(special))
    tokenizer_class: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast = tokenizer_class(
        tokenizer_object=raw,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def unreadable(tokenizer: Any, config: Any) -> list[int]:
    """Ids that are no letter, space or end, so that random answers can at least be printed."""
    letters = set(" .abcdefghijklmnopqrstuvwxyz")
    size = int(config.get_text_config().vocab_size)
    kept = {
        tokenizer.eos_token_id,
        *tokenizer.convert_tokens_to_ids(tokenizer.tokenize("".join(letters))),
    }
    return [i for i in range(size) if i not in kept]
