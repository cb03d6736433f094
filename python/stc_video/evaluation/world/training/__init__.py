# SPDX-License-Identifier: Apache-2.0
"""Training of the small model: tower features once, then the projector, then the decoder."""
