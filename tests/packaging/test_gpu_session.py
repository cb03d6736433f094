# SPDX-License-Identifier: Apache-2.0
"""The session for a GPU, without one: what is written when steps fail, hang or are not reached.

The steps themselves are tried by `make gpu-dry-run`.
"""

from __future__ import annotations

import csv
import os
import re
import sys
from pathlib import Path

import pytest
from waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tools"))

import gpu_page  # noqa: E402
import gpu_session  # noqa: E402
import pack_wheels  # noqa: E402
from gpu_steps import STEPS, Step  # noqa: E402


def python(name: str, code: str, seconds: int = 300) -> Step:
    command = (sys.executable, "-c", code)
    return Step(name, "", seconds, command, command)


def statuses(out: Path) -> dict[str, str]:
    with (out / "steps.csv").open(newline="") as file:
        return {row["step"]: row["status"] for row in csv.DictReader(file)}


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    made: list[Step] = []
    monkeypatch.setattr(gpu_session, "STEPS", made)
    return made


def test_the_steps_end_within_25_minutes():
    assert sum(step.seconds for step in STEPS) <= 25 * 60
    assert len({step.name for step in STEPS}) == len(STEPS)


def test_what_the_steps_name_is_there():
    for step in STEPS:
        for part in (*step.command, *step.pretended):
            if re.search(r"\.(py|csv)$", part) and "{out}" not in part:
                assert (ROOT / part).is_file(), (step.name, part)


def test_a_failing_step_does_not_end_the_session(tmp_path, steps):
    steps += [python("bad", "raise SystemExit('no such kernel')"), python("good", "print('12')")]
    assert not gpu_session.session(tmp_path, steps, 600, pretend=True)
    assert statuses(tmp_path) == {"bad": "failed", "good": "passed"}
    page = (tmp_path / "session.md").read_text()
    assert re.search(r"\| bad \| failed \| \d+ \| 300 \| exit code 1; no such kernel \|", page)
    assert gpu_page.PRETENDED in page


def test_a_step_that_hangs_is_ended_with_all_that_it_started(tmp_path, steps, monkeypatch):
    monkeypatch.setattr(gpu_session, "GRACE_SECONDS", 1)
    hang = ("sh", "-c", "trap '' INT; sleep 600 & echo row 1 $!; wait; wait")
    steps += [Step("hangs", "", 4, hang, hang), python("next", "print(1)")]
    gpu_session.session(tmp_path, steps, 600, pretend=True)
    assert statuses(tmp_path) == {"hangs": "cut", "next": "passed"}
    log = (tmp_path / "logs" / "hangs.log").read_text()
    child = int(re.search(r"row 1 (\d+)", log).group(1))
    wait_for(lambda: not is_running(child))


def is_running(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().split()[2] != "Z"


def test_what_the_session_has_no_time_for_is_named(tmp_path, steps, monkeypatch):
    monkeypatch.setattr(gpu_session, "GRACE_SECONDS", 1)
    steps += [python("first", "import time; time.sleep(60)"), python("second", "print(1)")]
    gpu_session.session(tmp_path, steps, 4, pretend=True)
    assert statuses(tmp_path) == {"first": "cut", "second": "not reached"}


def test_a_second_session_adds_to_the_first(tmp_path, steps):
    steps += [python("a", "print(1)"), python("b", f"import os; os.kill({os.getppid()}, 0)")]
    gpu_session.session(tmp_path, steps[:1], 600, pretend=True)
    gpu_session.session(tmp_path, steps[1:], 600, pretend=True)
    assert statuses(tmp_path) == {"a": "passed", "b": "passed"}


def test_a_program_that_is_missing_is_a_step_that_is_skipped(tmp_path, steps):
    steps.append(Step("sanitizer", "", 9, ("no-such-sanitizer",), ("no-such-sanitizer",)))
    gpu_session.session(tmp_path, steps, 600, pretend=True)
    assert statuses(tmp_path) == {"sanitizer": "skipped"}


def test_limits_are_judged_by_the_best_backend_and_may_be_unmeasured(tmp_path):
    everything = list(gpu_page.limits(tmp_path))
    assert {limit.verdict for limit in everything} == {"not measured"}
    assert len(everything) > 10
    rows = [
        "op,geometry,batch,backend,ratio_to_floor",
        "select_changed,siglip-so400m,1,triton,9.0",
        "select_changed,siglip-so400m,1,native,1.5",
        "select_changed,siglip-so400m,8,native,2.5",
    ]
    (tmp_path / "gpu_ops.csv").write_text("\n".join(rows) + "\n")
    found = {limit.what: limit for limit in gpu_page.limits(tmp_path)}
    first, second = (
        found[f"gpu_ops: ratio_to_floor at op=select_changed & geometry=siglip-so400m & batch={n}"]
        for n in (1, 8)
    )
    assert (first.measured, first.verdict) == (1.5, "pass")
    assert (second.measured, second.verdict) == (2.5, "FAIL")


def test_the_page_sets_what_was_measured_beside_what_was_predicted(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_page, "machine", lambda: "NVIDIA H100")
    (tmp_path / "gpu_cacher.csv").write_text(
        "geometry,contender,streams,device,median_ms\nsiglip-so400m,motion,1,NVIDIA H100,3.0\n"
    )
    gpu_page.write_page(tmp_path, STEPS, {}, pretend=False)
    page = (tmp_path / "session.md").read_text()
    assert "| NVIDIA H100 | 1 | motion | " in page
    assert page.count("| not reached | 0 |") == len(STEPS)


def test_wheels_leave_out_torch_and_name_no_index():
    requirements = pack_wheels.needed("3.12", with_build=False)
    names = {line.partition("==")[0] for line in requirements}
    assert {"transformers", "tokenizers", "pytest", "pluggy", "rich"} <= names
    assert not any(name.startswith(pack_wheels.OF_TORCH) for name in names)
    assert "://" not in Path(pack_wheels.__file__).read_text()


def test_wheels_for_a_python_that_is_not_locked_are_refused():
    with pytest.raises(SystemExit, match=r"must be one of py310, py311, .*, got 3\.9"):
        pack_wheels.needed("3.9", with_build=False)
