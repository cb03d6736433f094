# SPDX-License-Identifier: Apache-2.0
"""Small towers of the real Hugging Face classes, and frames for them."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
import transformers
from torch import Tensor, nn

PATCH, SIDE = 14, 4
SIZE = PATCH * SIDE
COMMON = {
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "hidden_size": 48,
    "image_size": SIZE,
    "patch_size": PATCH,
}
MLP = {"intermediate_size": 96}


def _siglip() -> nn.Module:
    return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**COMMON, **MLP))


def _clip() -> nn.Module:
    return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**COMMON, **MLP))


def _clip_with_projection() -> nn.Module:
    config = transformers.CLIPVisionConfig(**COMMON, **MLP, projection_dim=8)
    return transformers.CLIPVisionModelWithProjection(config)


def _dinov2(**settings: object) -> nn.Module:
    return transformers.Dinov2Model(transformers.Dinov2Config(**COMMON, mlp_ratio=2, **settings))


def _dinov2_swiglu() -> nn.Module:
    return _dinov2(use_swiglu_ffn=True)


def _dinov2_registers() -> nn.Module:
    _need("Dinov2WithRegistersModel")
    config = transformers.Dinov2WithRegistersConfig(**COMMON, mlp_ratio=2, num_register_tokens=2)
    return transformers.Dinov2WithRegistersModel(config)


TOWERS: dict[str, Callable[[], nn.Module]] = {
    "siglip": _siglip,
    "clip": _clip,
    "clip-with-projection": _clip_with_projection,
    "dinov2": _dinov2,
    "dinov2-swiglu": _dinov2_swiglu,
    "dinov2-registers": _dinov2_registers,
}


def make_tower(name: str) -> nn.Module:
    """A tower with weights large enough that every part of it matters."""
    return randomise(TOWERS[name]())


def randomise(tower: nn.Module) -> nn.Module:
    """Random weights of activations of order one, LayerScale and norms included."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = parameter.dim() == 1 and not name.endswith("bias")
            parameter.copy_(1.0 + 0.2 * noise if is_scale else 0.12 * noise)
    return tower.eval()


def _need(name: str) -> None:
    """Skip where transformers is older than the model."""
    if not hasattr(transformers, name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")


def siglip2() -> nn.Module:
    _need("Siglip2VisionModel")
    config = transformers.Siglip2VisionConfig(
        hidden_size=48, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
        num_patches=16, patch_size=PATCH,
    )  # fmt: skip
    return randomise(transformers.Siglip2VisionModel(config))


def siglip2_arguments(frames: int, shape: tuple[int, int], seed: int = 0) -> dict[str, Tensor]:
    """Arguments of a SigLIP2 tower: patches of a grid, the rest of 16 places is padding."""
    used = shape[0] * shape[1]
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand((frames, 16, 3 * PATCH * PATCH), generator=generator)
    pixels[:, used:] = 0.0
    mask = torch.zeros((frames, 16), dtype=torch.int64)
    mask[:, :used] = 1
    name = "pixel_attention_mask"
    if name not in inspect.signature(transformers.Siglip2VisionModel.forward).parameters:
        name = "attention_mask"
    return {
        "pixel_values": pixels,
        name: mask,
        "spatial_shapes": torch.tensor([shape] * frames),
    }


def frame(seed: int) -> Tensor:
    """One random picture, (1, 3, SIZE, SIZE)."""
    return torch.rand((1, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(seed))


def with_changed_patches(picture: Tensor, patches: list[int], seed: int = 99) -> Tensor:
    """The picture with other content in some of its SIDE x SIDE patches."""
    other = frame(seed)
    changed = picture.clone()
    for patch in patches:
        row, column = divmod(patch, SIDE)
        rows = slice(row * PATCH, (row + 1) * PATCH)
        columns = slice(column * PATCH, (column + 1) * PATCH)
        changed[..., rows, columns] = other[..., rows, columns]
    return changed


def walk(count: int) -> list[Tensor]:
    """Frames in which a few patches change at a time, and one cut."""
    frames = [frame(0)]
    for number in range(1, count):
        if number == count // 2:
            frames.append(frame(7))
        else:
            patches = [(5 * number) % 16, (7 * number + 3) % 16]
            frames.append(with_changed_patches(frames[-1], patches, seed=100 + number))
    return frames


def noisy_walk(count: int) -> list[Tensor]:
    """As `walk`, with every patch changing a little, so that no two similarities tie."""
    generator = torch.Generator().manual_seed(5)
    return [
        picture + 0.1 * torch.randn(picture.shape, generator=generator) for picture in walk(count)
    ]


def prefix_tokens(name: str) -> int:
    return 0 if name == "siglip" else 3 if name.endswith("registers") else 1


def layers_of(tower: nn.Module) -> nn.ModuleList:
    return next(
        module
        for module in tower.modules()
        if isinstance(module, nn.ModuleList) and hasattr(module[0], "mlp")
    )


def layer_inputs(tower: nn.Module, pictures: list[Tensor]) -> list[Tensor]:
    """What the tower's embeddings hand to the first layer, for each picture."""
    seen: list[Tensor] = []
    hook = layers_of(tower)[0].register_forward_pre_hook(
        lambda _, args: seen.append(args[0].clone())
    )
    with torch.no_grad():
        for picture in pictures:
            tower(picture)
    hook.remove()
    return seen


def encoder_output(tower: nn.Module, picture: Tensor) -> Tensor:
    """Output of the last layer, in front of any final norm."""
    seen: list[Tensor | tuple[Tensor]] = []
    hook = layers_of(tower)[-1].register_forward_hook(lambda _m, _a, out: seen.append(out))
    with torch.no_grad():
        tower(picture)
    hook.remove()
    return seen[0][0] if isinstance(seen[0], tuple) else seen[0]


def last_hidden(tower: nn.Module, *args: object, **kwargs: object) -> Tensor:
    """Output of the last layer, as the tower returns it."""
    with torch.no_grad():
        return tower(*args, **kwargs, output_hidden_states=True).hidden_states[-1]


def encode(tower: nn.Module, pictures: list[Tensor]) -> list[Tensor]:
    """Output of the last layer for each picture, one call each."""
    return [last_hidden(tower, picture) for picture in pictures]


def contents(tower: nn.Module) -> dict[str, dict[str, object]]:
    """Everything an instance of each module holds besides its parameters and submodules."""
    return {name: dict(module.__dict__) for name, module in tower.named_modules()}
