# SPDX-License-Identifier: Apache-2.0
"""Reasons, for people and for programs."""

from __future__ import annotations


class Reason(str):
    """A sentence that says why something cannot run.

    Attributes
    ----------
    code
        The same for programs, such as "no-compiler".
    """

    code: str

    def __new__(cls, code: str, text: str) -> Reason:
        """Make the sentence."""
        reason = super().__new__(cls, text)
        reason.code = code
        return reason

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        """Return what a copy is made from."""
        return self.code, str(self)
