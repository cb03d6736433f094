# SPDX-License-Identifier: Apache-2.0
"""The families of video language models that `accelerate` supports."""
