# SPDX-License-Identifier: Apache-2.0
"""A cacher on the tower and a pruner in front of the language model, in one reversible line."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stc_video.cache_argument import one_named, stock_named
from stc_video.cacher import Cacher, FrameRecord, attach_cacher
from stc_video.config import CacheConfig
from stc_video.errors import AttachError
from stc_video.models.adapter import PICTURE_METHODS, ModelAdapter, adapter_for
from stc_video.models.batching import TowerBatcher, TowerJob
from stc_video.models.put import Put, bound, locked
from stc_video.models.self_check import check_against_stock, shallow
from stc_video.pruners import PrunedTokens, Pruner, make_pruner
from stc_video.pruners.base import with_rows
from stc_video.versions import warn_if_untested

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: pruners without a count of their own
_UNCOUNTED = ("none",)
#: held while it is looked whether a model is free, and something put on it or taken off
_ATTACHING = threading.RLock()


def accelerate(
    model: PreTrainedModel,
    cache: str | CacheConfig | None = "motion",
    prune: str | Pruner = "stc",
    tokens_per_frame: int | None = 64,
    *,
    positions: str | None = None,
    **pruner_settings: Any,
) -> PreTrainedModel:
    """Make a video language model encode what changed and read what matters.

    ``model.generate(**inputs)`` and ``model(**inputs)`` take what the processor made, with its
    placeholders for every token of every frame; the placeholders of pruned tokens are taken out
    on the way in. What ``generate`` returns begins with the prompt as it was given. The logits of
    a plain forward have the length of the pruned prompt.

    Each video of a call is a stream of its own that begins with the call. Images pass through the
    tower as if nothing were attached. For an endless video see :class:`StreamingSession`.

    Parameters
    ----------
    model
        A whole model of a family that ``stc models`` lists, in eval mode.
    cache
        Policy of the cacher (see :func:`attach_cacher`), or None for none.
    prune
        Name of a pruner (see :func:`make_pruner`), or a pruner; ``"none"`` keeps every token.
    tokens_per_frame
        How many tokens the pruner keeps of each frame; None leaves it to the pruner's default.
    positions
        ``"repacked"`` (the default of all but Qwen-VL): the kept tokens and the text get
        consecutive positions, as if the others had never been there, as in training.
        ``"original"``: each keeps the position that it has in the full prompt; the only choice for
        Qwen-VL, whose positions are time, height and width.
    **pruner_settings
        Further settings of the pruner.

    Returns
    -------
    PreTrainedModel
        The same model. ``model.stc`` is the :class:`Acceleration`, whose ``restore()`` undoes
        everything; ``with accelerate(model).stc:`` does so at the end of the block.

    Raises
    ------
    UnsupportedModelError
        If the model is none of the supported ones, or answers a short prompt otherwise than by
        itself; it is left untouched.
    AttachError
        If it is accelerated already, or its tower has a cacher.
    ValueError
        If a setting is out of range.
    """
    warn_if_untested()
    with _ATTACHING:
        check_free(model)
        return accelerate_with(
            adapter_for(model, positions), cache, prune, tokens_per_frame, **pruner_settings
        ).model


def borrow(model: Any, *settings: Any, **more: Any) -> Acceleration:
    """Return the acceleration of a model for one more user, who calls ``give_back`` in the end.

    It is made with these settings of :func:`accelerate` if there is none, and then taken off
    behind the last user.
    """
    with _ATTACHING:
        is_new = not isinstance(getattr(model, "stc", None), Acceleration)
        if is_new:
            accelerate(model, *settings, **more)
        handle: Acceleration = model.stc
        handle.owned |= is_new
        handle.users += 1
        return handle


def accelerate_with(
    adapter: ModelAdapter,
    cache: str | CacheConfig | None,
    prune: str | Pruner,
    tokens_per_frame: int | None,
    **pruner_settings: Any,
) -> Acceleration:
    """Put cacher and pruner on the model of an adapter; see :func:`accelerate`."""
    model = adapter.model
    check_free(model)
    if isinstance(prune, Pruner):
        if pruner_settings:
            raise ValueError(
                "accelerate: settings of a pruner go with its name, "
                f"got a pruner and {', '.join(pruner_settings)}"
            )
        pruner = prune
    else:
        if tokens_per_frame is not None and prune not in _UNCOUNTED:
            pruner_settings["tokens_per_frame"] = tokens_per_frame
        pruner = make_pruner(prune, **pruner_settings)
    if adapter.deep and pruner.merges:
        raise ValueError(
            f"accelerate: {type(model).__name__} adds features of each token to its first layers, "
            f"which {type(pruner).__name__} would have to merge too; choose a pruner that keeps "
            "tokens as they are, such as 'stc'"
        )
    check_against_stock(_probe(adapter))
    cacher = None if cache is None else attach_cacher(adapter.tower, cache)
    try:
        return Acceleration(model, adapter, cacher, pruner)
    except BaseException:
        if cacher is not None:
            cacher.detach()
        raise


def _probe(adapter: ModelAdapter) -> Acceleration:
    """Accelerate a model of few layers that shares the parts of the adapter's model."""
    model = shallow(adapter.model, adapter.language_model_name)
    return Acceleration(model, type(adapter)(model, adapter.positions), None, make_pruner("none"))


