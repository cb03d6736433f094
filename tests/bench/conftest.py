# SPDX-License-Identifier: Apache-2.0
"""Where the tiny towers are."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "models"))  # tiny_towers, stc_oracle
