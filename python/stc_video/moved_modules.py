# SPDX-License-Identifier: Apache-2.0
"""Modules that have moved can be imported by their old names for one release."""

from __future__ import annotations

import importlib
import sys
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

#: old name -> new name
MOVED_MODULES = {
    "stc_video.models.byte_tokenizer": "stc_video.loading.byte_tokenizer",
    "stc_video.models.chat": "stc_video.loading.video_llm",
    "stc_video.models.checkpoint": "stc_video.loading.checkpoint",
    "stc_video.models.dispider": "stc_video.integrations.dispider",
    "stc_video.models.geometries": "stc_video.loading.geometries",
    "stc_video.models.img_focus": "stc_video.loading.img_focus",
    "stc_video.models.livecc": "stc_video.integrations.livecc",
    "stc_video.models.llava_next": "stc_video.integrations.llava_next",
    "stc_video.models.load": "stc_video.loading.vision",
    "stc_video.models.newlines": "stc_video.integrations.newlines",
    "stc_video.models.patch_points": "stc_video.integrations.patch_points",
    "stc_video.models.placement": "stc_video.loading.placement",
    "stc_video.models.rekv": "stc_video.integrations.rekv",
    "stc_video.models.streamforest": "stc_video.integrations.streamforest",
    "stc_video.pruners.vllm": "stc_video.integrations.vllm",
    "stc_video.serve.guard": "stc_video.serve.auth",
    "stc_video.studies.cache_settings": "stc_video.studies.fidelity.settings",
    "stc_video.studies.calibrate": "stc_video.studies.fidelity.calibrate",
    "stc_video.studies.clips": "stc_video.studies.pruning.clips",
    "stc_video.studies.fidelity_page": "stc_video.studies.fidelity.page",
    "stc_video.studies.fidelity_study": "stc_video.studies.fidelity.study",
    "stc_video.studies.methods": "stc_video.studies.pruning.methods",
    "stc_video.studies.prune_page": "stc_video.studies.pruning.page",
    "stc_video.studies.prune_study": "stc_video.studies.pruning.study",
    "stc_video.studies.table": "stc_video.report.csv_table",
}


class MovedModuleFinder:
    """Finds moved modules for the import system, which asks it last."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Describe a module by its old name; None for every other name."""
        if name not in MOVED_MODULES:
            return None
        loader: Any = MovedModuleFinder
        return ModuleSpec(name, loader)

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        """Leave the creation of a placeholder to the import system."""

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Put the module itself in the place of the placeholder.

        Warns
        -----
        DeprecationWarning
            Naming the new module.
        """
        old = module.__name__
        warnings.warn(
            f"{old} is now {MOVED_MODULES[old]}; the old name goes with the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        sys.modules[old] = importlib.import_module(MOVED_MODULES[old])
