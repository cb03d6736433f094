# SPDX-License-Identifier: Apache-2.0
"""`stc prune-study`: pruning methods on videos."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from stc_video.cli.options import PRUNE, REPORT, FpsOption, MostFramesOption
from stc_video.cli.study import Setup, StudySettings, parse_numbers, report_study

if TYPE_CHECKING:
    from stc_video.studies.pruning.methods import Method
    from stc_video.studies.pruning.study import PruneStudy


@dataclass(frozen=True, kw_only=True)
class PruneStudySettings(StudySettings):
    """Options of `stc prune-study`."""

    methods: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=PRUNE, help="Names with commas between.", show_default="every one"
        ),
    ] = None
    budgets: Annotated[
        str,
        typer.Option(rich_help_panel=PRUNE, help="Percent of the tokens, with commas between."),
    ] = "50,25,10,5"
    fps: FpsOption = 2.0
    max_frames: MostFramesOption = 32
    repeats: Annotated[
        int,
        typer.Option(
            rich_help_panel=REPORT, min=1, help="How often each frame is pruned for its latency."
        ),
    ] = 3

    def chosen_methods(self) -> list[Method]:
        """Return the methods.

        Raises
        ------
        ValueError
            If one is unknown.
        """
        from stc_video.studies.pruning.methods import find_methods

        if self.methods is None:
            return find_methods(None)
        return find_methods([name.strip() for name in self.methods.split(",")])

    def chosen_budgets(self) -> list[float]:
        """Return the budgets in percent.

        Raises
        ------
        ValueError
            If one is no number above 0 and at most 100, or there is none.
        """
        allowed = "numbers above 0 and at most 100 (percent)"
        return parse_numbers("budgets", [self.budgets], allowed, lambda x: 0.0 < x <= 100.0)


def prune_study(settings: PruneStudySettings) -> int:
    """Compare every pruning method at equal numbers of tokens on your videos.

    No language model runs: it says what each method keeps, not what that does to answers.
    Writes prune_study.html and prune_study.csv.
    Exit code: 0 done, 1 a video ended early (the report says why), 2 bad input, 130 interrupted.
    """
    from stc_video.studies.pruning.page import PAGE

    # Wrong options should not wait for a model.
    methods, budgets = settings.chosen_methods(), settings.chosen_budgets()

    def measure(setup: Setup) -> PruneStudy:
        from stc_video.studies.pruning.clips import encode_clip
        from stc_video.studies.pruning.study import run_study, steps
        from stc_video.studies.reference_masks import SaliencyMarker

        model = setup.model
        marker = SaliencyMarker(model.tower if settings.is_default_tower else None)
        [sources] = setup.clips.values()
        on_frame = setup.frames_bar("Encoding")
        clips = [encode_clip(name, source, model, marker, on_frame) for name, source in sources]
        count = steps(len(clips), len(methods), len(set(budgets)))
        on_step = setup.bar("Pruning", "choices", count)
        return run_study(clips, methods, budgets, repeats=settings.repeats, on_step=on_step)

    return report_study(settings, [settings.fps], settings.max_frames, measure, PAGE)
