# SPDX-License-Identifier: Apache-2.0
"""Models: which weights, what they see, and where their tokens come from."""
