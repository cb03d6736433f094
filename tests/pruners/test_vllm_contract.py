# SPDX-License-Identifier: Apache-2.0
"""What vLLM needs of a pruner: a number from the grid alone, and a mask of exactly that many."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
import zipfile
from pathlib import Path

import pytest
import torch

from stc_video.integrations import vllm as adapter
from stc_video.pruners import EvsPruner, retained_count

RATES = [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99]


def plain_count(tokens: int, frames: int, q: float) -> int:
    return max(tokens, int(tokens * frames * (1 - q)))


def plain_mask(embeds: torch.Tensor, thw: tuple[int, int, int], merge: int, q: float) -> list[bool]:
    """vLLM's contract in plain Python: the first frame, then the tokens that changed most."""
    frames, tokens = thw[0], (thw[1] // merge) * (thw[2] // merge)
    rows = embeds.double().tolist()
    changes = []
    for place in range(tokens, frames * tokens):
        new, old = rows[place], rows[place - tokens]
        dot = sum(a * b for a, b in zip(new, old, strict=True))
        norms = sum(a * a for a in new) ** 0.5 * sum(b * b for b in old) ** 0.5
        changes.append((-(1 - dot / norms), place))
    wanted = plain_count(tokens, frames, q)
    chosen = set(range(tokens)) | {place for _, place in sorted(changes)[: wanted - tokens]}
    return [place in chosen for place in range(frames * tokens)]


def clip(frames: int = 5, tokens: int = 12) -> torch.Tensor:
    return torch.randn((frames * tokens, 16), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("q", RATES)
@pytest.mark.parametrize(("tokens", "frames"), [(1, 1), (12, 1), (12, 5), (196, 8), (7, 100)])
def test_the_number_follows_from_the_grid(tokens, frames, q):
    expected = plain_count(tokens, frames, q)
    assert retained_count((frames, tokens, 1), q) == expected
    assert adapter.compute_retained_tokens_count(tokens, frames, q) == expected


@pytest.mark.parametrize("q", RATES)
@pytest.mark.parametrize("merge", [1, 2])
def test_the_mask_is_that_of_a_plain_implementation(q, merge):
    thw = (5, 3 * merge, 4 * merge)
    mask = adapter.compute_retention_mask(clip(), thw, merge, q)
    assert mask.dtype == torch.bool
    assert mask.tolist() == plain_mask(clip(), thw, merge, q)
    by_tensor = adapter.compute_retention_mask(clip(), torch.tensor(thw), merge, q)
    assert torch.equal(mask, by_tensor)


@pytest.mark.parametrize("q", RATES)
@pytest.mark.parametrize(
    "prune", ["stc", "uniform", "random", "dtd", "streaming_assistant", "vidcom2"]
)
def test_every_pruner_keeps_exactly_that_number(prune, q):
    chosen = functools.partial(adapter.compute_retention_mask, prune=prune)
    mask = chosen(clip(), (5, 3, 4), 1, q).view(5, 12)
    assert int(mask.sum()) == plain_count(12, 5, q)
    assert int(mask.sum(1).max() - mask.sum(1).min()) <= 1


def test_the_pruner_itself_keeps_that_number():
    kept = EvsPruner(scope="clip", video_pruning_rate=0.7)(clip().view(5, 12, 16))
    assert int(kept.counts.sum()) == retained_count((5, 3, 4), 0.7) == 18
    assert int(kept.counts[0]) == 12


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: retained_count((0, 3, 4), 0.5), "each at least 1"),
        (lambda: retained_count((5, 3, 4), 1.0), "below 1"),
        (lambda: adapter.compute_retention_mask(clip(), (5, 3, 5), 1, 0.5), "shape"),
        (lambda: adapter.compute_retention_mask(clip(), (5, 3, 4), 1, 0.5, prune="tome"), "merges"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


#: where vLLM keeps its functions, since 2026 and before
_PLACES = ("vllm/multimodal/video_prune/evs.py", "vllm/multimodal/evs.py")


def _source() -> str:
    """vLLM's own functions, of a checkout or in a wheel."""
    folder, wheel = (os.environ.get(name) for name in ("STC_UPSTREAM_VLLM", "STC_VLLM_WHEEL"))
    if not (folder or wheel):
        pytest.skip(
            "neither STC_UPSTREAM_VLLM nor STC_VLLM_WHEEL names a checkout or wheel of vLLM"
        )
    root = Path(folder) if folder else zipfile.Path(wheel)
    return next(p.read_text("utf-8") for place in _PLACES if (p := root / place).is_file())


def _theirs(folder: Path):
    path = folder / "evs.py"
    path.write_text(_source(), "utf-8")
    spec = importlib.util.spec_from_file_location("upstream_vllm_evs", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_vllm_s_own_functions_agree(tmp_path):
    theirs = _theirs(tmp_path)
    for name in adapter.__all__:
        own = list(inspect.signature(getattr(adapter, name)).parameters.values())
        plain = [p.name for p in own if p.kind is not p.KEYWORD_ONLY]
        assert plain == list(inspect.signature(getattr(theirs, name)).parameters)
    for q in RATES:
        assert theirs.compute_retained_tokens_count(12, 5, q) == plain_count(12, 5, q)
        mask = theirs.compute_retention_mask(clip(), (5, 6, 8), 2, q)
        assert torch.equal(mask, adapter.compute_retention_mask(clip(), (5, 6, 8), 2, q))
