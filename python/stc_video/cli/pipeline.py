# SPDX-License-Identifier: Apache-2.0
"""A video through tower, cacher and pruner, frame by frame, measured."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

import stc_video
from stc_video.cli.questions import Interview
from stc_video.cli.run_settings import RunSettings
from stc_video.cli.stop import Stop
from stc_video.clock import Clock
from stc_video.loading.vision import LoadedModel
from stc_video.pruners import PrunedTokens, make_pruner
from stc_video.pruners.base import with_rows
from stc_video.report import FrameRecord, PromiseFacts
from stc_video.report.pictures import webp
from stc_video.video import VideoError, VideoFrame, VideoSource


@dataclass
class Outcome:
    """The result of a run, complete or not.

    Attributes
    ----------
    frames
        One record per frame that was encoded.
    status
        "complete", "ended early" or "interrupted".
    problem
        Why it did not complete, or None.
    state_bytes, resets
        Memory that the cacher held at the end, and how often it dropped its state.
    promise
        What it promised, and what its audits say.
    """

    frames: list[FrameRecord] = field(default_factory=list)
    status: str = "complete"
    problem: str | None = None
    state_bytes: int = 0
    resets: int = 0
    promise: PromiseFacts = field(default_factory=PromiseFacts)

    @property
    def cost(self) -> float:
        """Mean fraction of the dense operations so far."""
        return sum(f.cost for f in self.frames) / len(self.frames) if self.frames else 1.0


class Pipeline:
    """Encodes the frames of one video.

    Parameters
    ----------
    model : LoadedModel
        The tower; a cacher is attached to it until `close`.
    settings : RunSettings
        Options of the run.
    interview : Interview, optional
        Gets the kept tokens, and asks between the frames.

    Attributes
    ----------
    feature_width : int
        Channels of the tokens that are pruned, known from the first frame on.
    picture_size : (int, int)
        Height and width of the first frame, upright.
    """

    def __init__(
        self, model: LoadedModel, settings: RunSettings, interview: Interview | None = None
    ) -> None:
        self.model = model
        self._interview = interview
        self.feature_width = 0
        self.picture_size = (0, 0)
        self._settings = settings
        if settings.needs_attention and (model.vision is not None or not model.prefix_tokens):
            raise ValueError(
                "--prune visionzip needs a tower with a class token, whose tokens are pruned as "
                f"they are (CLIP, DINOv2); got {model.description}"
            )
        self._start()

    def _start(self) -> None:
        """Attach a cacher without memory, and make a pruner without memory."""
        settings = self._settings
        config = settings.cache_config()
        self.cacher = stc_video.attach_cacher(self.model.tower, policy=config)
        self._pruner = settings.pruner()
        tower = self.model.tower
        self._capture = stc_video.capture_attention(tower) if settings.needs_attention else None

    def close(self) -> None:
        """Take the cacher off the tower, which is ours alone.

        By force: an error inside a forward of transformers 4.57 leaves its recording wrappers on.
        """
        if self._capture is not None:
            self._capture.remove()
        self.cacher.detach(force=True)

    def run(self, video: VideoSource, on_frame: Callable[[Outcome], None]) -> Outcome:
        """Encode a video to its end, or as far as it goes.

        Parameters
        ----------
        video : VideoSource
            The frames.
        on_frame : callable
            Is called after each frame.

        Returns
        -------
        Outcome
            With a damaged video or Ctrl-C, what was done until then.

        Raises
        ------
        VideoError
            If not even the first frame can be decoded.
        """
        outcome, stop = Outcome(), Stop()
        try:
            with torch.inference_mode(), stop:
                video.stopped = lambda: stop.wanted
                for frame in video:
                    if self._interview is not None:
                        self._interview.ask_before(frame.time)
                    outcome.frames.append(self._encode(frame))
                    on_frame(outcome)
                    if stop.wanted:
                        break
        except VideoError as error:
            if not outcome.frames:
                raise
            outcome.status, outcome.problem = "ended early", str(error)
        except KeyboardInterrupt:
            stop.wanted = True
        if stop.wanted:
            outcome.status = "interrupted"
            outcome.problem = f"stopped by hand after {len(outcome.frames)} frames"
        elif self._interview is not None:
            with torch.inference_mode():
                self._interview.finish()
        stats = self.cacher.stats()
        outcome.state_bytes, outcome.resets = stats.state_bytes, stats.resets
        outcome.promise = PromiseFacts(
            stats.promised, stats.audits, stats.estimated_cosine, stats.promise_held
        )
        return outcome

    def _encode(self, frame: VideoFrame) -> FrameRecord:
        """Pass one frame through every stage."""
        model = self.model
        if frame.index == 0:
            self.picture_size = frame.image.shape[0], frame.image.shape[1]
            self._warm_up(frame)
        clock = Clock(model.device)
        inputs = model.pixels([frame.image])
        preprocessing = clock.lap()
        tokens = model.encode(inputs)
        encoding = clock.lap()
        features = model.features(tokens)
        projecting = clock.lap()
        kept = self._prune(features)
        pruning = clock.lap()
        prefilling = self._remember(kept, features, frame.time, clock)
        record = self.cacher.last_frames[0]
        dense_seconds, mean, worst = self._compare(frame.index, inputs, tokens)
        self.feature_width = features.shape[-1]
        return FrameRecord(
            index=frame.index,
            number=frame.number,
            time=frame.time,
            kind=record.kind,
            reason=record.reason,
            cost=float(record.cost),
            changed=int(record.changed),
            encoded=tuple(model.in_raster(record.encoded[record.prefix_tokens :]).tolist()),
            kept=None if kept is None else _places(kept),
            similarity=mean,
            similarity_worst=worst,
            seconds={
                "decode": frame.decoding,
                "preprocess": preprocessing,
                "tower": encoding,
                "project": projecting if model.vision is not None else 0.0,
                "prune": pruning if kept is not None else 0.0,
                "prefill": prefilling,
            },
            dense_seconds=dense_seconds,
            picture=webp(model.display(inputs)[0]),
        )

    def _warm_up(self, frame: VideoFrame) -> None:
        """Run every stage unmeasured: first calls load libraries and plan kernels."""
        model = self.model
        for _ in range(2):  # a dense frame, then one from the cache
            self._prune(model.features(model.encode(model.pixels([frame.image]))))
        with self.cacher.paused():
            model.encode(model.pixels([frame.image]))
        # A new cacher and pruner, so that nothing of this is counted.
        self.close()
        self._start()

    def _prune(self, features: Tensor) -> PrunedTokens | None:
        if self._pruner is None:
            return None
        attention = None if self._capture is None else self._capture.take()
        kept: PrunedTokens = self._pruner(
            features, grid=self.model.feature_grid, attention=attention
        )
        return kept

    def _remember(
        self, kept: PrunedTokens | None, features: Tensor, time: float, clock: Clock
    ) -> float:
        """Let a frame into the memory; a chunk of frames passes the language model at once."""
        if self._interview is None:
            return 0.0
        kept = make_pruner("none")(features) if kept is None else kept
        if deep := self.model.deep_features:
            if self._pruner is not None and self._pruner.merges:
                raise ValueError(
                    f"--prune {self._settings.prune} merges tokens, to each of which this model "
                    "adds features in its first layers; questions need a method that keeps tokens "
                    "as they are, such as stc"
                )
            kept = with_rows(kept, torch.cat(list(deep), dim=-1))
        self._interview.take(kept, time, self.model.feature_grid)
        return clock.lap()

    def _compare(
        self, index: int, inputs: dict[str, Tensor], tokens: Tensor
    ) -> tuple[float | None, float | None, float | None]:
        """Encode a frame densely beside the run; (seconds, mean cosine, smallest cosine)."""
        if not measures(index, self._settings.dense_every):
            return None, None, None
        clock = Clock(self.model.device)
        with self.cacher.paused():
            dense = self.model.encode(inputs)
        seconds = clock.lap()
        start = self.model.prefix_tokens
        cosine = torch.cosine_similarity(
            tokens[:, start:].float(), dense[:, start:].float(), dim=-1
        )
        return seconds, float(cosine.mean()), float(cosine.min())


def _places(kept: PrunedTokens) -> tuple[int, ...]:
    """Places of the tokens kept of the only frame."""
    return tuple(int(index) for index in kept.indices[0].tolist() if index >= 0)


def measures(index: int, every: int) -> bool:
    """Return whether a frame is compared with a dense encode.

    One frame in each block of `every` is, at a place that differs from block to block: a fixed
    place would always or never meet the dense frames of a fixed schedule. The place is the same
    in every run. The first frame, dense by itself, is left out unless every frame is measured.
    """
    if every <= 1:
        return every == 1
    block, place = divmod(index, every)
    choice = random.Random(f"dense reference {block}")
    return place == (choice.randrange(1, every) if block == 0 else choice.randrange(every))
