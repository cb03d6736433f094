# SPDX-License-Identifier: Apache-2.0
"""What holds for the whole test process."""

from __future__ import annotations

import os

import torch

# On a machine without a GPU, Triton's interpreter runs its kernels. It is chosen by a variable
# that must be set before anything imports Triton, for the whole process.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
