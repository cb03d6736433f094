# SPDX-License-Identifier: Apache-2.0
"""Where the browser of the report's tests is."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "report"))  # browser
