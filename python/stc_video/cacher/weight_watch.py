# SPDX-License-Identifier: Apache-2.0
"""Notices that a tower changed under the cache: its modules, its weights, its adapters.

What a cacher keeps was computed with the weights of that time. Frameworks change weights in ways
that leave no trace in a tensor's version (``weight.data += ...``), so both is compared with what it
was:

- in every call, which modules there are, the versions of their tensors, and the plain settings of
  modules that are neither torch's nor transformers' (an adapter that is switched off);
- in every call or every ``INTERVAL``-th one, which tensors there are and where, forwards and hooks
  that somebody put on single modules, a few bytes of every large tensor and of a quarter of the
  small ones, from another place each time, and a checksum of a slice of all bytes. After ``ROUND``
  calls every byte has been part of one.

On a GPU the bytes are compared on the device, and the result is looked at in a later call, so that
nobody waits for it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from operator import attrgetter, is_, itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from stc_video.towers.block import Tower
from stc_video.towers.layouts import LISTS
from stc_video.towers.patching import foreign_hooks

#: calls until every byte of the weights has been part of a checksum
ROUND = 256
#: every how many calls the dearer things are compared, on a GPU and for small towers on a CPU, of
#: which a frame takes so little time that looking at 200 cold tensors would be some per cent of it
INTERVAL = 8
#: from how many bytes of weights on it is every call
LARGE_BYTES = 200_000_000
#: places of a tensor from which a sample is taken, one after the other
PLACES = 4
_SAMPLE_BYTES = 32
#: tensors of fewer bytes, such as biases, are sampled at one of the places only
_SMALL_BYTES = 1 << 13
_MIN_SLICE_BYTES = 1 << 12

_version = attrgetter("_version")
#: attributes that every module has, and that say nothing about what it computes
_BOOKKEEPING = frozenset(vars(nn.Module())) - {"training"}


@dataclass(frozen=True)
class Change:
    """A change of the tower.

    Attributes
    ----------
    what
        In words, for the record of the frame that follows.
    is_structural
        Whether a module took another's place, so that the tower must be taken apart again.
    """

    what: str
    is_structural: bool = False


class WeightWatch:
    """A tower as it was when it was looked at first, to tell whether it still is.

    Attributes
    ----------
    tower
        The tower.
    interval
        Every how many calls the dearer things are compared.
    """

    def __init__(self, tower: Tower) -> None:
        self.tower = tower
        lists = (
            child
            for module in tower.ancestors
            for child in module.children()
            if isinstance(child, LISTS)
        )
        roots = set(tower.cached_modules)
        inside = list(dict.fromkeys(m for part in tower.cached_modules for m in part.modules()))
        parts = [module for module in inside if module not in roots]
        self._children = [m._modules for m in (*tower.ancestors, *lists, *inside) if m._modules]
        self._modules = _values(self._children)
        self._settings = [setting for module in inside for setting in Settings.of(module)]
        self._tensor_dicts = [d for m in inside for d in (m._parameters, m._buffers) if d]
        self._note_tensors()
        self._attributes = [vars(module) for module in parts]
        self._forwards = self._current_forwards()
        self._parts = parts
        self._hook_dicts = [d for m in parts for d in (m._forward_pre_hooks, m._forward_hooks)]
        self._hook_numbers = list(chain.from_iterable(self._hook_dicts))
        self._hooks = self._current_hooks()
        self._contents: list[Contents] | None = None
        self._calls = 0
        self._is_cuda = any(tensor.is_cuda for tensor in self._plain)
        is_large = sum(tensor.nbytes for tensor in self._plain) >= LARGE_BYTES
        self.interval = 1 if is_large and not self._is_cuda else INTERVAL

    def look(self) -> Change | None:
        """Return what changed, or None. It may be called again and again until something did."""
        if self.is_taken_apart():
            return Change(self._replaced_module(), is_structural=True)
        if list(map(_version, self._versioned)) != self._versions:
            return Change(f"the weights changed ({self._changed_tensor()})")
        for setting in self._settings:
            if setting.differs():
                return Change(f"settings of a module changed ({self._name(setting.module)})")
        # Nothing is kept before the first call, so that contents count from there on.
        if self._contents is None:
            self._contents = Contents.of(self._plain, ROUND // self.interval)
        self._calls += 1
        is_due = self._calls % self.interval == 0
        if self._tensors_differ(all_of_them=is_due or self._is_cuda):
            return Change(f"the weights changed ({self._changed_tensor()})")
        if any([contents.differ(is_due) for contents in self._contents]):
            return Change("values of the weights changed")
        return self._changed_call() if is_due else None

    def is_taken_apart(self) -> bool:
        """Whether another module stands where one stood."""
        return _values(self._children) != self._modules

    def _changed_call(self) -> Change | None:
        """Look at what is called where a module is."""
        if not _same(self._current_forwards(), self._forwards):
            return Change("a module's forward was replaced")
        numbers = list(chain.from_iterable(self._hook_dicts))
        if numbers != self._hook_numbers:
            if not _same(self._current_hooks(), self._hooks):
                return Change("a hook was put on a module or taken off")
            self._hook_numbers = numbers  # ours, which only look
        return None

    # -- modules and tensors as such ---------------------------------------------------------

    def _note_tensors(self) -> None:
        self._tensors = _values(self._tensor_dicts)
        self._plain = [part for t in self._tensors if t is not None for part in _plain_parts(t)]
        self._versioned = [t for t in self._plain if not t.is_inference()]
        self._pointers = list(map(Tensor.data_ptr, self._plain))
        self._kinds = {(t.dtype, t.device) for t in self._plain}
        self._versions = list(map(_version, self._versioned))

    def _tensors_differ(self, *, all_of_them: bool) -> bool:
        """Whether there are other tensors, or they lie elsewhere."""
        if not all_of_them:  # the first one tells of ``.to()`` and of loading, which change all
            now = _values(self._tensor_dicts[:1])[:1]
            if not all(map(_is_alike, now, self._tensors)):
                return True
            return [t.data_ptr() for t in self._plain[:1]] != self._pointers[:1]
        now = _values(self._tensor_dicts)
        if not _same(now, self._tensors):
            if len(now) != len(self._tensors) or not all(map(_is_alike, now, self._tensors)):
                return True
            self._note_tensors()
        return list(map(Tensor.data_ptr, self._plain)) != self._pointers

    def _current_forwards(self) -> list[Any]:
        return list(map(dict.get, self._attributes, repeat("forward")))

    def _current_hooks(self) -> list[Any]:
        return [hook for module in self._parts for hook in foreign_hooks(module)]

    # -- words -------------------------------------------------------------------------------

    def _name(self, module: object) -> str:
        names = (name for name, other in self.tower.root.named_modules() if other is module)
        return next(names, type(module).__name__)

    def _replaced_module(self) -> str:
        known = set(self._modules)
        new = [m for m in _values(self._children) if m is not None and m not in known]
        if not new:
            return "modules were taken out"
        return f"modules were put in ({self._name(new[0])})"

    def _changed_tensor(self) -> str:
        """Name one tensor that is not what it was."""
        now = _values(self._tensor_dicts)
        if len(now) != len(self._tensors):
            return "other tensors"
        pairs = zip(now, self._tensors, strict=True)
        changed = next((new for new, old in pairs if not _is_alike(new, old)), None)
        if changed is None:
            current = zip(self._plain, self._pointers, strict=True)
            changed = next((t for t, pointer in current if t.data_ptr() != pointer), None)
        if changed is None:
            dated = zip(self._versioned, self._versions, strict=True)
            changed = next((t for t, version in dated if t._version != version), None)
        named = chain(self.tower.root.named_parameters(), self.tower.root.named_buffers())
        name = next((name for name, tensor in named if tensor is changed), "a tensor")
        if changed is None or (changed.dtype, changed.device) in self._kinds:
            return name
        return f"{name} is now {str(changed.dtype).removeprefix('torch.')} on {changed.device}"


@dataclass(frozen=True)
class Settings:
    """Plain attributes of a module that is neither torch's nor transformers': an adapter's."""

    module: nn.Module
    read: itemgetter[Any]
    values: Any

    @classmethod
    def of(cls, module: nn.Module) -> Iterator[Settings]:
        """Note the settings of a module, if it has any."""
        if type(module).__module__.partition(".")[0] in ("torch", "transformers"):
            return
        attributes = vars(module)
        names = [n for n, v in attributes.items() if n not in _BOOKKEEPING and _is_plain(v)]
        if names:
            read = itemgetter(*names)
            yield cls(module, read, copy.deepcopy(read(attributes)))

    def differs(self) -> bool:
        """Whether one is not what it was."""
        try:
            return bool(self.read(vars(self.module)) != self.values)
        except KeyError:
            return True


