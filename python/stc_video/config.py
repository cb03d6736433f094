# SPDX-License-Identifier: Apache-2.0
"""Settings, validated when they are made."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from stc_video.calibration import Aim, Calibration, default_calibration
from stc_video.checks import check_between, check_choice, check_count

#: name of the stream of frames that are given without one
DEFAULT_STREAM = "default"
POLICIES = ("motion", "stc")
METRICS = ("keys", "values")
BATCHINGS = ("auto", "ragged", "bucketed")


@dataclass(frozen=True)
class CacheConfig:
    """Settings of a cacher, which reuses what a vision tower computed for earlier frames.

    Attributes
    ----------
    policy
        ``"motion"`` selects the changed tokens once, at the input, and lets them pass through all
        layers together; a token keeps its keys, values and output until it changes. ``"stc"`` is
        STC-Cacher (arXiv 2512.00891): every ``interval``-th call is dense, and in between each
        layer re-encodes its own ``ratio`` least similar tokens.
    ratio
        ``stc``: fraction of the tokens that a cached frame re-encodes, 0 < ratio <= 1.
    interval
        ``stc``: every how many calls of the tower one is dense, at least 1.
    quality
        ``motion``: mean cosine of the features to a dense encode that is promised to each stream,
        0.5 to 0.999. The policy measures it by audits, sets the threshold and the tail of each
        stream by what they show, and encodes frames densely where the promise takes it.
    calibration
        ``motion``: what a stream starts with: a :class:`Calibration`, or the file that
        ``stc calibrate`` wrote; None for what was measured with a trained DINOv2.
    threshold
        Cosine at or below which a token counts as changed, -1 to 1. ``motion`` compares inputs of
        the first attention; None lets it follow ``quality``. ``stc`` compares keys (or values);
        None means that ``ratio`` decides instead.
    metric
        ``stc``: what is compared with the reference, ``"keys"`` or ``"values"``.
    buckets
        ``motion``: fractions of the patches that a cached frame may re-encode, ascending. The
        number of changed and refreshed ones is rounded up to one of them, so that shapes repeat;
        more changed ones than the largest bucket mean a dense frame.
    refresh
        ``motion``: fraction of the patches, the stalest ones, that ride along in each cached
        frame, 0 to 1.
    age_rate
        ``motion``: how much staler a token grows with each frame, in units of 1 - cosine, added
        to its drift; at least 0.
    tail_layers
        ``motion``: how many of the last layers run for all tokens when many are re-encoded; None
        for a quarter of the layers.
    tail_from
        ``motion``: fraction of re-encoded patches from which on they do, 0 to 1.
    propagate
        ``motion``: how much of what the refreshed tokens' outputs moved by is passed on to the
        tokens left out that look like them, 0 to 1.
    redo_from
        ``motion``: a cached frame is encoded densely after all if the refreshed tokens' outputs
        moved by more than this (mean 1 - cosine), 0 to 2; None for never.
    audits
        ``motion``: encode some frames both ways, cached and densely, hand out the dense features,
        and hold ``quality`` by the error that this shows. Without audits, and with a ``threshold``,
        nothing is promised.
    max_streams
        How many streams may have a state at a time; one more is an error until one is reset.
    batching
        How the streams of a call are encoded together. ``"ragged"``: in one pass, each with its own
        number of rows. ``"bucketed"``: in one pass per number of rows, in shapes that repeat.
        ``"auto"``: ragged on a CPU, where every row costs its time, and bucketed on a GPU.
    graphs
        Bucketed: record the passes as CUDA graphs on a CUDA device. With ``stc`` and a threshold
        there are none, as each layer chooses its number of tokens.
    graph_bytes
        How many bytes recorded passes may take; the least recently used ones are dropped.
    guard
        Encode a frame densely where :meth:`Cacher.warmup` found a cached one to be no faster.
    pack_weights
        Keep weights of a tower a second time, in the form in which they multiply fastest. On a
        CPU those of all linear layers of blocks and mergers, as float32 if it has no instructions
        for 16-bit numbers; on a GPU those of query, key and value, as one matrix.
        ``stats().packed_bytes`` tells the price. The tower's own dense results may then differ
        from the stock ones by rounding.
    """

    policy: str = "motion"
    ratio: float = 0.25
    interval: int = 2
    quality: float = 0.983
    calibration: Calibration | str | Path | None = None
    threshold: float | None = None
    metric: str = "keys"
    buckets: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2)
    refresh: float = 1 / 16
    age_rate: float = 0.01
    tail_layers: int | None = None
    tail_from: float = 3 / 8
    propagate: float = 0.75
    redo_from: float | None = 0.1
    audits: bool = True
    max_streams: int = 64
    batching: str = "auto"
    graphs: bool = True
    graph_bytes: int = 2 << 30
    guard: bool = True
    pack_weights: bool = True

    def is_bucketed(self, device_type: str) -> bool:
        """Whether streams on such a device are encoded in shapes that repeat."""
        if self.batching == "auto":
            return device_type == "cuda"
        return self.batching == "bucketed"

    def __post_init__(self) -> None:
        """Check every value."""
        check_choice("CacheConfig: policy", self.policy, POLICIES)
        check_choice("CacheConfig: metric", self.metric, METRICS)
        check_choice("CacheConfig: batching", self.batching, BATCHINGS)
        check_count("CacheConfig: graph_bytes", self.graph_bytes, 0)
        if not 0.0 < self.ratio <= 1.0:
            raise ValueError(f"CacheConfig: ratio must be above 0 and at most 1, got {self.ratio}")
        check_count("CacheConfig: interval", self.interval, 1)
        if self.tail_layers is not None:
            check_count("CacheConfig: tail_layers", self.tail_layers, 0)
        for name in ("refresh", "tail_from", "propagate"):
            check_between(f"CacheConfig: {name}", getattr(self, name), 0, 1)
        if not 0.5 <= self.quality <= 0.999:
            raise ValueError(
                f"CacheConfig: quality must be a cosine between 0.5 and 0.999, got {self.quality}"
            )
        if self.redo_from is not None and not 0.0 <= self.redo_from <= 2.0:
            raise ValueError(
                f"CacheConfig: redo_from must be between 0 and 2, or None, got {self.redo_from}"
            )
        if not self.age_rate >= 0.0:
            raise ValueError(f"CacheConfig: age_rate must be at least 0, got {self.age_rate}")
        check_count("CacheConfig: max_streams", self.max_streams, 1)
        if self.threshold is not None and not -1.0 <= self.threshold <= 1.0:
            raise ValueError(
                f"CacheConfig: threshold must be a cosine between -1 and 1, got {self.threshold}"
            )
        ascending = all(a < b for a, b in zip(self.buckets, self.buckets[1:], strict=False))
        if not self.buckets or not ascending or not all(0.0 < b <= 1.0 for b in self.buckets):
            raise ValueError(
                "CacheConfig: buckets must be ascending fractions above 0 and at most 1, "
                f"got {self.buckets}"
            )

    @property
    def promised(self) -> float | None:
        """Mean cosine to a dense encode that each stream is promised; None for no promise."""
        is_audited = self.policy == "motion" and self.threshold is None and self.audits
        return self.quality if is_audited else None

    @property
    def is_borrowed(self) -> bool:
        """Whether streams start with the package's calibration, whichever the tower is."""
        return self.policy == "motion" and self.threshold is None and self.calibration is None

    def aim(self) -> Aim:
        """Return what the ``motion`` policy steers by; raises ValueError for a bad file."""
        calibration = self.calibration
        if calibration is None:
            calibration = default_calibration()
        elif not isinstance(calibration, Calibration):
            calibration = Calibration.load(calibration)
        return calibration.aim(self.quality)

    @classmethod
    def of(cls, policy: str | CacheConfig, **settings: Any) -> CacheConfig:
        """Return the settings for a policy given by name, with others of them, or as settings."""
        if isinstance(policy, CacheConfig):
            if settings:
                raise ValueError(
                    "CacheConfig: settings go with the name of a policy, "
                    f"got a CacheConfig and {', '.join(settings)}"
                )
            return policy
        known = [item.name for item in fields(cls) if item.name != "policy"]
        if unknown := [name for name in settings if name not in known]:
            raise ValueError(
                f"CacheConfig: there is no setting {', '.join(unknown)}; "
                f"settings are {', '.join(known)}"
            )
        return cls(policy=policy, **settings)
