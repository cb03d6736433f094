# SPDX-License-Identifier: Apache-2.0
"""The interface of all memories."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from stc_video.memory.stores.files import StoredFile

if TYPE_CHECKING:
    from transformers import Cache


@dataclass(frozen=True)
class VideoPlace:
    """Position of a frame in a video whose positions are time, height and width.

    Attributes
    ----------
    time, origin
        Its time, and the position that its rows and columns are counted from; both counted from
        the first position that was free.
    step
        How much later the next frame is.
    side
        Its rows or its columns, whichever are more.
    """

    time: int
    origin: int
    step: int
    side: int


@dataclass(frozen=True)
class Frame:
    """One frame as the language model is given it.

    Attributes
    ----------
    embeds
        (n, D) its kept tokens, and text around them; (n, (1 + L) * D) with what deepstack adds.
    offsets
        (n,) int64 on the CPU: the position of each, counted from the first that was free; (3, n)
        for models with positions in time, height and width.
    span
        How many positions the frame takes.
    number
        Running number in the stream.
    time
        When it was taken, in seconds, or None.
    place
        For models with positions in time, height and width.
    bidirectional
        First and last + 1 of the tokens that see each other whatever their order, as those of a
        picture do in Gemma 3; None if each sees only what is before it.
    """

    embeds: Tensor
    offsets: Tensor
    span: int
    number: int
    time: float | None = None
    place: VideoPlace | None = None
    bidirectional: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Check what a save may have wrong."""
        rows = self.bidirectional
        if rows is not None and not _is_range(rows, len(self.embeds)):
            raise ValueError(
                "bidirectional of a frame must be first and last + 1 of its "
                f"{len(self.embeds)} tokens, got {rows!r:.80}"
            )


@dataclass(frozen=True)
class Retrieved:
    """A frame that an answer was given from.

    Attributes
    ----------
    number
        Running number in the stream.
    time
        When it was taken, in seconds, or None.
    layers
        In how many layers it was retrieved; those that see the last tokens alone do not count.
    """

    number: int
    time: float | None
    layers: int


@dataclass(frozen=True)
class Context:
    """The keys and values that an answer is generated from.

    Attributes
    ----------
    cache
        Keys and values of the context and of the prompt but for its last token. It shares
        nothing with the memory.
    tokens
        How many they are.
    retrieved
        The frames in it, in temporal order; None if all are.
    """

    cache: Cache
    tokens: int
    retrieved: tuple[Retrieved, ...] | None


class MemoryChangedError(RuntimeError):
    """The frames that a question was being answered from have been forgotten meanwhile."""


@dataclass(frozen=True)
class Reading:
    """Access of a question to a memory that goes on meanwhile.

    Attributes
    ----------
    lock
        Held while the memory is read, and not while the model runs.
    check
        Called between pieces of a prompt; what it raises ends the question.
    """

    lock: AbstractContextManager[Any] = field(default_factory=nullcontext)
    check: Callable[[], None] = lambda: None


@dataclass
class Snapshot:
    """Everything that a memory holds.

    Attributes
    ----------
    values
        What JSON can hold.
    tensors
        Tensors by name.
    records
        What the stores hold, by number: a record, or the file it is in, which is never changed.
    """

    values: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    records: dict[int, Tensor | StoredFile] = field(default_factory=dict)


def _is_range(rows: object, count: int) -> bool:
    return (
        isinstance(rows, tuple)
        and len(rows) == 2
        and all(type(row) is int for row in rows)
        and 0 <= rows[0] <= rows[1] <= count
    )


class Memory(ABC):
    """Keys and values of a stream. Used by one thread at a time."""

    @abstractmethod
    def begin(self, prefix: Tensor) -> None:
        """Start anew with the embeddings (P, D) of what comes before the video."""

    @abstractmethod
    def append(self, frames: Sequence[Frame]) -> None:
        """Take in the next frames; grouping them changes nothing but the speed.

        Raises
        ------
        MemoryFullError
            If the memory is full and may not forget; it is as before then.
        """

    def holds(self, number: int) -> bool:
        """Tell whether a frame is held, after an :meth:`append` that failed."""
        return False

    @abstractmethod
    def context(
        self, prompt: Tensor, question: slice, text: str, reading: Reading | None = None
    ) -> Context:
        """Prepare an answer; the memory stays as it is.

        The prompt is taken in pieces, so that a long one needs no mask of its square.

        Parameters
        ----------
        prompt
            (T, D) embeddings of what comes after the video, T at least 1.
        question
            Rows of the prompt that the question itself takes.
        text
            The question.
        reading
            For a memory that other threads use meanwhile.

        Returns
        -------
        Context
            All but the last token of the prompt, behind what it needs of the video.

        Raises
        ------
        MemoryChangedError
            If other threads have let the memory forget too much; ask again, holding the lock.
        """

    @property
    @abstractmethod
    def tokens(self) -> int:
        """Number of tokens held, in all stores together."""

    @abstractmethod
    def nbytes(self) -> dict[str, int]:
        """Bytes of each store, by name."""

    @abstractmethod
    def snapshot(self) -> Snapshot:
        """Describe everything that is held; tensors may be views, to be written at once."""

    @abstractmethod
    def restore(self, snapshot: Snapshot) -> None:
        """Take over everything from a snapshot of a memory with the same settings."""

    @abstractmethod
    def clear(self) -> None:
        """Forget everything and give memory and files back."""
