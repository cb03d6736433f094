# SPDX-License-Identifier: Apache-2.0
"""The options of a run, checked as far as that needs no model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stc_video import CacheConfig
    from stc_video.cli.questions import Question
    from stc_video.pruners import Pruner

__all__ = ["RunSettings"]


@dataclass(frozen=True)
class RunSettings:
    """Options of `stc run` under the same names; None means the default of what it is for."""

    video: str | None = None
    fps: float = 2.0
    start: float = 0.0
    duration: float | None = None
    max_frames: int | None = None
    fit: str | None = None
    policy: str = "motion"
    ratio: float | None = None
    interval: int | None = None
    threshold: float | None = None
    quality: float | None = None
    prune: str = "stc"
    tokens_per_frame: int = 64
    prune_method: str | None = None
    dense_every: int = 4
    model: str | None = None
    random_weights: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    backend: str | None = None
    threads: int | None = None
    ask: tuple[str, ...] = ()
    at: tuple[str, ...] = ()
    retrieve_tokens: int = 4096
    max_new_tokens: int = 256

    def questions(self) -> list[Question]:
        """Return the questions in the order of their times.

        Raises
        ------
        ValueError
            If one is empty, a time cannot be read, or there is no model to ask.
        """
        from stc_video.cli.questions import pair_questions

        made = pair_questions(self.ask, self.at)
        if made and self.model is None and self.random_weights is None:
            raise ValueError(
                "--ask needs a language model: give --model with a LLaVA-OneVision, such as "
                "llava-hf/llava-onevision-qwen2-0.5b-ov-hf, or llava-onevision-tiny to try it with "
                "random weights"
            )
        return made

    @property
    def needs_attention(self) -> bool:
        """Whether the pruner ranks tokens by the tower's attention."""
        return self.prune == "visionzip"

    def cache_config(self) -> CacheConfig:
        """Return the cacher's settings.

        Raises
        ------
        ValueError
            If one is out of range or belongs to the other policy.
        """
        from stc_video import CacheConfig

        if self.policy != "stc":
            for name, value in (("ratio", self.ratio), ("interval", self.interval)):
                if value is not None:
                    raise ValueError(f"--{name} belongs to --policy stc, not to {self.policy}")
        if self.quality is not None and self.policy != "motion":
            raise ValueError(f"--quality belongs to --policy motion, not to {self.policy}")
        if self.quality is not None and self.threshold is not None:
            raise ValueError("--quality and --threshold exclude each other: give one of them")
        config = CacheConfig(policy=self.policy)
        if self.quality is not None:
            config = replace(config, quality=self.quality)
        if self.ratio is not None:
            config = replace(config, ratio=self.ratio)
        if self.interval is not None:
            config = replace(config, interval=self.interval)
        if self.threshold is not None:
            config = replace(config, threshold=self.threshold)
        if self.needs_attention:
            # Passes that a GPU replays show no attention.
            config = replace(config, batching="ragged")
        return config

    def pruner(self) -> Pruner | None:
        """Return a new pruner, or None if nothing is to be pruned.

        Raises
        ------
        ValueError
            If a setting is out of range or belongs to another pruner.
        """
        from stc_video import make_pruner

        if self.prune_method is not None and self.prune != "stc":
            raise ValueError(f"--prune-method belongs to --prune stc, not to {self.prune}")
        if self.prune == "none":
            return None
        own = {} if self.prune_method is None else {"method": self.prune_method}
        return make_pruner(self.prune, tokens_per_frame=self.tokens_per_frame, **own)

    def shown(self) -> dict[str, object]:
        """Return what the report lists: the options, and the cacher's settings in full."""
        own = asdict(self)
        for name in (
            "video",
            "policy",
            "ratio",
            "interval",
            "threshold",
            "quality",
            "device",
            "dtype",
        ):
            del own[name]
        if self.prune == "none":
            del own["tokens_per_frame"]
        elif self.prune == "stc":
            own["prune_method"] = getattr(self.pruner(), "method", None)
        if not self.ask:
            del own["retrieve_tokens"], own["max_new_tokens"]
        del own["ask"], own["at"]
        cache = {f"cache {name}": value for name, value in asdict(self.cache_config()).items()}
        return {**own, **cache}
