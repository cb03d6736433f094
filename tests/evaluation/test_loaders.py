# SPDX-License-Identifier: Apache-2.0
"""Each benchmark's file format, read row by row."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
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

from stc_video.evaluation.loaders import BENCHMARKS, load_queries
from stc_video.evaluation.queries import DataError, QuerySet


def load(tmp_path: Path, benchmark: str, content: object, **settings: object) -> QuerySet:
    return load_queries(benchmark, write_json(tmp_path / "data.json", content), **settings)


def test_ovo_bench(tmp_path: Path) -> None:
    made = load(tmp_path, "ovo-bench", ovo_rows())
    assert [(q.key, q.task, q.time, q.due, q.gold, q.kind) for q in made.queries] == [
        ("0", "EPM", 3.0, 2.5, "C", "choice"),
        ("1", "OCR", 4.0, 4.0, "A", "choice"),
        ("2_0", "REC", 2.0, 2.0, "1", "count"),
        ("2_1", "REC", 3.0, 3.0, "2", "count"),
        ("3_0", "SSR", 1.0, 1.0, "Yes", "yes_no"),
        ("4_0", "CRR", 2.0, 2.0, "No", "yes_no"),
        ("4_1", "CRR", 4.0, 4.0, "Yes", "yes_no"),
    ]
    assert "C. on the shelf" in made.queries[0].prompt
    assert "jump" in made.queries[2].prompt
    assert made.videos == ["COIN/b.mp4", "Ego4D/clips/a.mp4"]
    assert "EPM 1 (published 297)" in made.notes[0]
    assert made.problems == []
    assert len(made.files["data.json"]) == 64


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (ovo_choice(5, "XYZ"), "unknown task"),
        (ovo_choice(5, options=[]), "no options"),
        (ovo_choice(5, options="A. b"), "no options"),
        ({k: v for k, v in ovo_choice(5).items() if k != "options"}, "no options"),
        (ovo_choice(5, gt=4), "answer is no option"),
        (ovo_choice(5, realtime=-1), "bad time"),
        (ovo_choice(5, realtime="soon"), "unreadable row"),
        ({**ovo_rows()[2], "id": 5, "test_info": []}, "unreadable row"),
        ("no object", "unreadable row"),
    ],
)
def test_a_bad_row_is_named_and_stays_in_the_denominator(tmp_path: Path, row, kind: str) -> None:
    made = load(tmp_path, "ovo-bench", [*ovo_rows(), row])
    assert [problem.kind for problem in made.problems] == [kind]
    assert len(made.queries) == 8
    assert made.queries[-1].problem.startswith(kind)


def test_streaming_bench_json(tmp_path: Path) -> None:
    first = streaming_question()
    content = [streaming_entry(first), streaming_entry(streaming_question(stamp="00:01:30"))]
    made = load(tmp_path, "streamingbench", content)
    assert [(q.key, q.video, q.time) for q in made.queries] == [
        ("sample_1_real_1", "sample_1_real.mp4", 2.0),
        ("sample_1_real_2", "sample_1_real.mp4", 90.0),
    ]
    assert made.queries[0].choices == ("none", "one", "two", "three")
    last_minute = load(tmp_path, "streamingbench", content, context_seconds=60)
    assert [q.start for q in last_minute.queries] == [0.0, 30.0]


def test_streaming_bench_sequential_questions_see_the_right_answers_of_earlier_ones(
    tmp_path: Path,
) -> None:
    ask = {"task": "Sequential Question Answering", "options": ["none", "one", "two", "three"]}
    questions = [streaming_question(**ask), streaming_question(**ask, stamp="00:00:04")]
    content = [[streaming_entry(question) for question in questions], [streaming_entry(
        questions[0], video="other.mp4")]]  # fmt: skip
    first, second, other = load(tmp_path, "streamingbench", content).queries
    assert "Answer: B" in second.prompt
    assert "Answer: B" not in first.prompt
    assert "Answer: B" not in other.prompt


def test_streaming_bench_proactive(tmp_path: Path) -> None:
    (query,) = load(tmp_path, "streamingbench", [streaming_entry(PROACTIVE)]).queries
    assert query.kind == "proactive"
    assert query.proactive is not None
    assert (query.proactive.first, query.proactive.last, query.proactive.due) == (2.0, 7.0, 3.0)
    assert '"GO"' in query.proactive.probe
    assert query.gold == "GO"


def test_streaming_bench_csv(tmp_path: Path) -> None:
    rows = [streaming_csv_row(), streaming_csv_row(2, options="[not a list")]
    made = load_queries("streamingbench", write_streaming_csv(tmp_path / "real.csv", rows))
    first, broken = made.queries
    assert first.video == "Real-Time Visual Understanding/sample_7/video.mp4"
    assert first.task == "Object Recognition"  # under one name with the JSON files
    assert first.choices[2] == "a square"
    assert broken.problem.startswith("no options")


def test_streaming_bench_asks_unknown_tasks_and_says_so(tmp_path: Path) -> None:
    made = load(tmp_path, "streamingbench", [streaming_entry(streaming_question("Dancing"))])
    assert made.queries[0].task == "Dancing"
    assert not made.queries[0].problem
    assert [problem.kind for problem in made.problems] == ["unknown task"]


def test_mlvu_reads_a_folder_and_counts_what_it_leaves_out(tmp_path: Path) -> None:
    write_json(tmp_path / "1_plotQA.json", [mlvu_row(), mlvu_row(answer="a horse")])
    write_json(tmp_path / "9_summary.json", [{"video": "x.mp4", "question": "?", "answer": "y",
                                              "question_type": "summary"}])  # fmt: skip
    made = load_queries("mlvu", tmp_path)
    assert [q.video for q in made.queries] == ["1_plotQA/movie_1.mp4", "movie_1.mp4"]
    assert made.queries[0].gold == "B"
    assert made.queries[0].time == math.inf
    assert made.queries[1].problem == "answer is no option: answer 'a horse' is none of the options"
    assert any("1 open-ended questions are left out" in note for note in made.notes)
    assert set(made.files) == {"1_plotQA.json", "9_summary.json"}


def test_egoschema_scores_what_has_a_public_answer(tmp_path: Path) -> None:
    write_json(tmp_path / "questions.json", [egoschema_row("u1"), egoschema_row("u2")])
    write_json(tmp_path / "subset_answers.json", {"u1": 3})
    made = load_queries("egoschema", tmp_path)
    assert [(q.key, q.gold, q.task, q.kind, q.video) for q in made.queries] == [
        ("u1", "D", "subset", "choice", "u1.mp4"),
        ("u2", "", "hidden", "open", "u2.mp4"),
    ]


def test_video_mme_with_subtitles(tmp_path: Path) -> None:
    folder = tmp_path / "subtitles"
    folder.mkdir()
    (folder / "001.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\n<i>Good morning</i>\n")
    content = [video_mme_entry(1), video_mme_entry(2, "long"), video_mme_entry(3, "endless")]
    made = load(tmp_path, "video-mme", content, subtitles=folder)
    first, second, third = made.queries
    assert "Good morning" in first.prompt
    assert "-->" not in first.prompt
    assert first.task == "short"
    assert "subtitles" not in second.prompt
    assert any("2 videos have no subtitles" in note for note in made.notes)
    assert third.problem.startswith("unknown duration")
    assert "subtitles" not in load(tmp_path, "video-mme", content).queries[0].prompt


def test_rekv(tmp_path: Path) -> None:
    made = load(tmp_path, "rekv", [rekv_entry(), rekv_entry(video_id="w", conversations=[])])
    assert [(q.key, q.gold, q.kind, q.time) for q in made.queries] == [
        ("v-0", "B", "choice", math.inf),
        ("v-1", "because", "open", 2.0),
        ("w-0", "", "choice", 0.0),
    ]
    assert made.queries[2].problem.startswith("unreadable row")


@pytest.mark.parametrize("name", BENCHMARKS)
@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not valid JSON"), ("{}", "must be a list of objects"), ("[]", "must be a list"),
     ('[{"x": 1}]', "must be a list of objects with")],
)  # fmt: skip
def test_another_format_is_one_sentence(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / "data.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        load_queries(name, path)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(DataError, match="does not exist"):
        load_queries(name, tmp_path / "none.json")


def test_one_benchmark_s_file_is_none_of_another_s(tmp_path: Path) -> None:
    files = {"ovo-bench": ovo_rows(), "streamingbench": [streaming_entry(streaming_question())],
             "mlvu": [mlvu_row()], "egoschema": [egoschema_row("u")],
             "video-mme": [video_mme_entry(1)], "rekv": [rekv_entry()]}  # fmt: skip
    taken = Counter()
    for content in files.values():
        for benchmark in files:
            try:
                made = load(tmp_path, benchmark, content)
            except DataError:
                continue
            taken[benchmark] += not any(query.problem for query in made.queries)
    assert taken == dict.fromkeys(files, 1)


def test_two_rows_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 rows have the name '0', must be unique"):
        load(tmp_path, "ovo-bench", [ovo_choice(0), ovo_choice(0)])


def test_a_csv_file_without_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="lacks the columns question_id, task_type"):
        load_queries("streamingbench", path)
