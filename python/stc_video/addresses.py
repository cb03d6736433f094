# SPDX-License-Identifier: Apache-2.0
"""Addresses of cameras, which often hold a password."""

from __future__ import annotations

import re

_PASSWORD = re.compile(r"(?<=://)[^/\s'\"]*@")


def without_password(text: str) -> str:
    """Leave the user's name and password out of every address in a text."""
    return _PASSWORD.sub("", text)
