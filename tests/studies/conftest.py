# SPDX-License-Identifier: Apache-2.0
"""Where the helpers of other tests are: the browser, the maker of clips."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "report"))  # browser
sys.path.append(str(Path(__file__).parents[1] / "video"))  # clip_maker
