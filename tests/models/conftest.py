# SPDX-License-Identifier: Apache-2.0
"""What older releases of transformers have no models for."""

from __future__ import annotations

import transformers
from packaging.version import Version
from tower_fixtures import _two_threads, backend, siglip, watched_as_large  # noqa: F401

# Older releases are supported for the towers of SigLIP, CLIP and DINOv2 alone.
if Version(transformers.__version__) < Version("4.57"):
    collect_ignore = [
        "test_answer_settings.py",
        "test_cache_argument.py",
        "test_conversations.py",
        "test_gemma_memory.py",
        "test_generate.py",
        "test_self_check.py",
        "test_livecc.py",
        "test_load_chat.py",
        "test_tower_threads.py",
        "test_varlen_cacher.py",
        "test_qwen_memory.py",
        "test_qwen_session.py",
        "test_qwen_towers.py",
        "test_qwen_vl.py",
        "test_real_processors.py",
        "test_video_llm_sessions.py",
        "test_video_llms.py",
    ]
