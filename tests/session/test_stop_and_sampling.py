# SPDX-License-Identifier: Apache-2.0
"""Stop strings of `ask` and its stream, and the sampler with a generator of its own."""

from __future__ import annotations

import random

import pytest
import torch
from tiny_llava import make_tokenizer, video
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from stc_video.session.sampling import SeededSampler
from stc_video.session.stopping import first_stop
from stc_video.session.streaming import AnswerStream


def streamed(text: str, stop: list[str], cuts: list[int]) -> list[str]:
    """The pieces of a text whose tokens, one per byte, come in portions."""
    tokenizer = make_tokenizer()
    ids = tokenizer(text, return_tensors="pt").input_ids[0]
    pieces: list[str] = []
    stream = AnswerStream(tokenizer, pieces.append, stop)
    stream.put(torch.tensor([[1, 2, 3]]))  # the prompt
    for begin, end in zip([0, *cuts], [*cuts, len(ids)], strict=True):
        if end > begin:
            stream.put(ids[begin:end])
    stream.end()
    return pieces


@pytest.mark.parametrize("seed", range(20))
def test_text_is_cut_at_the_same_place_however_it_comes(seed: int) -> None:
    choice = random.Random(seed)
    text = "".join(choice.choice("abé漢 \n") for _ in range(30))
    stop = ["".join(choice.choice("abé漢 \n") for _ in range(choice.randint(1, 3))) for _ in "123"]
    # By the definition, character by character.
    whole = next((text[:i] for i in range(31) if any(text[:i].endswith(s) for s in stop)), None)
    expected = text
    if whole is not None:
        expected = min((whole.removesuffix(s) for s in stop if whole.endswith(s)), key=len)
    size = len(text.encode())
    for count in (0, 3, size):
        cuts = sorted(choice.randint(0, size) for _ in range(count))
        assert "".join(streamed(text, stop, cuts)) == expected
    assert "".join(streamed(text, [], list(range(1, size)))) == text


def test_text_that_cannot_become_a_stop_string_does_not_wait() -> None:
    every = list(range(1, 9))
    assert streamed("abcabXde", ["abcabc"], every) == ["abcabX", "d", "e"]
    assert streamed("ab é", ["\n"], [1, 2, 3, 4]) == ["a", "b", " ", "é"]


def test_what_is_complete_first_counts() -> None:
    assert first_stop("xabcd", ["abcd", "bc"]) == 2
    assert first_stop("xabc", ["bc", "abc"]) == 1
    assert first_stop("x", ["a"]) is None


def test_ask_takes_stop_strings(open_session) -> None:
    session = open_session("plain")
    session.push(video(1)[0])
    settings = {"do_sample": False, "max_new_tokens": 24, "eos_token_id": None}
    tokenizer = make_tokenizer()
    whole = tokenizer.decode(session.ask("what?", **settings).ids, skip_special_tokens=True)
    place = next(i for i in range(4, len(whole) - 2) if "\ufffd" not in whole[i : i + 2])
    stop = whole[place : place + 2]
    expected = whole[: whole.index(stop)]
    answer = session.ask("what?", stop=stop, dialogue=True, **settings)
    assert (answer.text, answer.finish_reason) == (expected.strip(), "stop")
    assert tokenizer.decode(answer.ids, skip_special_tokens=True).startswith(expected + stop)
    assert session._turns == [("what?", expected.strip())]
    pieces: list[str] = []
    stream = AnswerStream(tokenizer, pieces.append, [stop])
    assert session.ask("what?", **stream.settings, **settings).text == expected.strip()
    assert "".join(pieces) == expected
    for bad in ([""], ["a", ""], [3]):
        with pytest.raises(ValueError, match="stop must be texts"):
            session.ask("what?", stop=bad, **settings)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 0.8), (2.0, 0.3)])
def test_tokens_are_drawn_as_often_as_transformers_would(temperature: float, top_p: float) -> None:
    torch.manual_seed(0)
    scores, ids = torch.randn(1, 12) * 2, torch.zeros(1, 1, dtype=torch.long)
    warped = TopPLogitsWarper(top_p)(ids, TemperatureLogitsWarper(temperature)(ids, scores))
    odds, draws = warped.softmax(-1)[0], 4000
    sampler = SeededSampler(temperature, top_p, seed=1)
    drawn = torch.cat([sampler(ids, scores) for _ in range(draws)])
    assert ((drawn == 0).sum(-1) == 1).all()
    assert (drawn[drawn != 0] == -torch.inf).all()
    counts = (drawn == 0).sum(0)
    assert (counts[odds == 0] == 0).all()
    # Five standard deviations.
    allowed = 5 * (draws * odds * (1 - odds)).sqrt() + 1e-3
    assert ((counts - draws * odds).abs() <= allowed).all()
