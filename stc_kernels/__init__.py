# SPDX-License-Identifier: Apache-2.0
"""Operators for streaming vision transformers: change detection, sparse rows, token pruning.

Pure functions of tensors. Every operator takes float32, float16 or bfloat16 tensors of any
strides, and those from pictures to patches take bytes; it does its arithmetic in float32, or in
integers, has shapes that are known beforehand, and gives the same indices on every backend. For
inference only.
"""

from stc_kernels._dispatch import (
    AvailableBackends,
    BackendUnavailableError,
    BackendWarning,
    available_backends,
    use_backend,
)
from stc_kernels._native import build_info
from stc_kernels._schemas import OPS
from stc_kernels._tuning import TuningWarning
from stc_kernels._version import __version__
from stc_kernels._warmup import warmup
from stc_kernels.ops.attention_column_mean import attention_column_mean
from stc_kernels.ops.channel_variance import channel_variance
from stc_kernels.ops.compact_tokens import compact_tokens
from stc_kernels.ops.merging import bipartite_match, merge_tokens
from stc_kernels.ops.patch_plan import PatchPlan, patch_plan
from stc_kernels.ops.patches import frames_to_patches, update_patches_
from stc_kernels.ops.rows import gather_layer_norm, gather_rows, scatter_residual, scatter_rows_
from stc_kernels.ops.saliency_topk import saliency_topk
from stc_kernels.ops.select_changed import select_changed, select_changed_below
from stc_kernels.ops.sparse_query_attention import sparse_query_attention
from stc_kernels.ops.spatial_redundancy import spatial_redundancy
from stc_kernels.ops.token_cosine import token_cosine
from stc_kernels.ops.transformer_block import add_layer_norm, bias_gelu, scatter_key_value_

__all__ = [
    "OPS",
    "AvailableBackends",
    "BackendUnavailableError",
    "BackendWarning",
    "PatchPlan",
    "TuningWarning",
    "__version__",
    "add_layer_norm",
    "attention_column_mean",
    "available_backends",
    "bias_gelu",
    "bipartite_match",
    "build_info",
    "channel_variance",
    "compact_tokens",
    "frames_to_patches",
    "gather_layer_norm",
    "gather_rows",
    "merge_tokens",
    "patch_plan",
    "saliency_topk",
    "scatter_key_value_",
    "scatter_residual",
    "scatter_rows_",
    "select_changed",
    "select_changed_below",
    "sparse_query_attention",
    "spatial_redundancy",
    "token_cosine",
    "update_patches_",
    "use_backend",
    "warmup",
]
