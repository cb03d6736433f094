# SPDX-License-Identifier: Apache-2.0
"""Load a whole video language model, with what writes its prompts, by name."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from stc_video.errors import UnsupportedModelError
from stc_video.loading.byte_tokenizer import byte_tokenizer, unreadable
from stc_video.loading.checkpoint import load_checkpoint
from stc_video.loading.geometries import GEOMETRIES, build_random
from stc_video.loading.placement import ModelError, cast_weights, find_device, find_dtype
from stc_video.loading.vision import LoadedModel, wrap_model
from stc_video.loading.world_model import WORLD_MODEL, load_world_model
from stc_video.memory import memory_name
from stc_video.models.families import MODEL_FAMILIES, family_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stc_video.memory import MemoryConfig

ANSWERS_NOTICE = "random weights: the answers are noise, and show only that everything runs"
_TEMPLATES = ("chat_template.jinja", "chat_template.json")


@dataclass(eq=False)
class ChatModel:
    """A video language model that can be asked.

    Attributes
    ----------
    model
        On its device, in eval mode.
    processor
        What :class:`StreamingSession` takes: ``tokenizer``, ``image_processor`` and the chat
        template, without the video processor of transformers, which needs torchvision.
    name
        Folder, Hugging Face id, or geometry.
    random
        Whether the weights are random.
    """

    model: PreTrainedModel
    processor: Any
    name: str
    random: bool

    @property
    def notice(self) -> str | None:
        """A caveat to show beside every answer of this model; None if there is none."""
        return ANSWERS_NOTICE if self.random else None

    def check_memory(self, memory: MemoryConfig) -> None:
        """Raise UnsupportedModelError if a session of this model cannot have such a memory."""
        family = family_of(self.model.config.model_type)
        name = memory_name(memory)
        if family is not None and name not in family.memories:
            raise UnsupportedModelError(
                f"model {self.name}: memory must be {' or '.join(family.memories)} for "
                f"{family.name}, got {name}; refused there are {family.refused}"
            )

    def vision(self) -> LoadedModel:
        """Return the model's tower, projector and pooling, which stay part of the model."""
        processor = self.processor.image_processor
        return wrap_model(self.model, self.name, processor, random=self.random, whole=True)


def load_chat_model(
    name: str | os.PathLike[str],
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
) -> ChatModel:
    """Load a video language model by name.

    Parameters
    ----------
    name
        A folder or Hugging Face id of a whole model that ``stc models`` lists; ``"stc-world"``, a
        small trained model of this package; or a geometry such as ``"llava-onevision-tiny"``: that
        one has random weights and a tokenizer of bytes.
    device, dtype
        As for :func:`load_model`.

    Returns
    -------
    ChatModel
        Ready for :class:`StreamingSession`.

    Raises
    ------
    ModelError
        If the model, its tokenizer or the device is not there, or the weights do not fit.
    UnsupportedModelError
        If it is another kind of model, such as a vision tower alone.
    """
    where = find_device(device)
    kind = find_dtype(dtype, where)
    given = str(name)
    if given in GEOMETRIES and not Path(given).exists():
        kind_of_model, settings = GEOMETRIES[given]
        if "text_config" not in settings:
            raise _speechless(given, kind_of_model)
        model = build_random(given)
        tokenizer: Any = byte_tokenizer(model.config)
        generation: Any = model.generation_config
        generation.pad_token_id = tokenizer.pad_token_id
        generation.eos_token_id = tokenizer.eos_token_id
        generation.suppress_tokens = unreadable(tokenizer, model.config)
        cast_weights(model, kind)
        images, random = None, True
    elif given == WORLD_MODEL and not Path(given).exists():
        model, tokenizer = load_world_model()
        cast_weights(model, kind)
        images, random = None, False
    else:
        model, given, images = load_checkpoint(given, kind)
        family = family_of(model.config.model_type)
        if family is None or not hasattr(model, "generate"):
            raise _speechless(given, type(model).__name__)
        tokenizer, random = _load_tokenizer(given), False
    untyped: Any = model
    untyped.to(where)
    model.train(False)
    model.requires_grad_(False)
    processor = SimpleNamespace(tokenizer=tokenizer, image_processor=images)
    return ChatModel(model, processor, given, random)


def _speechless(name: str, found: str) -> UnsupportedModelError:
    names = ", ".join(family.name for family in MODEL_FAMILIES)
    return UnsupportedModelError(
        f"model {name}: questions need a whole model ({names}), got {found}; `stc models` has more"
    )


def _load_tokenizer(name: str) -> Any:
    """Load the tokenizer, with the chat template of the processor if there is one."""
    from transformers import AutoTokenizer

    auto: Any = AutoTokenizer  # has no types
    try:
        tokenizer = auto.from_pretrained(name)
    # transformers 4.57 stumbles over what is missing.
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise ModelError(f"model {name}: the tokenizer cannot be loaded: {reason}") from error
    # The tokenizer's own one knows text only.
    template = _processor_template(name)
    if template is not None:
        tokenizer.chat_template = template
    if tokenizer.chat_template is None:
        raise ModelError(f"model {name}: there is no chat template ({' or '.join(_TEMPLATES)})")
    return tokenizer


def _processor_template(name: str) -> str | None:
    from transformers.utils import hub

    find: Any = hub.cached_file  # has no types
    for file in _TEMPLATES:
        path = find(name, file, _raise_exceptions_for_missing_entries=False)
        if path is None:
            continue
        text = Path(path).read_text(encoding="utf-8")
        return text if file.endswith(".jinja") else str(json.loads(text)["chat_template"])
    return None
