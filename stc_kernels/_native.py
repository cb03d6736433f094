# SPDX-License-Identifier: Apache-2.0
"""Placeholder until the native library lands."""

from __future__ import annotations


def load() -> str | None:
    """Reason."""
    return "not built"


def build_info() -> dict[str, object]:
    """Info."""
    return {}
