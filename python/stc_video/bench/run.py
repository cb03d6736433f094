# SPDX-License-Identifier: Apache-2.0
"""Goes over the cases: makes the contenders, checks them, lets them take turns."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

import torch

from stc_video.bench.cases import Case
from stc_video.bench.contenders import KINDS, Contender, Ours
from stc_video.bench.correctness import Verdict, check
from stc_video.bench.grid import Grid
from stc_video.bench.table import Measured, NotMeasured, Row, ratio_column
from stc_video.bench.timing import WARM_UP, Spread, alternate, compare, peak_memory
from stc_video.bench.towers import BenchTower

_MIB = 1 << 20
#: parts of the messages by which torch says that memory is not enough
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


@dataclass(frozen=True)
class Prepared:
    """A contender that was made and checked."""

    contender: Contender
    verdict: Verdict
    peak_bytes: int | None


def steps(grid: Grid) -> int:
    """Return the largest number of calls of `on_step` by :func:`measure`."""
    return grid.cases * (len(grid.contenders) + WARM_UP + grid.rounds)


@torch.inference_mode()
def prepare(name: str, case: Case) -> Prepared:
    """Make a contender, show it its first frames, and check what it returns.

    Parameters
    ----------
    name
        A key of :data:`stc_video.bench.contenders.KINDS`.
    case
        What it is made for.
    """
    with peak_memory(case.tower.weight.device) as peak:
        contender = KINDS[name].make(case)
        first = contender.start().clone()
        second = contender.encode(contender.clip.turn(0)).clone()
    return Prepared(contender, check(contender, case, first, second), peak.nbytes)


@torch.inference_mode()
def time_case(
    contenders: Mapping[str, Contender],
    device: torch.device,
    rounds: int,
    *,
    seconds: float | None = None,
    on_round: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Time contenders that were started, in turns; seconds, by name."""

    def call(contender: Contender) -> Callable[[int], object]:
        # The last frame that was shown was the one of turn 0.
        return lambda number: contender.encode(contender.clip.turn(number + 1))

    calls = {name: call(contender) for name, contender in contenders.items()}
    return alternate(calls, device, rounds, seconds=seconds, on_round=on_round)


def measure(
    grid: Grid, backend: str, on_step: Callable[[], None] = lambda: None
) -> Iterator[Measured]:
    """Measure the cases one after the other.

    Parameters
    ----------
    grid
        What to measure.
    backend
        What our operators run on, for the table.
    on_step
        Is called after each contender that was made and each round; what it raises ends it all.

    Yields
    ------
    Measured
        For each case.
    """
    if grid.device.type == "cuda":
        torch.cuda.set_device(grid.device)
    for geometry in grid.geometries:
        try:
            tower = BenchTower.build(
                geometry, layers=grid.layers, device=grid.device, dtype=grid.dtype
            )
        except (RuntimeError, MemoryError) as error:
            for streams, ratio in product(grid.streams, grid.ratios):
                yield _nothing(grid, geometry, streams, ratio, error)
            continue
        for streams in grid.streams:
            yield from _measure_ratios(grid, tower, streams, backend, on_step)
        del tower
        _tidy(grid.device)


def _measure_ratios(
    grid: Grid, tower: BenchTower, streams: int, backend: str, on_step: Callable[[], None]
) -> Iterator[Measured]:
    """Measure the cases of one batch, which share the dense contenders."""
    torch.compiler.reset()  # code is made for one batch and not for any
    dense: dict[str, Prepared | NotMeasured] = {}
    for ratio in grid.ratios:
        try:
            case = Case.of(tower, streams, ratio)
        except (RuntimeError, MemoryError) as error:
            yield _nothing(grid, tower.geometry, streams, ratio, error)
            continue
        made: dict[str, Prepared | NotMeasured] = {}
        for name in grid.contenders:
            made[name] = dense[name] if name in dense else _try_to_prepare(name, case)
            if KINDS[name].is_dense:
                dense[name] = made[name]
            on_step()
        yield _measure_case(grid, case, made, backend, on_step)
        del made, case
        _tidy(grid.device)


