# SPDX-License-Identifier: Apache-2.0
"""A check of the accelerated model against the stock one by a short prompt, once, when attached.

Nothing is pruned and nothing cached in it, so that the two may differ by rounding alone. It goes
through the model's own ``generate`` with the first layers of the language model: a prompt, and a
step from the cache. A release of transformers in which one of the calls means something else is
noticed here, and not by a user.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stc_video.cache_argument import CACHE
from stc_video.errors import UnsupportedModelError
from stc_video.memory.held_cache import empty_cache
from stc_video.models.adapter import PICTURE_METHODS
from stc_video.towers.patching import PatchedMethod

if TYPE_CHECKING:
    from stc_video.acceleration import Acceleration

#: layers of the language model that take part, and tokens of text in the prompt
_LAYERS, _TOKENS = 2, 6
#: two tokens, and what the model said; whatever else the model's own configuration may be
SETTINGS = {
    "max_new_tokens": 2,
    "min_new_tokens": 2,
    "do_sample": False,
    "use_cache": True,
    "return_dict_in_generate": True,
    "output_logits": True,
}
#: by how much all positions are moved, which attention does not see
_SHIFT = 3


def check_against_stock(probe: Acceleration) -> None:
    """Compare the prompt and a step of an accelerated model with the stock one.

    Parameters
    ----------
    probe
        Of a model of few layers, which keeps all tokens.

    Raises
    ------
    UnsupportedModelError
        If they differ by more than rounding, or cannot be called so.
    """
    adapter: Any = probe.adapter
    model: Any = probe.model
    name = f"accelerate: {type(model).__name__}"
    with failures(name), torch.no_grad():
        given = adapter.short_prompt(short_ids(model, _TOKENS))
        prompt = adapter.pruned(probe, given)
        history = prompt.conversation
        # A step that is taken for another call would go on at the place of its number.
        moved = dataclasses.replace(history, offset=history.offset + _SHIFT)
        prompt = dataclasses.replace(
            prompt, positions=prompt.positions + _SHIFT, conversation=moved
        )
        ids, stock = given["input_ids"], probe.call_stock("generate")
        # One of as many layers as take part: some releases ask whether all of them are filled.
        settings = SETTINGS | {CACHE: empty_cache(adapter.language_model.config)}
        output = adapter.generate_from(prompt, ids, stock, settings, model.generation_config)
        whole = adapter.continued(given, output.sequences[:, : ids.shape[1] + 1])
        logits = probe.call_stock("forward")(**whole, use_cache=False).logits[0, -2:]
    compare(name, torch.cat(output.logits), logits)


def short_ids(model: Any, count: int) -> Tensor:
    """Ids (1, count) of some text: none of them has a meaning of its own in the configuration."""
    config = model.config
    texts = config.get_text_config()
    special: set[int] = set()
    for holder in (config, texts):
        for name, value in vars(holder).items():
            if name.endswith(("token_id", "token_index")):
                special |= set(value if isinstance(value, list) else [value])
    ordinary = (token for token in range(texts.vocab_size) if token not in special)
    ids = [token for token, _ in zip(ordinary, range(count), strict=False)]
    return torch.tensor([ids], device=model.device)


def compare(name: str, ours: Tensor, stock: Tensor) -> None:
    """Refuse logits (2, V) of a prompt and of a step that differ from those of the stock model."""
    eps = torch.finfo(stock.dtype).eps
    allowed = 1e-3 if eps < 1e-4 else 16 * eps
    stock = stock.float()
    stock = stock - stock.mean(-1, keepdim=True)
    ours = ours.to(stock.device).float()
    ours = ours - ours.mean(-1, keepdim=True)
    errors = ((ours - stock).norm(dim=-1) / stock.norm(dim=-1).clamp_min(1e-12)).tolist()
    for what, error in zip(("a prompt", "a step from the cache"), errors, strict=True):
        if not error <= allowed:  # no number, either
            raise UnsupportedModelError(
                f"{name} of transformers {_release()} is not run as it runs itself: with nothing "
                f"pruned and nothing cached, the logits of {what} differ from its own by "
                f"{error:.2g} (rounding: at most {allowed:.2g})"
            )


def shallow(model: Any, name: str) -> Any:
    """Return the model with the first layers of its language model, which shares all of its parts.

    The language model is the inner model's attribute of this name.

    It has no settings, and the model itself, which others may use at the same time, stays as it is.
    """
    from transformers import GenerationConfig

    make: Any = GenerationConfig
    inner = model.model
    language = _with(getattr(inner, name))
    if isinstance(ours := vars(language).get("forward"), PatchedMethod):
        del language.forward  # it is bound to the whole one
        if ours.before is not None:
            language.forward = ours.before
    language.layers = language.layers[: _layers(language.config)]
    copied = _with(model, model=(inner := _with(inner, **{name: language})))
    copied.generation_config = make(pad_token_id=0)
    for attribute in ("stc", "generate", "forward"):
        if "stc" in vars(model):
            vars(copied).pop(attribute, None)
    for attribute in PICTURE_METHODS:
        if isinstance(vars(inner).get(attribute), PatchedMethod):
            del vars(inner)[attribute]
    return copied


def _layers(config: Any) -> int:
    """How many layers take part: of each kind that counts tokens at least one."""
    types = list(getattr(config, "layer_types", None) or ())
    return max(_LAYERS, types.index("full_attention") + 1 if "full_attention" in types else 0)


def _with(module: nn.Module, **parts: nn.Module) -> Any:
    """Return a module with the same parts but for some."""
    copied = copy.copy(module)
    copied.__dict__["_modules"] = module._modules | parts
    return copied


@contextmanager
def failures(name: str) -> Iterator[None]:
    """Turn a failed call into a refusal of the model."""
    try:
        yield
    except (TypeError, ValueError, AttributeError, KeyError, IndexError, RuntimeError) as error:
        if isinstance(error, (torch.OutOfMemoryError, UnsupportedModelError)):
            raise
        raise UnsupportedModelError(
            f"{name} of transformers {_release()} is not run as it runs itself: a short prompt "
            f"fails with {type(error).__name__}: {error}"
        ) from error


def _release() -> str:
    from transformers import __version__

    return __version__
