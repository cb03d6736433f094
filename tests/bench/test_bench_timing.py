# SPDX-License-Identifier: Apache-2.0
"""What is read off times, and that calls take turns. No test asks how long anything takes."""

from __future__ import annotations

import random
import statistics

import pytest
import torch

from stc_video.bench.timing import LEAST, WARM_UP, Spread, alternate, compare, peak_memory

CPU = torch.device("cpu")


def times(count: int, median: float, seed: int) -> list[float]:
    chance = random.Random(seed)
    return [median * chance.lognormvariate(0.0, 0.2) for _ in range(count)]


def test_a_constant_ratio_is_that_ratio_whatever_the_machine_does() -> None:
    baseline = times(15, 1.0, 0)
    found = compare([0.25 * one for one in baseline], baseline)
    assert (found.median, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))


def test_the_ratio_is_the_median_of_neighbours() -> None:
    found = compare([1.0, 2.0, 9.0], [2.0, 2.0, 3.0])
    assert found.median == 1.0
    assert found.low <= found.median <= found.high
    assert found.spread == Spread(1.0, *map(pytest.approx, (0.7, 2.2)))


@pytest.mark.parametrize("count", [3, 4, 20])
def test_the_interval_contains_the_ratio_and_is_the_same_each_time(count: int) -> None:
    found = compare(times(count, 0.5, 1), times(count, 1.0, 2))
    assert found.low <= found.median <= found.high
    assert found.low < found.high
    assert found == compare(times(count, 0.5, 1), times(count, 1.0, 2))


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    covered = [
        (found := compare(times(25, 0.5, 2 * n), times(25, 1.0, 2 * n + 1))).low
        <= 0.5
        <= found.high
        for n in range(150)
    ]
    assert statistics.fmean(covered) > 0.88


def test_spread() -> None:
    assert Spread.of([float(n) for n in range(11)]) == Spread(5.0, 2.0, 8.0)


def test_calls_take_turns_and_the_first_rounds_do_not_count() -> None:
    seen: list[tuple[str, int]] = []
    rounds = []
    calls = {name: lambda n, name=name: seen.append((name, n)) for name in "abc"}
    found = alternate(calls, CPU, 4, on_round=lambda: rounds.append(None))
    assert {name: len(taken) for name, taken in found.items()} == {"a": 4, "b": 4, "c": 4}
    assert len(rounds) == WARM_UP + 4
    for number in range(WARM_UP + 4):
        here = seen[3 * number : 3 * number + 3]
        assert sorted(here) == [("a", number), ("b", number), ("c", number)]
    assert [seen[3 * number][0] for number in range(3)] == ["a", "b", "c"]


def test_seconds_end_it_earlier_but_not_before_three_rounds() -> None:
    found = alternate({"a": lambda n: None}, CPU, 50, seconds=1e-9)
    assert len(found["a"]) == LEAST


def test_a_cpu_does_not_tell_its_peak() -> None:
    with peak_memory(CPU) as peak:
        torch.zeros(1000)
    assert peak.nbytes is None