def check_free(model: Any) -> None:
    """Refuse a model that is accelerated."""
    if isinstance(getattr(model, "stc", None), Acceleration):
        raise AttachError(
            "accelerate: this model is accelerated already; call model.stc.restore() first"
        )


class Acceleration:
    """The handle of an accelerated model, made by :func:`accelerate`.

    Attributes
    ----------
    model
        The model.
    cacher
        The cacher on its tower, or None.
    pruner
        The pruner in front of its language model.
    positions
        ``"repacked"`` or ``"original"``.
    grid
        (H, W) of the tokens of a frame before pruning; None where each video has its own.
    users
        How many sessions use it.
    owned
        Whether a session made it, so that the last one takes it off.
    adapter
        What is particular to the family of the model.
    batcher
        Shares a call of the tower between the threads that wait for it.
    tower_lock
        Held by the thread that runs the tower, or changes what the cacher keeps.
    checked
        The kinds of memory that were compared with the stock model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        adapter: ModelAdapter,
        cacher: Cacher | None,
        pruner: Pruner,
    ) -> None:
        self.model = model
        self.cacher = cacher
        self.pruner = pruner
        self.positions = adapter.positions
        self.users = 0
        self.owned = False
        self.grid = adapter.grid()
        self.adapter = adapter
        self.checked: set[str] = set()
        self.tower_lock = adapter.tower_lock
        self.batcher = TowerBatcher(self._run_tower, self.tower_lock)
        self._records: dict[str, list[FrameRecord]] = {}
        # Those that the pruner knows: others may use it, too.
        self._streams: set[str] = set()
        self._exit = ExitStack()
        ours: list[tuple[nn.Module, str, Any]] = [
            (model, "forward", bound(model, "forward", self._forward)),
            (model, "generate", bound(model, "generate", self._generate)),
            (model, "stc", self),
        ]
        inner: nn.Module = model.model
        taken = [name for name in PICTURE_METHODS if hasattr(inner, name)]
        ours += [(inner, name, locked(inner, name, self.tower_lock)) for name in taken]
        self._put = [Put(*put, before=put[0].__dict__.get(put[1])) for put in ours]
        self._stock = {name: getattr(model, name) for name in ("forward", "generate")}
        try:
            if cacher is not None:
                # Images also go through the tower, and are no frames of any stream.
                self._exit.enter_context(cacher.paused())
            adapter.attach()
            for put in self._put:
                setattr(put.module, put.name, put.ours)
        except BaseException:
            self._take_off()
            raise

    def __repr__(self) -> str:
        cache = "none" if self.cacher is None else self.cacher.config.policy
        pruner = type(self.pruner).__name__
        return f"<Acceleration of {type(self.model).__name__}, cache {cache}, {pruner}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a copy of the model is a stock model, whose ``stc`` is None

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def restore(self) -> None:
        """Take everything off; the model is then exactly as before. A second call does nothing.

        Raises
        ------
        AttachError
            If something else was patched over the tower's layers, or put in place of the model's
            methods, since; nothing is changed then.
        """
        with _ATTACHING, self.tower_lock:
            if not self._is_on:
                return
            foreign = [p for p in self._put if p.module.__dict__.get(p.name) is not p.ours]
            if foreign:
                raise AttachError(
                    f"restore: something else was put in place of {foreign[0].name} of "
                    f"{type(foreign[0].module).__name__} after accelerate; undo that first, then "
                    "call model.stc.restore()"
                )
            if self.cacher is not None:
                self.cacher.detach()
            self._take_off()
        for stream in list(self._streams):
            self.pruner.reset(stream)

    def give_back(self) -> None:
        """End what :func:`borrow` began."""
        with _ATTACHING:
            self.users -= 1
            if self.owned and self.users == 0:
                self.restore()

    @property
    def _is_on(self) -> bool:
        return self.model.__dict__.get("stc") is self

    def _take_off(self) -> None:
        self._exit.close()
        self.adapter.restore()
        for put in self._put:
            if put.before is None:
                put.module.__dict__.pop(put.name, None)
            else:
                put.module.__dict__[put.name] = put.before

    def probe(self) -> Acceleration:
        """Accelerate a model of few layers that shares the parts of this one, to be tried."""
        return _probe(self.adapter)

    @property
    def replaced(self) -> set[str]:
        """Attributes of the model that are ours, and were nobody's before."""
        return {put.name for put in self._put if put.module is self.model and put.before is None}

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of a frame before pruning, N, where all videos have the same."""
        if self.grid is None:
            raise ValueError(
                f"{type(self.model).__name__}: each video has its own number of tokens per frame"
            )
        return self.grid[0] * self.grid[1]

    # -- frames ------------------------------------------------------------------------------

    def encode(self, pixels: Tensor, stream: str) -> Tensor:
        """Run frames through tower, projector and pooling.

        Threads that call this at the same time share one call of the tower.

        Parameters
        ----------
        pixels
            The next frames of the stream, preprocessed: (F, 3, h, w); for Qwen-VL (F, h, w, P)
            temporal patches of h x w rows of P pixels, in the processor's order.
        stream
            Name of the stream.

        Returns
        -------
        Tensor
            (F, N, D) features, before pruning.
        """
        return self.batcher(stream, pixels)

    def prune(
        self, features: Tensor, stream: str, grid: tuple[int, int] | None = None
    ) -> PrunedTokens:
        """Choose the tokens of frames (F, N, D) that enter the language model.

        ``grid`` is that of the tokens, where each video has its own.
        """
        self._streams.add(stream)
        width = features.shape[-1] // (1 + self.adapter.deep)
        kept = self.pruner(
            features[..., :width].contiguous(), grid=grid or self.grid, stream=stream
        )
        return with_rows(kept, features[..., width:]) if self.adapter.deep else kept

    def records(self, stream: str) -> list[FrameRecord]:
        """Records of the frames that were encoded last; empty without a cacher."""
        return self._records.get(stream, [])

    def forget(self, stream: str) -> None:
        """Drop what cacher and pruner keep of a stream."""
        self._records.pop(stream, None)
        with self.tower_lock:
            if self.cacher is not None and stream in self.cacher:
                self.cacher.remove(stream)
        self.pruner.reset(stream)
        self._streams.discard(stream)

    def _run_tower(self, jobs: Sequence[TowerJob]) -> None:
        pixels = torch.cat([job.pixels for job in jobs]) if len(jobs) > 1 else jobs[0].pixels
        cacher = self.cacher
        with torch.no_grad(), ExitStack() as inside:
            if cacher is not None:
                inside.enter_context(cacher.resumed())
                inside.enter_context(cacher.streams([job.stream for job in jobs]))
            features = self.adapter.features(pixels, len(jobs))
        for number, (job, part) in enumerate(zip(jobs, features.chunk(len(jobs)), strict=True)):
            if cacher is not None:
                frames = len(cacher.last_frames) // len(jobs)
                rows = slice(number * frames, (number + 1) * frames)
                self._records[job.stream] = cacher.last_frames[rows]
            job.features = part

    # -- the model's own calls ---------------------------------------------------------------

    def _forward(self, **arguments: Any) -> Any:
        stock = self.call_stock("forward")
        if not self._is_on:  # somebody kept our method
            return stock(**one_named(arguments))
        return self.adapter.forward(self, stock, one_named(arguments))

    def _generate(self, **arguments: Any) -> Any:
        if arguments.get("input_ids") is None and arguments.get("inputs") is not None:
            arguments["input_ids"] = arguments.pop("inputs")
        stock = self.call_stock("generate")
        if not self._is_on:
            return stock(**one_named(arguments))
        return self.adapter.generate(self, stock, one_named(arguments))

    def call_stock(self, name: str) -> Callable[..., Any]:
        """Return the model's own ``generate`` or ``forward``, with our name for the cache."""
        stock = self._stock[name]
        return lambda **arguments: stock(**stock_named(self.model, arguments))
