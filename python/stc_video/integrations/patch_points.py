# SPDX-License-Identifier: Apache-2.0
"""Shared code of the integrations: a cacher and a pruner inside somebody else's model.

An integration names the module that is the tower, the method through which video frames pass it,
and the module or method behind which tokens may be dropped. Everything is put on instances, in a
:class:`Patches` that takes it off again; a failure half way leaves the model as it was.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from stc_video.cacher import Cacher, CacheStats, attach_cacher
from stc_video.config import CacheConfig
from stc_video.errors import AttachError, UnsupportedModelError
from stc_video.pruners import KeepAll, PrunedTokens, Pruner, make_pruner

#: name under which a model carries its integration, as it does an acceleration
HANDLE = "stc"
#: the cacher's and the pruner's stream of a model that is fed one video at a time
STREAM = "default"

_MISSING = object()


def part_of(model: Any, path: str, what: str) -> Any:
    """Follow a path of attributes; a name with ``()`` is a method to call.

    Raises
    ------
    UnsupportedModelError
        If there is no such part; says what was found instead.
    """
    found = model
    for name in path.split("."):
        held = getattr(found, name.removesuffix("()"), None)
        if held is None:
            raise UnsupportedModelError(
                f"{what}: {type(model).__name__} is no such model: {type(found).__name__} has no "
                f"{name.removesuffix('()')} (looked for {path})"
            )
        found = held() if name.endswith("()") else held
        if found is None:
            raise UnsupportedModelError(
                f"{what}: {name} of {type(model).__name__} gives nothing; load the model first"
            )
    return found


def pruner_of(prune: str | Pruner, settings: dict[str, Any]) -> Pruner:
    """Return a pruner given by name and settings, or as it is."""
    if not isinstance(prune, Pruner):
        if prune == "none":
            settings = {k: v for k, v in settings.items() if k != "tokens_per_frame"}
        return make_pruner(prune, **settings)
    if given := [name for name in settings if name != "tokens_per_frame"]:
        raise ValueError(
            f"apply: settings of a pruner go with its name, got a pruner and {', '.join(given)}"
        )
    return prune


@dataclass
class _Attribute:
    """A value put on one instance under a name."""

    owner: Any
    name: str
    ours: Any
    before: Any = _MISSING

    def install(self) -> None:
        self.before = self.owner.__dict__.get(self.name, _MISSING)
        self.owner.__dict__[self.name] = self.ours

    def in_place(self) -> bool:
        return self.owner.__dict__.get(self.name) is self.ours

    def remove(self) -> None:
        if self.before is _MISSING:
            self.owner.__dict__.pop(self.name, None)
        else:
            self.owner.__dict__[self.name] = self.before


class Patches:
    """The list of what was put on a model, to be undone together.

    Used as a context while it is filled: an error inside takes off what was put on so far.
    """

    def __init__(self) -> None:
        self._attributes: list[_Attribute] = []
        self._cachers: list[Cacher] = []
        self._others = ExitStack()

    def __enter__(self) -> Patches:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.undo()

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Put a value on an instance."""
        self._attributes.append(attribute := _Attribute(owner, name, value))
        attribute.install()

    def wrap(self, owner: Any, name: str, around: Callable[..., Any]) -> None:
        """Put a method on an instance; ``around`` gets the stock one in front of the arguments."""
        stock = getattr(owner, name)

        @functools.wraps(getattr(type(owner), name))
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            return around(stock, *args, **kwargs)

        self.set(owner, name, types.MethodType(method, owner))

    def after(self, module: nn.Module, change: Callable[[Any], Any]) -> None:
        """Replace what a module returns by ``change`` of it."""
        hook = module.register_forward_hook(lambda _module, _inputs, output: change(output))
        self._others.callback(hook.remove)

    def before(self, module: nn.Module, change: Callable[[dict[str, Any]], None]) -> None:
        """Let ``change`` edit the keyword arguments that a module is called with."""

        def edit(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            change(kwargs)
            return args, kwargs

        hook = module.register_forward_pre_hook(edit, with_kwargs=True, prepend=True)
        self._others.callback(hook.remove)

    def cacher(self, tower: nn.Module, policy: str | CacheConfig) -> Cacher:
        """Attach a cacher, which sleeps outside of `Cacher.resumed`."""
        cacher = attach_cacher(tower, policy)
        self._cachers.append(cacher)
        self._others.enter_context(cacher.paused())
        return cacher

    def undo(self) -> None:
        """Take everything off, in reverse order.

        Raises
        ------
        AttachError
            If something else was put over one of ours since; nothing is changed then.
        """
        for attribute in self._attributes:
            if not attribute.in_place():
                raise AttachError(
                    f"restore: something else replaced {attribute.name} of "
                    f"{type(attribute.owner).__name__} since; undo that first"
                )
        while self._cachers:
            self._cachers[-1].detach()
            self._cachers.pop()
        while self._attributes:
            self._attributes.pop().remove()
        self._others.close()


@dataclass(frozen=True)
class IntegrationStats:
    """Totals of an integration so far.

    Attributes
    ----------
    tokens_before, tokens_after
        Visual tokens that came to the pruner, and that left it for the language model.
    cache
        Totals of the cacher; None without one.
    """

    tokens_before: int
    tokens_after: int
    cache: CacheStats | None


@dataclass
class Integration:
    """The handle that the ``apply`` of an integration returns; the model has it as ``model.stc``.

    Attributes
    ----------
    model
        The model.
    cacher
        The cacher on its tower, or None. It works on the video frames of the model's own video
        path; images, and direct calls of the tower, pass as if nothing were attached.
    pruner
        The pruner in front of its language model.
    """

    model: Any
    pruner: Pruner
    cacher: Cacher | None = None
    _patches: Patches = field(default_factory=Patches, repr=False)
    _may_restore: Callable[[], None] = field(default=lambda: None, repr=False)
    _before: int = field(default=0, repr=False)
    _after: int = field(default=0, repr=False)
    _in_video: bool = field(default=False, repr=False)

    @classmethod
    @contextmanager
    def on(
        cls,
        model: Any,
        prune: str | Pruner,
        settings: dict[str, Any],
        may_restore: Callable[[], None] = lambda: None,
    ) -> Iterator[Integration]:
        """Make a handle; the block puts its patches on, and an error in it takes them off."""
        if getattr(model, HANDLE, None) is not None:
            raise AttachError(
                "apply: this model has a cacher and a pruner already; call model.stc.restore() "
                "first"
            )
        handle = cls(model, pruner_of(prune, settings), _may_restore=may_restore)
        with handle._patches as patches:
            yield handle
            patches.set(model, HANDLE, handle)

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            "a model with an integration cannot be copied or pickled, because its patches belong "
            "to this instance; call model.stc.restore() first"
        )

    def __enter__(self) -> Integration:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def restore(self) -> None:
        """Take everything off; the model is then exactly as before. A second call does nothing.

        Raises
        ------
        AttachError
            If something was patched over ours since, or the model still holds state that fits
            the patched model only; nothing is changed then.
        """
        if getattr(self.model, HANDLE, None) is not self:
            return
        self._may_restore()
        self._patches.undo()
        self.pruner.reset()

    def reset(self) -> None:
        """Forget the video so far, as at the beginning of another one."""
        if self.cacher is not None and self.cacher.stream_state(STREAM) is not None:
            self.cacher.reset(STREAM)
        self.pruner.reset(STREAM)

    def stats(self) -> IntegrationStats:
        """Return what was saved so far."""
        cache = None if self.cacher is None else self.cacher.stats()
        return IntegrationStats(self._before, self._after, cache)

    # -- for the integrations ----------------------------------------------------------------

    @property
    def patches(self) -> Patches:
        """Description of what was put on the model."""
        return self._patches

    @property
    def in_video(self) -> bool:
        """Whether the model is on its video path."""
        return self._in_video

    def attach(self, tower: nn.Module, cache: str | CacheConfig | None, layer: int) -> None:
        """Put a cacher on the tower, of whose hidden states the model uses only ``layer``.

        The models ask for all hidden states and use one. On the video path the tower is told so,
        because keeping every layer's for each stream would cost memory and time.
        """
        if cache is None:
            return
        self.cacher = self._patches.cacher(tower, cache)

        def ask_for_one(arguments: dict[str, Any]) -> None:
            if self._in_video and layer != 0 and arguments.get("output_hidden_states") is True:
                arguments["output_hidden_states"] = layer

        self._patches.before(tower, ask_for_one)

    @contextmanager
    def video(self, *, starts: bool = False) -> Iterator[None]:
        """Inside the block frames pass the tower that belong to one video."""
        if starts:
            self.reset()
        before, self._in_video = self._in_video, True
        try:
            with ExitStack() as inside:
                if self.cacher is not None:
                    inside.enter_context(self.cacher.resumed())
                yield
        finally:
            self._in_video = before

    def in_time_order(self, encode: Callable[[Tensor], Tensor], frames: Tensor) -> Tensor:
        """Encode a batch of frames (F, ...) as the policy takes them.

        ``motion`` goes through the frames of a batch one by one by itself. For ``stc`` a call of
        the tower is one step of its schedule, so each frame gets its own.
        """
        if self.cacher is None or self.cacher.config.policy == "motion" or not self._in_video:
            return encode(frames)
        return torch.cat([encode(frames[i : i + 1]) for i in range(len(frames))])

    @property
    def keeps_all(self) -> bool:
        """Whether there is nothing to choose; features then go on as they are, bit for bit."""
        return isinstance(self.pruner, KeepAll)

    def prune(self, features: Tensor, grid: tuple[int, int] | None = None) -> PrunedTokens:
        """Choose the tokens of frames (F, N, D) that go on."""
        kept = self.pruner(features, grid=grid, stream=STREAM)
        self.count(features.shape[0] * features.shape[1], int(kept.counts.sum()))
        return kept

    def count(self, before: int, after: int) -> None:
        """Count tokens."""
        self._before += before
        self._after += after

    def pass_all(self, tokens: Tensor) -> Tensor:
        """Count tokens (..., N, D) that go on as they are."""
        self.count(tokens.shape[:-1].numel(), tokens.shape[:-1].numel())
        return tokens
