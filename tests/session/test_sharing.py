# SPDX-License-Identifier: Apache-2.0
"""Models that are shared: by sessions that open at one time, and with what others put there."""

from __future__ import annotations

import threading
from unittest.mock import patch

import pytest
import torch
from tiny_llava import make_model, make_tokenizer, prompt_ids, video

from stc_video import AttachError, StreamingSession, accelerate, make_pruner

SETTINGS = {"cache": "motion", "prune": "stc", "tokens_per_frame": 5}


def inputs() -> dict[str, torch.Tensor]:
    return {"input_ids": prompt_ids(4, "why?"), "pixel_values_videos": video(4)[None]}


def test_sessions_may_open_and_close_at_the_same_time():
    model, tokenizer, errors = make_model(), make_tokenizer(), []
    before = set(vars(model))

    def work(barrier):
        barrier.wait()
        try:
            with StreamingSession(model, tokenizer, **SETTINGS) as session:
                session.push(video(2))
        except Exception as error:
            errors.append(error)

    for _ in range(4):
        barrier = threading.Barrier(3)
        threads = [threading.Thread(target=work, args=[barrier]) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not errors
    assert set(vars(model)) == before


@pytest.mark.parametrize("name", ["forward", "generate"])
def test_what_others_put_over_our_methods_is_not_dropped(name):
    model = make_model()
    stock = model(**inputs()).logits
    session = StreamingSession(model, make_tokenizer(), **SETTINGS)
    handle, ours = model.stc, model.forward
    theirs = patch.object(model, name, lambda *args, **kwargs: ours(*args, **kwargs))
    with theirs as put:
        with pytest.raises(AttachError, match=f"put in place of {name} of LlavaOnevision"):
            session.close()
        assert vars(model)[name] is put
        assert model.stc is handle
    handle.restore()
    assert not hasattr(model, "stc")
    assert torch.equal(ours(**inputs()).logits, stock)  # whoever kept it has the model's own


def test_restore_forgets_no_stream_of_another_model_with_the_same_pruner():
    pruner = make_pruner("stc", tokens_per_frame=5)
    one, other = (accelerate(make_model(), None, pruner).stc for _ in range(2))
    one.prune(one.encode(video(1), "one"), "one")
    other.prune(other.encode(video(1), "other"), "other")
    one.restore()
    assert pruner.stream_state("one") is None
    assert pruner.stream_state("other") is not None
