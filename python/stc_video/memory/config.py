# SPDX-License-Identifier: Apache-2.0
"""Settings of the memories, validated when they are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from stc_video.checks import check_between, check_choice, check_count

EVICTIONS = ("oldest", "redundant", "refuse")
RETRIEVALS = ("plain", "normalised", "mmr")
STORAGES = ("exact", "int8", "int4")
SPREADS = ("last", "uniform")

#: from the question and the frame number of each stored frame to one score per frame
Scorer: TypeAlias = Callable[[str, Sequence[int]], Sequence[float]]


@dataclass(frozen=True)
class PlainConfig:
    """A memory that keeps everything on the device.

    Attributes
    ----------
    max_tokens
        How many tokens it may hold; one more is refused.
    """

    max_tokens: int = 32_768

    def __post_init__(self) -> None:
        """Check the value."""
        check_count("PlainConfig: max_tokens", self.max_tokens, 1)


@dataclass(frozen=True)
class RekvConfig:
    """A memory of bounded size that retrieves what a question needs (ReKV, arXiv 2503.00540).

    The paper has ``retrieval="plain"`` and ``recent_frames=0``, with which answers about what is
    there now are lost: docs/world.md.

    Attributes
    ----------
    window_tokens
        How many tokens of earlier frames a new frame attends to, beside the prompt's beginning.
    retrieve_tokens
        How many tokens of the video a question is answered from, in each layer.
    device_bytes, host_bytes, disk_bytes
        Budgets of the stores for frames that have left the window. A frame goes to the first
        with a budget above 0, and the oldest ones move on when a store is full.
    disk_folder
        Where the disk store makes a folder for its files; None for the system's temporary one.
    eviction
        When the last store is full: ``"oldest"`` forgets its oldest frame, ``"redundant"`` the
        one whose keys are most like those of an earlier frame, which then stands for both, and
        ``"refuse"`` raises :class:`MemoryFullError`.
    storage
        ``"exact"``: frames are stored in the model's dtype. ``"int8"``: at half the bytes of a
        16-bit dtype, keys scaled per channel and values per token. ``"int4"``: at a third of
        them, in groups of 32 with a range each; see the documents for the errors.
    retrieval
        ``"plain"``: the dot product of the question's mean query and the frame's mean key.
        ``"normalised"``: their cosine. ``"mmr"``: the cosine, less the similarity to what is
        retrieved already (maximal marginal relevance).
    diversity
        ``mmr``: weight of that likeness, 0 to 1.
    recent_frames
        How many of the last frames are retrieved always, before others.
    scorer
        Called with the question and the frame numbers in memory; its scores replace those
        of the keys, in all layers alike. None for none.
    slab_bytes
        Size of one allocation of the device and host stores.
    """

    window_tokens: int = 8_192
    retrieve_tokens: int = 4_096
    device_bytes: int = 0
    host_bytes: int = 8 << 30
    disk_bytes: int = 0
    disk_folder: str | Path | None = None
    eviction: str = "oldest"
    storage: str = "exact"
    retrieval: str = "normalised"
    diversity: float = 0.5
    recent_frames: int = 1
    scorer: Scorer | None = field(default=None, compare=False)
    slab_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        """Check every value."""
        for name in ("window_tokens", "retrieve_tokens", "slab_bytes"):
            check_count(f"RekvConfig: {name}", getattr(self, name), 1)
        for name in ("device_bytes", "host_bytes", "disk_bytes", "recent_frames"):
            check_count(f"RekvConfig: {name}", getattr(self, name), 0)
        check_choice("RekvConfig: eviction", self.eviction, EVICTIONS)
        check_choice("RekvConfig: storage", self.storage, STORAGES)
        check_choice("RekvConfig: retrieval", self.retrieval, RETRIEVALS)
        check_between("RekvConfig: diversity", self.diversity, 0, 1)


@dataclass(frozen=True)
class WindowConfig:
    """A memory of a few frames and nothing else: the control that every memory should beat.

    A question is answered as if the video had only these frames.

    Attributes
    ----------
    frames
        How many.
    spread
        ``"last"``: the last ones. ``"uniform"``: evenly spread over all that were seen, the first
        and the last among them; the tokens of all frames are kept in main memory for it.
    """

    frames: int = 4
    spread: str = "last"

    def __post_init__(self) -> None:
        """Check every value."""
        check_count("WindowConfig: frames", self.frames, 1)
        check_choice("WindowConfig: spread", self.spread, SPREADS)


#: settings of any memory
MemoryConfig: TypeAlias = PlainConfig | RekvConfig | WindowConfig
