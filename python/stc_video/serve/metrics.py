# SPDX-License-Identifier: Apache-2.0
"""Metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stc_video.serve.hub import StreamHub

_FRAME_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ANSWER_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counters and histograms of a service.

    Attributes
    ----------
    frame_seconds
        From the arrival of a frame until the model had seen it.
    first_token_seconds, answer_seconds
        From a question to the first token and the end of its answer, waiting included.
    answers
        By outcome: complete, stopped (the client went away), failed, refused (too many).
    refused
        Requests by reason: token, origin.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.frame_seconds = Histogram(
            "stc_frame_seconds",
            "From the arrival of a frame until the model had seen it.",
            buckets=_FRAME_SECONDS,
            registry=registry,
        )
        self.first_token_seconds = Histogram(
            "stc_first_token_seconds",
            "From a question to the first token of its answer.",
            buckets=_ANSWER_SECONDS,
            registry=registry,
        )
        self.answer_seconds = Histogram(
            "stc_answer_seconds",
            "From a question to the end of its answer.",
            buckets=_ANSWER_SECONDS,
            registry=registry,
        )
        self.answers = Counter("stc_answers", "Answers by outcome.", ["outcome"], registry=registry)
        self.refused = Counter(
            "stc_refused_requests", "Requests refused, by reason.", ["reason"], registry=registry
        )

    def watch(self, hub: StreamHub) -> None:
        """Let the streams' own counts be read at each scrape."""
        self._registry.register(_StreamCollector(hub))

    def text(self) -> bytes:
        """All values in Prometheus' text format."""
        return generate_latest(self._registry)


class _StreamCollector(Collector):
    """Reads what the streams count themselves."""

    def __init__(self, hub: StreamHub) -> None:
        self._hub = hub

    def collect(self) -> Iterable[Metric]:
        """Yield one family per kind of count."""
        frames = CounterMetricFamily(
            "stc_frames", "Frames by what became of them.", labels=["stream", "outcome"]
        )
        waiting = GaugeMetricFamily("stc_frames_waiting", "Frames that wait.", labels=["stream"])
        held = GaugeMetricFamily(
            "stc_memory_bytes", "Bytes held for a stream.", labels=["stream", "store"]
        )
        tokens = GaugeMetricFamily("stc_memory_tokens", "Tokens remembered.", labels=["stream"])
        cost = GaugeMetricFamily(
            "stc_tower_cost", "Mean fraction of a dense frame's operations.", labels=["stream"]
        )
        streams = self._hub.streams()
        for stream in streams:
            counts, stats, name = stream.counts(), stream.session.stats(), stream.name
            for outcome in ("received", "seen", "dropped"):
                frames.add_metric([name, outcome], counts[outcome])
            for reason, count in counts["rejected"].items():
                frames.add_metric([name, f"rejected_{reason}"], count)
            waiting.add_metric([name], counts["waiting"])
            tokens.add_metric([name], stats.memory_tokens)
            for store, size in stats.bytes.items():
                held.add_metric([name, store], size)
            if stats.cache is not None and stats.cache.frames:
                cost.add_metric([name], stats.cache.cost)
        yield from (frames, waiting, held, tokens, cost)
        yield GaugeMetricFamily("stc_streams", "Streams.", value=len(streams))
        yield CounterMetricFamily("stc_saves", "Saves of streams.", value=self._hub.saves)
        failed = self._hub.failed_saves
        yield CounterMetricFamily("stc_failed_saves", "Saves that failed.", value=failed)
        damaged = self._hub.damaged_saves
        yield CounterMetricFamily(
            "stc_damaged_saves", "Saves found damaged and set aside.", value=damaged
        )
