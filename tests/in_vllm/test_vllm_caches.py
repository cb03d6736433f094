# SPDX-License-Identifier: Apache-2.0
"""What vLLM does around its tower: caches, preemption, pruning."""

from __future__ import annotations

import pytest
import torch
from small_engine import Engine, noise, video
from vllm_checkpoints import make_checkpoint

from stc_video.integrations.vllm import compute_retained_tokens_count, compute_retention_mask

pytest.importorskip("vllm", reason="`make test-vllm` puts vLLM into an environment of its own")


def test_what_vllm_has_cached_of_a_stream_is_that_streams_alone(engine):
    """The same pictures: nothing is encoded in the same stream, everything in another."""
    frames = [noise(engine.side, seed) for seed in range(4)]
    encoder = engine.attach()
    answer = engine.ask(engine.shown(frames, stc_stream="a"))
    for name, cached, dense in (("a", True, 4), ("b", False, 8), (None, False, 8)):
        engine.encoded.clear()
        options = {} if name is None else {"stc_stream": name}
        assert engine.ask(engine.shown(frames, **options)) == answer
        assert len(engine.encoded) == (0 if cached else 4)
        assert (engine.cached_tokens[0] > 0) == cached
        assert encoder.totals.dense == dense


def test_preempted_requests_get_the_answers_that_each_gets_alone(tmp_path):
    """Room for less than half of what the requests need at a time."""
    folder = make_checkpoint("qwen3-vl", tmp_path)
    engine = Engine(
        "qwen3-vl", str(folder), max_model_len=256, num_gpu_blocks_override=10,
        enable_prefix_caching=False,
    )  # fmt: skip
    frames = [noise(engine.side, seed) for seed in range(6)]
    requests = [engine.shown([frame], stc_stream=f"cam {at}") for at, frame in enumerate(frames)]
    alone = [engine.ask(request, tokens=80)[0] for request in requests]
    encoder = engine.attach()
    scheduler, preempted = engine.llm.llm_engine.engine_core.engine_core.scheduler, []
    preempt = scheduler._preempt_request

    def counted(request, *args, **kwargs):
        preempted.append(request.request_id)
        return preempt(request, *args, **kwargs)

    scheduler._preempt_request = counted
    assert engine.ask(*requests, tokens=80) == alone
    assert preempted
    assert (encoder.totals.streams, encoder.totals.cached) == (6, 0)


@pytest.mark.parametrize("name", ["qwen2.5-vl", "qwen3-vl"])
def test_our_pruner_in_place_of_evs(tmp_path, name):
    """As many tokens as vLLM made room for, chosen by ``STC_VLLM=prune=stc``."""
    folder = make_checkpoint(name, tmp_path)
    engine = Engine(name, str(folder), video_pruning_rate=0.5, max_num_batched_tokens=512)
    # The runner for CPUs of 0.32 does not ask its model whether it prunes: EVS fails there, too.
    runner = engine.llm.llm_engine.model_executor.driver_worker.worker.model_runner
    runner.is_multimodal_pruning_enabled = True
    whole: list[torch.Tensor] = []
    stock = engine.model.visual.forward
    engine.model.visual.forward = lambda *args, **kwargs: (
        whole.append(made := stock(*args, **kwargs)) or made
    )
    frames = [noise(engine.side, seed) for seed in range(140, 148)]
    request = video(frames)
    if name == "qwen3-vl":
        # 0.32 expects no other marks around a video than those of its frames: EVS fails, too.
        for mark in ("<|vision_start|>", "<|vision_end|>"):
            request["prompt"] = request["prompt"].replace(mark, "")
    engine.ask(request)
    mask = compute_retention_mask(whole[0], (4, 8, 8), 2, 0.5, prune="stc")
    assert int(mask.sum()) == compute_retained_tokens_count(16, 4, 0.5)
    kept, width = engine.encoded[0], whole[0].shape[1]
    if name == "qwen3-vl":
        kept = kept[kept[:, -1] > 0]  # of the frames, not of the text between them
    assert torch.equal(kept[:, :width], whole[0][mask])
