# SPDX-License-Identifier: Apache-2.0
"""A world with known truth: streams made from a seed, and questions with known answers."""
