# SPDX-License-Identifier: Apache-2.0
"""From answers to scores: each benchmark's own rules, and strict ones."""

from stc_video.evaluation.scoring.columns import Column, columns_of, headline_column
from stc_video.evaluation.scoring.comparison import Comparison, compare
from stc_video.evaluation.scoring.groups import Group, groups
from stc_video.evaluation.scoring.parsers import PARSERS, is_right
from stc_video.evaluation.scoring.table import Counts, Score, count, scores

__all__ = [
    "PARSERS",
    "Column",
    "Comparison",
    "Counts",
    "Group",
    "Score",
    "columns_of",
    "compare",
    "count",
    "groups",
    "headline_column",
    "is_right",
    "scores",
]
