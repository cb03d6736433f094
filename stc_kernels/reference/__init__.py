# SPDX-License-Identifier: Apache-2.0
"""Plain PyTorch in float32: the definition of what every backend has to compute.

One file per operator, each with one function named as the operator, with the operator's schema.
Inputs are validated by ``stc_kernels.ops``; these functions never synchronise with a device.
"""
