# SPDX-License-Identifier: Apache-2.0
"""`stc eval`, from the command to the report, for every benchmark."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from benchmark_files import (
    PROACTIVE,
    egoschema_row,
    mlvu_row,
    ovo_choice,
    ovo_rows,
    rekv_entry,
    streaming_csv_row,
    streaming_entry,
    streaming_question,
    video_mme_entry,
    write_json,
    write_streaming_csv,
)
from forking import fork
from waiting import wait_for

from stc_video.cli.app import run_app

SMALL = ("--tokens-per-frame", "6", "--max-new-tokens", "2", "--threads", "1")


def evaluate(
    benchmark: str, data: Path, videos: Path, model: Path, out: Path, *more: object
) -> int:
    paths = ("--data", data, "--videos", videos, "--model", model, "--out", out)
    return run_app(["eval", benchmark, *map(str, (*paths, *more))])


def read(out: Path) -> dict:
    return json.loads((out / "evaluation.json").read_text())


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def prepare(benchmark: str, folder: Path) -> tuple[Path, list[str]]:
    """Write a benchmark's file; returns it, and the names of its videos."""
    if benchmark == "streamingbench-csv":
        data = write_streaming_csv(folder / "real.csv", [streaming_csv_row()])
        return data, ["Real-Time Visual Understanding/sample_7/video.mp4"]
    if benchmark == "egoschema":
        write_json(folder / "subset_answers.json", {"u1": 0})
        rows = [egoschema_row("u1"), egoschema_row("u2")]
        return write_json(folder / "questions.json", rows), ["u1.mp4", "u2.mp4"]
    content, names = {
        "ovo-bench": (ovo_rows(), ["Ego4D/clips/a.mp4", "COIN/b.mp4"]),
        "streamingbench": ([streaming_entry(streaming_question(), PROACTIVE)],
                           ["sample_1_real.mp4"]),
        "mlvu": ([mlvu_row()], ["1_plotQA/movie_1.mp4"]),
        "video-mme": ([video_mme_entry(1)], ["001.mp4"]),
        "video-mme-subtitles": ([video_mme_entry(1)], ["001.mp4"]),
        "rekv": ([rekv_entry()], ["v.mp4"]),
    }[benchmark]  # fmt: skip
    return write_json(folder / "data.json", content), names


@pytest.mark.parametrize(
    ("kind", "asked", "column"),
    [("ovo-bench", 7, "Total"), ("streamingbench", 2, "micro"), ("streamingbench-csv", 1, "micro"),
     ("mlvu", 1, "M-Avg"), ("egoschema", 2, "subset"), ("video-mme", 1, "short"),
     ("video-mme-subtitles", 1, "short"), ("rekv", 2, "micro")],
)  # fmt: skip
def test_every_benchmark(
    videos: Path, model_folder: Path, tmp_path: Path, kind: str, asked: int, column: str
) -> None:
    data, names = prepare(kind, tmp_path)
    for name in names:
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(videos / "v.mp4", path)
    out, name = tmp_path / "out", kind.removesuffix("-csv").removesuffix("-subtitles")
    more: tuple[object, ...] = ()
    if kind.endswith("subtitles"):
        (tmp_path / "001.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nGood morning\n")
        more = ("--subtitles", tmp_path)
    assert evaluate(name, data, tmp_path / "videos", model_folder, out, *SMALL, *more) == 0
    found = read(out)
    assert (found["asked"], found["questions"]) == (asked, asked)
    (one,) = found["configurations"]
    assert one["problems"] == []
    assert column in {score["column"] for score in one["scores"]["official"]}
    protocol = found["protocol"]
    assert all(len(digest) == 64 for digest in protocol["files"].values())
    assert protocol["resolution"] == "112 x 112"
    assert protocol["sampling"]["fps"] == 1.0
    assert ("subtitles" in protocol["options"]) == bool(more)
    assert found["made_with"]["torch"]
    page = (out / "evaluation.html").read_text()
    assert "Accuracy against cost" in page
    assert "without --controls nothing says how much accuracy is kept" in page
    assert (out / "submission-0.json").exists() == (name == "egoschema")
    if name == "egoschema":
        assert json.loads((out / "submission-0.json").read_text()).keys() == {"u1", "u2"}


