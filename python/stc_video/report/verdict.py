# SPDX-License-Identifier: Apache-2.0
"""Whether it pays: from the figures of a measurement to one line, and a level for its colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stc_video.report.record import RunRecord
from stc_video.report.summary import Totals, counted, percent, summarise

#: a fraction of dense below which something is saved; the times of two runs differ by more than
#: the rest
PAYS = 0.95
#: mean cosine that counts as similar where nothing was promised
SIMILAR = 0.98

_MOST_NAMED = 2
_LITTLE_REPEATS = (
    "little repeats from frame to frame here (a moving camera, cuts, noise): try more frames per "
    "second or a lower quality, or leave the cacher off"
)
_OVERHEAD = (
    "the work saved is less than what it takes to find it here: try a larger tower or a GPU, time "
    "it on a quiet machine, or leave the cacher off"
)
_NEITHER = "for videos like this leave the cacher off"
_MISSED = (
    "for videos like this leave the cacher off, or try a higher quality or a calibration of your "
    "own (stc calibrate)"
)

Level = Literal["good", "mixed", "bad"]


@dataclass(frozen=True)
class Verdict:
    """The judgement of a measurement.

    Attributes
    ----------
    level
        ``"good"``: it saves, and what was promised was held. ``"bad"``: it saves nothing, or a
        promise was missed. ``"mixed"``: neither.
    text
        One line: what was saved, whether the promise was held, and what to try if it was not so.
    """

    level: Level
    text: str


# -- one run with a cacher -------------------------------------------------------------------


def run_verdict(record: RunRecord, totals: Totals | None = None) -> Verdict:
    """Judge a run of `stc run`.

    The promise is judged by the frames that were encoded densely beside the run, if there were
    any, and by the cacher's own audits.
    """
    t, promise = totals or summarise(record), record.promise
    promised, measured, held = promise.promised, promise.estimated, promise.held
    how = f"by {counted(promise.audits, 'audit')}"
    if t.similarity is not None:
        measured, how = t.similarity, f"measured on {counted(t.measured, 'frame')}"
        if promised is not None:
            held = held is not False and measured >= promised
    return cache_verdict(
        frames=t.frames,
        work=t.cost,
        time=t.time_ratio,
        promised=promised,
        measured=measured,
        how=how,
        held=held,
        random=record.model.random,
        pruned=t.tokens_kept < t.tokens_before,
    )


def cache_verdict(
    *,
    frames: int,
    work: float,
    time: float | None = None,
    promised: float | None = None,
    measured: float | None = None,
    how: str = "measured",
    held: bool | None = None,
    random: bool = False,
    pruned: bool = False,
) -> Verdict:
    """Judge one run of a cacher.

    Parameters
    ----------
    frames
        How many were encoded.
    work, time
        Fractions of what a dense encode of every frame takes; None if no time was taken.
    promised, measured
        Mean cosine to a dense encode; None if nothing was promised or measured.
    how
        In what way it was measured, in words.
    held
        Whether the promise was held; None if that is not known.
    random
        Whether the weights are random.
    pruned
        Whether tokens were pruned besides, which goes on without a cacher.
    """
    remark = " (random weights)." if random else "."
    if frames < 2:
        text = "one frame says nothing, as only later ones can reuse it: give a longer video"
        return Verdict("mixed", text + remark)
    spent = work if time is None else time
    parts = [f"{_lead(spent, held)}: {_spent(work, time)}"]
    if promise := _promise(promised, measured, held, how):
        parts.append(promise)
    if held is False:
        parts.append(_MISSED if spent < PAYS else _NEITHER)
    elif spent >= PAYS:
        parts.append(_why_not(work, pruned=pruned))
    return Verdict(_level(spent, promised, held), "; ".join(parts) + remark)


def _lead(spent: float, held: bool | None) -> str:
    if spent < PAYS:
        return "it saves, but not as promised" if held is False else "it pays"
    return "it does not pay" if spent >= 1 else "it hardly pays"


def _level(spent: float, promised: float | None, held: bool | None) -> Level:
    if held is False or spent >= 1:
        return "bad"
    return "mixed" if spent >= PAYS or (promised is not None and held is None) else "good"


def _spent(work: float, time: float | None) -> str:
    if time is None:
        return f"{percent(work)} of the dense work, no time taken"
    return f"{percent(time)} of the dense time for {percent(work)} of the work"


def _promise(
    promised: float | None, measured: float | None, held: bool | None, how: str = "measured"
) -> str:
    found = "" if measured is None else f"{measured:.4f} {how}"
    if promised is None:
        return found and f"no cosine was promised, {found}"
    what = f"the promised cosine of {promised:g}"
    if held is None:
        return f"whether {what} was held was not measured"
    return f"{what} was {'held' if held else 'missed'}" + (f" ({found})" if found else "")


def _why_not(work: float, *, pruned: bool = False) -> str:
    reason = _OVERHEAD if work < PAYS else _LITTLE_REPEATS
    return reason + (" (the pruner saves without it)" if pruned else "")


# -- several settings ------------------------------------------------------------------------


@dataclass(frozen=True)
class Tried:
    """A setting in one case: a name, where it was tried, and the figures of `cache_verdict`."""

    name: str
    where: str
    work: float
    time: float | None = None
    promised: float | None = None
    measured: float | None = None

    @property
    def spent(self) -> float:
        """Fraction of the dense time, or of the work if no time was taken."""
        return self.work if self.time is None else self.time

    @property
    def held(self) -> bool | None:
        """Whether the promise was held; None if nothing was promised or measured."""
        if self.promised is None or self.measured is None:
            return None
        return self.measured >= self.promised

    @property
    def pays(self) -> bool:
        """Whether it saves, and is as similar as was promised, or similar if nothing was."""
        similar = self.held
        if similar is None:
            similar = self.measured is None or self.measured >= SIMILAR
        return self.spent < PAYS and similar


def best_verdict(tried: Sequence[Tried], problems: Sequence[str] = ()) -> Verdict:
    """Judge settings that were compared, in one case or in several.

    Parameters
    ----------
    tried
        The settings, those without a cacher left out.
    problems
        What went wrong, in words, each of which makes it bad.
    """
    found: dict[str, Tried | None] = {}
    for where in dict.fromkeys(one.where for one in tried):
        paying = [one for one in tried if one.where == where and one.pays]
        found[where] = min(paying, key=lambda one: one.spent, default=None)
    if not found:
        text = "; ".join([*problems, "nothing to judge: no setting with a cacher was measured"])
        return Verdict("bad" if problems else "mixed", text + ".")
    best = [one for one in found.values() if one is not None]
    missed = [one for one in tried if one.held is False]
    parts = [*problems, *_where_it_pays(found, best, tried)]
    if missed:
        parts.append(f"the promise was missed by {_named([_miss(one) for one in missed])}")
    if missed and len(best) < len(found):
        parts.append(_MISSED)
    elif len(best) < len(found):
        cheapest = min(one.work for one in tried if found[one.where] is None)
        parts.append(_why_not(cheapest))
    level: Level = "mixed" if missed or len(best) < len(found) else "good"
    return Verdict("bad" if problems or not best else level, "; ".join(parts) + ".")


def _where_it_pays(
    found: dict[str, Tried | None], best: Sequence[Tried], tried: Sequence[Tried]
) -> list[str]:
    if len(found) <= _MOST_NAMED:
        return [
            f"{where}: " + (_nothing(where, tried) if one is None else _paying(one))
            for where, one in found.items()
        ]
    parts = [f"it pays in {len(best)} of {len(found)} cases"]
    if best:
        first = min(best, key=lambda one: one.spent)
        parts.append(f"most {first.where}: {_paying(first)}")
    if left := [where for where, one in found.items() if one is None]:
        parts.append(f"not {_named(left)}")
    return parts


def _paying(one: Tried) -> str:
    return f"{one.name} pays, {_figures(one)}"


def _nothing(where: str, tried: Sequence[Tried]) -> str:
    """Say that no setting pays, and of a single one why."""
    here = [one for one in tried if one.where == where]
    if len(here) > 1:
        compared = any(one.measured is not None for one in here)
        return "no setting saves and is similar enough" if compared else "no setting pays"
    [one] = here
    if one.spent < PAYS:
        return f"{one.name} saves, but is not similar enough, {_figures(one)}"
    return f"{one.name} saves no {'work' if one.time is None else 'time'}, {_figures(one)}"


def _figures(one: Tried) -> str:
    promise = _promise(one.promised, one.measured, one.held)
    return _spent(one.work, one.time) + (f", {promise}" if promise else "")


def _miss(one: Tried) -> str:
    return f"{one.name} ({one.measured:.4f} {one.where})"


def _named(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    if more <= 0:
        return " and ".join(names)
    return f"{', '.join(names[:_MOST_NAMED])} and {more} more"


# -- calibrations and pruners ----------------------------------------------------------------


def calibration_verdict(best_quality: float, default: float, work: float | None) -> Verdict:
    """Judge a calibration.

    Parameters
    ----------
    best_quality
        The highest mean cosine that every clip had without a dense frame for the promise.
    default
        The quality that is asked for by default.
    work
        Fraction of the dense work at that one, or at the best if no setting reached it.
    """
    quality = min(best_quality, default)
    cost = "" if work is None else f" at {percent(work)} of the dense work"
    if work is not None and work >= PAYS:
        text = f"it {'does not pay' if work >= 1 else 'hardly pays'}: quality {quality:.3g}{cost}"
        return Verdict("bad" if work >= 1 else "mixed", f"{text}; {_LITTLE_REPEATS}.")
    if best_quality < default:
        text = f"cached frames alone reach {quality:.3f}{cost}"
        advice = f"quality {default:g}, the default, will take dense frames to hold on such videos"
        return Verdict("mixed", f"{text}; {advice}.")
    return Verdict("good", f"cached frames alone reach the default quality of {quality:g}{cost}.")


@dataclass(frozen=True)
class Compared:
    """A pruning method: its measures, of which more is better, and milliseconds per frame."""

    name: str
    measures: dict[str, float]
    latency: float


def prune_verdict(where: str, methods: Sequence[Compared], controls: Sequence[Compared]) -> Verdict:
    """Judge pruning methods by controls that do not look at the picture.

    Parameters
    ----------
    where
        At which budget.
    methods, controls
        With the same measures; those that could not be taken are NaN.
    """
    if not methods or not controls:
        text = "nothing to judge by: compare methods with the controls (uniform, random)"
        return Verdict("mixed", text + ".")
    names = [name for name, value in controls[0].measures.items() if value == value]
    bar = {name: max(one.measures[name] for one in controls) for name in names}

    def ahead(one: Compared) -> list[str]:
        return [name for name in names if one.measures[name] > bar[name]]

    best = max(methods, key=lambda one: (len(ahead(one)), -one.latency))
    won = ahead(best)
    if not won:
        text = f"{where}, no method is ahead of evenly spaced or random tokens"
        return Verdict("bad", f"{text}: try a larger budget, or take uniform.")
    count = f"{len(won)} of {len(names)} measures"
    text = f"{where}, {best.name} is ahead of the controls in {count} ({', '.join(won)})"
    text += f" for {best.latency:.2g} ms per frame"
    if len(won) == len(names):
        return Verdict("good", text + ".")
    return Verdict("mixed", f"{text}; try a larger budget if the rest matters to you.")
