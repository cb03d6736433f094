# SPDX-License-Identifier: Apache-2.0
"""Published benchmarks: their questions, asked of a stream, and their scores."""
