# SPDX-License-Identifier: Apache-2.0
"""`stc serve`: live streams that can be asked over HTTP."""
