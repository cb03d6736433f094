# SPDX-License-Identifier: Apache-2.0
"""Rows in the formats of the published benchmarks, in our own words."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def ovo_choice(number: int, task: str = "EPM", **changed: Any) -> Row:
    return {
        "id": number, "task": task, "video": "Ego4D/clips/a.mp4", "realtime": 2.5,
        "question": "Where did I leave the cup?", "answer": "on the shelf",
        "options": ["in the sink", "on the chair", "on the shelf", "outside"], "gt": 2, **changed,
    }  # fmt: skip


def ovo_rows() -> list[Row]:
    return [
        ovo_choice(0),
        ovo_choice(1, "OCR", realtime=4, gt=0),
        {"id": 2, "task": "REC", "video": "COIN/b.mp4", "activity": "jump", "start_times": [1],
         "end_times": [2],
         "test_info": [{"realtime": 2, "count": 1}, {"realtime": 3, "count": 2}]},
        {"id": 3, "task": "SSR", "video": "COIN/b.mp4", "tutorial": "tea", "all_steps": ["boil"],
         "start_time": [1], "end_time": [2],
         "test_info": [{"realtime": 1, "step": "boil", "type": 1}]},
        {"id": 4, "task": "CRR", "video": "COIN/b.mp4", "question": "What is in the box?",
         "answer": "a ball", "ask_time": 1, "clue_time": 3,
         "test_info": [{"realtime": 2, "type": 0}, {"realtime": 4, "type": 1}]},
    ]  # fmt: skip


def streaming_question(task: str = "Counting", stamp: str = "00:00:02", **changed: Any) -> Row:
    return {
        "task_type": task, "question": "How many squares are there?", "time_stamp": stamp,
        "answer": "B", "options": ["A. none", "B. one", "C. two", "D. three"],
        "required_ability": "counting", **changed,
    }  # fmt: skip


def streaming_entry(*questions: Row, video: str = "sample_1_real.mp4") -> Row:
    return {"time": "[0:00:00 - 0:00:10]", "questions": list(questions), "video_categories": "x",
            "video_path": f"./videos/{video}"}  # fmt: skip


PROACTIVE: Row = {
    "task_type": "Proactive Output", "question": 'When it is green, output "GO".',
    "time_stamp": "00:00:01", "ground_truth_time_stamp": "00:00:03",
    "ground_truth_output": "GO", "required_ability": "x",
}  # fmt: skip


def write_streaming_csv(path: Path, rows: list[Row]) -> Path:
    columns = ["question_id", "task_type", "question", "time_stamp", "answer", "options",
               "frames_required", "temporal_clue_type"]  # fmt: skip
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


def streaming_csv_row(number: int = 1, **changed: Any) -> Row:
    return {
        "question_id": f"Real-Time Visual Understanding_sample_7_{number}",
        "task_type": "Object Perception", "question": "What moves?", "time_stamp": "00:00:03",
        "answer": "C", "options": "['A. a cat', 'B. a dog', 'C. a square', 'D. nothing']",
        "frames_required": "single", "temporal_clue_type": "Prior", **changed,
    }  # fmt: skip


def mlvu_row(task: str = "plotQA", **changed: Any) -> Row:
    return {"video": "movie_1.mp4", "duration": 6.0, "question": "Who opens the door?",
            "candidates": ["a man", "a woman", "a child", "no one"], "answer": "a woman",
            "question_type": task, **changed}  # fmt: skip


def egoschema_row(name: str) -> Row:
    options = {f"option {number}": f"c does thing {number}" for number in range(5)}
    return {"q_uid": name, "google_drive_id": "x", "question": "What does c do?", **options}


def video_mme_entry(number: int, duration: str = "short") -> Row:
    question = {"question_id": f"{number:03}-1", "task_type": "Counting", "question": "How many?",
                "options": ["A. One.", "B. Two.", "C. Three.", "D. Four."], "answer": "D",
                "response": ""}  # fmt: skip
    return {"video_id": f"{number:03}", "duration": duration, "domain": "x", "sub_category": "y",
            "questions": [question]}  # fmt: skip


def rekv_entry(**changed: Any) -> Row:
    asked = [
        {"question": "What?", "choices": ["one", "two"], "answer": "two", "question_type": "A"},
        {"question": "Why?", "answer": "because", "start_time": 0, "end_time": 2},
    ]
    return {
        "video_id": "v",
        "video_path": "v.mp4",
        "duration": 6,
        "conversations": asked,
        **changed,
    }
