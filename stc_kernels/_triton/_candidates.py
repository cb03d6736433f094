# SPDX-License-Identifier: Apache-2.0
"""Launch parameters that the tuner tries, and that must compile for every architecture.

Chosen so that a thread loads 16 bytes at a time and holds 16 to 64 values: for few rows many small
programs, so that all multiprocessors have one; for many rows larger ones.
"""

from __future__ import annotations

from stc_kernels._tuning import Parameters


def _tiles(rows_name: str, *tiles: tuple[int, int, int, int]) -> list[Parameters]:
    """Candidates of (rows, channels, num_warps, num_stages)."""
    return [
        {
            rows_name: rows,
            "BLOCK_CHANNELS": channels,
            "num_warps": warps,
            "num_stages": stages,
        }
        for rows, channels, warps, stages in tiles
    ]


def _attention(*tiles: tuple[int, int, int, int]) -> list[Parameters]:
    """Candidates of (queries, keys, num_warps, num_stages)."""
    return [
        {"BLOCK_QUERIES": queries, "BLOCK_KEYS": keys, "num_warps": warps, "num_stages": stages}
        for queries, keys, warps, stages in tiles
    ]


def _match(*tiles: tuple[int, int, int, int]) -> list[Parameters]:
    """Candidates of (candidates, partners, channels, num_warps)."""
    return [
        {
            "BLOCK_CANDIDATES": candidates,
            "BLOCK_PARTNERS": partners,
            "BLOCK_CHANNELS": channels,
            "num_warps": warps,
            "num_stages": 2,
        }
        for candidates, partners, channels, warps in tiles
    ]


CANDIDATES: dict[str, list[Parameters]] = {
    "token_cosine": _tiles(
        "BLOCK_ROWS",
        (8, 64, 2, 1),
        (4, 256, 4, 1),
        (2, 512, 2, 1),
        (4, 512, 4, 1),
        (1, 1024, 2, 1),
        (2, 1024, 4, 1),
        (1, 2048, 4, 1),
    ),
    "select": [
        {"BLOCK": block, "num_warps": warps, "num_stages": 1}
        for block, warps in ((256, 2), (512, 4), (1024, 4), (1024, 8), (2048, 8))
    ],
    "move_rows": _tiles(
        "BLOCK_ROWS",
        (8, 64, 2, 1),
        (1, 512, 2, 1),
        (1, 1024, 4, 1),
        (2, 512, 4, 1),
        (4, 512, 4, 1),
        (8, 512, 8, 1),
        (2, 2048, 8, 1),
    ),
    "layer_norm": [
        {"BLOCK_ROWS": rows, "num_warps": warps, "num_stages": 1}
        for rows, warps in ((1, 2), (1, 4), (1, 8), (2, 4), (2, 8), (4, 8))
    ],
    "scatter_residual": [
        {**tile, "BLOCK_INDICES": 256}
        for tile in _tiles(
            "BLOCK_ROWS",
            (8, 64, 2, 1),
            (2, 512, 4, 1),
            (4, 256, 4, 1),
            (8, 256, 4, 1),
            (4, 1024, 8, 1),
        )
    ],
    "attention": _attention(
        (16, 32, 2, 2),
        (16, 64, 4, 3),
        (32, 32, 4, 2),
        (32, 64, 4, 2),
        (64, 32, 4, 2),
        (64, 64, 4, 1),
        (128, 32, 8, 1),
    ),
    # Without matrix units a tile's products are unrolled, and only small ones fit the registers.
    "attention_float32": _attention(
        (16, 32, 4, 1),
        (32, 16, 4, 1),
        (16, 32, 8, 1),
    ),
    "bias_gelu": _tiles(
        "BLOCK_ROWS",
        (4, 256, 4, 1),
        (1, 1024, 4, 1),
        (2, 1024, 4, 1),
        (1, 2048, 8, 1),
        (4, 1024, 8, 1),
    ),
    "channel_variance": [
        {**tile, "ROWS_PER_PART": per_part}
        for per_part in (32, 128, 512)
        for tile in _tiles("BLOCK_ROWS", (16, 64, 4, 2), (32, 64, 4, 2), (32, 128, 8, 2))
    ],
    "saliency": _tiles(
        "BLOCK_TOKENS",
        (2, 512, 4, 1),
        (4, 512, 4, 1),
        (8, 256, 4, 1),
        (16, 128, 4, 1),
        (16, 256, 8, 1),
    ),
    "spatial_redundancy": [
        {
            "BLOCK_HEIGHT": height,
            "BLOCK_WIDTH": width,
            "BLOCK_CHANNELS": channels,
            "num_warps": warps,
            "num_stages": 1,
        }
        for height, width, channels, warps in (
            (1, 2, 512, 4),
            (2, 2, 256, 4),
            (2, 4, 128, 4),
            (4, 4, 64, 4),
            (4, 8, 64, 8),
        )
    ],
    "scan": [
        {"BLOCK": block, "num_warps": warps, "num_stages": 1}
        for block, warps in ((256, 2), (512, 4), (1024, 4))
    ],
    "match": _match((16, 64, 64, 4), (32, 32, 64, 4), (64, 64, 64, 4)),
    "match_float32": _match((16, 16, 32, 2), (16, 32, 32, 4), (32, 32, 32, 8)),
    "merge": [
        {"BLOCK": block, "BLOCK_CHANNELS": channels, "num_warps": warps, "num_stages": 1}
        for block, channels, warps in (
            (256, 512, 2),
            (1024, 1024, 4),
            (1024, 2048, 8),
        )
    ],
    "patches": [
        {"BLOCK": block, "num_warps": warps, "num_stages": 1}
        for block, warps in ((64, 2), (128, 4), (256, 4))
    ],
    "column_mean": _attention(
        (32, 32, 4, 2),
        (64, 32, 4, 2),
        (64, 64, 8, 1),
    ),
    "column_mean_float32": _attention(
        (16, 16, 4, 1),
        (16, 32, 8, 1),
    ),
}

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
