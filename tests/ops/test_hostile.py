# SPDX-License-Identifier: Apache-2.0
"""What no operator may do to a process, whatever it is called with; the many calls: hostile.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import stc_kernels
from stc_kernels import (
    compact_tokens,
    gather_layer_norm,
    gather_rows,
    merge_tokens,
    saliency_topk,
    scatter_key_value_,
    scatter_residual,
    scatter_rows_,
    spatial_redundancy,
    token_cosine,
)
from stc_kernels._memory import _share_an_element

OP = "gather_rows"
HERE = Path(__file__).parent


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def indices(*values: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor([values], dtype=dtype)


@pytest.mark.parametrize(("batch", "count"), [(16, 2**60), (4, 2**62), (1, 3), (1, 2**63)])
def test_a_count_is_bounded_by_the_tokens(backend, batch, count):
    sources = zeros(batch, 2, dtype=torch.int32)
    with pytest.raises(ValueError, match=rf"count must be between 0 and 2 \(tokens\), got {count}"):
        merge_tokens(zeros(batch, 2, 1), sources, count)


@pytest.mark.parametrize("index", [2**32 + 3, -(2**32) + 3, 2**31, 2**63 - 1, -(2**63)])
def test_an_index_is_checked_before_it_becomes_int32(backend, index):
    x = torch.arange(5.0).view(1, 5, 1)
    before, row = x.clone(), zeros(1, 1, 1) - 1
    calls = [
        lambda: gather_rows(x, indices(index)),
        lambda: scatter_rows_(x, indices(index), row),
        lambda: gather_layer_norm(x, indices(index), None, None, 1e-6),
        lambda: scatter_residual(x, x, indices(index), row),
        lambda: merge_tokens(x[:, :1], indices(index), 1),
        lambda: torch.ops.stc_kernels.gather_rows(x, indices(index)),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=f"or -1, got {index}"):
            call()
    assert torch.equal(x, before)


def test_what_a_gpu_is_given_stays_out_of_range():
    """Its kernels take no token for what is not in [0, tokens); nothing waits for them to look."""
    given = torch.tensor([3, -1, -2, 5, 2**32 + 3, -(2**32) + 3, 2**63 - 1, -(2**63)])
    narrow = stc_kernels._checks.as_int32(given, 5)
    assert narrow.dtype == torch.int32
    assert narrow.tolist() == [3, -1, -1, 5, 5, -1, 5, -1]


class TestWhatIsWrittenTo:
    @pytest.mark.parametrize("shape", [(1, 5, 4), (2, 5, 4)])
    def test_must_not_overlap_itself(self, backend, shape):
        x = zeros(1, 1, 4).expand(shape)
        index = zeros(shape[0], 1, dtype=torch.int32)
        with pytest.raises(ValueError, match="x must not overlap itself"):
            scatter_rows_(x, index, zeros(shape[0], 1, 4))

    def test_must_not_share_an_element_with_the_rows(self, backend):
        x = torch.arange(20.0).view(1, 5, 4)
        before = x.clone()
        for rows in (x[:, :2], x[:, 1:3], x.flip(0)[:, :2].set_(x)[:, 3:]):
            with pytest.raises(ValueError, match="rows must not share memory with x"):
                scatter_rows_(x, indices(3, 4), rows)
        assert torch.equal(x, before)

    def test_must_not_share_an_element_with_the_indices(self, backend):
        x = zeros(1, 8, 4)
        with pytest.raises(ValueError, match="indices must not share memory with x"):
            scatter_rows_(x, x.view(torch.int32)[:, 0], zeros(1, 4, 4) + 1e9)

    def test_may_lie_between_the_elements_of_others(self, backend):
        mine, others, _ = torch.arange(120.0).view(2, 5, 12).chunk(3, -1)
        expected = mine.clone()
        expected[:, 1:3] = others[:, :2]
        scatter_rows_(mine, torch.tensor([[1, 2]] * 2), others[:, :2])
        assert torch.equal(mine, expected)

    def test_two_caches_must_be_two(self):
        cache, index, rows = zeros(1, 5, 4), indices(1), zeros(1, 1, 4)
        with pytest.raises(ValueError, match="value_cache must not share memory with key_cache"):
            scatter_key_value_(cache, cache, index, rows, rows)
        halves = zeros(1, 5, 8).chunk(2, -1)
        scatter_key_value_(*halves, index, rows, rows)

    def test_a_tensor_of_inference_mode_is_refused_before_it_is_written_to(self, backend):
        with torch.inference_mode():
            x = zeros(1, 5, 4)
            scatter_rows_(x, indices(0), zeros(1, 1, 4) + 1)
        with pytest.raises(RuntimeError, match=r"made under torch.inference_mode\(\)"):
            scatter_rows_(x, indices(1), zeros(1, 1, 4) + 1)
        assert x.sum() == 4

    def test_sharing_is_decided_as_by_a_search(self, generator):
        """Against the addresses of all elements, for small tensors of any strides."""
        outcomes = set()
        for _ in range(300):
            storage, views = torch.zeros(64), []
            for _ in range(2):
                sizes = torch.randint(1, 4, (3,), generator=generator).tolist()
                strides = torch.randint(0, 9, (3,), generator=generator).tolist()
                start = int(torch.randint(0, 10, (), generator=generator))
                views.append(storage.as_strided(sizes, strides, start))
            places = [
                set(torch.arange(64).as_strided(v.shape, v.stride(), v.storage_offset()).flatten().tolist())
                for v in views
            ]  # fmt: skip
            shared = bool(places[0] & places[1])
            assert _share_an_element(*views) == shared, views
            outcomes.add(shared)
        assert outcomes == {True, False}


def test_a_mask_may_hold_any_byte(backend):
    given = torch.tensor([2, 0, 255, 1], dtype=torch.uint8).view(torch.bool)
    plain = torch.tensor([True, False, True, True])
    x = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(0))
    for got, expected in zip(
        [*compact_tokens(x, given[None], 4), *saliency_topk(x, None, 2, channels=given)],
        [*compact_tokens(x, plain[None], 4), *saliency_topk(x, None, 2, channels=plain)],
        strict=True,
    ):
        torch.testing.assert_close(got, expected)
    grid = x.view(1, 2, 2, 4)
    torch.testing.assert_close(
        spatial_redundancy(grid, given.view(1, 2, 2)), spatial_redundancy(grid, plain.view(1, 2, 2))
    )


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda x: x.to_sparse(), TypeError, "must be a dense tensor, got one of layout sparse_coo"),
        (lambda x: torch.nested.nested_tensor([x[0], x[0]]), TypeError, "got one of layout nested"),
        (lambda x: x.tolist(), TypeError, "must be a tensor, got list"),
        (lambda x: torch._neg_view(x), ValueError, "must not be a lazy negation"),
        (lambda x: x[:1].expand(2**41, 5, 4), ValueError, r"at most 2\*\*40 elements"),
        (lambda x: torch.empty(2**41, 0, 4), ValueError, r"2\*\*31 with sizes of 0 counted as 1"),
        (lambda x: x.untyped_storage().resize_(8) and x, ValueError, "within its storage"),
        (lambda x: torch.frombuffer(bytearray(81), dtype=torch.float32, offset=1).view(x.shape),
         ValueError, "must start at a multiple of its 4 bytes"),
    ],
)  # fmt: skip
def test_tensors_without_the_memory_for_them_are_refused(backend, spoil, error, message):
    x = spoil(zeros(1, 5, 4))
    with pytest.raises(error, match=f"`token_cosine`: current .*{message}"):
        token_cosine(x, x)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (2.5, TypeError, "k must be an integer, got float"),
        ("2", TypeError, "k must be an integer, got str"),
        (None, TypeError, "k must be an integer, got NoneType"),
        (10**30, ValueError, f"k must be between 1 and 5 .*got {10**30}"),
    ],
)
def test_what_is_no_integer_is_refused(backend, value, error, message):
    with pytest.raises(error, match=message):
        stc_kernels.select_changed(zeros(1, 5, 4), zeros(1, 5, 4), value)


@pytest.mark.parametrize("value", ["1e-6", None, 1j, [1.0], 10**400])
def test_what_is_no_number_is_refused(backend, value):
    with pytest.raises((TypeError, ValueError), match="`gather_layer_norm`: eps must"):
        gather_layer_norm(zeros(1, 5, 4), indices(0), None, None, value)


def test_the_library_alone_refuses_what_would_leave_its_memory():
    """Without the checks of Python, as somebody may call it by torch.ops."""
    if "native" not in (backends := stc_kernels.available_backends("gather_rows")):
        pytest.skip(backends.unavailable["native"])
    ops, x, short = torch.ops.stc_kernels, zeros(1, 5, 4), zeros(1, 5, 4)
    short.untyped_storage().resize_(8)
    calls = [
        (ops.merge_tokens_native, zeros(16, 2, 1), zeros(16, 2, dtype=torch.int32), 2**60, None),
        (ops.gather_rows_native, x, indices(2**32 + 3)),
        (ops.gather_rows_native, short, indices(3)),
        (ops.scatter_rows_native, short, indices(3), zeros(1, 1, 4)),
        (ops.select_changed_native, x, x, 6, 0),
        (ops.select_changed_below_native, x, x, 0.5, 2**40, 0),
        (ops.compact_tokens_native, x, zeros(1, 5) > 0, 2**40),
        (ops.bipartite_match_native, torch.empty(2**39, 0, 1), 0, 0),
        (ops.channel_variance_native, zeros(0, 5, 4)),
        (ops.attention_column_mean_native, zeros(1, 0, 1, 4), zeros(1, 3, 1, 4), 1.0),
    ]
    for op, *arguments in calls:
        with pytest.raises(RuntimeError, match="must"):
            op(*arguments)
    # What the library does not decide is at least no harm.
    ops.scatter_rows_native(x, indices(1, 2), x[:, :2])
    ops.scatter_rows_native(x[:, :1].expand(1, 5, 4), indices(1, 2), zeros(1, 2, 4))


@pytest.mark.parametrize("channels", [0, 3])
def test_rows_without_channels(backend, channels):
    """No pointer to nothing is copied from; the sanitizers say so in `make fuzz-hostile`."""
    x, index = zeros(2, 5, channels), torch.tensor([[0, -1], [4, 2]])
    assert gather_rows(x, index).shape == (2, 2, channels)
    assert gather_layer_norm(x, index, None, None, 1e-6).shape == (2, 2, channels)
    scatter_rows_(x, index, zeros(2, 2, channels))
    assert compact_tokens(x, zeros(2, 5) > -1, 10)[0].shape == (10, channels)
    assert merge_tokens(x, zeros(2, 5, dtype=torch.int32) - 1, 3)[1].eq(0).all()


def test_no_channels_have_no_variance(backend):
    assert stc_kernels.channel_variance(zeros(1, 5, 0)).shape == (0,)


def test_a_bool_counts_as_the_integer_that_it_is(backend):
    assert compact_tokens(zeros(1, 5, 4), zeros(1, 5) > -1, True)[0].shape == (1, 4)


def test_a_subclass_goes_through_the_dispatcher(backend):
    class Some(Tensor):
        pass

    x = torch.arange(20.0).view(1, 5, 4)
    rows = gather_rows(x.as_subclass(Some), indices(3))
    assert torch.equal(rows.as_subclass(Tensor), x[:, 3:4])


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HERE / "hostile.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_some_hundred_hostile_calls():
    done = run("--calls", "300", "--seed", "100000")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "300 hostile calls" in done.stdout


@pytest.mark.slow
def test_a_crash_is_told_with_the_call_that_made_it(tmp_path):
    """A library that crashes: hostile.py must not take it for a good one."""
    (tmp_path / "_C.py").write_text("import os\nos.abort()\n")
    code = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
import hostile
hostile.environment = lambda library: None
sys.argv = ["hostile.py", "--calls", "1", "--seed", "7", "--library", {str(tmp_path)!r}]
sys.exit(hostile.main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "seed 7: crashed (SIGABRT)" in done.stdout
    assert "1 faults" in done.stdout
