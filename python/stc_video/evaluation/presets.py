# SPDX-License-Identifier: Apache-2.0
"""Settings of published rows, as far as they are known."""

from __future__ import annotations

from dataclasses import dataclass

from stc_video.evaluation.configurations import Configuration
from stc_video.evaluation.runner import Sampling


@dataclass(frozen=True)
class Preset:
    """A published row.

    Attributes
    ----------
    configuration, sampling
        What is set.
    left_open
        What its source does not say, or what differs here.
    """

    configuration: Configuration
    sampling: Sampling
    left_open: str


def _stc(interval: int, fps: float) -> Preset:
    return Preset(
        Configuration(
            f"STC on ReKV, 1 in {interval} dense",
            policy="stc",
            ratio=0.25,
            interval=interval,
            prune="stc",
            tokens_per_frame=64,
            memory="rekv",
            retrieve_tokens=64 * 64,
        ),
        Sampling(fps=fps, max_new_tokens=16),
        "STC (arXiv 2512.00891): its README says 0.5 fps and its scripts for OVO-Bench and "
        "StreamingBench sample 1 fps; the scripts give the raw prompt without a chat template, "
        "here the model's template is used; retrieved are 64 frames of 64 tokens, after ReKV's "
        "default of 64 blocks; the window is 8,192 tokens here and 15,000 there",
    )


PRESETS = {
    "stc-rekv-2": _stc(2, 0.5),
    "stc-rekv-4": _stc(4, 0.5),
    "stc-rekv-2-1fps": _stc(2, 1.0),
    "stc-rekv-4-1fps": _stc(4, 1.0),
    "streaming-assistant": Preset(
        Configuration(
            "StreamingAssistant",
            policy="none",
            prune="streaming_assistant",
            tokens_per_frame=None,
            pruner_settings={"temporal_threshold": 0.5, "spatial_threshold": 0.5},
            memory="rekv",
            retrieve_tokens=64 * 64,
        ),
        Sampling(fps=0.5, max_new_tokens=16),
        "StreamingAssistant (arXiv 2512.12560): tau_t and tau_s are 0.5 here, and the paper does "
        "not say whether they are similarities; no code is public; its memory is not said, "
        "here it is ReKV's with 64 frames' worth of 64 tokens",
    ),
}


def find_preset(name: str) -> Preset:
    """Return a preset by name."""
    if name not in PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]
