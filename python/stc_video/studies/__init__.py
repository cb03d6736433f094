# SPDX-License-Identifier: Apache-2.0
"""Comparisons of cache settings and of pruning methods on real clips."""
