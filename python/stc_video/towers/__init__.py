# SPDX-License-Identifier: Apache-2.0
"""Adapters: one view of the transformer blocks of the towers people use."""
