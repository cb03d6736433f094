# SPDX-License-Identifier: Apache-2.0
"""Settings, validated when they are made."""

from __future__ import annotations

from dataclasses import dataclass

POLICIES = ("motion", "stc")
METRICS = ("keys", "values")

#: Cosine at or below which `motion` takes a token for changed, if the user gives none.
MOTION_THRESHOLD = 0.975


@dataclass(frozen=True)
class CacheConfig:
    """How a vision tower reuses what it computed for earlier frames.

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
    threshold
        Cosine at or below which a token counts as changed, -1 to 1. ``motion`` compares inputs of
        the first attention; None takes its default. ``stc`` compares keys (or values), and None
        means that ``ratio`` decides instead.
    metric
        ``stc``: what is compared with the reference, ``"keys"`` or ``"values"``.
    buckets
        ``motion``: fractions of the tokens that a cached frame may re-encode, ascending. The
        number of changed tokens is rounded up to one of them, so that shapes repeat; more than
        the largest means a dense frame.
    refresh
        ``motion``: fraction of the tokens, the ones encoded longest ago, that ride along in each
        cached frame, 0 to 1.
    tail_layers
        ``motion``: how many of the last layers run for all tokens in every cached frame.
    max_streams
        How many streams may have a state at a time; one more is an error until one is reset.
    """

    policy: str = "motion"
    ratio: float = 0.25
    interval: int = 2
    threshold: float | None = None
    metric: str = "keys"
    buckets: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2)
    refresh: float = 1 / 16
    tail_layers: int = 0
    max_streams: int = 64

    def __post_init__(self) -> None:
        """Check every value."""
        _one_of("policy", self.policy, POLICIES)
        _one_of("metric", self.metric, METRICS)
        if not 0.0 < self.ratio <= 1.0:
            raise ValueError(f"CacheConfig: ratio must be above 0 and at most 1, got {self.ratio}")
        _at_least("interval", self.interval, 1)
        _at_least("tail_layers", self.tail_layers, 0)
        _at_least("max_streams", self.max_streams, 1)
        if self.threshold is not None and not -1.0 <= self.threshold <= 1.0:
            raise ValueError(
                f"CacheConfig: threshold must be a cosine between -1 and 1, got {self.threshold}"
            )
        if not 0.0 <= self.refresh <= 1.0:
            raise ValueError(f"CacheConfig: refresh must be between 0 and 1, got {self.refresh}")
        ascending = all(a < b for a, b in zip(self.buckets, self.buckets[1:], strict=False))
        if not self.buckets or not ascending or not all(0.0 < b <= 1.0 for b in self.buckets):
            raise ValueError(
                "CacheConfig: buckets must be ascending fractions above 0 and at most 1, "
                f"got {self.buckets}"
            )

    @classmethod
    def of(cls, policy: str | CacheConfig) -> CacheConfig:
        """Return the settings for a policy given by name or as settings."""
        return policy if isinstance(policy, CacheConfig) else cls(policy=policy)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"CacheConfig: {name} must be one of {', '.join(allowed)}, got {value!r}")


def _at_least(name: str, value: int, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"CacheConfig: {name} must be a whole number from {low}, got {value!r}")
