# SPDX-License-Identifier: Apache-2.0
"""What holds for every integration, on stand-ins and on the authors' own files."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from stc_video import AttachError, CacheConfig, UnsupportedModelError
from stc_video.integrations.patch_points import Patches

ALL_TOKENS = CacheConfig(policy="stc", ratio=1.0)


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def traces(model: nn.Module) -> list[object]:
    """Everything that a patch could have left on the modules of a model."""
    found: list[object] = []
    for name, module in model.named_modules():
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        ours = {k: id(v) for k, v in vars(module).items() if callable(v) or k == "stc"}
        forward = module.__dict__.get("forward")
        ours["forward"] = id(getattr(forward, "__func__", None))
        found.append((name, len(hooks), ours, getattr(module, "n_frame_tokens", None)))
    return found


def test_with_everything_off_nothing_changes(project):
    stock = project.run(project.model, project.frames())
    with project.apply(project.model, cache=None, prune="none") as handle:
        assert equal(project.run(project.model, project.frames()), stock)
        before, after = handle.stats().tokens_before, handle.stats().tokens_after
        assert before == after > 0
        assert handle.stats().cache is None


def test_re_encoding_every_token_gives_the_stock_result(project):
    stock = project.run(project.model, project.frames())
    project.apply(project.model, cache=ALL_TOKENS, prune="none")
    for got, expected in zip(project.run(project.model, project.frames()), stock, strict=True):
        largest = float(expected.abs().max())
        torch.testing.assert_close(got, expected, atol=1e-5 * max(1.0, largest), rtol=1e-4)


@pytest.mark.parametrize("policy", ["motion", "stc"])
def test_the_tower_works_less_and_restore_is_bit_identical(project, policy):
    stock = project.run(project.model, project.frames())
    before = traces(project.model)
    handle = project.apply(project.model, cache=policy)
    assert project.model.stc is handle
    cached = project.run(project.model, project.frames())
    assert not equal(cached, stock)
    stats = handle.stats()
    assert stats.cache.frames == len(project.frames())
    assert stats.cache.cached > 0
    assert stats.cache.cost < 0.8
    assert stats.tokens_after < stats.tokens_before
    handle.restore()
    handle.restore()
    assert traces(project.model) == before
    assert equal(project.run(project.model, project.frames()), stock)


def test_each_video_is_a_stream_of_its_own(project):
    handle = project.apply(project.model)
    first = project.run(project.model, project.frames(seed=1))
    project.run(project.model, project.frames(seed=2))
    assert equal(project.run(project.model, project.frames(seed=1)), first)
    assert handle.stats().cache.resets == 2


def test_only_the_hidden_state_that_is_used_is_kept(project):
    handle = project.apply(project.model, prune="none")
    project.run(project.model, project.frames())
    state = handle.cacher.stream_state("default").state
    assert len(state.hidden) <= 1


def test_outside_of_the_video_path_the_tower_is_stock(project):
    handle = project.apply(project.model)
    project.run(project.model, project.frames())
    frames = handle.stats().cache.frames
    tower = handle.cacher._tower.root
    picture = project.frames()[:1]
    seen = tower(picture, output_hidden_states=True).hidden_states
    assert handle.stats().cache.frames == frames
    handle.restore()
    stock = tower(picture, output_hidden_states=True).hidden_states
    assert equal(list(seen), list(stock))


def test_a_failure_at_any_step_leaves_nothing(project, monkeypatch):
    before = traces(project.model)
    left = 0

    def failing(stock):
        def method(*args, **kwargs):
            nonlocal left
            done = stock(*args, **kwargs)
            left -= 1
            if left == 0:
                raise RuntimeError("as if it had failed here")
            return done

        return method

    for name in ("set", "after", "before", "cacher"):
        monkeypatch.setattr(Patches, name, failing(getattr(Patches, name)))
    left = 1000
    project.apply(project.model).restore()
    steps = 1000 - left
    assert steps >= 6
    for step in range(1, steps + 1):
        left = step
        with pytest.raises(RuntimeError, match="as if it had failed here"):
            project.apply(project.model)
        assert traces(project.model) == before
        assert getattr(project.model, "stc", None) is None


def test_a_tower_that_fails_in_the_middle_leaves_nothing(project):
    lists = (m for m in project.model.modules() if isinstance(m, nn.ModuleList))
    layers = next(layers for layers in lists if hasattr(layers[0], "layer_norm1"))
    del layers[2].mlp
    before = traces(project.model)
    with pytest.raises(UnsupportedModelError, match="mlp"):
        project.apply(project.model)
    assert traces(project.model) == before


def test_a_second_one_is_refused(project):
    handle = project.apply(project.model)
    with pytest.raises(AttachError, match="restore"):
        project.apply(project.model)
    handle.restore()
    project.apply(project.model).restore()


def test_what_was_patched_over_ours_is_not_lost(project):
    handle = project.apply(project.model)
    project.model.stc = object()
    handle.restore()  # it is no longer ours to take off
    project.model.stc = handle
    owner, name = next((a.owner, a.name) for a in handle.patches._attributes if a.name != "stc")
    ours, owner.__dict__[name] = owner.__dict__[name], lambda *_: None
    with pytest.raises(AttachError, match=f"replaced {name}"):
        handle.restore()
    assert project.model.stc is handle
    owner.__dict__[name] = ours
    handle.restore()


def test_settings_out_of_range_change_nothing(project):
    before = traces(project.model)
    for settings in ({"prune": "nonsense"}, {"cache": "nonsense"}, {"alpha": 7.0}):
        with pytest.raises(ValueError, match="must be"):
            project.apply(project.model, **settings)
        assert traces(project.model) == before


def test_another_model_is_refused(project):
    with pytest.raises(UnsupportedModelError, match="Linear is no such model: Linear has no"):
        project.apply(nn.Linear(2, 2))
