# SPDX-License-Identifier: Apache-2.0
"""Trusting no tower unseen: its blocks are compared with their parts when it is first called.

A tower is recognised by the parts of its blocks. Whether these parts are all that a block does
(no rotary positions, no causal mask, no message between frames), and whether the tower only hands
the output of each block on to the next, shows in its first frame. There every block also runs as
it is, on the input that the cacher computed, and nothing more is computed for later frames. A
call with arguments of another kind is checked again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from stc_video.cacher.streams import Stream
from stc_video.cacher.watched_output import (
    WatchedOutput,
    holds,
    plain,
    without_hidden_states,
)
from stc_video.cacher.watched_pass import WatchedPass
from stc_video.errors import UnsupportedModelError
from stc_video.towers.attention import key_mask
from stc_video.towers.block import Tower
from stc_video.towers.block_calls import Arguments, BatchCall, Call, Place, bind, form, kind
from stc_video.towers.bypassed import Bypassed
from stc_video.towers.comparison import (
    disagreement,
    from_parts,
    hint,
    is_same,
    mlp_for,
    settings_of,
    states_of,
    try_out,
)
from stc_video.towers.patching import InstancePatch
from stc_video.towers.positions import Tables

#: kinds of error that tell of parts that do not fit together
_BROKEN = (RuntimeError, TypeError, IndexError, AttributeError)

#: how many forms of calls are remembered
_FORMS = 4096

#: every how many rows an MLP runs once more whose results the pass has shown
_KNOWN_STEP = 8


@dataclass
class _Run:
    """A check under way.

    Attributes
    ----------
    kind
        What kind of call it is.
    call
        What the blocks are called with.
    rows
        Where the frame is that is checked.
    x
        Its input of the next block.
    shown
        What the cacher's own pass showed; empty if that was no dense frame.
    watched
        The class of what is handed out and nobody asked for.
    next
        Number of the next block.
    handed
        What the last block handed out, and the frame's part of its content.
    tried
        The kinds of blocks that were tried out.
    """

    kind: Hashable
    call: Call
    rows: Place
    x: Tensor
    shown: WatchedPass
    watched: type[WatchedOutput]
    next: int = 0
    handed: tuple[Tensor, Tensor] | None = None
    tried: set[Hashable] = field(default_factory=set)


class SelfCheck:
    """Checks a tower when it is first called, and whenever it is called in another way.

    Parameters
    ----------
    tower
        The tower.
    patches
        Those of its blocks, by which the blocks run as they are; they may come later.
    streams
        The streams by name.
    undo
        Takes a call back whose frames were encoded, and says why; with an empty reason, takes
        everything off the tower.
    """

    def __init__(
        self,
        tower: Tower,
        patches: Sequence[InstancePatch],
        streams: Mapping[str, Stream],
        undo: Callable[[str], None],
    ) -> None:
        self._tower = tower
        self._patches = patches
        self._streams = streams
        self._undo = undo
        self._bypassed = Bypassed.of(tower.blocks)
        self._depth = {module: depth for depth, module in enumerate(tower.ancestors)}
        self._entry: nn.Module | None = None
        self._innermost = -1
        self._run: _Run | None = None
        self._hook: RemovableHandle | None = None
        #: whether the call under way says by number which hidden states it uses
        self.names_hidden_states = False
        # Kinds of calls that passed, and forms of calls whose arguments were looked at.
        self._known: set[Hashable] = set()
        self._forms: set[Hashable] = set()
        #: by stream, which keys its last frame did not see, and where its tokens were.
        self.met: dict[str, tuple[Tensor | None, ...]] = {}
        # What the last block handed out.
        self._handed: Tensor | None = None

    @property
    def is_running(self) -> bool:
        """Whether the call under way is checked."""
        return self._run is not None

    def enter(self, module: nn.Module) -> None:
        """Note that the tower, or a module between it and its blocks, is called."""
        depth = self._depth.get(module, 0)
        if depth <= self._innermost or self._entry is None:
            self._entry, self._run, self._handed = module, None, None
            self._unhook()
            self._bypassed.check()
        self._innermost = depth

    # -- the first block ---------------------------------------------------------------------

    def around(self, call: Call, arguments: Arguments) -> AbstractContextManager[None]:
        """Around the cacher's own pass: look at the call, and have it checked if it is new.

        Parameters
        ----------
        call
            What the blocks are called with.
        arguments
            Of the first block, after its hidden states.

        Raises
        ------
        UnsupportedModelError
            If the parts would ignore one of the arguments, or do not fit together.
        """
        args, kwargs = arguments
        states, attends_by = call.states, self._bypassed.attends_by
        this = (attends_by, form(states), form(args), *kwargs, form([*kwargs.values()]))
        this = (*this, call.layout)
        if this in self._forms:
            return nullcontext()
        self._bypassed.check_attention()
        layer = self._tower.blocks[0].layer
        if reason := call.ignored(0, bind(layer, args, kwargs)):
            self._refuse(f"block 0: {reason}", was_encoded=False)
        of_kind = (attends_by, kind(states), kind(args), *kwargs, kind([*kwargs.values()]))
        of_kind = (*of_kind, call.is_single)
        if of_kind in self._known:
            self._forms = {this} if len(self._forms) >= _FORMS else self._forms | {this}
            return nullcontext()
        rows = call.sample()
        return nullcontext() if rows is None else self._watch(of_kind, call, rows)

    @contextmanager
    def _watch(self, of_kind: Hashable, call: Call, rows: Place) -> Iterator[None]:
        """Around the cacher's own pass: check the call block by block from here on."""
        x = call.states[rows]
        # Without any state the pass encodes the first frame densely, in front of all others.
        is_fresh = all(stream.state is None for stream in self._streams.values())
        shown = WatchedPass()
        try:
            with shown.noted(self._tower.blocks, x.numel()):
                yield
        except _BROKEN as error:
            self._refuse_broken(call, x, error)
            raise
        watched = type("_Watched", (WatchedOutput,), {})
        shown = shown if is_fresh and not any(part.start for part in rows) else WatchedPass()
        self._run = _Run(of_kind, call, rows, x, shown, watched)
        if self._entry is not None:
            self._hook = self._entry.register_forward_hook(self._leave, always_call=True)

    def _refuse_broken(self, call: Call, x: Tensor, error: Exception) -> None:
        """Refuse the tower if an error comes from the parts of a block."""
        if isinstance(error, torch.OutOfMemoryError):
            return
        call.prepare()
        for number, block in enumerate(self._tower.blocks):
            try:
                from_parts(block, x)
            except _BROKEN as broken:
                first = str(broken).splitlines()[0] if str(broken) else ""
                self._refuse(f"block {number}: its parts do not fit together ({first})")

    def meet(self, stream: Stream, mask: Tensor | None, tables: Tables | None, rows: slice) -> None:
        """Start a stream afresh if its frames are masked or placed otherwise than those before."""
        mask = mask if mask is None or len(mask) == 1 else mask[rows][:1]
        current = (mask, None, None) if tables is None else (mask, *tables[:2])
        before = self.met.get(stream.name, current)
        differ = [not _alike(*pair) for pair in zip(current, before, strict=True)]
        if any(differ) or stream.name not in self.met:
            one, cos, sin = (None if part is None else part.clone() for part in current)
            self.met[stream.name] = one, cos, sin
        if stream.state is not None and any(differ):
            layout = stream.layout
            changed = "the attention mask" if differ[0] else "the places of the tokens"
            stream.restart(f"{changed} changed")
            stream.layout = layout

    # -- every block -------------------------------------------------------------------------

    def hand_out(
        self, number: int, states: Tensor, output: Tensor | None, arguments: Arguments
    ) -> Tensor:
        """Return what a block hands out: its output, or its input if nobody asked for it.

        Raises
        ------
        UnsupportedModelError
            If the block was given something other than what the one before handed out, or if the
            block is checked and is not what its parts are.
        """
        if self._run is not None:
            return self._check(self._run, number, states, output, arguments)
        if number and states is not self._handed:
            self.expect_handed(states, f"block {number}")
        self._handed = states if output is None else output
        return self._handed

    def is_handed(self, states: Tensor) -> bool:
        """Whether a tensor is what the last block handed out."""
        handed = self._run.handed[0] if self._run and self._run.handed else self._handed
        if states is handed:
            return True
        return handed is not None and is_same(states, handed)

    def expect_handed(self, states: Tensor, whom: str) -> None:
        """Refuse the call unless a tensor is what the last block handed out."""
        if not self.is_handed(states):
            self._refuse(f"what the block before hands out is changed before it reaches {whom}")

    def _check(
        self, run: _Run, number: int, states: Tensor, output: Tensor | None, arguments: Arguments
    ) -> Tensor:
        if number != run.next:
            self._refuse(f"block {number} is called where block {run.next} is expected")
        self._check_between(run, number, states)
        block, x = self._tower.blocks[number], run.x
        reason = run.call.ignored(number, bind(block.layer, *arguments))
        if not reason:
            args, kwargs = run.call.cut(arguments, run.rows)
            with torch.no_grad():
                ours, known = self._ours(run, number, output, bind(block.layer, args, kwargs))
                # Every other row, in the next block those between them; less of an MLP whose
                # results are known.
                step = 2 if known is None else _KNOWN_STEP
                some = torch.arange(number % step, x.shape[-2], step, device=x.device)
                with mlp_for(block, some, known):
                    stock = states_of(self._patches[number].stock(x, *args, **kwargs))
                compared = [stock, ours, x]
                if known is None:
                    compared = [one.index_select(-2, some) for one in compared]
                reason = disagreement(*compared)
                reason = reason or self._try_out(run, number, (args, kwargs))
            reason += hint(block.layer) if reason else ""
        if reason:
            self._refuse(f"block {number}: {reason}")
        run.x, run.next = ours, number + 1
        if output is None:
            output = plain(states).clone()
            output[run.rows] = ours
            run.handed = output.as_subclass(run.watched), ours
        else:
            run.handed = output, output[run.rows].clone()
        if run.next == len(self._tower.blocks) and self._entry is None:
            self._pass(run)
        return run.handed[0]

    def _check_between(self, run: _Run, number: int, states: Tensor) -> None:
        """Refuse a tower that does anything to the hidden states between two blocks."""
        if run.handed is None:
            return
        handed, content = run.handed
        if states.shape != handed.shape:
            self._refuse(
                f"block {number - 1} hands out shape {tuple(handed.shape)}, and block {number} "
                f"gets {tuple(states.shape)}: something between them changes it"
            )
        if not is_same(plain(states)[run.rows], content):
            self._refuse(
                f"block {number} gets something other than what block {number - 1} hands out"
            )

    def _ours(
        self, run: _Run, number: int, output: Tensor | None, arguments: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """Output of a block for the frame by its parts, and if it is known, that of its MLP.

        It is what the pass gave, or computed here.
        """
        if number + 1 < len(self._tower.blocks):
            ours = run.shown.input_of(number + 1, run.x)
        else:
            ours = output[run.rows] if output is not None and run.shown.inputs else None
        if ours is not None:
            return ours, run.shown.mlp_of(number, run.x)
        run.call.prepare()
        mask = key_mask(arguments.get("attention_mask"))
        return from_parts(self._tower.blocks[number], run.x, mask), None

    def _try_out(self, run: _Run, number: int, arguments: Arguments) -> str:
        """Try one block of each kind on two small pictures."""
        block, patch = self._tower.blocks[number], self._patches[number]
        of_kind = settings_of(block.layer)
        if not isinstance(run.call, BatchCall) or of_kind in run.tried:
            return ""
        run.tried.add(of_kind)
        return try_out(block, patch.stock, run.x, arguments)

    # -- afterwards --------------------------------------------------------------------------

    def _leave(self, _module: nn.Module, _args: Any, output: Any) -> None:
        """The tower has returned: see whether an output reached it that only this frame has."""
        self._unhook()
        run, self._run = self._run, None
        if run is None or output is None:
            return
        if run.next < len(self._tower.blocks):
            self._refuse(f"only {run.next} of its {len(self._tower.blocks)} blocks are called")
        if self.names_hidden_states:  # older releases return the others, too
            output = without_hidden_states(output)
        if run.watched.was_written or holds(output, run.watched):
            self._refuse(
                "the output of a block in the middle goes elsewhere than to the next block, and "
                "of a cached frame nobody has it but who asks by output_hidden_states"
            )
        self._pass(run)

    def _unhook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _pass(self, run: _Run) -> None:
        self._known.add(run.kind)

    def _refuse(self, reason: str, was_encoded: bool = True) -> None:
        """Raise the error; a tower that never passed a check is left without a cacher."""
        self._run = None
        self._unhook()
        name = type(self._tower.root).__name__
        if self._known:
            if was_encoded:
                self._undo("the call before was refused")
            raise UnsupportedModelError(f"attach_cacher: this call of {name} is refused: {reason}")
        self._undo("")
        raise UnsupportedModelError(
            f"attach_cacher: {name} is not a supported tower, and its cacher is off again: {reason}"
        )


def _alike(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and torch.equal(one, other)
