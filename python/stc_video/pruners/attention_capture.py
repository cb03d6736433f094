# SPDX-License-Identifier: Apache-2.0
"""Queries and keys of one attention layer of a tower, for pruners that rank by attention."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from stc_video.cacher.stats import UNCHANGED
from stc_video.errors import AttachError, UnsupportedModelError
from stc_video.pruners.base import Attention
from stc_video.towers.attention import key_mask
from stc_video.towers.block_calls import BatchCall, bind
from stc_video.towers.bypassed import Bypassed
from stc_video.towers.comparison import disagreement, from_parts, hint, states_of
from stc_video.towers.observers import add_observer, remove_observer
from stc_video.towers.patching import PatchedHook, owner_of
from stc_video.towers.pre_norm import PreNormTower, find_tower


def capture_attention(tower: nn.Module, layer: int = -2) -> AttentionCapture:
    """Record the queries and keys of one attention layer in every call of a tower.

    Nothing is computed for it: no attention matrix, and no slower attention. The tower gives the
    same results as before. Take what was recorded after each call, or not at all.

    It works beside a cacher, whichever comes first. With a class token (CLIP, DINOv2) every frame
    has its attention, since the cacher always encodes that token and keeps the keys of all
    others; a frame that it returns unchanged has the attention of the frame before. Without one
    (SigLIP), importance is a mean over all queries, of which a cached frame has only some:
    :meth:`AttentionCapture.take` refuses that; encode such frames in ``cacher.paused()``.

    Parameters
    ----------
    tower
        A tower that :func:`stc_video.attach_cacher` supports.
    layer
        Number of the layer, negative from the end. The last but one is VisionZip's.

    Returns
    -------
    AttentionCapture
        ``take()`` returns what a pruner takes as ``attention``; ``remove()`` ends it.

    Raises
    ------
    UnsupportedModelError
        If the tower is none of the supported ones.
    AttachError
        If the tower merges tokens (:func:`attach_tome`): its keys are not those of the frame.
    ValueError
        If there is no such layer.

    Examples
    --------
    >>> from transformers import CLIPVisionConfig, CLIPVisionModel
    >>> import torch, stc_video
    >>> config = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    ...     num_attention_heads=4, image_size=56, patch_size=14)
    >>> tower = CLIPVisionModel(config).eval()
    >>> pruner = stc_video.make_pruner("visionzip", tokens_per_frame=4)
    >>> with stc_video.capture_attention(tower) as capture, torch.no_grad():
    ...     features = tower(torch.rand(1, 3, 56, 56)).last_hidden_state[:, 1:]
    ...     kept = pruner(features, attention=capture.take())
    >>> kept.tokens.shape
    torch.Size([1, 4, 32])
    """
    found = find_tower(tower, "capture_attention")
    count = len(found.blocks)
    if not -count <= layer < count:
        raise ValueError(
            f"capture_attention: layer must be between {-count} and {count - 1}, got {layer}"
        )
    owner = owner_of(found.blocks[0].layer)
    if owner is not None and not hasattr(owner, "last_frames"):
        raise AttachError(f"capture_attention: this tower has {owner.title}")
    if owner is not None and _records_passes(owner, tower):
        raise AttachError(
            "capture_attention: recorded passes show no attention; attach the cacher with "
            "CacheConfig(batching='ragged')"
        )
    return AttentionCapture(found, layer % count)


def _records_passes(cacher: Any, tower: nn.Module) -> bool:
    """Whether a cacher may replay its passes, so that nobody sees what they compute."""
    on_gpu = any(parameter.is_cuda for parameter in tower.parameters())
    return bool(cacher.config.is_bucketed("cuda" if on_gpu else "cpu"))


class _Heads(NamedTuple):
    """One frame's queries (K, H, d), of the class token alone where there is one, and keys."""

    query: Tensor
    key: Tensor


