# SPDX-License-Identifier: Apache-2.0
"""From a source's timestamps, which may be wrong, to seconds of the stream, which only grow."""

from __future__ import annotations

from dataclasses import dataclass

#: a silence, or a step of the timestamps, that is counted as a gap: of a file, of a live source
FILE_GAP, LIVE_GAP = 10.0, 2.0
# A live frame cannot come before its time, up to what its predecessors were delayed; it can be
# late, when the network stood still for a moment.
_EARLY, _LATE = 0.5, 2.0
# Behind a start, a jump or a gap, what was buffered comes at once and says nothing about the clock.
_SETTLING = 2.0
# After so many implausible steps, timestamps are not looked at any more.
_TRUSTED = 3
_FRAME_INTERVAL = 0.04  # of a source that does not say


@dataclass(frozen=True)
class SourceStats:
    """Counts of what was read, and of odd timestamps.

    Attributes
    ----------
    decoded
        Frames decoded.
    skipped
        Frames that were due, but came while the caller was busy (live sources, or a file that
        is read in its own time).
    damaged
        Frames of a live source that could not be decoded.
    resets, jumps
        How often timestamps went back, or ran off by more than the time that passed.
    gaps
        Silences: over 10 s between timestamps of a file, over 2 s without a frame when live.
    drifts
        1 if a live source's clock turned out too slow or too fast.
    times
        ``"source"``, or ``"arrival"`` of a live source without timestamps, or from when they were
        given up.
    """

    decoded: int = 0
    skipped: int = 0
    damaged: int = 0
    resets: int = 0
    jumps: int = 0
    gaps: int = 0
    drifts: int = 0
    times: str = "source"

    def notes(self) -> list[str]:
        """Say in words what was out of order; empty if nothing was."""
        oddities = {
            "its timestamps began again": self.resets,
            "its timestamps jumped": self.jumps,
            "it had a gap": self.gaps,
        }
        notes = [f"{what} {_times(count)}" for what, count in oddities.items() if count]
        if self.drifts:
            notes.append("its clock is too slow or too fast")
        if self.times == "arrival" and self.resets + self.jumps + self.drifts:
            notes.append("frames have the times of their arrival")
        if self.damaged:
            notes.append(f"{self.damaged} damaged frames were left out")
        return notes


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


class Timeline:
    """Places frames in time, whatever their timestamps are.

    In a file timestamps are believed; where they go back, as in recordings joined by ``cat``, what
    follows is put behind what came before. In a live source they are believed as long as they agree
    with when frames arrive.

    Parameters
    ----------
    interval
        Seconds between the source's frames, if known.
    origin
        Timestamp that is second 0; that of the first frame by default.

    Attributes
    ----------
    resets, jumps, gaps, drifts
        As in :class:`SourceStats`.
    has_stamps
        Whether the last live frame had a timestamp.
    """

    def __init__(self, interval: float | None = None, origin: float | None = None) -> None:
        self.resets = self.jumps = self.gaps = self.drifts = 0
        self.has_stamps = True
        self._interval = interval or _FRAME_INTERVAL
        self._origin = origin
        self._now: float | None = None
        self._stamp: float | None = None
        self._begin = self._arrival = self._settled = 0.0

    @property
    def by_arrival(self) -> bool:
        """Whether timestamps have been given up."""
        return self.drifts > 0 or self.resets + self.jumps >= _TRUSTED

    def of_file(self, stamp: float | None) -> float:
        """Seconds of the next frame of a file; one without a timestamp follows the one before."""
        if stamp is None:
            before = self._stamp if self._stamp is not None else (self._origin or 0.0)
            stamp = before if self._now is None else before + self._interval
        self._origin = stamp if self._origin is None else self._origin
        time = stamp - self._origin
        if self._stamp is not None:
            step = stamp - self._stamp
            if step < -min(0.5, 2.5 * self._interval):
                self.resets += 1
                time = self._grown(0.0) + self._interval
                self._origin = stamp - time
            elif step > max(FILE_GAP, 2 * self._interval):
                self.gaps += 1
        self._stamp, self._now = stamp, self._grown(time)
        return self._now

    def of_live(self, stamp: float | None, arrival: float) -> tuple[float, float]:
        """Seconds of the next live frame, and seconds until it arrived."""
        if self._now is None:
            self._begin = self._arrival = arrival
            self._settled = arrival + _SETTLING
        here = arrival - self._begin
        wait = arrival - self._arrival
        if wait > LIVE_GAP:
            self.gaps += 1
            self._settled = arrival + _SETTLING
        time = here
        self.has_stamps = stamp is not None
        if stamp is not None and not self.by_arrival:
            self._origin = stamp if self._origin is None else self._origin
            time = stamp - self._origin
            if not -_LATE <= time - here <= _EARLY:
                self._note(stamp, wait, arrival)
                self._origin, time = stamp - here, here
            self._stamp = stamp
        self._arrival, self._now = arrival, self._grown(time)
        return self._now, here

    def _note(self, stamp: float, wait: float, arrival: float) -> None:
        """Count what made a timestamp disagree with the arrival."""
        step = stamp - (stamp if self._stamp is None else self._stamp)
        if step < 0:
            self.resets += 1
        elif arrival < self._settled and step - wait <= _LATE:
            return
        elif abs(step - wait) > _EARLY:
            self.jumps += 1
        else:
            self.drifts += 1
        self._settled = arrival + _SETTLING

    def _grown(self, time: float) -> float:
        return time if self._now is None else max(time, self._now)
