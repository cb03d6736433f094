# SPDX-License-Identifier: Apache-2.0
"""The accuracy of cached features, and the calibration of the ``motion`` policy."""
