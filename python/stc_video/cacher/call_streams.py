# SPDX-License-Identifier: Apache-2.0
"""Which frames of a call are whose: those of streams, or of a rehearsal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stc_video.cacher.streams import Stream, check_room


def check_rehearsal(streams: Mapping[str, Stream], counts: Sequence[int], limit: int) -> None:
    """Raise ValueError unless frames can stand for as many streams, which are encoded together."""
    if len(counts) > 1:
        raise ValueError(f"warmup: pictures must be of one size, got {len(counts)} of several")
    check_room(streams, [f"warm-up {number}" for number in range(counts[0])], limit)


def shared_out(
    counts: Sequence[int], names: Sequence[str], streams: dict[str, Stream]
) -> list[list[Stream]]:
    """Say which streams have the frames of each group.

    Parameters
    ----------
    counts
        How many frames each group has: all are in one, or each is a group of its own.
    names
        The streams of the call, each of which has as many frames as any other.
    streams
        Those that are known, by name; new ones are added.
    """
    if not (count := sum(counts)):
        raise ValueError("the tower: a call must have a frame, got none")
    if count % len(names):
        raise ValueError(
            f"streams: the batch must have one row per stream ({len(names)}), got {count}"
        )
    owners = [streams.setdefault(name, Stream(name)) for name in names]
    each = count // len(names)
    return [owners] if len(counts) == 1 else [[owners[number // each]] for number in range(count)]
