# SPDX-License-Identifier: Apache-2.0
"""A model of lmms-eval that streams, and tasks for it.

lmms-eval finds the model by the entry point of group ``lmms_eval.models``. The tasks are in the
folder ``tasks``, for ``--include_path``.
"""

from __future__ import annotations

from typing import Any

__all__ = ["manifests"]

_CLASS = f"{__name__}.model.StreamingModel"


def manifests() -> list[Any]:
    """What lmms-eval registers: one class under the names of the models that it takes."""
    from lmms_eval.models.registry_v2 import ModelManifest

    names = ("stc_llava_onevision", "stc_qwen2_vl", "stc_qwen2_5_vl")
    return [ModelManifest(model_id=name, simple_class_path=_CLASS) for name in names]