def test_controls_comparisons_and_what_went_wrong(
    videos: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*ovo_rows(), ovo_choice(9, video="gone.mp4"), ovo_choice(10, realtime=99),
            ovo_choice(11, "XYZ"), ovo_choice(12, options=[]),
            ovo_choice(13, video="broken.mp4", realtime=6)]  # fmt: skip
    data, out = write_json(tmp_path / "o.json", rows), tmp_path / "out"
    more = ("--controls", "--compare", "policy=stc,interval=4")
    assert evaluate("ovo-bench", data, videos, model_folder, out, *SMALL, *more) == 0
    found = read(out)
    names = [one["name"] for one in found["configurations"]]
    assert names == ["motion stc-6 rekv-4096", "stc-i4 stc-6 rekv-4096", "dense", "blind",
                     "last 4 frames", "uniform frames", "random tokens"]  # fmt: skip
    main, _, dense = found["configurations"][:3]
    assert main["against_dense"]["official"]["videos"] == 4
    assert "against_dense" not in dense
    assert main["cost"]["tokens_per_frame"] == 6
    assert dense["cost"]["tokens_per_frame"] == 16
    assert dense["cost"]["work"] == 1
    assert sorted((p["kind"], p["count"], p["examples"]) for p in main["problems"]) == [
        ("asked after the end of the video", 1, ["10"]), ("broken video", 1, ["13"]),
        ("missing video", 1, ["9"]), ("no options", 1, ["12"]), ("unknown task", 1, ["11"])
    ]  # fmt: skip
    assert found["asked"] == len(rows) + 2  # none is left out
    assert "EPM 5 (published 297)" in " ".join(found["notes"])
    page = (out / "evaluation.html").read_text()
    assert "gone.mp4" not in page or "missing video" in page
    assert "another version of the file" in page
    assert page.count("data:image/webp") > 3  # frames of wrong answers
    assert "missing video, such as 9" in " ".join(capsys.readouterr().out.split())


def test_what_is_a_control_by_itself_is_run_once(
    videos: Path, model_folder: Path, tmp_path: Path
) -> None:
    data, out = write_json(tmp_path / "o.json", ovo_rows()[:2]), tmp_path / "out"
    more = ("--policy", "none", "--prune", "none", "--memory", "window", "--controls",
            "--max-new-tokens", 2)  # fmt: skip
    assert evaluate("ovo-bench", data, videos, model_folder, out, *more) == 0
    names = [one["name"] for one in read(out)["configurations"]]
    assert names == ["dense", "blind", "uniform frames"]
    assert "this is the dense configuration" in (out / "evaluation.html").read_text()


def test_a_study_saves_ever_more(videos: Path, model_folder: Path, tmp_path: Path) -> None:
    data, out = write_json(tmp_path / "o.json", ovo_rows()[:1]), tmp_path / "out"
    more = ("--policy", "none", "--prune", "none", "--memory", "plain", "--study",
            "--max-new-tokens", 1, "--threads", 1)  # fmt: skip
    assert evaluate("ovo-bench", data, videos, model_folder, out, *more) == 0
    found = {one["name"]: one["cost"] for one in read(out)["configurations"]}
    assert next(iter(found)) == "dense"
    assert {"blind", "last 4 frames", "STC's setting"} < set(found)
    kept = [cost["tokens_per_frame"] for name, cost in found.items() if name.startswith("none dtd")]
    assert kept == [8, 4, 2, 1]
    assert found["STC's setting"]["work"] < found["dense"]["work"] == 1
    header, *rows = (out / "scores.csv").read_text().splitlines()
    assert header.endswith("kept,kept_low,kept_high")
    assert len([row for row in rows if ",all,all," in row]) == len(found)


def test_shards_and_resume_make_one_run(videos: Path, model_folder: Path, tmp_path: Path) -> None:
    data, out = write_json(tmp_path / "o.json", ovo_rows()), tmp_path / "out"
    args = ("ovo-bench", data, videos, model_folder)
    assert evaluate(*args, tmp_path / "whole", *SMALL) == 0
    assert evaluate(*args, out, *SMALL, "--shard", "1/2") == 0
    assert read(out)["asked"] < 7
    assert "questions have an answer by every" in (out / "evaluation.html").read_text()
    assert evaluate(*args, out, *SMALL, "--shard", "2/2") == 0
    whole, parts = read(tmp_path / "whole"), read(out)
    assert parts["asked"] == 7
    assert [one["scores"] for one in parts["configurations"]] == [
        one["scores"] for one in whole["configurations"]]  # fmt: skip
    answers = {e["key"]: e["answer"] for e in lines(tmp_path / "whole" / "answers.jsonl")[1:]
               if e["kind"] == "answer"}  # fmt: skip
    again = {e["key"]: e["answer"] for file in out.glob("*.jsonl") for e in lines(file)[1:]
             if e["kind"] == "answer"}  # fmt: skip
    assert again == answers
    # A whole run that lost its second half goes on, and asks only that.
    path = tmp_path / "whole" / "answers.jsonl"
    kept = path.read_bytes().splitlines(keepends=True)[:4]
    path.write_bytes(b"".join(kept) + b'{"kind": "ans')
    assert evaluate(*args, tmp_path / "whole", *SMALL, "--resume") == 0
    assert {e["key"]: e["answer"] for e in lines(path)[1:] if e["kind"] == "answer"} == answers


