# SPDX-License-Identifier: Apache-2.0
"""The model and the tasks in the real lmms-eval: its own task code, on rows that are made here."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

lmms_eval = pytest.importorskip("lmms_eval", reason="make test-lmms")
for _folder in ("evaluation", "session", "video"):
    sys.path.append(str(Path(__file__).parents[1] / _folder))

# ruff: noqa: E402
from benchmark_files import ovo_rows, streaming_csv_row, write_streaming_csv
from clip_maker import write_clip
from lmms_eval import evaluator
from lmms_eval.models import MODEL_REGISTRY_V2
from lmms_eval.tasks import TaskManager
from tiny_llava import make_model, make_tokenizer

import stc_video.evaluation.lmms_eval as plugin

THEIRS = Path(lmms_eval.__file__).parent / "tasks"
OURS = Path(plugin.__file__).parent / "tasks"


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some tasks write `submissions/` where they are run."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("videos") / "clip.mp4", 24, rate=4)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Where lmms-eval looks for videos; its tasks read the variable when they are imported."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(folder))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield folder


def place(clip: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(clip, path)


def run(tmp_path: Path, source: Path, rows: list[dict] | Path, model: Path, **changed) -> dict:
    """Run a task file with other data; returns samples and scores."""
    data = rows
    if not isinstance(rows, Path):
        data = tmp_path / "rows.json"
        data.write_text(json.dumps(rows))
    kind = "csv" if data.suffix == ".csv" else "json"
    task = {
        "include": str(source),
        "task": f"{source.stem}_here",
        "dataset_path": kind,
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        **changed,
    }
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "task.yaml").write_text(yaml.safe_dump(task))
    settings = f"pretrained={model},device=cpu,tokens_per_frame=6,retrieve_tokens=18,fps=2"
    return evaluator.simple_evaluate(
        model="stc_llava_onevision",
        model_args=settings,
        tasks=[task["task"]],
        batch_size=1,
        task_manager=TaskManager(include_path=str(folder)),
        bootstrap_iters=0,
        log_samples=True,
        cli_args=None,
    )


def answers(found: dict) -> list:
    [samples] = found["samples"].values()
    return [sample["filtered_resps"] for sample in sorted(samples, key=lambda s: s["doc_id"])]


def scores(found: dict) -> dict[str, float]:
    [values] = found["results"].values()
    return {name.partition(",")[0]: value for name, value in values.items()
            if isinstance(value, float)}  # fmt: skip


def test_the_registry_finds_the_model() -> None:
    for name in ("stc_llava_onevision", "stc_qwen2_vl", "stc_qwen2_5_vl"):
        assert MODEL_REGISTRY_V2.get_model_class(name).__name__ == "StreamingModel"


def test_video_mme(home: Path, clip: Path, model_folder: Path, tmp_path: Path) -> None:
    place(clip, home / "videomme" / "data" / "xyz.mp4")
    rows = [
        {"question_id": f"1-{n}", "videoID": "xyz", "duration": "short", "domain": "Knowledge",
         "sub_category": "Astronomy", "task_type": "Counting Problem", "question": f"How {n}?",
         "options": ["A. One.", "B. Two.", "C. Three.", "D. Four."], "answer": "A"}
        for n in range(3)
    ]  # fmt: skip
    found = run(tmp_path, THEIRS / "videomme" / "videomme.yaml", rows, model_folder)
    assert len(answers(found)) == 3
    assert 0 <= scores(found)["videomme_perception_score"] <= 100


def test_mlvu(home: Path, clip: Path, model_folder: Path, tmp_path: Path) -> None:
    place(clip, home / "mlvu" / "movie.mp4")
    rows = [
        {"video_name": "movie.mp4", "question": f"Who {n}?\n(A) a\n(B) b", "answer": "A",
         "task_type": "plotQA"}
        for n in range(2)
    ]  # fmt: skip
    found = run(tmp_path, THEIRS / "mlvu" / "mlvu_dev.yaml", rows, model_folder)
    assert len(answers(found)) == 2
    assert 0 <= scores(found)["mlvu_percetion_score"] <= 100


def test_egoschema(home: Path, clip: Path, model_folder: Path, tmp_path: Path) -> None:
    place(clip, home / "egoschema" / "videos" / "u1.mp4")
    letters = [f"{letter}. c does it" for letter in "ABCDE"]
    rows = [{"video_idx": "u1", "question": "What does c do?", "option": letters, "answer": "0"}]
    found = run(tmp_path, THEIRS / "egoschema" / "egoschema_subset.yaml", rows, model_folder)
    assert len(answers(found)) == 1
    assert 0 <= scores(found)["score"] <= 1


@pytest.mark.parametrize("part", ["backward", "realtime", "forward"])
def test_ovo_bench(clip: Path, model_folder: Path, tmp_path: Path, home: Path, part: str) -> None:
    tasks = {"backward": ["EPM"], "realtime": ["OCR"], "forward": ["REC", "SSR", "CRR"]}[part]
    rows = [row for row in ovo_rows() if row["task"] in tasks]
    for row in rows:
        for name in (f"{row['id']}.mp4", *(f"{row['id']}_{n}.mp4" for n in range(2))):
            place(clip, tmp_path / "chunks" / name)
    where = {"lmms_eval_specific_kwargs": {"default": {"data_dir": str(tmp_path / "chunks")}}}
    source = THEIRS / "ovobench" / f"ovo_{part}.yaml"
    found = run(tmp_path, source, rows, model_folder, **where)
    given = answers(found)
    assert len(given) == len(rows)
    if part == "forward":
        assert [len(rounds[0]) for rounds in given] == [len(row["test_info"]) for row in rows]
    [score] = (value for name, value in scores(found).items() if name.endswith("_acc"))
    assert 0 <= score <= 100


def test_streaming_bench(home: Path, clip: Path, model_folder: Path, tmp_path: Path) -> None:
    rows = [
        streaming_csv_row(n, time_stamp=f"00:00:0{5 - n}", question=f"What {n}?") for n in range(4)
    ]
    data = write_streaming_csv(tmp_path / "real.csv", rows)
    place(clip, tmp_path / "v" / "Real-Time Visual Understanding" / "sample_7" / "video.mp4")
    where = {"lmms_eval_specific_kwargs": {"default": {"data_dir": str(tmp_path / "v")}}}
    found = run(tmp_path, OURS / "streamingbench_real.yaml", data, model_folder, **where)
    assert len(answers(found)) == 4
    assert set(scores(found)) >= {"official", "strict"}
    # By `stc eval`, in one pass over the same frames, the answers are the same.
    from stc_video.evaluation.answers import Answers
    from stc_video.evaluation.configurations import Configuration
    from stc_video.evaluation.loaders import load_queries
    from stc_video.evaluation.runner import Sampling
    from stc_video.evaluation.worker import Assignment, Worker

    stc = Configuration("stc", tokens_per_frame=6, retrieve_tokens=18)
    task = Assignment("streamingbench", tmp_path / "v", [stc], False, Sampling(fps=2),
                      str(model_folder), "cpu")  # fmt: skip
    own = Answers()
    Worker(task).run(load_queries("streamingbench", data).queries, own)
    by_key = {entry["key"]: entry["answer"].strip() for entry in own.entries
              if entry["kind"] == "answer"}  # fmt: skip
    assert [given[0] for given in answers(found)] == [by_key[row["question_id"]] for row in rows]


def test_all_task_files_are_known() -> None:
    manager = TaskManager(include_path=str(OURS))
    names = {f"streamingbench{part}" for part in ("", "_real", "_omni", "_contextual", "_sqa")}
    assert names <= set(manager.all_tasks)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"policy": "fast"}, "policy must be one of"), ({"speed": 1}, "speed is none of pretrained"),
     ({"batch_size": 4}, "--batch_size must be 1, got 4")],
)  # fmt: skip
def test_bad_arguments_are_one_sentence(model_folder: Path, settings, message: str) -> None:
    model = MODEL_REGISTRY_V2.get_model_class("stc_llava_onevision")
    with pytest.raises(ValueError, match=message):
        model(pretrained=str(model_folder), device="cpu", **settings)
