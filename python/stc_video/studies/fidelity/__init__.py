# SPDX-License-Identifier: Apache-2.0
"""What caching costs in accuracy of the features, and the calibration that comes of it."""
