# SPDX-License-Identifier: Apache-2.0
"""Schema of every operator, written once.

Schemas live in Python and the compiled library only implements them: a typo raises here like any
other Python error, whereas a bad schema in a C++ static initialiser aborts the interpreter.

Each operator ``op`` is defined twice in the namespace: ``op`` (implemented in Python, chooses the
backend when it runs; this is what ``torch.compile`` sees) and :func:`native_name` of it
(implemented by the compiled library, when there is one).
"""

from __future__ import annotations

import torch

NAMESPACE = "stc_kernels"

_PATCH_PLAN = "Tensor rows, Tensor columns, Tensor values, int patch_height, int patch_width"

#: operator -> (parameters, returns)
SCHEMAS: dict[str, tuple[str, str]] = {
    "token_cosine": ("Tensor current, Tensor reference", "Tensor"),
    "select_changed": (
        "Tensor current, Tensor reference, int k, int pinned",
        "(Tensor, Tensor)",
    ),
    "select_changed_below": (
        "Tensor current, Tensor reference, float threshold, int capacity, int pinned",
        "(Tensor, Tensor, Tensor)",
    ),
    "gather_rows": ("Tensor x, Tensor indices", "Tensor"),
    "scatter_rows_": ("Tensor(a!) x, Tensor indices, Tensor rows", "()"),
    "gather_layer_norm": (
        "Tensor x, Tensor indices, Tensor? weight, Tensor? bias, float eps",
        "Tensor",
    ),
    "scatter_residual": ("Tensor base, Tensor update, Tensor indices, Tensor rows", "Tensor"),
    "sparse_query_attention": (
        "Tensor query, Tensor key, Tensor value, float scale, Tensor? key_bias",
        "Tensor",
    ),
    "add_layer_norm": (
        "Tensor base, Tensor update, Tensor? weight, Tensor? bias, float eps, Tensor? scale",
        "(Tensor, Tensor)",
    ),
    "bias_gelu": ("Tensor x, Tensor? bias, str approximate", "Tensor"),
    "scatter_key_value_": (
        "Tensor(a!) key_cache, Tensor(b!) value_cache, Tensor indices, Tensor key, Tensor value, "
        "Tensor? key_bias, Tensor? value_bias",
        "()",
    ),
    "channel_variance": ("Tensor tokens", "Tensor"),
    "saliency_topk": (
        "Tensor tokens, Tensor? memory, int k, str method, float alpha, Tensor? channels",
        "(Tensor, Tensor)",
    ),
    "spatial_redundancy": ("Tensor tokens, Tensor? alive", "Tensor"),
    "compact_tokens": ("Tensor tokens, Tensor keep, int capacity", "(Tensor, Tensor, Tensor)"),
    "bipartite_match": ("Tensor metric, int r, int protected", "(Tensor, Tensor, Tensor)"),
    "merge_tokens": (
        "Tensor tokens, Tensor source_map, int count, Tensor? sizes",
        "(Tensor, Tensor)",
    ),
    "attention_column_mean": ("Tensor query, Tensor key, float scale", "Tensor"),
    "frames_to_patches": (f"Tensor pictures, {_PATCH_PLAN}", "Tensor"),
    "update_patches_": (
        f"Tensor(a!) patches, Tensor pictures, Tensor previous, {_PATCH_PLAN}",
        "Tensor",
    ),
}

#: names of all operators
OPS: tuple[str, ...] = tuple(SCHEMAS)

# One Library object for the life of the process: its destructor would undefine the operators.
LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")


def parameter_names(op: str) -> tuple[str, ...]:
    """Return the names of an operator's arguments, in order."""
    return tuple(part.split()[-1] for part in SCHEMAS[op][0].split(", "))


def written_arguments(op: str) -> int:
    """Return how many of an operator's first arguments it writes to."""
    return SCHEMAS[op][0].count("!)")


def native_name(op: str) -> str:
    """Return the name under which the compiled library implements ``op``."""
    return f"{op.rstrip('_')}_native"


def define(op: str) -> None:
    """Define ``op`` and its native counterpart in the namespace."""
    parameters, returns = SCHEMAS[op]
    tags = (torch.Tag.pt2_compliant_tag,)
    LIBRARY.define(f"{op}({parameters}, *, str? backend=None) -> {returns}", tags=tags)
    LIBRARY.define(f"{native_name(op)}({parameters}) -> {returns}", tags=tags)
