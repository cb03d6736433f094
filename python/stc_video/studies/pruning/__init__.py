# SPDX-License-Identifier: Apache-2.0
"""Pruners compared on real clips at the same number of tokens."""
