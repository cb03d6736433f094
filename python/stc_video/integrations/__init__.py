# SPDX-License-Identifier: Apache-2.0
"""Streaming inside other projects: ReKV, StreamForest, Dispider, LLaVA-NeXT, LiveCC, vLLM."""
