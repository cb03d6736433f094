# SPDX-License-Identifier: Apache-2.0
"""Pruners run on every backend that exists here."""

from __future__ import annotations

import os

import torch

# As in tests/ops: must be set before Triton is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
