# SPDX-License-Identifier: Apache-2.0
"""Times of frames, dense in several ways, as published, and ours, taken in one run.

`grid.py` is what is measured, `contenders.py` who competes, `correctness.py` what is checked before
any time is taken, `timing.py` how it is taken, `run.py` goes over all of it. What comes out is in
`table.py`, `plot.py` and `limits.py`.
"""