class Contents:
    """Samples and checksums of the memory of tensors on one device."""

    def __init__(self, memories: Sequence[Tensor], slices: int) -> None:
        self._is_cuda = memories[0].is_cuda
        self._samples = [
            [
                _sample(memory, place)
                for number, memory in enumerate(memories)
                if len(memory) >= _SMALL_BYTES or number % PLACES == place
            ]
            for place in range(PLACES)
        ]
        self._slices = list(_slices(memories, slices))
        self._sampled = [_joined(samples) for samples in self._samples]
        self._sums = [_checksums(views) for views in self._slices]
        self._looks = 0
        # On a GPU, the result of the comparison before, and when it is there.
        self._flag: Tensor | None = None
        self._event: Any = None

    @classmethod
    def of(cls, tensors: Iterable[Tensor], slices: int) -> list[Contents]:
        """Read all tensors once, those of each device together."""
        by_device: dict[torch.device, list[Tensor]] = {}
        with torch.inference_mode(False), torch.no_grad():
            for tensor in tensors:
                if (memory := _memory_of(tensor)) is not None:
                    by_device.setdefault(tensor.device, []).append(memory)
            return [cls(memories, slices) for memories in by_device.values()]

    def differ(self, is_due: bool) -> bool:
        """Whether they are not what they were, as far as is known; look again if it is due."""
        if self._is_cuda:
            return self._differed_before(is_due)
        if not is_due:
            return False
        sample, known, sums, known_sums = self._next()
        return not (torch.equal(sample, known) and torch.equal(sums, known_sums))

    def _next(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sample and checksums of this look, each with what it was."""
        place, part = self._looks % PLACES, self._looks % len(self._slices)
        self._looks += 1
        sample = _joined(self._samples[place])
        return sample, self._sampled[place], _checksums(self._slices[part]), self._sums[part]

    def _differed_before(self, is_due: bool) -> bool:
        """Take the result of the comparison before if it is there, and begin the next one."""
        if self._flag is None:
            with torch.inference_mode(False):
                self._flag = torch.zeros((), dtype=torch.bool, pin_memory=True)
            self._event = torch.cuda.Event()
        is_there = self._event.query()
        if is_there and bool(self._flag):
            return True
        if is_due and is_there:
            sample, known, sums, known_sums = self._next()
            differs = (sample != known).any() | (sums != known_sums).any()
            self._flag.copy_(differs, non_blocking=True)
            self._event.record()
        return False


def _values(dicts: Iterable[dict[str, Any]]) -> list[Any]:
    return list(chain.from_iterable(map(dict.values, dicts)))


def _same(now: Sequence[Any], before: Sequence[Any]) -> bool:
    """Whether two lists hold the very same objects; tensors must not be compared by ``==``."""
    return len(now) == len(before) and all(map(is_, now, before))


def _is_alike(now: Tensor | None, before: Tensor | None) -> bool:
    """Whether a tensor is the same, or both stand for one that accelerate keeps elsewhere."""
    if now is before:
        return True
    return (
        now is not None
        and before is not None
        and now.is_meta
        and before.is_meta
        and (now.shape, now.dtype) == (before.shape, before.dtype)
    )


def _is_plain(value: object) -> bool:
    """Whether a value is compared by ``==`` safely."""
    if isinstance(value, dict):
        return all(map(_is_plain, chain(value.keys(), value.values())))
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, torch.dtype))


def _plain_parts(tensor: Tensor) -> Iterator[Tensor]:
    """Iterate over the ordinary tensors that a quantised or distributed one is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _plain_parts(getattr(tensor, name))


def _memory_of(tensor: Tensor) -> Tensor | None:
    """Return a tensor's memory as bytes, whatever its dtype and strides; None if it has none."""
    if tensor.layout is not torch.strided or tensor.is_meta or not tensor.numel():
        return None
    size = tensor.element_size()
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    span = (1 + sum((length - 1) * stride for length, stride in steps)) * size
    memory = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return memory.set_(tensor.untyped_storage(), tensor.storage_offset() * size, (span,), (1,))


def _sample(memory: Tensor, place: int) -> Tensor:
    """Return a view of a few bytes: from the middle of the given quarter."""
    start = len(memory) * (2 * place + 1) // (2 * PLACES)
    start = max(0, min(start // 16 * 16, len(memory) - _SAMPLE_BYTES))
    return memory[start : start + _SAMPLE_BYTES]


def _joined(samples: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(samples)) if samples else torch.empty(0)


def _slices(memories: Sequence[Tensor], rounds: int) -> Iterator[list[Tensor]]:
    """Cut memories into at most so many lists of views of about the same number of bytes."""
    total = sum(map(len, memories))
    size = max(_MIN_SLICE_BYTES, -(-total // rounds) // 8 * 8 + 8)
    views: list[Tensor] = []
    held = 0
    for memory in memories:
        for view in memory.split(size):
            views += _as_words(view)
            held += len(view)
            if held >= size:
                yield views
                views, held = [], 0
    if views:
        yield views


def _as_words(view: Tensor) -> list[Tensor]:
    """Split bytes into 64-bit words, which are summed fastest, and what is left over."""
    if view.data_ptr() % 8 or view.storage_offset() % 8:
        return [view]
    whole = len(view) // 8 * 8
    parts = [view[:whole].view(torch.int64), view[whole:]]
    return [part for part in parts if len(part)]


def _checksums(views: Sequence[Tensor]) -> Tensor:
    """Sum the words of each view; whole numbers are exact, and overflow by wrapping around."""
    return torch.stack([view.sum() for view in views])
