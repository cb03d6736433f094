# SPDX-License-Identifier: Apache-2.0
"""Stop strings and seeds, whole and streamed, one answer and several at a time."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from pictures import events, jpeg, push, question

from stc_video.loading.byte_tokenizer import unreadable

CHAT = "/v1/chat/completions"
TOKENS = 24


@pytest.fixture(scope="module")
def door(service, chat) -> Iterator[TestClient]:
    """A service with a stream of one frame and a model that writes letters, one per token."""
    generation: Any = chat.model.generation_config
    tokenizer = chat.processor.tokenizer
    none = [*unreadable(tokenizer, chat.model.config), tokenizer.eos_token_id]
    generation.suppress_tokens = none
    with service(questions_per_minute=100_000, max_questions=4) as (client, _):
        with client.websocket_connect("/v1/streams/door/frames") as socket:
            push(socket, jpeg())
            socket.receive_json()
        yield client
    generation.suppress_tokens = None


def ask(client: TestClient, **fields: Any) -> tuple[str, str, int]:
    """Text, reason for the end and number of tokens of a whole answer."""
    response = client.post(CHAT, json=question() | {"max_tokens": TOKENS} | fields)
    assert response.status_code == 200, response.text
    made = response.json()
    [choice] = made["choices"]
    return choice["message"]["content"], choice["finish_reason"], made["usage"]["completion_tokens"]


def ask_streamed(client: TestClient, **fields: Any) -> tuple[str, str, int]:
    """The same of a streamed one."""
    wish = {"stream": True, "stream_options": {"include_usage": True}}
    response = client.post(CHAT, json=question() | {"max_tokens": TOKENS} | wish | fields)
    *pieces, last, usage, _ = events(response.text)
    text = "".join(piece["choices"][0]["delta"]["content"] for piece in pieces)
    return text, last["choices"][0]["finish_reason"], usage["usage"]["completion_tokens"]


def test_an_answer_ends_before_a_stop_string(door) -> None:
    # What is drawn, because the likeliest letters of random weights repeat.
    drawn = {"temperature": 1.0, "seed": 5}
    whole, reason, made = ask_streamed(door, **drawn)
    assert (reason, made, len(whole)) == ("length", TOKENS, TOKENS)
    for place in (0, 7, TOKENS - 4):
        stop = whole[place : place + 4]  # four tokens
        expected = whole[: whole.index(stop)]
        for wish in (stop, [stop], ["@", stop + "@", stop]):
            text, reason, made = ask_streamed(door, stop=wish, **drawn)
            assert (text, reason, made) == (expected, "stop", len(expected) + 4)
            text, reason, made = ask(door, stop=wish, **drawn)
            assert (text, reason, made) == (expected.strip(), "stop", len(expected) + 4)
    # What begins a stop string and does not end as one is not lost, at the end neither.
    never = [whole[3:6] + "@", whole[-3:] + "@", "@"]
    assert ask_streamed(door, stop=never, **drawn) == (whole, "length", TOKENS)
    # The question does not end the answer.
    assert ask_streamed(door, stop=["table", "?", "assistant"], **drawn)[0] == whole


def test_greedy_answers_stop_too(door) -> None:
    whole = ask_streamed(door)[0]
    stop = whole[10:13]
    expected = whole[: whole.index(stop)]
    assert ask_streamed(door, stop=stop)[:2] == (expected, "stop")


def test_the_reason_is_stop_when_the_last_token_allowed_ends_the_answer(
    door, chat, monkeypatch
) -> None:
    tokenizer = chat.processor.tokenizer
    whole = ask_streamed(door)[0]
    at = next(i for i, letter in enumerate(whole) if i and letter not in whole[:i])
    eos = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(whole[at]))[0]
    assert ask(door, max_tokens=at + 1)[1:] == ("length", at + 1)
    monkeypatch.setattr(chat.model.generation_config, "eos_token_id", eos)
    assert ask(door, max_tokens=at + 1)[1:] == ("stop", at + 1)
    assert ask(door, max_tokens=at)[1:] == ("length", at)


def test_a_seed_gives_the_same_answer_whatever_else_is_drawn(door, chat) -> None:
    wishes = [{"temperature": 1.3, "top_p": 0.9, "seed": seed} for seed in (0, 1, -2, 2**63 - 1)]
    alone = [ask(door, **wish)[0] for wish in wishes]
    assert len(set(alone)) == len(wishes)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with ThreadPoolExecutor(4) as threads:  # as many as are answered at a time
        together = list(threads.map(lambda wish: ask(door, **wish)[0], wishes * 2))
    assert together == alone * 2
    assert torch.equal(torch.get_rng_state(), before)
    assert ask_streamed(door, **wishes[0])[0].strip() == alone[0]


def test_without_a_seed_sampled_answers_differ(door) -> None:
    assert len({ask(door, temperature=1.0)[0] for _ in range(4)}) == 4
    torch.manual_seed(0)  # torch's own generator has no say in it
    first = ask(door, top_p=0.999)[0]
    torch.manual_seed(0)
    assert ask(door, top_p=0.999)[0] != first


def test_what_a_checkpoint_has_for_sampling_does_not_undo_the_request(
    door, chat, monkeypatch
) -> None:
    # As Qwen2-VL's: with these a temperature would have no effect.
    for name, value in [("do_sample", True), ("temperature", 0.01), ("top_k", 1), ("top_p", 0.001)]:
        monkeypatch.setattr(chat.model.generation_config, name, value)
    greedy = ask(door)[0]
    assert ask(door, temperature=0)[0] == greedy
    assert ask(door, seed=4)[0] == greedy
    assert ask(door, top_p=1)[0] == greedy
    assert ask(door, temperature=1.0, seed=4)[0] != greedy
    assert ask(door, top_p=0.9, seed=4)[0] == ask(door, top_p=0.9, temperature=1, seed=4)[0]
    assert ask(door, temperature=2.0, top_p=1e-6)[0] == greedy  # only the likeliest is left
    assert ask(door, temperature=1e-30)[0] == greedy
