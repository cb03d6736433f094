# SPDX-License-Identifier: Apache-2.0
"""What pruners keep of real clips, compared at the same number of tokens."""