class AttentionCapture:
    """Recording of one attention layer, made by :func:`capture_attention`."""

    def __init__(self, tower: PreNormTower, layer: int) -> None:
        Bypassed.of(tower.blocks[layer : layer + 1], "capture_attention")
        self.layer = layer
        self._tower = tower
        self._block = block = tower.blocks[layer]
        if block.qkv is not None or block.layout.norms or block.key_heads != block.heads:
            raise UnsupportedModelError(
                f"capture_attention: {type(tower.root).__name__} is not supported: its queries and "
                "keys are not what its projections give"
            )
        first, begin = tower.blocks[0].layer, PatchedHook(self._begin)
        self._hooks: list[RemovableHandle] = [
            first.register_forward_pre_hook(begin, with_kwargs=True)
        ]
        self._looked_at: tuple[nn.Module, ...] = ()
        self._look_at_projections()
        if self._owner() is None:  # a cacher checks for itself what its attention is
            self._check = block.layer.register_forward_hook(
                PatchedHook(self._check_layer), with_kwargs=True
            )
            self._hooks.append(self._check)
        add_observer(block.layer, self._observe)
        self._is_padded = False
        self._shape: tuple[int, int] | None = None
        self._projected: dict[str, Tensor] = {}
        self._attended: list[_Heads] = []
        self._records: Any = None
        self._latest: dict[str, _Heads] = {}

    def __enter__(self) -> AttentionCapture:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Stop recording and free what was recorded. A second call does nothing."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        remove_observer(self._block.layer, self._observe)
        self._forget()
        self._latest.clear()

    def take(self) -> Attention:
        """Return the attention of the frames of the last call, and forget it.

        Raises
        ------
        ValueError
            If the tower was not called since, or a cacher left out queries that are needed.
        """
        if self._shape is None:
            raise ValueError("take: the tower was not called since the last take()")
        if self._is_padded:
            self._forget()
            raise ValueError(
                "take: the last call had padding, which the recorded queries and keys do not show; "
                "pass frames without padding"
            )
        frames = self._settle()
        tokens, first = self._shape[1], self._tower.prefix_tokens
        self._forget()
        for number, frame in enumerate(frames):
            if frame.key.shape[0] != tokens or (not first and frame.query.shape[0] != tokens):
                raise ValueError(
                    f"take: layer {self.layer} computed {frame.query.shape[0]} of {tokens} "
                    f"queries of frame {number}, and a tower without class token needs all of "
                    "them; encode in cacher.paused(), or detach the cacher"
                )
        return Attention(
            torch.stack([frame.query for frame in frames]),
            torch.stack([frame.key for frame in frames]),
            first,
        )

    # -- while the tower runs ----------------------------------------------------------------

    def _look_at_projections(self) -> None:
        """Hook the query and key of the layer, again if somebody put others in their place."""
        projections = self._block.query, self._block.key
        if projections == self._looked_at:
            return
        for hook in self._hooks[1:]:
            hook.remove()
        names = zip(projections, ("query", "key"), strict=True)
        hooks = [m.register_forward_hook(PatchedHook(self._projection(name))) for m, name in names]
        self._hooks[1:], self._looked_at = hooks, projections

    def _begin(self, _layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Note the start of a call, after what the one before left."""
        if self._shape is not None:  # nobody took the call before
            with suppress(ValueError):  # nor is it anybody's concern if that one failed
                self._settle()
        self._forget()
        self._look_at_projections()
        hidden = args[0] if args else kwargs["hidden_states"]
        self._shape = (hidden.shape[0], hidden.shape[1])
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        self._is_padded = isinstance(mask, Tensor) and not bool(_is_open(mask))
        self._records = getattr(self._owner(), "last_frames", None)

    def _check_layer(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """See once whether the queries and keys are all that the layer attends by."""
        if owner_of(layer) is not None:
            return
        named = dict(kwargs)
        states = args[0] if args else named.pop("hidden_states")
        arguments = args[1:], named
        call = BatchCall(states)
        reason, rows = call.ignored(self.layer, bind(layer, *arguments)), None
        if not reason and (rows := call.sample()) is not None:
            x, cut = states[rows], call.cut(arguments, rows)
            mask = key_mask(bind(layer, *cut).get("attention_mask"))
            with torch.no_grad():
                projected = dict(self._projected)  # the check calls the projections, too
                ours = from_parts(self._block, x, mask)
                self._projected = projected
            reason = disagreement(states_of(output)[rows], ours, x)
        if reason:
            self.remove()
            raise UnsupportedModelError(
                f"capture_attention: {type(self._tower.root).__name__} is not a supported tower, "
                f"and nothing is recorded any more: layer {self.layer}: {reason}{hint(layer)}"
            )
        if rows is not None:
            self._check.remove()

    def _projection(self, name: str) -> Callable[..., None]:
        def keep(_linear: nn.Module, _args: Any, output: Tensor) -> None:
            self._projected[name] = output.detach()

        return keep

    def _observe(self, query: Tensor, key: Tensor) -> None:
        """Note what one pass of a cacher attends with, as many frames as it has."""
        for q, k in zip(query.detach(), key.detach(), strict=True):
            # A cacher writes its next frames into the same keys.
            self._attended.append(self._heads(q, k.clone()))

    # -- afterwards --------------------------------------------------------------------------

    def _settle(self) -> list[_Heads]:
        """Put the frames of the last call in order."""
        records = getattr(self._owner(), "last_frames", None)
        if records is not None and records is not self._records:
            return self._settle_cached(records)
        # The tower ran without a cacher, or beside one that is paused. If a call of the cacher
        # failed, what it left of each stream is not known.
        if self._attended:
            self._latest.clear()
        given = [self._projected.get(name) for name in ("query", "key")]
        if self._attended or any(part is None or part.shape[:2] != self._shape for part in given):
            self._forget()
            raise ValueError("take: the last call of the tower failed, or was no whole call")
        query, key = given
        assert query is not None
        assert key is not None
        return [self._heads(q, k) for q, k in zip(query, key, strict=True)]

    def _settle_cached(self, records: Any) -> list[_Heads]:
        encoded = dict(zip(self._order(records), self._attended, strict=False))
        frames = []
        for number, record in enumerate(records):
            if record.kind != UNCHANGED:
                self._latest[record.stream] = encoded[number]
            elif record.stream not in self._latest:
                raise ValueError(
                    f"take: the cacher returned a frame of stream {record.stream!r} unchanged "
                    "from before capture_attention; reset that stream"
                )
            frames.append(self._latest[record.stream])
        for name in [name for name in self._latest if not self._is_kept(name)]:
            del self._latest[name]
        return frames

    def _order(self, records: Any) -> list[int]:
        """Number of the record that each pass through the layer belongs to; the last counts."""
        streams = {record.stream for record in records}
        config = self._owner().config
        if len(streams) > 1 and (config.policy == "stc" or len(records) > len(streams)):
            raise ValueError(
                "take: beside a cacher, a call must have frames of one stream, or, with the "
                "motion policy, one frame of each of several streams"
            )
        numbered = list(enumerate(records))
        if len(streams) == 1:
            return [n for n, record in numbered for _ in range(record.passes)]
        kept = [n for n, record in numbered if record.passes and record.finite]
        redone = [n for n in kept if records[n].passes > 1]
        return [*kept, *redone, *(n for n, record in numbered if not record.finite)]

    def _is_kept(self, stream: str) -> bool:
        """Whether the cacher could return a frame of the stream unchanged."""
        return getattr(self._owner().stream_state(stream), "state", None) is not None

    def _heads(self, query: Tensor, key: Tensor) -> _Heads:
        if self._tower.prefix_tokens:
            query = query[:1]  # of the class token, which is always encoded
        shape = (self._block.heads, -1)
        return _Heads(query.unflatten(-1, shape), key.unflatten(-1, shape))

    def _forget(self) -> None:
        self._shape, self._records = None, None
        self._projected, self._attended = {}, []

    def _owner(self) -> Any:
        return owner_of(self._tower.blocks[0].layer)


def _is_open(mask: Tensor) -> Tensor:
    """Whether an attention mask, of booleans or to be added, leaves nothing out."""
    return mask.all() if mask.dtype == torch.bool else (mask == 0).all()
