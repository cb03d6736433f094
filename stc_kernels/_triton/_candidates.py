# SPDX-License-Identifier: Apache-2.0
"""Launch parameters that the tuner tries, and that must compile for every architecture.

Chosen so that a thread loads 16 bytes at a time and holds 16 to 64 values: for few rows many small
programs, so that all multiprocessors have one; for many rows larger ones.
"""

from __future__ import annotations

from stc_kernels._tuning import Parameters


def _table(names: str, *rows: tuple[int, ...]) -> list[Parameters]:
    """Candidates of a kernel, a row each; one stage of loads if the names do not say."""
    return [{"num_stages": 1} | dict(zip(names.split(), row, strict=True)) for row in rows]


_BLOCK = "BLOCK num_warps"
_TILE = "BLOCK_ROWS BLOCK_CHANNELS num_warps"
_ATTENTION = "BLOCK_QUERIES BLOCK_KEYS num_warps num_stages"
_MATCH = "BLOCK_CANDIDATES BLOCK_PARTNERS BLOCK_CHANNELS num_warps num_stages"

CANDIDATES: dict[str, list[Parameters]] = {
    "token_cosine": _table(
        _TILE,
        (8, 64, 2), (4, 256, 4), (2, 512, 2), (4, 512, 4), (1, 1024, 2), (2, 1024, 4), (1, 2048, 4),
    ),
    "select": _table(_BLOCK, (256, 2), (512, 4), (1024, 4), (1024, 8), (2048, 8)),
    "move_rows": _table(
        _TILE,
        (8, 64, 2), (1, 512, 2), (1, 1024, 4), (2, 512, 4), (4, 512, 4), (8, 512, 8), (2, 2048, 8),
    ),
    "layer_norm": _table(
        "BLOCK_ROWS num_warps", (1, 2), (1, 4), (1, 8), (2, 4), (2, 8), (4, 8)
    ),
    "scatter_residual": _table(
        f"{_TILE} BLOCK_INDICES",
        (8, 64, 2, 256), (2, 512, 4, 256), (4, 256, 4, 256), (8, 256, 4, 256), (4, 1024, 8, 256),
    ),
    "attention": _table(
        _ATTENTION,
        (16, 32, 2, 2), (16, 64, 4, 3), (32, 32, 4, 2), (32, 64, 4, 2),
        (64, 32, 4, 2), (64, 64, 4, 1), (128, 32, 8, 1),
    ),
    # Without matrix units a tile's products are unrolled, and only small ones fit the registers.
    "attention_float32": _table(
        _ATTENTION, (16, 32, 4, 1), (32, 16, 4, 1), (16, 32, 8, 1)
    ),
    "bias_gelu": _table(
        _TILE, (4, 256, 4), (1, 1024, 4), (2, 1024, 4), (1, 2048, 8), (4, 1024, 8)
    ),
    "channel_variance": _table(
        f"ROWS_PER_PART {_TILE} num_stages",
        *((part, *tile) for part in (32, 128, 512)
          for tile in ((16, 64, 4, 2), (32, 64, 4, 2), (32, 128, 8, 2))),
    ),
    "saliency": _table(
        "BLOCK_TOKENS BLOCK_CHANNELS num_warps",
        (2, 512, 4), (4, 512, 4), (8, 256, 4), (16, 128, 4), (16, 256, 8),
    ),
    "spatial_redundancy": _table(
        "BLOCK_HEIGHT BLOCK_WIDTH BLOCK_CHANNELS num_warps",
        (1, 2, 512, 4), (2, 2, 256, 4), (2, 4, 128, 4), (4, 4, 64, 4), (4, 8, 64, 8),
    ),
    "scan": _table(_BLOCK, (256, 2), (512, 4), (1024, 4)),
    "match": _table(_MATCH, (16, 64, 64, 4, 2), (32, 32, 64, 4, 2), (64, 64, 64, 4, 2)),
    "match_float32": _table(
        _MATCH, (16, 16, 32, 2, 2), (16, 32, 32, 4, 2), (32, 32, 32, 8, 2)
    ),
    "merge": _table(
        "BLOCK BLOCK_CHANNELS num_warps", (256, 512, 2), (1024, 1024, 4), (1024, 2048, 8)
    ),
    "patches": _table(_BLOCK, (64, 2), (128, 4), (256, 4)),
    "column_mean": _table(
        _ATTENTION, (32, 32, 4, 2), (64, 32, 4, 2), (64, 64, 8, 1)
    ),
    "column_mean_float32": _table(
        _ATTENTION, (16, 16, 4, 1), (16, 32, 8, 1)
    ),
}  # fmt: skip

#: operator -> the kernels whose parameters it looks up
TUNED_KERNELS: dict[str, tuple[str, ...]] = {
    "token_cosine": ("token_cosine",),
    "select_changed": ("token_cosine", "select"),
    "select_changed_below": ("token_cosine", "select"),
    "gather_rows": ("move_rows",),
    "scatter_rows_": ("move_rows",),
    "gather_layer_norm": ("layer_norm",),
    "scatter_residual": ("scatter_residual",),
    "sparse_query_attention": ("attention", "attention_float32"),
    "add_layer_norm": ("layer_norm",),
    "bias_gelu": ("bias_gelu",),
    "scatter_key_value_": ("move_rows",),
    "channel_variance": ("channel_variance",),
    "saliency_topk": ("saliency", "select"),
    "spatial_redundancy": ("spatial_redundancy",),
    "compact_tokens": ("scan", "move_rows"),
    "bipartite_match": ("match", "match_float32", "select", "scan"),
    "merge_tokens": ("merge",),
    "attention_column_mean": ("column_mean", "column_mean_float32"),
    "frames_to_patches": ("patches",),
    "update_patches_": ("patches",),
}
