# SPDX-License-Identifier: Apache-2.0
"""Everything that a report says, as plain values.

`report.json` has these fields under these names (`RunRecord` at the top; pictures are left out),
and in addition `schema_version`, `headline`, `verdict` (see `verdict.Verdict`) and `totals` (see
`summary.Totals`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: Of report.json. The first number changes when a field is renamed, removed or means something
#: else; the second when one is added.
SCHEMA_VERSION = "1.2"

#: The stages of a run in the order in which a frame passes them. The dense reference is none of
#: them: it is measured beside the run.
STAGES = ("decode", "preprocess", "tower", "project", "prune", "prefill")


@dataclass(frozen=True)
class VideoFacts:
    """The source.

    Attributes
    ----------
    path, name
        As given, and the file's name alone.
    codec
        For example "h264".
    width, height
        Pixels as stored.
    duration
        Seconds, or None if the file does not say.
    source_fps
        Average frames per second of the file, or None.
    sampled_fps
        Frames per second that were asked for.
    """

    path: str
    name: str
    codec: str
    width: int
    height: int
    duration: float | None
    source_fps: float | None
    sampled_fps: float


@dataclass(frozen=True)
class ModelFacts:
    """The model.

    Attributes
    ----------
    name, description
        Where the weights are from, and the geometry in words.
    random
        True if the weights are random.
    prefix_tokens
        Tokens of the tower that belong to no place in the picture (CLS, registers).
    grid, feature_grid
        (rows, columns) of the tower's patch tokens, and of the tokens that are pruned.
    feature_width
        Channels of a token that is pruned.
    device, dtype
        Where and in what type the tower ran.
    """

    name: str
    description: str
    random: bool
    prefix_tokens: int
    grid: tuple[int, int]
    feature_grid: tuple[int, int]
    feature_width: int
    device: str
    dtype: str

    @property
    def tokens(self) -> int:
        """Patch tokens per frame in the tower."""
        return self.grid[0] * self.grid[1]

    @property
    def features(self) -> int:
        """Tokens per frame that the pruner gets."""
        return self.feature_grid[0] * self.feature_grid[1]


@dataclass(frozen=True)
class FrameRecord:
    """One frame.

    Attributes
    ----------
    index
        Running number in the run, from 0.
    number
        Number of the frame in the file, from 0.
    time
        Seconds since the first frame of the file.
    kind
        "dense", "cached" or "unchanged".
    reason
        Why, in words.
    cost
        Operations of the tower's layers as a fraction of a dense frame's.
    changed
        Tokens that were found changed.
    encoded
        Per patch token, row by row: the fraction of the layers that encoded it anew, 0 to 1.
    kept
        Indices of the tokens that the pruner kept, ascending; None without pruning.
    similarity, similarity_worst
        Mean and smallest cosine between this frame's patch tokens and those of a dense encode;
        None where it was not measured.
    seconds
        Per stage of `STAGES`.
    dense_seconds
        How long the dense reference took; None where there was none.
    picture
        The picture that the model saw, encoded as WebP. Not part of the JSON.
    """

    index: int
    number: int
    time: float
    kind: str
    reason: str
    cost: float
    changed: int
    encoded: tuple[float, ...]
    kept: tuple[int, ...] | None
    similarity: float | None
    similarity_worst: float | None
    seconds: Mapping[str, float]
    dense_seconds: float | None
    picture: bytes = field(repr=False, default=b"")

    @property
    def encoded_fraction(self) -> float:
        """Mean of `encoded`."""
        return sum(self.encoded) / len(self.encoded) if self.encoded else 0.0


@dataclass(frozen=True)
class RetrievedFrame:
    """A frame that an answer was given from.

    Attributes
    ----------
    index
        Running number in the run.
    time
        Seconds since the first frame of the file.
    layers
        In how many layers of the language model it was retrieved.
    """

    index: int
    time: float
    layers: int


@dataclass(frozen=True)
class AnswerRecord:
    """One question and its answer.

    Attributes
    ----------
    question, answer
        The texts.
    time
        When in the video it was asked: the time of the last frame that had been seen.
    frames
        How many frames had been seen.
    retrieved
        The frames that it was given from, in temporal order.
    layers
        How many layers the language model has.
    context_tokens
        How many tokens it was given from, those of the question included.
    tokens
        How many tokens the answer has.
    seconds
        ``retrieve`` (the question through the model), ``first_token`` (both from the question
        on), ``generate``.
    """

    question: str
    answer: str
    time: float
    frames: int
    retrieved: tuple[RetrievedFrame, ...]
    layers: int
    context_tokens: int
    tokens: int
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class PromiseFacts:
    """The cacher's promise, and what its own audits say about it.

    Attributes
    ----------
    promised
        Mean cosine to a dense encode, or None if nothing was promised.
    audits
        Frames that the cacher encoded both ways.
    estimated
        Mean cosine of what was handed out, as far as the audits tell; None without any.
    held
        Whether the promise was held; None if nothing was promised or no frame was audited.
    """

    promised: float | None = None
    audits: int = 0
    estimated: float | None = None
    held: bool | None = None


@dataclass(frozen=True)
class RunRecord:
    """One run of `stc run`.

    Attributes
    ----------
    created
        When it ended, ISO 8601 in UTC.
    command
        The command line.
    status
        "complete", "ended early" (the video is damaged) or "interrupted" (Ctrl-C).
    problem
        Why it did not complete, in one sentence; else None.
    warnings
        Everything else that a reader must know before believing a number.
    video, model
        What was encoded, and with what.
    settings
        Options of the run by name.
    environment
        Versions and devices by name.
    backends
        Operator -> the backend that ran it.
    state_bytes
        Memory that the cacher held for reuse at the end.
    resets
        How often the cacher dropped its state.
    frames
        In order of time.
    answers
        In the order in which they were given.
    promise
        The cacher's promise.
    """

    created: str
    command: str
    status: str
    problem: str | None
    warnings: tuple[str, ...]
    video: VideoFacts
    model: ModelFacts
    settings: Mapping[str, object]
    environment: Mapping[str, str]
    backends: Mapping[str, str]
    state_bytes: int
    resets: int
    frames: tuple[FrameRecord, ...]
    answers: tuple[AnswerRecord, ...] = ()
    promise: PromiseFacts = PromiseFacts()