def _measure_case(
    grid: Grid,
    case: Case,
    made: Mapping[str, Prepared | NotMeasured],
    backend: str,
    on_step: Callable[[], None],
) -> Measured:
    ready = {name: one for name, one in made.items() if isinstance(one, Prepared)}
    left_out = [
        NotMeasured(one.geometry, one.streams, float(case.ratio), name, one.reason, one.for_memory)
        for name, one in made.items()
        if isinstance(one, NotMeasured)
    ]
    fit = {name: one.contender for name, one in ready.items() if one.verdict.is_correct}
    times: dict[str, list[float]] = {}
    if fit:
        try:
            times = time_case(fit, grid.device, grid.rounds, seconds=grid.seconds, on_round=on_step)
        except (RuntimeError, MemoryError) as error:
            left_out += [_not_measured(name, case, error) for name in fit]
            ready = {name: one for name, one in ready.items() if name not in fit}
    return Measured(tuple(rows_of(case, ready, times, backend)), tuple(left_out))


def _try_to_prepare(name: str, case: Case) -> Prepared | NotMeasured:
    device = case.tower.weight.device
    try:
        return prepare(name, case)
    except (RuntimeError, MemoryError) as error:
        found = _not_measured(name, case, error)
    _tidy(device)
    return found


def _nothing(
    grid: Grid, geometry: str, streams: int, ratio: Fraction, error: Exception
) -> Measured:
    """Say of all contenders of a case that there is nothing for them to encode."""
    place = geometry, streams, float(ratio)
    return Measured(
        (), tuple(NotMeasured(*place, name, *_reason(error)) for name in grid.contenders)
    )


def _not_measured(name: str, case: Case, error: Exception) -> NotMeasured:
    place = case.tower.geometry, case.streams, float(case.ratio), name
    return NotMeasured(*place, *_reason(error))


def _reason(error: Exception) -> tuple[str, bool]:
    """Say why something could not run, and whether that is for want of memory."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    for_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        part in text.lower() for part in _NO_MEMORY
    )
    return f"does not fit in memory: {text}" if for_memory else f"could not run: {text}", for_memory


def rows_of(
    case: Case,
    ready: Mapping[str, Prepared],
    times: Mapping[str, Sequence[float]],
    backend: str,
) -> Iterator[Row]:
    """Make the rows of a case, in the order of the contenders."""
    spreads = {name: Spread.of([1e3 * one for one in taken]) for name, taken in times.items()}
    dense = [name for name in spreads if KINDS[name].is_dense]
    baseline = min(dense, key=lambda name: spreads[name].median, default="")
    for name, one in ready.items():
        row = _untimed(case, name, one, backend)
        if name not in times:
            yield row
            continue
        problem = one.contender.problem
        values = row.__dict__ | {
            "correct": row.correct and not problem,
            "problem": problem,
            "rounds": len(times[name]),
            "median_ms": spreads[name].median,
            "p20_ms": spreads[name].p20,
            "p80_ms": spreads[name].p80,
            "baseline": baseline,
        }
        if baseline:
            ratio = compare(times[name], times[baseline])
            values |= {
                "time_ratio": ratio.median,
                "time_ratio_low": ratio.low,
                "time_ratio_high": ratio.high,
            }
        for other in times:
            if (column := ratio_column(other)) in values:
                values[column] = compare(times[name], times[other]).median
        yield Row(**values)


def _untimed(case: Case, name: str, one: Prepared, backend: str) -> Row:
    tower, contender = case.tower, one.contender
    return Row(
        geometry=tower.geometry,
        layers=tower.layers,
        width=int(tower.config.hidden_size),
        tokens=tower.tokens,
        dtype=str(tower.weight.dtype).removeprefix("torch."),
        streams=case.streams,
        ratio=float(case.ratio),
        rows=tower.tokens if KINDS[name].is_dense else case.rows,
        contender=name,
        correct=one.verdict.is_correct,
        error=one.verdict.error,
        multiply_adds=contender.cost,
        peak_mib=None if one.peak_bytes is None else one.peak_bytes / _MIB,
        state_mib=contender.state_bytes / _MIB,
        packed_mib=contender.packed_bytes / _MIB,
        backend=backend if isinstance(contender, Ours) else "torch",
        problem=one.verdict.problem,
    )


def _tidy(device: torch.device) -> None:
    """Give back the memory of what is gone; patched modules are cycles."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
