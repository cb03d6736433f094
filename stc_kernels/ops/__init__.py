# SPDX-License-Identifier: Apache-2.0
"""The operators: one file each, with the public function, its validation, and its fake."""