@pytest.mark.long
def test_twenty_kills_of_the_command_at_any_moment(
    videos: Path, model_folder: Path, tmp_path: Path
) -> None:
    rows = [ovo_choice(n, video=("v.mp4", "COIN/b.mp4")[n % 2], realtime=n % 6) for n in range(240)]
    args = ("ovo-bench", write_json(tmp_path / "o.json", rows), videos, model_folder)
    assert evaluate(*args, tmp_path / "whole", *SMALL) == 0
    out, chance = tmp_path / "out", random.Random(0)
    path, ends = out / "answers.jsonl", [0]

    def written() -> int:
        return len(path.read_bytes().splitlines()) if path.exists() else 0

    for _ in range(20):
        if not (child := fork()):
            torch.set_num_threads(1)
            evaluate(*args, out, *SMALL, "--resume")
            os._exit(0)
        wanted = written() + chance.randrange(8)
        wait_for(lambda: written() >= wanted)  # noqa: B023
        time.sleep(chance.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        ends.append(written())
    assert len(set(ends)) > 10, ends
    assert ends[-1] < len(rows)
    assert evaluate(*args, out, *SMALL, "--resume") == 0
    kept, whole = (
        [
            (e["key"], e["answer"])
            for e in lines(folder / "answers.jsonl")[1:]
            if e["kind"] == "answer"
        ]
        for folder in (out, tmp_path / "whole")
    )
    assert sorted(kept) == sorted(whole)
    assert len(kept) == len(rows)


def test_bad_input_is_one_sentence_before_the_model(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_json(tmp_path / "o.json", ovo_rows())
    other = write_json(tmp_path / "m.json", [mlvu_row()])
    model, out = tmp_path / "no-model", tmp_path / "out"
    for benchmark, file, folder, more, message in [
        ("ovo", data, videos, (), "the benchmark must be one of ovo-bench, streamingbench"),
        ("ovo-bench", tmp_path / "x.json", videos, (), "x.json does not exist"),
        ("ovo-bench", other, videos, (), "must be a list of objects with id, task, video"),
        ("ovo-bench", data, tmp_path / "none", (), "none is not a folder"),
        ("ovo-bench", data, tmp_path, (), "has none of the 2 videos of the file"),
        ("ovo-bench", data, videos, ("--policy", "fast"), "policy must be one of none, motion"),
        ("ovo-bench", data, videos, ("--ratio", 0.5), "ratio does not belong to policy motion"),
        ("ovo-bench", data, videos, ("--prune", "x"), "name must be one of stc, dtd"),
        ("ovo-bench", data, videos, ("--compare", "speed=3"), "--compare must be key=value"),
        ("ovo-bench", data, videos, ("--compare", "interval=a"), "interval must be a number"),
        ("ovo-bench", data, videos, ("--compare", "blind=1"), "--compare must be key=value"),
        ("ovo-bench", data, videos, ("--compare", "storage=int5"), "storage must be one of exact"),
        ("ovo-bench", data, videos, ("--shard", "3/2"), "--shard must be i/n"),
        ("ovo-bench", data, videos, ("--limit", 0), "--limit must be at least 1"),
        ("ovo-bench", data, videos, ("--frames", 8), "--frames belongs to --protocol clip"),
        ("ovo-bench", data, videos, ("--subtitles", videos), "--subtitles belongs to video-mme"),
        ("ovo-bench", data, videos, ("--preset", "best"), "--preset must be one of stc-rekv-2"),
        ("ovo-bench", data, videos, ("--preset", "stc-rekv-2", "--fps", 2), "--fps is decided by"),
        ("ovo-bench", data, videos, ("--window-frames", 8), "belongs to --memory window"),
        ("ovo-bench", data, videos, (), "there is no such folder"),  # of the model, at last
    ]:
        assert evaluate(benchmark, file, folder, model, out, *more) == 2
        said = capsys.readouterr().err.strip()
        assert message in said
        assert len(said.splitlines()) == 1
    assert not list(out.glob("*"))


def test_presets_say_what_they_leave_open(videos: Path, tmp_path: Path) -> None:
    data = write_json(tmp_path / "o.json", ovo_rows()[:1])
    for preset in ("stc-rekv-4", "streaming-assistant"):
        out = tmp_path / preset
        more, model = ("--preset", preset, "--threads", 1), Path("llava-onevision-tiny")
        assert evaluate("ovo-bench", data, videos, model, out, *more) == 0
        found = read(out)
        assert "64 tokens" in found["protocol"]["left_open"]
        assert found["protocol"]["sampling"]["fps"] == 0.5
        assert "the preset leaves open" in (out / "evaluation.html").read_text()
