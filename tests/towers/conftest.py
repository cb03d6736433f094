# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests with every tower, which are those of the models."""

from tower_fixtures import _two_threads  # noqa: F401
