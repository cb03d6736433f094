# SPDX-License-Identifier: Apache-2.0
"""One thread at a time is in the tower, whatever a model is called for."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tiny_llava import make_model as make_llava
from tiny_llava import prompt_ids, video
from tiny_video_llms import (
    image_ids,
    image_inputs,
    make_model,
    prompt,
    video_ids,
    video_inputs,
    with_ids,
)
from torch import Tensor

from stc_video import accelerate

CALLS = 6
Calls = list[Callable[[], Tensor]]


def llava_onevision() -> tuple[Any, dict[str, Any], dict[str, Any]]:
    model = make_llava()
    pixels, size = video(2)[None], torch.tensor([list(video(1).shape[-2:])])
    given = {"pixel_values": pixels, "image_sizes": size}
    output = model.model.get_image_features(**given)
    count = len(torch.cat(list(getattr(output, "pooler_output", output))))
    ids = torch.tensor([[1, 2, *[model.config.image_token_id] * count, 5]])
    of_video = {"input_ids": prompt_ids(3, "why?"), "pixel_values_videos": video(3)[None]}
    return model, given | {"input_ids": ids}, of_video


def other(name: str) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    image = with_ids(name, prompt(5, image_ids(name), 6), **image_inputs(name))
    of_video = with_ids(name, prompt(video_ids(name, 3), 7), **video_inputs(name, [(3, 0)]))
    return make_model(name), image, of_video


@pytest.fixture(autouse=True)
def _switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    with torch.no_grad():
        yield
    sys.setswitchinterval(before)


def image_calls(model: Any, given: dict[str, Any]) -> Calls:
    """Every way in which an image comes to the tower."""
    pixels = {k: v for k, v in given.items() if k not in ("input_ids", "attention_mask")}
    pixels.pop("mm_token_type_ids", None)
    pixels.pop("token_type_ids", None)

    def features() -> Tensor:
        output = model.get_image_features(**pixels)
        if isinstance(output, tuple):
            output = output[0]
        found = getattr(output, "pooler_output", output)
        return torch.cat([part.flatten(0, -2) for part in found])

    return [
        lambda: model(**given).logits,
        lambda: model.generate(
            **given, max_new_tokens=2, do_sample=False, output_logits=True,
            return_dict_in_generate=True,
        ).logits[0],
        features,
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["llava-onevision", "qwen3-vl", "internvl", "llava-next-video"])
def test_images_and_videos_of_two_threads_do_not_meet_in_the_tower(name):
    model, image, of_video = llava_onevision() if name == "llava-onevision" else other(name)
    handle = accelerate(model, "motion", "none").stc
    calls = [*image_calls(model, image), lambda: model(**of_video).logits]
    expected, errors, inside, met = [call() for call in calls], [], set(), []

    def enter(*_):
        met.append(inside - {threading.get_ident()})
        inside.add(threading.get_ident())

    def work(numbers):
        with torch.no_grad():  # is of a thread
            for number in numbers * CALLS:
                try:
                    torch.testing.assert_close(calls[number](), expected[number], atol=1e-5, rtol=0)
                except Exception as error:
                    errors.append(error)

    tower = handle.adapter.tower
    tower.register_forward_pre_hook(enter)
    tower.register_forward_hook(lambda *_: inside.discard(threading.get_ident()), always_call=True)
    threads = [threading.Thread(target=work, args=[numbers]) for numbers in ([0, 1, 2], [3, 3, 3])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert not any(met)
    handle.restore()
    assert not {"get_image_features", "get_video_features"} & vars(model.model).keys()
