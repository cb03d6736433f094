# SPDX-License-Identifier: Apache-2.0
"""A language model's layers, taken apart at the attention.

ReKV needs the queries and keys in front of their rotation, and an attention over keys of its own
choice; no cache object of transformers gets to see these. Everything else is called as a module,
never re-implemented.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from stc_video.bypassed import refuse_hooks
from stc_video.errors import UnsupportedModelError
from stc_video.memory.masks import causal_mask
from stc_video.memory.rotary import Rotary, layer_rotaries
from stc_video.towers.patching import PatchedMethod

# Tokens of a prompt that pass through the model together: enough to keep it busy, and on a CPU
# done in seconds, after which a question can be stopped.
_PIECE = 256

_PARTS = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
#: attentions that compute what `scaled_dot_product_attention` computes
_ATTENTIONS = ("eager", "sdpa", "flash_attention", "flex_attention", "kernels-community/")
#: norms of what is added to the residual stream, beside those in front (Gemma)
_SANDWICH = ("pre_feedforward_layernorm", "post_feedforward_layernorm")


@dataclass(frozen=True)
class DecoderLayer:
    """One layer of Qwen2, Qwen3, Llama, Mistral or Gemma 3, by its parts.

    Attributes
    ----------
    layer
        The layer.
    heads, key_heads, width
        Number of query and key heads, and the size of each.
    scale
        What the logits are multiplied with.
    rotary
        Its positions.
    window
        How many tokens a token sees at most, itself the last; None for all.
    """

    layer: Any
    heads: int
    key_heads: int
    width: int
    scale: float
    rotary: Rotary
    window: int | None

    @classmethod
    def of(cls, layer: nn.Module, config: Any, rotary: Rotary) -> DecoderLayer:
        """Recognise a layer."""
        if hasattr(layer, "linear_attn"):
            raise UnsupportedModelError(
                f"memory: {type(layer).__name__} with linear attention keeps one state of all "
                "frames so far, of which none can be retrieved; use memory='plain' or 'window'"
            )
        attention: Any = getattr(layer, "self_attn", None)
        complete = all(hasattr(layer, part) for part in _PARTS) and all(
            hasattr(attention, part) for part in _PROJECTIONS
        )
        capped = getattr(attention, "attn_logit_softcapping", None) is not None
        if not complete or capped or len({hasattr(layer, part) for part in _SANDWICH}) > 1:
            raise UnsupportedModelError(
                "memory: the language model must have the layers of Qwen2, Qwen3, Llama, Mistral "
                f"or Gemma 3, got {type(layer).__name__}"
            )
        # Mistral has one window for all layers, and no types.
        of_layer = getattr(config, "layer_types", None)
        window = getattr(attention if of_layer else config, "sliding_window", None)
        heads = config.num_attention_heads, config.num_key_value_heads
        return cls(layer, *heads, attention.head_dim, attention.scaling, rotary, window)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (H, n, d), keys and values (Hkv, n, d) of x (n, D), not rotated."""
        attention = self.layer.self_attn
        normed = self.layer.input_layernorm(x[None])[0]
        query = attention.q_proj(normed).view(-1, self.heads, self.width)
        key = attention.k_proj(normed).view(-1, self.key_heads, self.width)
        value = attention.v_proj(normed).view(-1, self.key_heads, self.width)
        if hasattr(attention, "q_norm"):
            query, key = attention.q_norm(query), attention.k_norm(key)
        return query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Any) -> Tensor:
        """Attention of rotated queries (H, n, d) to keys (Hkv, m, d): (n, H * d)."""
        out = scaled_dot_product_attention(
            query[None],
            key[None],
            value[None],
            attn_mask=mask,
            scale=self.scale,
            enable_gqa=self.heads != self.key_heads,
        )
        return out[0].transpose(0, 1).reshape(query.shape[1], -1)

    def finish(self, x: Tensor, attention: Tensor) -> Tensor:
        """Residual stream (n, D) behind the layer."""
        layer, added = self.layer, self.layer.self_attn.o_proj(attention[None])
        out: Tensor
        if hasattr(layer, _SANDWICH[0]):
            x = x + layer.post_attention_layernorm(added)[0]
            made = layer.mlp(layer.pre_feedforward_layernorm(x[None]))
            out = x + layer.post_feedforward_layernorm(made)[0]
            return out
        x = x + added[0]
        made = layer.mlp(layer.post_attention_layernorm(x[None]))
        # With experts transformers 4.57 returns what chose them, too.
        out = x + (made[0] if isinstance(made, tuple) else made)[0]
        return out

    def run(
        self, x: Tensor, query: Tensor, keys: Tensor, values: Tensor, check: Callable[[], None]
    ) -> Tensor:
        """Residual stream (n, D) behind the layer, computed piece by piece.

        The queries (H, n, d) are those of the last n keys (Hkv, m, d); ``check`` is called before
        each piece.
        """
        out, held = torch.empty_like(x), keys.shape[1] - len(x)
        for rows in pieces(len(x)):
            check()
            seen = held + rows.stop
            mask = causal_mask(rows.stop - rows.start, seen, x.device, self.window)
            attention = self.attend(query[:, rows], keys[:, :seen], values[:, :seen], mask)
            out[rows] = self.finish(x[rows], attention)
        return out

    def question_query(self, query: Tensor) -> Tensor:
        """Mean of queries (H, n, d) over tokens, summed over the heads of a group: (Hkv * d,).

        Its dot product with mean keys (Hkv * d,) is that of all heads with repeated keys.
        """
        mean = query.float().mean(1)
        return mean.view(self.key_heads, -1, self.width).sum(1).flatten()


