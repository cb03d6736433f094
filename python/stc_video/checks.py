# SPDX-License-Identifier: Apache-2.0
"""Checks of settings, which name the setting, what is allowed and what was given."""

from __future__ import annotations

from collections.abc import Collection


def check_choice(setting: str, value: object, allowed: Collection[str]) -> None:
    """Raise ValueError if a value is none of the allowed ones."""
    if value not in allowed:
        raise ValueError(f"{setting} must be one of {', '.join(allowed)}, got {value!r}")


def check_count(setting: str, value: int, low: int) -> None:
    """Raise ValueError if a value is no whole number, or below the lowest that is allowed."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{setting} must be a whole number from {low}, got {value!r}")


def check_between(setting: str, value: float, low: float, high: float) -> None:
    """Raise ValueError if a number is outside of what is allowed, or NaN."""
    if not low <= value <= high:
        raise ValueError(f"{setting} must be between {low:g} and {high:g}, got {value}")
