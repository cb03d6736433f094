# SPDX-License-Identifier: Apache-2.0
"""Where frames are placed in time when timestamps and arrivals do not agree."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from stc_video.video.timeline import SourceStats, Timeline


def live(pairs: Iterable[tuple[float | None, float]]) -> tuple[Timeline, list[float], list[float]]:
    """Place (timestamp, arrival) pairs; checks that time never goes back."""
    line = Timeline()
    times, arrivals = map(list, zip(*(line.of_live(*pair) for pair in pairs), strict=True))
    assert times == sorted(times)
    return line, times, arrivals


def counts(line: Timeline) -> tuple[int, int, int, int]:
    return line.resets, line.jumps, line.gaps, line.drifts


def test_a_healthy_camera_keeps_its_own_times_through_the_networks_delays() -> None:
    delays = [0.0, 0.3, 0.0, 1.4, 1.0, 0.6, 0.2, 0.0, 0.1]  # a stall of 1.4 s, then a burst
    stamps = [100 + 0.4 * i for i in range(len(delays))]
    arrivals = [50 + 0.4 * i + delay for i, delay in enumerate(delays)]
    line, times, _ = live(zip(stamps, arrivals, strict=True))
    assert times == pytest.approx([0.4 * i for i in range(len(delays))])
    assert counts(line) == (0, 0, 0, 0)
    assert not line.by_arrival


@pytest.mark.parametrize("speed", [0.2, 0.8, 0.98, 1.02, 1.2])
def test_a_clock_that_is_slow_or_fast_is_given_up(speed: float) -> None:
    pairs = [(7 + 0.2 * i * speed, 0.2 * i) for i in range(3000)]
    line, times, arrivals = live(pairs)
    assert line.drifts == 1
    assert line.by_arrival
    assert max(abs(t - a) for t, a in zip(times, arrivals, strict=True)) <= 2.01
    assert times[-1] == pytest.approx(arrivals[-1])


@pytest.mark.parametrize("factor", [20, 1000])
def test_a_wrong_time_base_is_given_up(factor: int) -> None:
    line, times, arrivals = live((factor * 0.04 * i, 0.04 * i) for i in range(500))
    assert line.by_arrival
    assert line.jumps == 3
    assert times == pytest.approx(arrivals)


@pytest.mark.parametrize(("step", "expected"), [(-500, (1, 0, 0, 0)), (3600, (0, 1, 0, 0))])
def test_a_camera_that_sets_its_clock_goes_on(step: float, expected: tuple) -> None:
    pairs = [(1000 + 0.2 * i + (step if i >= 50 else 0), 0.2 * i) for i in range(100)]
    line, times, _ = live(pairs)
    assert counts(line) == expected
    assert not line.by_arrival
    assert times == pytest.approx([0.2 * i for i in range(100)])


@pytest.mark.parametrize("clock_stands", [False, True])
def test_silence_of_minutes_is_a_gap(clock_stands: bool) -> None:
    late = [180.0 if i >= 50 else 0.0 for i in range(100)]
    pairs = [(0.2 * i + (0 if clock_stands else gap), 0.2 * i + gap) for i, gap in enumerate(late)]
    line, times, arrivals = live(pairs)
    assert counts(line) == (0, 0, 1, 0)
    assert times == pytest.approx(arrivals)


def test_what_was_buffered_before_the_start_says_nothing() -> None:
    pairs = [(0.1 * i, 0.001 * i) for i in range(50)] + [
        (5 + 0.1 * i, 0.1 * i + 0.1) for i in range(90)
    ]
    line, times, arrivals = live(pairs)
    assert counts(line) == (0, 0, 0, 0)
    assert max(abs(t - a) for t, a in zip(times, arrivals, strict=True)) <= 0.51


def test_without_timestamps_frames_have_the_times_of_their_arrival() -> None:
    line, times, arrivals = live((None, 9 + 0.5 * i) for i in range(10))
    assert times == arrivals == pytest.approx([0.5 * i for i in range(10)])
    assert not line.has_stamps


def file(stamps: Iterable[float | None], **settings: float) -> tuple[Timeline, list[float]]:
    line = Timeline(0.1, **settings)
    times = [line.of_file(stamp) for stamp in stamps]
    assert times == sorted(times)
    return line, times


def test_in_a_file_recordings_follow_each_other() -> None:
    recording = [4 + 0.1 * i for i in range(10)]
    line, times = file(recording * 3)
    assert times == pytest.approx([0.1 * i for i in range(30)])
    assert counts(line) == (2, 0, 0, 0)


def test_in_a_file_a_frame_that_is_a_little_early_is_no_new_recording() -> None:
    line, times = file([0.0, 0.1, 0.05, 0.2, 0.3, 0.28, 0.4])
    assert times == pytest.approx([0.0, 0.1, 0.1, 0.2, 0.3, 0.3, 0.4])
    assert counts(line) == (0, 0, 0, 0)


def test_in_a_file_a_gap_is_kept_and_counted() -> None:
    line, times = file([0.0, 0.1, 0.2, 3600.0, 3600.1])
    assert times[-1] == pytest.approx(3600.1)
    assert counts(line) == (0, 0, 1, 0)


def test_in_a_file_frames_without_a_timestamp_follow_the_one_before() -> None:
    assert file([None, None, None])[1] == pytest.approx([0.0, 0.1, 0.2])
    assert file([2.0, None, None, 2.4])[1] == pytest.approx([0.0, 0.1, 0.2, 0.4])


def test_a_late_start_counts_from_the_files_begin() -> None:
    assert file([12.0, 12.1], origin=10.0)[1] == pytest.approx([2.0, 2.1])


def test_notes_say_what_was_out_of_order() -> None:
    assert SourceStats(decoded=5, skipped=2).notes() == []
    stats = SourceStats(resets=1, jumps=2, gaps=1, drifts=1, damaged=3, times="arrival")
    assert "; ".join(stats.notes()) == (
        "its timestamps began again once; its timestamps jumped 2 times; it had a gap once; its "
        "clock is too slow or too fast; frames have the times of their arrival; 3 damaged frames "
        "were left out"
    )
