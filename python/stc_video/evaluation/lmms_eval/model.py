# SPDX-License-Identifier: Apache-2.0
"""The model for lmms-eval: questions about a video share one pass over it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np
from accelerate import Accelerator
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from tqdm import tqdm

from stc_video.evaluation.configurations import Configuration
from stc_video.loading.video_llm import load_chat_model
from stc_video.session import StreamingSession
from stc_video.video import VideoFrame, open_video

_SLACK = 1e-3
_OPTIONS = tuple(item.name for item in fields(Configuration) if item.name != "name")


class _Clip(NamedTuple):
    """Part of a video, in seconds."""

    path: str
    start: float
    end: float


class StreamingModel(lmms):  # type: ignore[misc]  # has no types
    """A video language model with a stream's memory.

    Parameters
    ----------
    pretrained
        Folder or Hugging Face id, or ``llava-onevision-tiny``.
    fps
        Frames per second. Pictures of a task that has no video are frames at this rate.
    device, dtype
        As for `load_chat_model`. Of several processes each has its own device.
    batch_size
        1: a stream is asked one question at a time.
    **options
        Of a `Configuration`: ``policy``, ``prune``, ``tokens_per_frame``, ``memory``, ...

    Raises
    ------
    ValueError
        If an option is unknown or out of range.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        fps: float = 1.0,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if wrong := set(options) - set(_OPTIONS):
            raise ValueError(
                f"--model_args: {', '.join(sorted(wrong))} is none of pretrained, fps, device, "
                f"dtype, {', '.join(_OPTIONS)}"
            )
        if str(batch_size) != "1":
            raise ValueError(f"--batch_size must be 1, got {batch_size}")
        self.accelerator = Accelerator()
        self._rank, self._world_size = (
            self.accelerator.process_index,
            (self.accelerator.num_processes),
        )
        where = str(self.accelerator.device) if self._world_size > 1 else str(device)
        chat = load_chat_model(str(pretrained), device=where, dtype=dtype)
        configuration = Configuration(**options)
        self.device = chat.model.device
        self._fps = float(fps)
        self._session = StreamingSession(
            chat.model,
            chat.processor,
            memory=configuration.memory_config(),
            cache=configuration.cache_config(),
            prune=configuration.pruner(),
        )
        self._clip: _Clip | None = None
        self._frames: Iterator[VideoFrame] = iter(())
        self._next: VideoFrame | None = None

    # -- what lmms-eval calls ----------------------------------------------------------------

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Answer; those about one video in the order of their times, so that it is seen once."""
        answers = [""] * len(requests)
        order = sorted(range(len(requests)), key=lambda number: self._place(requests[number]))
        for number in tqdm(order, disable=self._rank != 0, desc="Asking"):
            context, settings, to_visual, doc_id, task, split = requests[number].args
            self._watch(to_visual(self.task_dict[task][split][doc_id]))
            answers[number] = self._answer(context, settings)
            self.cache_hook.add_partial("generate_until", (context, settings), answers[number])
        return answers

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[list[str]]:
        """Answer round after round, until the task says that it is over."""
        answers = []
        for request in tqdm(requests, disable=self._rank != 0, desc="Asking"):
            context, settings, to_visual, to_text, doc_id, task, split = request.args
            doc = self.task_dict[task][split][doc_id]
            visuals, said, kept, over = to_visual(doc), [], None, False
            while not over:
                self._watch(visuals)
                said.append(self._answer(context, settings))
                visuals, context, over, said, kept = to_text(
                    doc, previous_output=said, round_idx=len(said), previous_round_info=kept
                )
                said = list(said)
            answers.append(said)
        return answers

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Refuse: a stream is asked, and its answers are not weighed."""
        raise NotImplementedError("the stc models answer; tasks of loglikelihood are not offered")

    def clean(self) -> None:
        """Free the memory."""
        self._session.close()
        super().clean()

    # -- the stream --------------------------------------------------------------------------

    def _place(self, request: Instance) -> tuple[str, float, float]:
        _, _, to_visual, doc_id, task, split = request.args
        clip = _clip(to_visual(self.task_dict[task][split][doc_id]))
        return ("", 0.0, 0.0) if clip is None else (clip.path, clip.start, clip.end)

    def _watch(self, visuals: Sequence[Any]) -> None:
        """See what a question is about, or go on with the video of the question before."""
        clip, before = _clip(visuals), self._clip
        goes_on = clip is not None and before is not None and (
            clip[:2] == before[:2] and clip.end >= before.end
        )  # fmt: skip
        if not goes_on:
            self._session.reset()
            self._frames = self._open(clip, visuals)
            self._next = next(self._frames, None)
        end = math.inf if clip is None else clip.end
        while self._next is not None and self._next.time <= end + _SLACK:
            self._session.push(self._next.image, self._next.time)
            self._next = next(self._frames, None)
        self._session.flush()
        self._clip = clip

    def _open(self, clip: _Clip | None, visuals: Sequence[Any]) -> Iterator[VideoFrame]:
        if clip is not None:
            return _frames(clip, self._fps)
        return (
            VideoFrame(np.asarray(picture.convert("RGB")), number / self._fps, number, number)
            for number, picture in enumerate(visuals)
        )

    def _answer(self, context: str, settings: dict[str, Any]) -> str:
        if settings.get("num_beams", 1) != 1:
            raise ValueError(f"num_beams must be 1, got {settings['num_beams']}")
        temperature = settings.get("temperature") or 0.0
        made: dict[str, Any] = {"do_sample": settings.get("do_sample", temperature > 0)}
        if made["do_sample"]:
            made |= {"temperature": temperature or 1.0, "top_p": settings.get("top_p") or 1.0}
        length, stop = settings.get("max_new_tokens", 1024), settings.get("until") or ()
        return self._session.ask(context, max_new_tokens=length, stop=stop, **made).text.strip()


def _clip(visuals: Sequence[Any]) -> _Clip | None:
    """Read ``path`` or ``path#t=start,end``; None for pictures."""
    if not visuals:
        raise ValueError("a question without a video or pictures cannot be asked of a stream")
    if not isinstance(visuals[0], str):
        return None
    if len(visuals) > 1:
        raise ValueError(f"a question must be about one video, got {len(visuals)}")
    path, found, times = visuals[0].rpartition("#t=")
    if not found:
        return _Clip(visuals[0], 0.0, math.inf)
    start, _, end = times.partition(",")
    return _Clip(path, float(start or 0), float(end or math.inf))


def _frames(clip: _Clip, fps: float) -> Iterator[VideoFrame]:
    with open_video(clip.path, fps=fps, start=clip.start) as video:
        yield from video
