# SPDX-License-Identifier: Apache-2.0
"""Load a checkpoint of transformers from a folder or the hub, whole or not at all."""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import torch
from safetensors import SafetensorError

from stc_video.errors import UnsupportedModelError
from stc_video.loading.placement import ModelError
from stc_video.models.families import MODEL_FAMILIES
from stc_video.models.packed_vision import takes_rows
from stc_video.models.preprocess import load_processor
from stc_video.towers.families import TOWER_FAMILIES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: types of models with a text tower, too, and the class of the vision tower
_WITH_TEXT = {
    "siglip": "SiglipVisionModel",
    "siglip2": "Siglip2VisionModel",
    "clip": "CLIPVisionModel",
    "chinese_clip": "ChineseCLIPVisionModel",
    "clipseg": "CLIPSegVisionModel",
    "metaclip_2": "MetaClip2VisionModel",
    "mlcd": "MLCDVisionModel",
    "owlvit": "OwlViTVisionModel",
    "owlv2": "Owlv2VisionModel",
    "tipsv2": "Tipsv2VisionModel",
}
#: model type of the configuration -> class that holds a tower that takes frames
MODEL_CLASSES = {
    **_WITH_TEXT,
    **{f"{kind}_vision_model": name for kind, name in _WITH_TEXT.items()},
    "aimv2_vision_model": "Aimv2VisionModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel",
    "vit": "ViTModel",
    "deit": "DeiTModel",
    "vit_msn": "ViTMSNModel",
    "ijepa": "IJepaModel",
    "sapiens2": "Sapiens2Model",
    "internvl_vision": "InternVLVisionModel",
    "idefics3_vision": "Idefics3VisionTransformer",
    "smolvlm_vision": "SmolVLMVisionTransformer",
    **{kind: name for family in MODEL_FAMILIES for kind, name in family.classes.items()},
}


def model_class(model_type: str) -> Any:
    """Return the transformers class for this type of model.

    Raises
    ------
    UnsupportedModelError
        If the type is not supported.
    """
    import transformers

    if model_type not in MODEL_CLASSES:
        raise UnsupportedModelError(
            f"models of type {model_type!r} are not supported; supported are "
            f"{', '.join(t for t in MODEL_CLASSES if not t.endswith('_vision_model'))}"
        )
    if not hasattr(transformers, MODEL_CLASSES[model_type]):
        raise UnsupportedModelError(
            f"models of type {model_type!r} need a release of transformers with "
            f"{MODEL_CLASSES[model_type]}, got {transformers.__version__}"
        )
    return getattr(transformers, MODEL_CLASSES[model_type])


def load_checkpoint(name: str, dtype: torch.dtype) -> tuple[PreTrainedModel, str, Any | None]:
    """Load from a folder or the hub, and make sure that every weight was there.

    Parameters
    ----------
    name, dtype
        Folder or Hugging Face id, and what its weights become.

    Returns
    -------
    tuple
        The model, its name, and its image processor if it has one.
    """
    folder = Path(name)
    if not folder.is_dir() and (folder.exists() or folder.is_absolute() or name.startswith(".")):
        raise ModelError(f"model {name}: there is no such folder")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelError(f"model {name}: the folder has no config.json")
    local = folder.is_dir() or not _hub_resolves()
    with _quiet_transformers():
        try:
            model, missing = _from_pretrained(name, dtype, local)
            processor = load_processor(name)
        except UnsupportedModelError:
            raise
        except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelError(_not_there(name, folder.is_dir(), local, error)) from error
    if missing:
        raise ModelError(
            f"model {name}: {len(missing)} weights are missing, among them {missing[0]}"
        )
    return model, name, processor


def _from_pretrained(
    name: str, dtype: torch.dtype, local: bool
) -> tuple[PreTrainedModel, list[str]]:
    """Return the model and the names of the weights that the checkpoint lacks."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(name, local_files_only=local)
    made = _packed_tower(config) or model_class(config.model_type)
    model, report = made.from_pretrained(
        name, dtype=dtype, local_files_only=local, output_loading_info=True
    )
    return model, sorted(report["missing_keys"])


def _packed_tower(config: Any) -> Any | None:
    """The class of a tower of packed rows that was saved alone, as its configuration names it."""
    home = type(config).__module__.replace("configuration_", "modeling_")
    family = next((f for f in TOWER_FAMILIES if home.split(".")[-2] in f.models), None)
    names = getattr(config, "architectures", None) or ()
    if family is None or not family.in_rows or not names:
        return None
    found = getattr(importlib.import_module(home), names[0], None)
    return found if found is not None and takes_rows(found) else None


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep its progress bars and notices out of ours; what matters is raised."""
    from transformers.utils import logging

    log: Any = logging  # has no types
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


def _not_there(name: str, is_folder: bool, local: bool, error: Exception) -> str:
    reason = str(error).strip().split("\n")[0].rstrip(".")
    if is_folder:
        return f"model {name} cannot be loaded: {reason}"
    if local:
        return (
            f"model {name!r} is not a folder and not in the local Hugging Face cache, and the hub "
            "cannot be reached from this machine"
        )
    return f"model {name!r} is not a folder and cannot be had from the Hugging Face hub: {reason}"


def _hub_resolves() -> bool:
    """Tell whether the hub can be asked at all; its client would retry for half a minute."""
    from huggingface_hub import constants

    if any(os.environ.get(key) for key in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
        return True
    host = urlsplit(constants.ENDPOINT).hostname
    if constants.HF_HUB_OFFLINE or host is None:
        return False
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True
