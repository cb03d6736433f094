# SPDX-License-Identifier: Apache-2.0
"""Token Merging (arXiv 2210.09461) inside a vision tower, block by block."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stc_kernels import bipartite_match, gather_rows, merge_tokens
from stc_video.errors import UnsupportedModelError
from stc_video.pruners.base import PrunedTokens
from stc_video.pruners.merge_schedule import MergeSchedule
from stc_video.towers.attention import key_mask
from stc_video.towers.block import Block
from stc_video.towers.block_calls import Arguments, BatchCall, bind, kind
from stc_video.towers.bypassed import Bypassed
from stc_video.towers.call_request import RequestWatcher, mask_of
from stc_video.towers.comparison import disagreement, from_parts, hint, states_of, try_out
from stc_video.towers.gradients import refusing_gradients
from stc_video.towers.patching import InstancePatch, check_in_place
from stc_video.towers.pre_norm import PreNormTower, find_tower

OUTPUTS = ("merged", "full")


def attach_tome(
    tower: nn.Module,
    r: int | Sequence[int] | None = None,
    *,
    tokens_per_frame: int | None = None,
    retention_ratio: float | None = None,
    video_pruning_rate: float | None = None,
    proportional_attention: bool = True,
    output: str = "merged",
) -> TowerMerger:
    """Make a vision tower merge similar tokens in every block, so that each block has fewer.

    Between the attention and the MLP of each block the tokens of most similar keys (mean over the
    heads) are merged into their size-weighted mean. Class token and registers stay as they are
    and come first; all others stay in raster order.

    Differences to the ToMe code: the order is kept, which a language model needs; attention sees
    the sizes by an additive bias of the keys, so that PyTorch's fused attention is used; a zero
    key is no NaN; the schedule is part of the handle, not shared state of the model.

    Parameters
    ----------
    tower
        A vision model of transformers without rotary positions (SigLIP, CLIP, DINOv2, ViT,
        InternVL, ...), without padding, or LLaVA-NeXT's SigLIP, in eval mode. Its instances are
        patched; its class and its ``state_dict`` are not touched.
    r
        How many tokens each block merges away: one number, or one for each block. A block merges
        at most half of its tokens. 8 if nothing is given.
    tokens_per_frame, retention_ratio, video_pruning_rate
        Instead of ``r``: how many tokens the tower is to leave (class token and registers not
        counted), spread evenly over the blocks; see :class:`stc_video.pruners.budget.Budget`.
    proportional_attention
        Whether a token of size s counts s times in attention: log(s) is added to its key's
        logits. The paper advises against it for towers trained by masking (MAE).
    output
        ``"merged"``: the tower returns the merged tokens, (F, P + K, C). ``"full"``: it returns
        as many as without merging, each the merged token that it became part of, for models that
        need the whole grid after the tower (LLaVA-OneVision pools it).

    Returns
    -------
    TowerMerger
        The handle: ``last`` says what went where, ``restore()`` undoes everything.

    Raises
    ------
    UnsupportedModelError
        If the tower is none of the supported ones; it is left untouched.
    AttachError
        If it has a cacher, or merges already. A cacher needs every token of every block.
    ValueError
        If a setting is out of range.

    Examples
    --------
    >>> from transformers import SiglipVisionConfig, SiglipVisionModel
    >>> import torch, stc_video
    >>> config = SiglipVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    ...     num_attention_heads=4, image_size=56, patch_size=14)
    >>> tower = SiglipVisionModel(config).eval()
    >>> tome = stc_video.attach_tome(tower, tokens_per_frame=6)
    >>> tower(torch.rand(1, 3, 56, 56)).last_hidden_state.shape
    torch.Size([1, 6, 32])
    >>> tome.last.sizes.sum()
    tensor(16.)
    >>> tome.restore()
    """
    found = find_tower(tower, "attach_tome")
    schedule = MergeSchedule(
        len(found.blocks), r, tokens_per_frame, retention_ratio, video_pruning_rate
    )
    if output not in OUTPUTS:
        raise ValueError(f"attach_tome: output must be one of {', '.join(OUTPUTS)}, got {output!r}")
    return TowerMerger(found, schedule, proportional_attention, output == "full")


@dataclass(frozen=True)
class TowerMerge:
    """The merged tokens of one call of a merging tower.

    Class token and registers are left out: N tokens of a frame went in, K came out.

    Attributes
    ----------
    indices
        (F, K) int32 places in the frame of the tokens that were merged into, ascending.
    source_map
        (F, N) int32, the row that each token became part of.
    sizes
        (F, K) float32, of how many tokens each row is the mean.
    """

    indices: Tensor
    source_map: Tensor
    sizes: Tensor

    def pruned(self, features: Tensor) -> PrunedTokens:
        """Return what a pruner returns, for positions and pictures.

        Parameters
        ----------
        features
            (F, K, D), the merged tokens, or what a projector made of them.
        """
        if features.shape[:2] != self.indices.shape:
            raise ValueError(
                f"pruned: features must have shape {tuple(self.indices.shape)} + (channels,), "
                f"got {tuple(features.shape)}"
            )
        frames, kept = self.indices.shape
        counts = torch.full((frames,), kept, dtype=torch.int32, device=features.device)
        trace = {"sizes": self.sizes}
        return PrunedTokens(features, self.indices, counts, source_map=self.source_map, trace=trace)


@dataclass
class _Pass:
    """The tokens of the call under way; places and rows count the prefix."""

    steps: list[int]
    hidden: Tensor
    kept: Tensor
    source: Tensor
    sizes: Tensor
    has_merged: bool = False

    @classmethod
    def begin(cls, hidden: Tensor, steps: list[int]) -> _Pass:
        frames, tokens = hidden.shape[:2]
        place = torch.arange(tokens, device=hidden.device).expand(frames, tokens)
        return cls(steps, hidden, place, place, hidden.new_ones(place.shape, dtype=torch.float32))

    def merge(self, x: Tensor, metric: Tensor, r: int, prefix: int) -> Tensor:
        """Merge r tokens of x (F, T, C) away, by the similarity of ``metric`` (F, T, d)."""
        step, survivors, _ = bipartite_match(metric, r, protected=prefix)
        merged, self.sizes = merge_tokens(x, step, x.shape[1] - r, sizes=self.sizes)
        self.kept = torch.gather(self.kept, 1, survivors.long())
        self.source = torch.gather(step.long(), 1, self.source)
        self.has_merged = True
        return merged


class TowerMerger:
    """Token merging that is attached to a tower, made by :func:`attach_tome`.

    Like the tower it is used by one thread at a time.

    Attributes
    ----------
    last
        What became of the tokens in the last call of the tower; None before the first.
    """

    #: what `attach_...` functions say that such a tower already has
    title = "a token merger; restore() that one first"

    def __init__(
        self, tower: PreNormTower, schedule: MergeSchedule, proportional: bool, full: bool
    ) -> None:
        self.last: TowerMerge | None = None
        self._tower = tower
        self._schedule = schedule
        self._proportional = proportional
        self._full = full
        self._pass: _Pass | None = None
        self._bypassed = Bypassed.of(tower.blocks, "attach_tome")
        # Kinds of calls in which a block was seen to be what its parts are.
        self._known: set[Hashable] = set()
        self._handed: Tensor | None = None
        self._patches = InstancePatch.install_all(
            (block.layer for block in tower.blocks),
            (self._forward_of(number) for number in range(len(tower.blocks))),
            owner=self,
            caller="attach_tome",
        )
        self._watcher = RequestWatcher(
            tower.ancestors,
            self._check_call,
            "is not available from a tower that merges tokens, because its blocks see fewer and "
            "fewer of them; restore() it first",
        )
        self._watcher.install()

    def __repr__(self) -> str:
        state = "attached to" if self._patches else "taken off"
        return f"<TowerMerger {state} {type(self._tower.root).__name__}, {self._schedule}>"

    def __enter__(self) -> TowerMerger:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def restore(self, *, force: bool = False) -> None:
        """Take the merging off; the tower is then exactly as before. A second call does nothing.

        Parameters
        ----------
        force
            Put the original forwards back even if something else was patched over ours since.

        Raises
        ------
        AttachError
            If another forward was put on a layer after ours; nothing is changed then.
        """
        if not force:
            check_in_place(self._patches, self._tower.root, owner="token merger", undo="restore")
        for patch in self._patches:
            patch.remove()
        self._patches.clear()
        self._watcher.remove()
        self._pass = None

    def _check_call(self, module: nn.Module) -> bool:
        """Refuse a call before any layer runs."""
        self._pass = self._handed = None
        self._bypassed.check()
        if module.training:
            raise RuntimeError(
                f"{type(module).__name__}: a tower that merges tokens is for inference only; call "
                "eval() first, or restore() it to train"
            )
        blocks = self._tower.root.get_submodule(self._tower.path).children()
        if list(blocks) != self._tower.cached_modules:
            raise RuntimeError(
                f"{type(module).__name__}: blocks were replaced or taken out since attach_tome; "
                "restore() it and attach it again"
            )
        return True

    def _forward_of(self, number: int) -> Callable[..., Any]:
        """Forward of one layer."""

        def forward(layer: nn.Module, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            block = self._tower.blocks[number]
            if layer is not block.layer:
                # A deep copy carries our forward along; it has no handle of its own.
                return type(layer).forward(layer, hidden_states, *args, **kwargs)
            weights = (one.layer.parameters() for one in self._tower.blocks)
            with torch.no_grad():
                run = self._begin(hidden_states) if number == 0 else self._pass
                if run is None:
                    raise RuntimeError("attach_tome: call the tower, not single layers of it")
                self._check(run, number, hidden_states, (args, kwargs))
                if mask_of(args, kwargs) is not None:
                    raise ValueError(
                        f"attach_tome: {type(layer).__name__} got an attention mask, and padding "
                        "cannot be told from tokens once they are merged; pass frames without "
                        "padding"
                    )
                if run.steps[number] == 0 and not run.has_merged:
                    # Nothing is different yet, down to the last bit.
                    output = self._patches[number].stock(hidden_states, *args, **kwargs)
                    x = states_of(output)
                else:
                    x = self._block(block, run, number, hidden_states)
            x = self._handed = refusing_gradients(x, hidden_states, weights)
            return (x,) if block.returns_tuple else x

        return forward

    def _check(self, run: _Pass, number: int, given: Tensor, arguments: Arguments) -> None:
        """Refuse a tower that does more than its blocks' parts, when it is first called.

        What a block gets must be what the one before handed out, in every call.
        """
        handed, (args, kwargs) = self._handed, arguments
        if number and given is not handed and not _are_equal(given, handed):
            self._refuse(f"block {number} gets something other than block {number - 1} hands out")
        names = self._bypassed.attends_by, number, *kwargs
        of_kind = (*names, kind(given), kind(args), kind([*kwargs.values()]))
        if of_kind in self._known:
            return
        self._bypassed.check_attention()
        block, patch = self._tower.blocks[number], self._patches[number]
        call = BatchCall(run.hidden if self._full and run.has_merged else given)
        reason = call.ignored(number, bind(block.layer, *arguments))
        rows = None if reason else call.sample()
        if rows is not None:
            x, (args, kwargs) = call.states[rows], call.cut(arguments, rows)
            stock = states_of(patch.stock(x, *args, **kwargs))
            mask = key_mask(bind(block.layer, args, kwargs).get("attention_mask"))
            reason = disagreement(stock, from_parts(block, x, mask), x)
            reason = reason or try_out(block, patch.stock, x, arguments)
            self._known.add(of_kind)
        if reason:
            self._refuse(f"block {number}: {reason}{hint(block.layer)}")

    def _refuse(self, reason: str) -> None:
        """Raise the error and take everything off."""
        self.restore(force=True)
        name = type(self._tower.root).__name__
        raise UnsupportedModelError(
            f"attach_tome: {name} is not a supported tower, and the merging is off again: {reason}"
        )

    def _begin(self, hidden: Tensor) -> _Pass:
        patches = hidden.shape[1] - self._tower.prefix_tokens
        self._pass = _Pass.begin(hidden, self._schedule.steps(patches))
        self._note(self._pass)
        return self._pass

    def _block(self, block: Block, run: _Pass, number: int, given: Tensor) -> Tensor:
        """Run one block with its merge; returns what the tower hands to the next one."""
        # With the full output what the tower passes around is longer than what we work on.
        x = run.hidden if self._full and run.has_merged else given
        normed = block.norm1(x)
        query, key, value = block.project(normed)
        bias = None
        if self._proportional and run.has_merged:
            bias = run.sizes.log().to(x.dtype)[:, None, None]
        x = x + block.attention(query, key, value, bias)
        if run.steps[number]:
            metric = key.unflatten(-1, (block.heads, -1)).mean(2, dtype=torch.float32)
            x = run.merge(x, metric, run.steps[number], self._tower.prefix_tokens)
        run.hidden = x = x + block.feed_forward(x)
        if run.steps[number]:
            self._note(run)
        return gather_rows(x, run.source.int()) if self._full else x

    def _note(self, run: _Pass) -> None:
        prefix = self._tower.prefix_tokens
        self.last = TowerMerge(
            (run.kept[:, prefix:] - prefix).int(),
            (run.source[:, prefix:] - prefix).int(),
            run.sizes[:, prefix:],
        )


def _are_equal(given: Tensor, handed: Tensor | None) -> bool:
    return handed is not None and given.shape == handed.shape and torch.equal(given, handed)
