# SPDX-License-Identifier: Apache-2.0
"""A few frames and nothing else, as if the video had no others."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stc_video.memory.base import Context, Frame, Memory, Reading, Retrieved, Snapshot, VideoPlace
from stc_video.memory.config import PlainConfig, WindowConfig
from stc_video.memory.plain import PlainMemory


class WindowMemory(Memory):
    """Keeps the tokens of frames, and lets them through the language model with each question.

    Keys and values would remember frames that are gone; tokens do not.

    Parameters
    ----------
    language_model
        Without its head, such as ``Qwen2Model``.
    config
        Which frames.

    Attributes
    ----------
    evicted
        Frames that have left.
    """

    def __init__(self, language_model: nn.Module, config: WindowConfig) -> None:
        self._model: Any = language_model
        self._config = config
        self._prefix: Tensor | None = None
        self._frames: list[Frame] = []
        self.evicted = 0

    @property
    def tokens(self) -> int:
        """Number of tokens held."""
        prefix = 0 if self._prefix is None else len(self._prefix)
        return prefix + sum(len(frame.embeds) for frame in self._frames)

    def begin(self, prefix: Tensor) -> None:
        """Start anew with the embeddings (P, D) of what comes before the video."""
        self.clear()
        self._prefix = prefix

    def append(self, frames: Sequence[Frame]) -> None:
        """Take in the next frames, and let others go."""
        if self._config.spread == "uniform":
            frames = [dataclasses.replace(frame, embeds=frame.embeds.cpu()) for frame in frames]
        self._frames += frames
        if self._config.spread == "last":
            leaving = max(0, len(self._frames) - self._config.frames)
            self.evicted += leaving
            del self._frames[:leaving]

    def context(
        self, prompt: Tensor, question: slice, text: str, reading: Reading | None = None
    ) -> Context:
        """Let the chosen frames and the prompt through the language model."""
        reading = reading or Reading()
        with reading.lock:
            prefix, chosen = self._prefix, list(self._chosen())
        assert prefix is not None
        count = len(prefix) + sum(len(frame.embeds) for frame in chosen)
        memory = PlainMemory(self._model, PlainConfig(max_tokens=max(count, 1)))
        memory.begin(prefix)
        memory.append(
            [
                dataclasses.replace(frame, embeds=frame.embeds.to(prompt.device))
                for frame in _as_video(chosen)
            ]
        )
        # The lock is for this memory; that one is of this question alone.
        context = memory.context(prompt, question, text, Reading(check=reading.check))
        layers = len(self._model.layers)
        retrieved = tuple(Retrieved(frame.number, frame.time, layers) for frame in chosen)
        return dataclasses.replace(context, retrieved=retrieved)

    def _chosen(self) -> list[Frame]:
        held, count = len(self._frames), self._config.frames
        if held <= count:
            return self._frames
        if count == 1:
            return self._frames[-1:]
        return [self._frames[round(i * (held - 1) / (count - 1))] for i in range(count)]

    def nbytes(self) -> dict[str, int]:
        """Bytes of the tokens."""
        return {"window": sum(frame.embeds.nbytes for frame in self._frames)}

    def snapshot(self) -> Snapshot:
        """Describe everything that is held."""
        assert self._prefix is not None
        snapshot = Snapshot(values={"frames": [], "evicted": self.evicted})
        snapshot.tensors["prefix"] = self._prefix
        for frame in self._frames:
            place = None if frame.place is None else dataclasses.asdict(frame.place)
            names = ("number", "span", "time", "bidirectional")
            facts = {name: getattr(frame, name) for name in names} | {"place": place}
            snapshot.values["frames"].append(facts)
            snapshot.tensors |= {
                f"embeds.{frame.number}": frame.embeds,
                f"offsets.{frame.number}": frame.offsets,
            }
        return snapshot

    def restore(self, snapshot: Snapshot) -> None:
        """Take over everything from a snapshot."""
        device = next(self._model.parameters()).device
        self.begin(snapshot.tensors["prefix"].to(device))
        self.evicted = snapshot.values["evicted"]
        for facts in snapshot.values["frames"]:
            number, place, rows = facts["number"], facts["place"], facts.get("bidirectional")
            embeds = snapshot.tensors[f"embeds.{number}"]
            if self._config.spread == "last":
                embeds = embeds.to(device)
            self._frames.append(
                Frame(
                    embeds,
                    snapshot.tensors[f"offsets.{number}"],
                    facts["span"],
                    number,
                    facts["time"],
                    None if place is None else VideoPlace(**place),
                    None if rows is None else tuple(rows),
                )
            )

    def clear(self) -> None:
        """Forget everything."""
        self._prefix, self._frames, self.evicted = None, [], 0


def _as_video(frames: Iterable[Frame]) -> list[Frame]:
    """Count times, rows and columns from the first of these frames, where a model has them."""
    made: list[Frame] = []
    number, side = 0, -1
    for frame in frames:
        place = frame.place
        if place is None or frame.offsets.dim() == 1:  # numbered in a row
            made.append(frame)
            continue
        if place.side != side:  # pictures of another size are another video
            number, side = 0, place.side
        here, after = (_end(count, place) for count in (number, number + 1))
        inside = frame.offsets[1:] - place.origin
        time = torch.full_like(inside[:1], number * place.step)
        offsets = torch.cat([time, inside]) - here
        moved = VideoPlace(number * place.step - here, -here, place.step, place.side)
        made.append(dataclasses.replace(frame, offsets=offsets, span=after - here, place=moved))
        number += 1
    return made


def _end(frames: int, place: VideoPlace) -> int:
    """Number of positions that so many frames of a video take."""
    return max((frames - 1) * place.step + 1, place.side) if frames else 0
