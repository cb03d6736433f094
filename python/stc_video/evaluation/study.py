# SPDX-License-Identifier: Apache-2.0
"""Configurations that show what each saving costs in answers."""

from __future__ import annotations

from dataclasses import replace

from stc_video.evaluation.configurations import BLIND, DENSE, Configuration

_QUALITIES = (0.983, 0.95, 0.9, 0.8)
_INTERVALS = (2, 4)
_PRUNERS = ("stc", "dtd", "uniform", "random")
_SHARES = (0.5, 0.25, 0.1, 0.05)
_STC_SHARE = 64 / 196  # of LLaVA-OneVision's tokens in the paper, arXiv 2512.00891
_RETRIEVED = (8, 4)  # frames' worth of tokens


def study(frame_tokens: int) -> list[Configuration]:
    """Return the dense configuration, and others that save in one way each, or in several.

    Parameters
    ----------
    frame_tokens
        Tokens of a frame before pruning. The shares that are kept are 50, 25, 10 and 5 %, rounded
        to whole tokens and at least one; shares of as many tokens stand once.
    """
    dense = Configuration(DENSE, policy="none", prune="none", memory="plain")
    blind = replace(dense, name=BLIND, blind=True)
    motion = [replace(dense, name="", policy="motion", quality=q) for q in _QUALITIES]
    stc = [replace(dense, name="", policy="stc", ratio=0.25, interval=i) for i in _INTERVALS]
    counts = dict.fromkeys(max(1, round(frame_tokens * share)) for share in _SHARES)
    pruned = [replace(dense, name="", prune=name, tokens_per_frame=count)
              for name in _PRUNERS for count in counts]  # fmt: skip
    memories = [replace(dense, name="", memory="rekv", retrieve_tokens=frames * frame_tokens)
                for frames in _RETRIEVED]  # fmt: skip
    last = replace(dense, name="last 4 frames", memory="window", window_frames=4)
    share = max(1, round(frame_tokens * _STC_SHARE))
    theirs = replace(stc[0], name="STC's setting", prune="stc", tokens_per_frame=share)
    quarter = max(1, round(frame_tokens / 4))
    ours = [replace(one, name=f"ours, quality {one.quality:g}, {quarter} tokens", prune="dtd",
                    tokens_per_frame=quarter) for one in motion[1:3]]  # fmt: skip
    return [dense, blind, *motion, *stc, *pruned, *memories, last, theirs, *ours]
