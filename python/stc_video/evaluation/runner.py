# SPDX-License-Identifier: Apache-2.0
"""Videos through sessions: each decoded once, each question asked at its time."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stc_video.errors import MemoryFullError
from stc_video.evaluation.answers import Answers
from stc_video.evaluation.configurations import Configuration
from stc_video.evaluation.plan import find_video
from stc_video.evaluation.queries import Query
from stc_video.loading.video_llm import ChatModel
from stc_video.session import Answer, StreamingSession
from stc_video.video import VideoError, VideoFrame, ahead, open_video

#: seconds by which a frame may be later than a question and still be seen; containers round times
_SLACK = 1e-3
#: seconds by which the official clips may end behind their video
_ROUNDING = 1.0


@dataclass(frozen=True)
class Sampling:
    """Which frames a question is answered from.

    Attributes
    ----------
    protocol
        "stream": one pass per video. "clip": each question has a clip of its own, from its
        beginning to the time of the question.
    fps
        Frames per second.
    frames
        Clip: so many frames, evenly spread, instead of a rate.
    max_new_tokens
        Longest answer.
    """

    protocol: str = "stream"
    fps: float = 1.0
    frames: int | None = None
    max_new_tokens: int = 16

    def __post_init__(self) -> None:
        """Check every value."""
        if self.protocol not in ("stream", "clip"):
            raise ValueError(f"--protocol must be stream or clip, got {self.protocol!r}")
        if self.frames is not None and self.protocol != "clip":
            raise ValueError("--frames belongs to --protocol clip: a stream has a fixed rate")
        if self.frames is not None and self.frames < 1:
            raise ValueError(f"--frames must be at least 1, got {self.frames}")
        if not (self.fps > 0 and math.isfinite(self.fps)):
            raise ValueError(f"--fps must be a positive number, got {self.fps:g}")


class Given(NamedTuple):
    """An answer that was just written: whose, to what, and its text (None if there is none)."""

    configuration: str
    query: Query
    text: str | None
    time: float | None


class _Contender:
    """A configuration at work: a session on a model that shares its weights with the others."""

    def __init__(self, model: Any, processor: Any, configuration: Configuration) -> None:
        self.configuration = configuration
        self.name = configuration.name
        self.session = StreamingSession(
            model,
            processor,
            memory=configuration.memory_config(),
            cache=configuration.cache_config(),
            prune=configuration.pruner(),
        )
        self.begin()

    def begin(self) -> None:
        """Forget the video before."""
        self.session.reset()
        self.problem = ""
        self._seen = 0
        self._before = self._seconds()

    def push(self, frame: VideoFrame) -> None:
        """Take in a frame, if it is one of those that this configuration gets."""
        share = self.configuration.frame_share
        number, self._seen = self._seen, self._seen + 1
        if self.problem or (number and int(number * share) == int((number - 1) * share)):
            return
        image = np.zeros_like(frame.image) if self.configuration.blind else frame.image
        try:
            self.session.push(image, frame.time)
        except MemoryFullError as error:
            self.problem = f"memory full: {error}"

    def flush(self) -> None:
        """Let waiting frames in, so that frames are grouped alike whether or not it is asked."""
        try:
            self.session.flush()
        except MemoryFullError as error:
            self.problem = f"memory full: {error}"

    def ask(self, prompt: str, max_new_tokens: int) -> Answer:
        """Answer; the memory stays as it is."""
        return self.session.ask(prompt, max_new_tokens=max_new_tokens, do_sample=False)

    def cost(self) -> dict[str, Any]:
        """What the video cost."""
        stats = self.session.stats()
        spent = {stage: now - self._before[stage] for stage, now in self._seconds().items()}
        return {
            "frames": stats.frames,
            "tokens_kept": stats.tokens_kept,
            "tokens_seen": stats.tokens_seen,
            "work": 1.0 if stats.cache is None else stats.cache.cost,
            "seconds": spent,
        }

    def _seconds(self) -> dict[str, float]:
        return {name: times.seconds for name, times in self.session.stats().stages.items()}


class _Moment(NamedTuple):
    """A time at which something is asked."""

    time: float
    query: Query
    last: bool


class Runner:
    """Asks the questions of videos.

    Parameters
    ----------
    chat
        The model; it is as before after `close`.
    configurations
        What is compared, on the same frames.
    sampling
        Which frames.
    videos
        The folder.
    answers
        Where answers go; what it has is not asked again.
    on_answer
        Is called with each answer.
    stopped
        Is asked between frames; true ends the run.
    """

    def __init__(
        self,
        chat: ChatModel,
        configurations: Sequence[Configuration],
        sampling: Sampling,
        videos: Path,
        answers: Answers,
        on_answer: Callable[[Given], None] = lambda given: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._sampling = sampling
        self._videos = videos
        self._answers = answers
        self._on_answer = on_answer
        self._stopped = stopped
        self._contenders: list[_Contender] = []
        models = _sharing_weights(chat.model, len(configurations))
        try:
            for model, configuration in zip(models, configurations, strict=True):
                self._contenders.append(_Contender(model, chat.processor, configuration))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Free the memories and restore the model."""
        for contender in self._contenders:
            contender.session.close()

    def run(self, queries: Sequence[Query]) -> bool:
        """Ask everything that has no answer yet; returns whether it came to the end."""
        ordered = sorted(queries, key=lambda query: query.video)
        for video, group in itertools.groupby(ordered, key=lambda query: query.video):
            self._run_video(video, list(group))
            self._answers.sync()
            if self._stopped():
                return False
        return True

    def _run_video(self, video: str, queries: list[Query]) -> None:
        asked = [query for query in queries if not query.problem]
        for query in queries:
            if query.problem:
                self._give_up([query], query.problem)
        if not any(self._wants(query) for query in asked):
            return
        path = find_video(self._videos, video)
        if path is None:
            self._give_up(asked, f"missing video: {video} is not in {self._videos}")
        elif self._sampling.protocol == "stream":
            self._pass(path, asked)
            self._note_cost(video)
        else:
            for query in sorted(asked, key=lambda query: query.time):
                if not self._stopped() and self._wants(query):
                    self._pass(path, [query])
                    self._note_cost(f"{video}#{query.key}")

    def _note_cost(self, video: str) -> None:
        if not self._stopped():
            for contender in self._contenders:
                self._answers.video_done(contender.name, video, **contender.cost())

    def _pass(self, path: Path, queries: Sequence[Query]) -> None:
        """Push a video from its beginning, and ask on the way."""
        for contender in self._contenders:
            contender.begin()
        moments, last = _moments(queries), 0.0
        try:
            with self._open(path, queries[0]) as video, closing(ahead(video)) as frames:
                for frame in frames:
                    while moments and moments[0].time + _SLACK < frame.time:
                        self._ask(moments.pop(0))
                    if not moments or self._stopped():
                        return
                    for contender in self._contenders:
                        contender.push(frame)
                    last = frame.time
                end = video.duration or last
        except VideoError as error:
            left = {moment.query.key: moment.query for moment in moments}
            self._give_up(list(left.values()), f"broken video: {error}")
            return
        for moment in moments:
            due = moment.query.due
            late = due is not None and due > end + _ROUNDING
            self._ask(moment, f"asked at {due:g} s, after the end at {end:.1f} s" if late else "")

    def _open(self, path: Path, query: Query) -> Any:
        count = self._sampling.frames
        start = query.start if self._sampling.protocol == "clip" else 0.0
        if count is None:
            return open_video(path, fps=self._sampling.fps, start=start)
        with open_video(path) as video:
            if video.duration is None:
                raise VideoError(
                    f"{path}: its length is unknown, so frames cannot be spread over it"
                )
            interval = 1 / (video.source_fps or math.inf)
            last = min(query.time, video.duration - interval)
        # So many frames from the first to the last, both included.
        rate = (count - 1) / (last - start) if count > 1 and last > start else 1e-6
        return open_video(path, fps=rate, start=start, max_frames=count)

    # -- questions ---------------------------------------------------------------------------

    def _wants(self, query: Query) -> bool:
        return any((c.name, query.key) not in self._answers.answered for c in self._contenders)

    def _ask(self, moment: _Moment, note: str = "") -> None:
        query = moment.query
        for contender in self._contenders:
            contender.flush()
            if (contender.name, query.key) in self._answers.answered or self._stopped():
                continue
            if contender.problem:
                self._write(contender, query, None, problem=contender.problem)
            elif query.proactive is None:
                answer = contender.ask(query.prompt, self._sampling.max_new_tokens)
                self._write(contender, query, answer, note=note)
            else:
                self._probe(contender, moment)

    def _probe(self, contender: _Contender, moment: _Moment) -> None:
        """Ask whether the time has come, and if so, or never, write it down."""
        query = moment.query
        assert query.proactive is not None
        length = self._sampling.max_new_tokens
        if "yes" in contender.ask(query.proactive.probe, length).text.lower():
            answer = contender.ask(query.prompt, length)
            self._write(contender, query, answer, time=moment.time)
        elif moment.last:
            self._write(contender, query, None, note="never answered")

    def _give_up(self, queries: Sequence[Query], problem: str) -> None:
        for query in queries:
            for contender in self._contenders:
                if (contender.name, query.key) not in self._answers.answered:
                    self._write(contender, query, None, problem=problem)

    def _write(
        self,
        contender: _Contender,
        query: Query,
        answer: Answer | None,
        *,
        time: float | None = None,
        problem: str = "",
        note: str = "",
    ) -> None:
        facts: dict[str, Any] = {"answer": None, "time": time, "problem": problem, "note": note}
        if answer is not None:
            frames = None if answer.retrieved is None else [
                [frame.number, frame.time, frame.layers] for frame in answer.retrieved
            ]  # fmt: skip
            facts |= {
                "answer": answer.text,
                "frames": answer.frame,
                "context_tokens": answer.context_tokens,
                "seconds": answer.seconds,
                "retrieved": frames,
            }
        self._answers.answer(contender.name, query.key, **facts)
        self._on_answer(Given(contender.name, query, facts["answer"], time))


def _moments(queries: Sequence[Query]) -> list[_Moment]:
    """All times at which something is asked, in their order."""
    made = []
    for query in queries:
        if query.proactive is None:
            made.append(_Moment(query.time, query, True))
            continue
        steps = int(query.proactive.last - query.proactive.first)
        for step in range(steps + 1):
            made.append(_Moment(query.proactive.first + step, query, step == steps))
    return sorted(made, key=lambda moment: moment.time)


def _sharing_weights(model: Any, count: int) -> list[Any]:
    """Return the model, and copies that have its weights but can be accelerated by themselves."""
    tensors = {id(t): t for t in itertools.chain(model.parameters(), model.buffers())}
    return [model, *(copy.deepcopy(model, dict(tensors)) for _ in range(count - 1))]
