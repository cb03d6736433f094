# SPDX-License-Identifier: Apache-2.0
"""Vision towers and video language models by name or folder, with the weights that they need."""
