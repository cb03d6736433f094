# SPDX-License-Identifier: Apache-2.0
"""From a grid to rows, limits and files."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stc_video.bench.limits import Limit, judge, read_limits
from stc_video.bench.plot import draw
from stc_video.bench.run import measure, steps
from stc_video.bench.table import Row, shown_ratio, write_tables
from stc_video.bench.timing import WARM_UP
from stc_video.cli.bench import BenchSettings

NAMES = ("dense-eager", "paper-eager", "stc", "motion", "motion-refresh")
SMALL = {
    "geometry": ["dinov2-small"],
    "compiled": False,
    "layers": 1,
    "repeats": 3,
    "device": "cpu",
}
LIMITS = Path(__file__).parents[2] / "benchmarks" / "limits"


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    grid = BenchSettings(**SMALL, streams="1,2", ratios="1/4,0.5").grid()
    seen: list[None] = []
    found = list(measure(grid, "native", lambda: seen.append(None)))
    assert len(found) == grid.cases == 4
    assert len(seen) == steps(grid) == 4 * (len(NAMES) + WARM_UP + 3)
    assert not any(case.left_out for case in found)
    return [row for case in found for row in case.rows]


def test_there_is_a_row_for_each_contender_of_each_case(rows: list[Row]) -> None:
    assert [(row.streams, row.ratio, row.contender) for row in rows] == [
        (streams, ratio, name) for streams in (1, 2) for ratio in (0.25, 0.5) for name in NAMES
    ]
    for row in rows:
        assert row.correct, row
        assert (row.layers, row.tokens, row.width, row.dtype) == (1, 257, 384, "float32")
        assert row.rows == {"dense-eager": 257}.get(row.contender, int(257 * row.ratio))
        assert row.rounds == 3
        assert 0 < row.p20_ms <= row.median_ms <= row.p80_ms
        assert row.time_ratio_low <= row.time_ratio <= row.time_ratio_high
        assert row.baseline == "dense-eager"
        assert row.time_ratio == row.to_dense_eager == row.to("dense-eager")
        assert row.to_dense_graph is None
        assert row.peak_mib is None
        ours = row.contender in ("stc", "motion", "motion-refresh")
        assert row.backend == ("native" if ours else "torch")
        assert (row.time_ratio == 1.0) is (row.contender == "dense-eager")


def test_files(rows: list[Row], tmp_path: Path) -> None:
    where = {"device": "a machine", "command": "stc bench"}
    paths = write_tables(rows, [], tmp_path, "it", where, {"cases": 4})
    assert [path.name for path in paths] == ["it.csv", "it.json"]
    table = list(csv.DictReader(paths[0].open()))
    assert len(table) == len(rows)
    assert table[0]["device"] == "a machine"
    assert table[0]["peak_mib"] == ""
    assert math.isclose(float(table[3]["time_ratio"]), rows[3].time_ratio, rel_tol=1e-5)
    data = json.loads(paths[1].read_text())
    assert data["cases"] == 4
    assert [row["contender"] for row in data["rows"][:5]] == list(NAMES)
    picture = draw(rows, tmp_path / "it.svg", "a machine").read_text()
    assert picture.count("</svg>") == 1
    assert "<path" in picture


def test_limits(rows: list[Row]) -> None:
    row = next(row for row in rows if (row.contender, row.streams, row.ratio) == ("stc", 2, 0.5))
    kept = Limit("dinov2-small", "float32", 2, 0.5, "stc", "dense-eager", row.time_ratio)
    missed = replace(kept, at_most=row.time_ratio * 0.99)
    absent = replace(kept, baseline="dense-graph")
    other = replace(kept, streams=3)
    found = judge([kept, missed, absent, other], rows)
    assert [one.holds for one in found] == [True, False, False, False]
    assert [one.measured for one in found] == [row.time_ratio, row.time_ratio, None, None]
    wrong = judge([kept], [replace(row, correct=False)])
    assert wrong[0].measured is None


@pytest.mark.parametrize("name", ["cpu_cacher", "gpu_cacher"])
def test_the_limits_of_the_project_can_be_read(name: str) -> None:
    from stc_video.bench.contenders import KINDS

    found = read_limits(LIMITS / f"{name}.csv")
    assert found
    for limit in found:
        assert {limit.contender, limit.baseline} <= KINDS.keys()
        assert limit.ratio in (0.25, 0.125, 0.0625)


def test_what_does_not_fit_is_reported_and_the_rest_is_measured() -> None:
    grid = BenchSettings(
        **SMALL, streams=f"{10**12},1", ratios="1/4", contenders="dense-eager,stc"
    ).grid()
    huge, small = measure(grid, "native")
    assert huge.rows == ()
    assert [one.contender for one in huge.left_out] == ["dense-eager", "stc"]
    for one in huge.left_out:
        assert one.for_memory
        assert one.reason.startswith("does not fit in memory")
        assert one.streams == 10**12
    assert [row.contender for row in small.rows] == ["dense-eager", "stc"]


def test_a_step_may_end_it_all_and_cases_so_far_are_kept() -> None:
    grid = BenchSettings(**SMALL, ratios="1/4,1/2", contenders="dense-eager,stc").grid()
    left = steps(grid) // 2 + 1

    def step() -> None:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt

    found = []
    with pytest.raises(KeyboardInterrupt):
        found.extend(measure(grid, "native", step))
    done = measure(grid, "native")
    assert len(next(done).rows) == 2


def test_a_ratio_is_shown_as_it_was_meant() -> None:
    assert [shown_ratio(value) for value in (0.25, 3 / 8, 1 / 3, 0.123)] == [
        "1/4", "3/8", "1/3", "0.123"
    ]  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_contenders_on_a_gpu(dtype: str) -> None:
    from stc_video.bench.contenders import KINDS

    for geometry in ("siglip-base", "dinov2-small"):
        grid = BenchSettings(
            geometry=[geometry], streams="1,3", ratios="1/4", device="cuda", dtype=dtype,
            layers=2, repeats=3,
        ).grid()  # fmt: skip
        assert grid.contenders == tuple(KINDS)
        for case in measure(grid, "triton"):
            assert not case.left_out
            for row in case.rows:
                assert row.correct, row
                assert row.peak_mib > 0
                assert row.to_dense_graph > 0
