# SPDX-License-Identifier: Apache-2.0
"""The methods that a prune study compares: a pruner with settings, under a name of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from stc_video.pruners import PrunedTokens, Pruner, make_pruner
from stc_video.pruners.budget import highest
from stc_video.studies.metrics import keep_mask
from stc_video.studies.pruning.clips import EncodedClip


@dataclass(frozen=True)
class Method:
    """A pruner with settings.

    Attributes
    ----------
    name
        In tables and on the command line.
    pruner, settings
        What `make_pruner` is given, besides the budget.
    summary
        What it keeps, in a few words.
    whole_clip
        Whether it must see the whole clip at once.
    """

    name: str
    pruner: str
    summary: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    whole_clip: bool = False

    def make(self, retention: float) -> Pruner:
        """Make the pruner that keeps this fraction of the tokens."""
        if self.pruner == "none":
            return make_pruner("none")
        return make_pruner(self.pruner, retention_ratio=retention, **self.settings)

    def fits(self, clip: EncodedClip) -> bool:
        """Whether the clip has what the pruner looks at."""
        return self.pruner != "visionzip" or clip.attention is not None


#: What shares mean is seen beside those of keeping every token.
EVERYTHING = Method("none", "none", "every token: the shares of the frames themselves")

#: What does not look at the picture.
CONTROLS = ("uniform", "random")

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("stc", "stc", "differs from the frame's mean and from the past"),
        Method(
            "stc-gaussian", "stc", "the same by the authors' code", {"method": "gaussian"}
        ),
        Method("dtd", "dtd", "features changed most since the frame before"),
        Method("dtd-pixel", "dtd", "pixels changed most since the frame before", {"mode": "pixel"}),
        Method("dtd-window", "dtd", "as dtd, a budget spent over 8 frames", {"window": 8}),
        Method(
            "streaming_assistant",
            "streaming_assistant",
            "changed, and unlike the neighbours (checkerboard)",
        ),
        Method("vidcom2", "vidcom2", "unlike the mean of the stream and of the frame"),
        Method(
            "vidcom2-clip", "vidcom2", "as published: unlike the mean of the whole clip",
            {"scope": "clip"}, whole_clip=True,
        ),
        Method("visionzip", "visionzip", "receives attention; some of the rest merged"),
        Method("tome", "tome", "the most similar merged"),
        Method("evs", "evs", "as dtd: changed most since the frame before"),
        Method(
            "evs-clip", "evs", "as in vLLM: first frame whole, then the clip's largest changes",
            {"scope": "clip"}, whole_clip=True,
        ),
        Method("uniform", "uniform", "control: evenly spaced"),
        Method("random", "random", "control: random"),
    )
}  # fmt: skip


def find_methods(names: Sequence[str] | None) -> list[Method]:
    """Return the methods of these names, all by default.

    Raises
    ------
    ValueError
        If one is unknown, or given twice.
    """
    if names is None:
        return list(METHODS.values())
    for number, name in enumerate(names):
        if name not in METHODS:
            raise ValueError(f"methods must be among {', '.join(METHODS)}; got {name!r}")
        if name in names[:number]:
            raise ValueError(f"each method once, please; got {name!r} twice")
    return [METHODS[name] for name in names]


def ideal_mask(method: Method, clip: EncodedClip, retention: float, keep: Tensor) -> Tensor | None:
    """Return what a method would keep if nothing held it back.

    Its ideal is its own choice with the whole clip at hand, and as many tokens as it kept in all
    to be spent on any frame. For a method that scores tokens these are the clip's highest scores:
    its threshold form, at the threshold that gives this number. `stc` scores against the memory of
    the whole clip, `vidcom2` has its published form for whole clips, and `tome` merges all tokens
    of the clip as if they were one frame. A method that has the whole clip is its own ideal.

    Parameters
    ----------
    method, clip, retention
        What was measured.
    keep
        (F, N) bool, what the method kept.

    Returns
    -------
    Tensor or None
        (F, N) bool; None for `uniform` and `random`, which prefer no token to another.
    """
    if method.pruner in ("uniform", "random"):
        return None
    if method.whole_clip:
        return keep
    if method.pruner == "vidcom2":
        pruned = _whole(METHODS["vidcom2-clip"].make(retention), clip)
        return keep_mask(pruned.indices, clip.tokens)
    count = int(keep.sum())
    if method.pruner == "tome":
        flat = clip.features.flatten(0, 1)[None]
        indices = make_pruner("tome", tokens_per_frame=count)(flat).indices
    else:
        pruner = method.make(retention)
        if method.pruner == "stc":
            _whole(pruner, clip)
        scores = _whole(pruner, clip).scores
        if scores is None:
            raise ValueError(f"{method.name} gives no scores: state its ideal in ideal_mask")
        indices = highest(scores.reshape(1, -1), count)
    return keep_mask(indices, clip.frames * clip.tokens).view(clip.frames, clip.tokens)


def _whole(pruner: Pruner, clip: EncodedClip) -> PrunedTokens:
    """Give a pruner the whole clip in one call."""
    return pruner(clip.features, clip.grid, pixels=clip.pixels, attention=clip.attention)
