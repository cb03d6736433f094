# SPDX-License-Identifier: Apache-2.0
"""One stream, and one question about what was to be seen in it before, for the demo."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stc_video.evaluation.loaders import load_queries
from stc_video.evaluation.queries import LETTERS
from stc_video.evaluation.scoring import is_right
from stc_video.evaluation.world.files import write_world
from stc_video.memory.config import RekvConfig
from stc_video.report.pictures import webp
from stc_video.video import open_video

_SEED, _SECONDS, _QUESTIONS = 2, 22, 40
#: tokens that the answer is given from: of four frames
_RETRIEVED = 64
_SHOWN = 4
_TASK = "EPM"


@dataclass(frozen=True)
class Example:
    """A question, the answer to it, and the frames that it was given from.

    Attributes
    ----------
    question, options
        What was asked.
    right
        The right option.
    answer
        What the model said.
    is_right
        Whether that is right.
    seconds
        Of the stream so far.
    tokens_seen, tokens_read
        How many tokens of the video there were, and from how many it was answered in each layer.
    frames
        (time, picture) of those that most layers retrieved, in their order.
    """

    question: str
    options: tuple[str, ...]
    right: str
    answer: str
    is_right: bool
    seconds: float
    tokens_seen: int
    tokens_read: int
    frames: tuple[tuple[float, bytes], ...]


def answer_one(folder: Path, device: str = "auto") -> Example:
    """Film a stream of the test split, and ask the small model about it at the last moment.

    Parameters
    ----------
    folder
        Gets the stream and all questions about it, for ``stc eval ovo-bench``.
    device
        Of the model.
    """
    from PIL import Image

    from stc_video.loading.video_llm import load_chat_model
    from stc_video.session import StreamingSession

    data = write_world(folder, "test", 1, seconds=(_SECONDS, _SECONDS), questions=_QUESTIONS,
                       seed=_SEED, cameras=("still",))  # fmt: skip
    query = [one for one in load_queries("ovo-bench", data).queries if one.task == _TASK][-1]
    chat = load_chat_model("stc-world", device=device, dtype="float32")
    pictures = []
    memory = RekvConfig(retrieve_tokens=_RETRIEVED)
    settings: Any = {"memory": memory, "cache": None, "prune": "none"}
    with StreamingSession(chat.model, chat.processor, **settings) as session:
        with open_video(folder / query.video, fps=1.0) as video:
            for frame in video:
                if frame.time > query.time:
                    break
                session.push(frame.image, frame.time)
                pictures.append((frame.time, webp(Image.fromarray(frame.image))))
        answer = session.ask(query.prompt, max_new_tokens=4, do_sample=False)
        seen = session.stats().tokens_kept
    layers = Counter({frame.number: frame.layers for frame in answer.retrieved or ()})
    return Example(
        question=query.question,
        options=query.choices,
        right=query.choices[LETTERS.index(query.gold)],
        answer=answer.text,
        is_right=bool(is_right("ovo-bench", query, answer.text, None, "official")),
        seconds=query.time,
        tokens_seen=seen,
        tokens_read=min(seen, _RETRIEVED),
        frames=tuple(
            pictures[number] for number in sorted(n for n, _ in layers.most_common(_SHOWN))
        ),
    )
