# SPDX-License-Identifier: Apache-2.0
"""Other words around a question."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmark_files import (
    egoschema_row,
    mlvu_row,
    ovo_rows,
    rekv_entry,
    streaming_entry,
    streaming_question,
    video_mme_entry,
    write_json,
)

from stc_video.evaluation.loaders import load_queries
from stc_video.evaluation.queries import DataError

ROWS = {
    "ovo-bench": ovo_rows(),
    "streamingbench": [streaming_entry(streaming_question())],
    "mlvu": [mlvu_row()],
    "egoschema": [egoschema_row("u1")],
    "video-mme": [video_mme_entry(1)],
    "rekv": [rekv_entry()],
}


def test_words_of_a_file_replace_ours(tmp_path: Path) -> None:
    words = {"choice": "{question} {options};", "option": "{letter}) {text}", "between": "; ",
             "step": "Is it {step}?"}  # fmt: skip
    data = write_json(tmp_path / "o.json", ROWS["ovo-bench"])
    made = load_queries("ovo-bench", data, template=write_json(tmp_path / "t.json", words))
    prompts = {query.task: query.prompt for query in made.queries}
    assert prompts["EPM"] == (
        "Where did I leave the cup? A) in the sink; B) on the chair; C) on the shelf; D) outside;"
    )
    assert prompts["SSR"] == "Is it boil?"
    assert "enough" in prompts["CRR"]  # ours
    # The record has all of them, so that a run is not mixed with one of other words.
    for text in words.values():
        assert text in made.template
    assert made.template != load_queries("ovo-bench", data).template


@pytest.mark.parametrize("name", ROWS)
def test_every_benchmark_takes_words(tmp_path: Path, name: str) -> None:
    data = write_json(tmp_path / "data.json", ROWS[name])
    template = write_json(tmp_path / "t.json", {"choice": "{question}|{options}|", "between": "/"})
    made = load_queries(name, data, template=template)
    first = made.queries[0]
    assert first.prompt.startswith(f"{first.question}|")
    assert first.prompt.count("/") == len(first.choices) - 1
    assert not made.problems


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ([1], "must be an object of texts: choice, option, between, count, step, enough"),
        ({"choice": 1}, "must be an object of texts"),
        ({"chioce": "x"}, "'chioce' is none of choice, option"),
        ({"choice": "{name}"}, "choice may have the fields options, question, got name"),
        ({"choice": "{question"}, "choice: expected '}'"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path: Path, content: object, message: str) -> None:
    data = write_json(tmp_path / "o.json", ROWS["ovo-bench"])
    template = tmp_path / "t.json"
    template.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError) as error:
        load_queries("ovo-bench", data, template=template)
    assert message in str(error.value)
    with pytest.raises(DataError, match=r"none\.json cannot be read \(No such file"):
        load_queries("ovo-bench", data, template=tmp_path / "none.json")
