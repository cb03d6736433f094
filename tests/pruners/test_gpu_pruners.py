# SPDX-License-Identifier: Apache-2.0
"""Pruners of exact count on a GPU: nothing waits for the device, and a graph may hold them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stc_video import make_pruner
from stc_video.pruners import Attention, PrunedTokens, Pruner

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]

GRID, WIDTH, FRAMES = (14, 14), 256, 9
TOKENS = GRID[0] * GRID[1]

EXACT = [
    ("stc", {"tokens_per_frame": 64}),
    ("stc", {"tokens_per_frame": 64, "method": "gaussian", "memory": 3}),
    ("dtd", {"tokens_per_frame": 64}),
    ("dtd", {"tokens_per_frame": 64, "mode": "pixel"}),
    ("streaming_assistant", {"tokens_per_frame": 64}),
    ("streaming_assistant", {"tokens_per_frame": 64, "parity": "alternating", "passes": 2}),
    ("streaming_assistant", {"tokens_per_frame": 64, "parity": "adaptive", "pattern": "random"}),
    ("vidcom2", {"tokens_per_frame": 64}),
    ("visionzip", {"tokens_per_frame": 64}),
    ("visionzip", {"tokens_per_frame": 64, "merge": "mean"}),
    ("tome", {"tokens_per_frame": 64}),
    ("evs", {"tokens_per_frame": 64}),
    ("uniform", {"tokens_per_frame": 64}),
    ("random", {"tokens_per_frame": 64}),
    ("none", {}),
]
IDS = [f"{name}-{settings}" for name, settings in EXACT]


class Video:
    """Frames on the device, and one set of buffers that they are copied to."""

    def __init__(self) -> None:
        generator = torch.Generator("cuda").manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device="cuda")

        drift = random(FRAMES, TOKENS, WIDTH).cumsum(0)
        self.data = {
            "features": random(1, TOKENS, WIDTH) + 0.4 * drift,
            "pixels": random(FRAMES, 3, 28, 28).sigmoid(),
            "query": random(FRAMES, TOKENS + 1, 4, 16),
            "key": random(FRAMES, TOKENS + 1, 4, 16),
        }
        self.now = {name: values[:1].clone() for name, values in self.data.items()}

    def show(self, frame: int) -> None:
        for name, values in self.data.items():
            self.now[name].copy_(values[frame : frame + 1])

    def prune(self, pruner: Pruner) -> PrunedTokens:
        now = self.now
        attention = Attention(now["query"], now["key"], prefix=1)
        return pruner(now["features"], GRID, pixels=now["pixels"], attention=attention)


@pytest.mark.parametrize(("name", "settings"), EXACT, ids=IDS)
def test_nothing_waits_for_the_device(name, settings):
    video, pruner = Video(), make_pruner(name, **settings)
    assert pruner.exact
    for frame in range(2):  # compiles kernels, and makes the state
        video.show(frame)
        video.prune(pruner)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        video.show(2)
        pruned = video.prune(pruner)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = settings.get("tokens_per_frame", TOKENS)
    assert pruned.counts.tolist() == [expected]
    assert pruned.tokens.shape[1] == expected


@pytest.mark.parametrize(("name", "settings"), EXACT, ids=IDS)
def test_a_graph_replays_what_the_pruner_does(name, settings):
    video, pruner = Video(), make_pruner(name, **settings)
    eager = make_pruner(name, **settings)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for frame in range(3):
            video.show(frame)
            video.prune(pruner)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = video.prune(pruner)
    for frame in range(FRAMES):
        video.show(frame)
        expected = video.prune(eager)
        if frame >= 3:
            graph.replay()
            assert torch.equal(replayed.indices, expected.indices), frame
            torch.testing.assert_close(replayed.tokens, expected.tokens)
