# SPDX-License-Identifier: Apache-2.0
"""Inside vLLM: its towers reuse their work per stream, and its videos are pruned by our pruners.

vLLM calls :func:`stc_video.integrations.vllm.plugin.register` by its entry point; nothing happens
unless ``STC_VLLM`` is set. Only ``models`` imports vLLM.
"""

from stc_video.integrations.vllm.pruning import (
    compute_retained_tokens_count,
    compute_retention_mask,
)

__all__ = ["compute_retained_tokens_count", "compute_retention_mask"]
