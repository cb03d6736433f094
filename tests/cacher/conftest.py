# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of the cacher, which are those of the towers."""

from tower_fixtures import _two_threads, backend, siglip, watched_as_large  # noqa: F401
