# SPDX-License-Identifier: Apache-2.0
"""The Triton backend, for NVIDIA and AMD GPUs. Importing this package does not import Triton.

One file per reference file, each with one launcher per operator that takes the schema's arguments.

Which work is here and which is left to torch's matrix products (cuBLAS, hipBLASLt) was decided by
bytes. Re-encoding 182 of 729 tokens of SigLIP-so400m, the fused QKV product reads 8.0 MB of
weights, 0.4 MB of rows, and writes 1.3 MB. A product of our own with the gather and the layer norm
in its prologue would save the normed rows' 0.8 MB of 10.5 MB and one launch, and would have to
reach the library's rate on the other 92 %. The MLP is alike (9.9 MB of weights against 0.4 MB and
1.6 MB of rows). So products stay with the library, and what lies between them is one kernel each.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch

from stc_kernels._reason import Reason

#: oldest Triton whose language the kernels are written in
OLDEST = (3, 6)

_HOMES = {
    "token_cosine": "token_cosine",
    "select_changed": "select_changed",
    "select_changed_below": "select_changed",
    "gather_rows": "rows",
    "scatter_rows_": "rows",
    "gather_layer_norm": "rows",
    "scatter_residual": "rows",
    "sparse_query_attention": "sparse_query_attention",
    "add_layer_norm": "transformer_block",
    "bias_gelu": "transformer_block",
    "scatter_key_value_": "transformer_block",
    "channel_variance": "channel_variance",
    "saliency_topk": "saliency_topk",
    "spatial_redundancy": "spatial_redundancy",
    "compact_tokens": "compact_tokens",
    "bipartite_match": "merging",
    "merge_tokens": "merging",
    "attention_column_mean": "attention_column_mean",
    "frames_to_patches": "patches",
    "update_patches_": "patches",
}

#: operators with a Triton kernel
OPS: tuple[str, ...] = tuple(_HOMES)


@functools.cache
def _why_not_importable() -> str | None:
    """Return None if a Triton that is new enough can be imported, else the reason."""
    if importlib.util.find_spec("triton") is None:
        text = "the package `triton` is not installed (pip install 'triton>=3.6')"
        return Reason("no-triton", text)
    try:
        triton = importlib.import_module("triton")
    except ImportError as error:
        return Reason("broken-triton", f"Triton could not be imported ({error})")
    version: str = triton.__version__
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        text = f"Triton {version} is too old (3.6 is the oldest; pip install --upgrade triton)"
        return Reason("old-triton", text)
    return None


def why_unavailable(op: str, device: str) -> str | None:
    """Return None if the Triton kernel of ``op`` can run on ``device``, else the reason."""
    if op not in _HOMES:
        return "there is no Triton kernel for this operator"
    if interpreted():
        return _why_not_importable()
    if device == "cpu":
        return (
            "Triton runs on a CPU in its interpreter only, for tests: set TRITON_INTERPRET=1 "
            "before anything imports Triton"
        )
    if not torch.cuda.is_available():
        return Reason("no-gpu", "torch sees no GPU")
    return _why_not_importable()


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on any device."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


@functools.cache
def implementation(op: str) -> Callable[..., Any]:
    """Return the launcher of ``op``; imports Triton."""
    module = importlib.import_module(f"{__name__}.{_HOMES[op]}")
    launcher: Callable[..., Any] = getattr(module, op)
    return launcher