class Decoder:
    """The layers of a language model.

    Parameters
    ----------
    model
        The language model without its head, such as ``Qwen2Model``.

    Attributes
    ----------
    layers
        Its layers.
    axes
        How many numbers a position has: 1 or 3.
    size
        D, width of the residual stream.
    device, dtype
        Of its weights.
    """

    def __init__(self, model: nn.Module) -> None:
        stack: Any = model
        _check_calls(stack)
        rotaries = layer_rotaries(model, _axes(stack.config))
        self.layers: Sequence[DecoderLayer] = [
            DecoderLayer.of(layer, stack.config, rotary)
            for layer, rotary in zip(stack.layers, rotaries, strict=True)
        ]
        self.size = int(stack.config.hidden_size)
        first = self.layers[0]
        self.axes = first.rotary.axes
        if first.rotary.width != first.width:
            raise UnsupportedModelError(
                f"memory: the rotary positions must turn whole heads ({first.width}), "
                f"got {first.rotary.width}"
            )
        if all(layer.window is not None for layer in self.layers):
            raise UnsupportedModelError(
                "memory: a language model of whose layers none sees more than the last "
                f"{first.window} tokens retrieves nothing; use memory='plain' or 'window'"
            )
        weight: Tensor = first.layer.self_attn.k_proj.weight
        self.device, self.dtype = weight.device, stack.dtype

    def tables(self, positions: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Cosines and sines of each layer for queries and keys at these positions."""
        made = {rotary: rotary.table(positions) for rotary in {at.rotary for at in self.layers}}
        return [made[layer.rotary] for layer in self.layers]


def _check_calls(stack: Any) -> None:
    """Refuse what is hung on the parts that are taken apart here, and attention of another kind."""
    # What is ours in its place is for its own forward, which is not called here.
    ours = ("forward",) if isinstance(vars(stack).get("forward"), PatchedMethod) else ()
    refuse_hooks({"the language model": stack}, "memory", ours)
    whole = {}
    for number, layer in enumerate(stack.layers):
        whole[f"layer {number}"] = layer
        whole[f"attention {number}"] = getattr(layer, "self_attn", layer)
    refuse_hooks(whole, "memory")
    kind = getattr(stack.config, "_attn_implementation", None)
    if kind is not None and not str(kind).startswith(_ATTENTIONS):
        raise UnsupportedModelError(
            f"memory: the attention of the language model must be one of {', '.join(_ATTENTIONS)}, "
            f"got {kind!r}, which would not be called"
        )


def _axes(config: Any) -> list[int] | None:
    """Which axis each frequency turns, if positions are time, height and width (M-RoPE)."""
    # transformers 4.x calls them rope_scaling.
    settings = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    settings = settings or {}
    sections = settings.get("mrope_section")
    if sections is None:
        return None
    if not settings.get("mrope_interleaved"):
        return [axis for axis, count in enumerate(sections) for _ in range(count)]
    # Qwen3-VL: time, height and width in turn, and time where height or width are used up.
    turns = [number % len(sections) for number in range(sum(sections))]
    return [
        axis if number < len(sections) * sections[axis] else 0 for number, axis in enumerate(turns)
    ]


def pieces(count: int) -> Iterator[slice]:
    """Cut so many tokens of a prompt into pieces that pass through the model one by one."""
    for first in range(0, count, _PIECE):
        yield slice(first, min(first + _PIECE, count))
