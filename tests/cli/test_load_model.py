# SPDX-License-Identifier: Apache-2.0
"""Loading towers: every family, from folders, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from clip_maker import moving_square
from transformers import CONFIG_MAPPING

import stc_video
from stc_video import UnsupportedModelError
from stc_video.loading.checkpoint import MODEL_CLASSES
from stc_video.loading.geometries import build_random
from stc_video.loading.placement import ModelError
from stc_video.loading.vision import load_model
from stc_video.models.families import family_of
from stc_video.models.preprocess import default_processor

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
DINO: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 70,
    "patch_size": 14,
}
TEXT = {**SMALL, "num_hidden_layers": 1, "vocab_size": 99}
FRAMES = [moving_square(0), moving_square(5)]


def make(kind: str) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, kind.replace("Model", "Config"), None)
    model = getattr(transformers, kind)
    if kind == "SiglipVisionModel":
        return model(config(**SMALL, image_size=64, patch_size=16))
    if kind == "SiglipModel":
        vision = {**SMALL, "image_size": 64, "patch_size": 16}
        return model(config(vision_config=vision, text_config=TEXT))
    if kind == "Siglip2VisionModel":
        return model(config(**SMALL, num_patches=64, patch_size=16))
    if kind == "CLIPVisionModel":
        return model(config(**SMALL, image_size=70, patch_size=14))
    if kind == "CLIPModel":
        vision = {**SMALL, "image_size": 70, "patch_size": 14}
        return model(config(vision_config=vision, text_config=TEXT))
    return model(config(**DINO))


@pytest.mark.parametrize(
    ("kind", "prefix", "grid"),
    [
        ("SiglipVisionModel", 0, (4, 4)),
        ("SiglipModel", 0, (4, 4)),
        ("Siglip2VisionModel", 0, (6, 9)),  # keeps the proportions of the frame
        ("CLIPVisionModel", 1, (5, 5)),
        ("CLIPModel", 1, (5, 5)),
        ("Dinov2Model", 1, (5, 5)),
        ("Dinov2WithRegistersModel", 5, (5, 5)),
    ],
)
def test_towers_from_folders(tmp_path: Path, kind: str, prefix: int, grid: tuple) -> None:
    original = make(kind).eval()
    original.save_pretrained(tmp_path)
    model = load_model(tmp_path, device="cpu")
    assert not model.random
    assert model.prefix_tokens == prefix
    inputs = model.pixels(FRAMES)
    assert model.grid == model.feature_grid == grid
    with torch.inference_mode():
        tokens = model.encode(inputs)
        tower = original.vision_model if kind in ("SiglipModel", "CLIPModel") else original
        assert torch.equal(tokens, tower(**inputs).last_hidden_state)
        features = model.features(tokens)
    assert features.shape == (2, grid[0] * grid[1], 32)
    assert torch.equal(features, tokens[:, prefix:])


TOWERS = [kind for kind in MODEL_CLASSES if family_of(kind) is None]


@pytest.mark.parametrize("kind", TOWERS)
def test_a_tower_of_every_type_is_loaded_and_cached(tmp_path: Path, kind: str) -> None:
    """From a folder of the type itself: the tower alone, or a model with a text tower."""
    if kind not in CONFIG_MAPPING or not hasattr(transformers, MODEL_CLASSES[kind]):
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    config = CONFIG_MAPPING[kind]
    vision = {**SMALL, "image_size": 70, "patch_size": 14, "num_patches": 25, "projection_dim": 16}
    if "vision_config" in getattr(config, "sub_configs", ()):
        text = {**TEXT, "projection_dim": 16, "pad_token_id": 0}
        whole = transformers.AutoModel.from_config(config(vision_config=vision, text_config=text))
    else:
        known = config().to_dict()
        small = {name: value for name, value in vision.items() if name in known}
        whole = getattr(transformers, MODEL_CLASSES[kind])(config(**small))
    if whole.config.model_type not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} saves a {kind} that it cannot load")
    whole.eval().save_pretrained(tmp_path)
    model = load_model(tmp_path, device="cpu")
    inputs = model.pixels(FRAMES[:1])
    with torch.inference_mode():
        tokens = model.encode(inputs)
        stc_video.attach_cacher(model.tower)
        torch.testing.assert_close(model.encode(inputs), tokens)
    assert model.features(tokens).shape[1] == model.grid[0] * model.grid[1]


@pytest.mark.parametrize("kind", ["SiglipVisionModel", "Siglip2VisionModel", "Dinov2Model"])
def test_the_picture_is_what_the_model_saw(tmp_path: Path, kind: str) -> None:
    make(kind).save_pretrained(tmp_path)
    model = load_model(tmp_path, device="cpu")
    image = np.zeros((60, 120, 3), np.uint8)
    image[:, :60] = (200, 30, 30)
    image[:, 60:] = (30, 30, 200)
    picture = np.asarray(model.display(model.pixels([image]))[0]).astype(int)
    rows, columns = model.grid
    side = model.preprocessor.patch_size
    assert picture.shape == (rows * side, columns * side, 3)
    height, width = picture.shape[:2]
    assert np.abs(picture[height // 2, width // 6] - (200, 30, 30)).max() < 12
    assert np.abs(picture[height // 2, -width // 6] - (30, 30, 200)).max() < 12


def test_the_processor_of_the_folder_is_used(tmp_path: Path) -> None:
    make("Dinov2Model").save_pretrained(tmp_path)
    default_processor("dinov2", 98, image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
    model = load_model(tmp_path, device="cpu")
    model.pixels(FRAMES)
    assert model.grid == (7, 7)
    assert list(model.preprocessor.processor.image_mean) == [0.1, 0.2, 0.3]


def test_llava_onevision_parts_are_the_whole(tmp_path: Path) -> None:
    whole = build_random("llava-onevision-tiny")
    whole.save_pretrained(tmp_path)
    model = load_model(tmp_path, device="cpu")
    inputs = model.pixels(FRAMES)
    with torch.inference_mode():
        features = model.features(model.encode(inputs))
        video = inputs["pixel_values"][None]
        # Older releases want what newer ones take from the configuration.
        found = whole.model.get_video_features(
            video, vision_feature_layer=-1, vision_feature_select_strategy="full"
        )
    stock = getattr(found, "pooler_output", found)[0, : 2 * 196].reshape(2, 196, -1)
    assert model.grid == (27, 27)
    assert model.feature_grid == (14, 14)
    assert torch.equal(features, stock)


def test_random_weights_are_the_same_every_time() -> None:
    state = torch.random.get_rng_state()
    first, second = (load_model(random_weights="dinov2-small", device="cpu") for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.random
    assert first.notice is not None
    pairs = zip(first.tower.parameters(), second.tower.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_dtype(tower_folder: Path) -> None:
    model = load_model(tower_folder, device="cpu", dtype="bfloat16")
    inputs = model.pixels(FRAMES)
    assert inputs["pixel_values"].dtype == torch.bfloat16
    assert model.encode(inputs).dtype == torch.bfloat16


def test_other_models_are_refused(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"'bert' are not supported; supported are sig"):
        load_model(tmp_path)


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    with pytest.raises(ModelError, match="has no config"):
        load_model(tmp_path)
    make("Dinov2Model").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    lost = next(name for name in weights if "layer.1" in name)
    kept = {name: value for name, value in weights.items() if name != lost}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="1 weights are missing"):
        load_model(tmp_path)
    file.write_bytes(b"no weights at all" * 9)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(tmp_path)


def test_a_name_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="not in the local Hugging Face cache") as caught:
        load_model("someone/a-model-that-is-not-here")
    assert "\n" not in str(caught.value)
