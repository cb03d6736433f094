# SPDX-License-Identifier: Apache-2.0
"""The ``motion`` policy: re-encode the tokens that changed, and some of those that grew stale."""
