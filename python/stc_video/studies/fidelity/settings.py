# SPDX-License-Identifier: Apache-2.0
"""The settings of a cacher that a fidelity study compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

from stc_video.calibration import Calibration, default_calibration
from stc_video.config import CacheConfig

#: `dense` is the control: the tower without a cacher.
POLICIES = ("dense", "stc", "motion")
INTERVALS = (2, 4, 8)
RATIOS = (1 / 8, 1 / 4, 1 / 2)
QUALITIES = (0.97, 0.983, 0.987, 0.99, 0.995)
THRESHOLDS = (0.8, 0.9, 0.95)

_LARGEST_DENOMINATOR = 64


@dataclass(frozen=True)
class CacheSetting:
    """A policy with its parameters; None for those that it does not have.

    Attributes
    ----------
    policy
        One of `POLICIES`.
    interval, ratio
        Of ``stc``.
    quality, threshold
        Of ``motion``: one of the two.
    """

    policy: str
    interval: int | None = None
    ratio: float | None = None
    quality: float | None = None
    threshold: float | None = None

    @property
    def family(self) -> str:
        """The name it shares with settings that differ in one number only."""
        if self.interval is not None:
            return f"{self.policy}, interval {self.interval}"
        if self.quality is not None:
            return f"{self.policy}, quality"
        return self.policy if self.threshold is None else f"{self.policy}, threshold"

    @property
    def value(self) -> str:
        """The number in which it differs from the others of its family."""
        if self.ratio is not None:
            return fraction(self.ratio)
        number = self.quality if self.threshold is None else self.threshold
        return "" if number is None else f"{number:g}"

    @property
    def name(self) -> str:
        """In tables."""
        what = f"{self.family}, ratio" if self.ratio is not None else self.family
        return f"{what} {self.value}".strip()

    @property
    def promised(self) -> float | None:
        """The mean cosine that it promises, or None."""
        config = self.config()
        return None if config is None else config.promised

    def config(self, calibration: Calibration | None = None) -> CacheConfig | None:
        """Return what `attach_cacher` takes; None for no cacher.

        Raises
        ------
        ValueError
            If a value is out of range.
        """
        if self.policy == "dense":
            return None
        if self.interval is not None and self.ratio is not None:
            return CacheConfig(self.policy, interval=self.interval, ratio=self.ratio)
        if self.quality is not None:
            return CacheConfig(self.policy, quality=self.quality, calibration=calibration)
        return CacheConfig(self.policy, threshold=self.threshold, calibration=calibration)


def make_grid(
    policies: Sequence[str] = POLICIES,
    *,
    intervals: Sequence[int] = INTERVALS,
    ratios: Sequence[float] = RATIOS,
    qualities: Sequence[float] = QUALITIES,
    thresholds: Sequence[float] = THRESHOLDS,
) -> list[CacheSetting]:
    """Return every setting of some policies.

    Parameters
    ----------
    policies
        Some of `POLICIES`.
    intervals, ratios
        Of ``stc``: each with each.
    qualities, thresholds
        Of ``motion``: one or the other.

    Raises
    ------
    ValueError
        If a policy is unknown, or a value out of range.
    """
    settings: list[CacheSetting] = []
    for policy in dict.fromkeys(policies):
        if policy not in POLICIES:
            raise ValueError(f"policies must be among {', '.join(POLICIES)}; got {policy!r}")
        if policy == "dense":
            settings.append(CacheSetting(policy))
        elif policy == "stc":
            settings += [CacheSetting(policy, *pair) for pair in product(intervals, ratios)]
        else:
            settings += [CacheSetting(policy, quality=quality) for quality in qualities]
            settings += [CacheSetting(policy, threshold=threshold) for threshold in thresholds]
    for setting in settings:
        setting.config()
    return settings


def calibration_notes(
    settings: Sequence[CacheSetting], calibration: Calibration | None = None
) -> list[str]:
    """Say which qualities took dense frames on the clips of a calibration."""
    known = default_calibration() if calibration is None else calibration
    qualities = [setting.quality for setting in settings if setting.quality is not None]
    above = [f"{quality:g}" for quality in qualities if quality > known.best_quality]
    if not above:
        return []
    return [
        f"quality {' and '.join(above)}: every clip of the calibration had "
        f"{known.best_quality:.3f} without audits; above that frames are encoded densely to hold it"
    ]


def fraction(value: float) -> str:
    """Write a ratio as a fraction if it is a simple one."""
    simple = Fraction(value).limit_denominator(_LARGEST_DENOMINATOR)
    return str(simple) if float(simple) == value else f"{value:g}"
