# SPDX-License-Identifier: Apache-2.0
"""Triton's interpreter with the programs of a launch in any order, and several under way at once.

The interpreter runs one program after the other, from the first to the last; a GPU does not. Here
each program is a thread, of which one runs at a time, up to its next access to memory; which one
goes on then is drawn. Within one access a program is not interrupted.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from triton.runtime import interpreter

_ACCESSES = (
    *("create_load", "create_store", "create_masked_load", "create_masked_store"),
    *("create_atomic_cas", "create_atomic_rmw"),
)


class Programs:
    """Runs the programs of every launch, up to so many of them at once, in a drawn order.

    Attributes
    ----------
    switches
        How often another program went on than the one that had run.
    """

    def __init__(self, at_once: int, seed: int) -> None:
        self.at_once = at_once
        self.draw = random.Random(seed)
        self.switches = 0
        self._turns: dict[threading.Thread, threading.Event] = {}

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Take the place of the interpreter's own loop until the test is over."""
        builder, programs = interpreter.interpreter_builder, self

        class Executor(interpreter.GridExecutor):  # type: ignore[misc]
            def __call__(self, *args: Any, **kwargs: Any) -> None:
                kernel, waiting = self.fn, []

                def collect(**arguments: Any) -> None:
                    waiting.append(builder.grid_idx)
                    if len(waiting) == builder.grid_dim[0] * builder.grid_dim[1]:
                        programs.run(waiting, lambda: kernel(**arguments))

                def begin(*place: int) -> None:  # the loop over the grid begins
                    self.fn, builder.grid_idx = collect, place

                with monkeypatch.context() as patch:
                    patch.setattr(builder, "set_grid_idx", begin)
                    super().__call__(*args, **kwargs)

        monkeypatch.setattr(interpreter, "GridExecutor", Executor)
        for name in _ACCESSES:
            monkeypatch.setattr(builder, name, self._interrupted(getattr(builder, name)))

    def run(self, places: list[tuple[int, ...]], program: Callable[[], None]) -> None:
        """Run one program for each place in the grid."""
        errors: list[BaseException] = []
        places = self.draw.sample(places, len(places))
        done = threading.Event()

        def start() -> None:
            thread = threading.Thread(target=live, args=(places.pop(),))
            self._turns[thread] = threading.Event()
            thread.start()

        def live(place: tuple[int, ...]) -> None:
            me = threading.current_thread()
            self._turns[me].wait()
            interpreter.interpreter_builder.grid_idx = place
            try:
                program()
            except BaseException as error:
                errors.append(error)
            del self._turns[me]
            if places:
                start()
            if self._turns:
                self._turns[self.draw.choice(list(self._turns))].set()
            else:
                done.set()

        while places and len(self._turns) < self.at_once:
            start()
        self._turns[self.draw.choice(list(self._turns))].set()
        done.wait()
        if errors:
            raise errors[0]

    def _interrupted(self, access: Callable[..., Any]) -> Callable[..., Any]:
        builder = interpreter.interpreter_builder

        def perform(*args: Any, **kwargs: Any) -> Any:
            mine = self._turns.get(threading.current_thread())
            if mine is not None:
                place = builder.grid_idx
                mine.clear()
                following = self._turns[self.draw.choice(list(self._turns))]
                self.switches += following is not mine
                following.set()
                mine.wait()
                builder.grid_idx = place
            return access(*args, **kwargs)

        return perform
