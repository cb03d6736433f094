# SPDX-License-Identifier: Apache-2.0
"""The report of a run: what happened to each frame, for people and for programs."""

from stc_video.report.record import (
    SCHEMA_VERSION,
    STAGES,
    AnswerRecord,
    FrameRecord,
    ModelFacts,
    PromiseFacts,
    RetrievedFrame,
    RunRecord,
    VideoFacts,
)
from stc_video.report.summary import Totals, headline, summarise
from stc_video.report.verdict import Verdict, run_verdict
from stc_video.report.write import to_dict, write_html, write_json

__all__ = [
    "SCHEMA_VERSION",
    "STAGES",
    "AnswerRecord",
    "FrameRecord",
    "ModelFacts",
    "PromiseFacts",
    "RetrievedFrame",
    "RunRecord",
    "Totals",
    "Verdict",
    "VideoFacts",
    "headline",
    "run_verdict",
    "summarise",
    "to_dict",
    "write_html",
    "write_json",
]
