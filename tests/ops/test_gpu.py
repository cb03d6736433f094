# SPDX-License-Identifier: Apache-2.0
"""Every operator on a GPU, at the sizes of real towers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import oracles
import pytest
import torch
from accuracy import assert_as_accurate
from operands import LAYOUTS
from plain_ops import values_of
from torch import Tensor

import stc_kernels
from stc_kernels import _examples

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]

CASES = [(op, name) for op in stc_kernels.OPS for name in _examples.geometries(op)]
SMALL = _examples.Geometry(tokens=61, channels=144, k=20, heads=2, batch=3)


@pytest.fixture(params=["triton", "native"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    op = request.node.callspec.params.get("op") or request.node.callspec.params["case"][0]
    name: str = request.param
    if name not in (backends := stc_kernels.available_backends(op, "cuda")):
        pytest.skip(backends.unavailable[name])
    with stc_kernels.use_backend(name), torch.no_grad():
        yield name


def operator(op: str) -> Callable[..., Any]:
    overload: Callable[..., Any] = getattr(torch.ops.stc_kernels, op).default
    return overload


def copies(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(v.clone() if isinstance(v, Tensor) else v for v in arguments)


def everything(op: str, arguments: tuple[Any, ...]) -> list[Tensor]:
    """All results of one call on fresh copies: what it returned and what it wrote."""
    given = copies(arguments)
    out = operator(op)(*given)
    outputs = out if isinstance(out, tuple) else (out,)
    return [t for t in (*outputs, *given) if isinstance(t, Tensor)]


def assert_same(results: list[Tensor], expected: list[Tensor]) -> None:
    for got, right in zip(results, expected, strict=True):
        torch.testing.assert_close(got, right, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_accuracy_at_full_size(backend, case, dtype, batch):
    op, name = case
    geometry = _examples.geometries(op)[name]
    geometry = _examples.Geometry(
        geometry.tokens, geometry.channels, geometry.k, geometry.heads, batch
    )
    arguments = _examples.arguments(op, geometry, dtype, "cuda")
    assert_as_accurate(op, operator(op), arguments)


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("op", stc_kernels.OPS)
def test_layouts_agree_with_the_reference(backend, op, dtype, layout):
    arguments = _examples.arguments(op, SMALL, dtype, "cuda")
    changed = tuple(
        LAYOUTS[layout](v.cpu()).cuda() if isinstance(v, Tensor) and v.dim() > 2 else v
        for v in arguments
    )
    given = copies(changed)
    results = values_of(op, operator(op)(*given), given)
    given = copies(arguments)
    expected = values_of(op, operator(op)(*given, backend="reference"), given)
    tolerance = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    for got, right in zip(results, expected, strict=True):
        torch.testing.assert_close(got, right, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("tokens", [1, 2, 31, 196, 729, 2048, 2049, 10549, 11264, 11265])
@pytest.mark.parametrize("op", ["select_changed", "select_changed_below", "saliency_topk"])
def test_selection_of_any_number_of_tokens(backend, op, tokens):
    generator = torch.Generator("cuda").manual_seed(tokens)
    x = torch.randn((2, tokens, 32), device="cuda", generator=generator)
    y = torch.randn((2, tokens, 32), device="cuda", generator=generator)
    x[:, ::7] = y[:, ::7]  # ties, all of them similar
    k = max(1, tokens // 4)
    if op == "saliency_topk":
        indices, scores = stc_kernels.saliency_topk(x, None, k)
        keys = [[-value for value in row] for row in scores.tolist()]
    elif op == "select_changed":
        indices, scores = stc_kernels.select_changed(x, y, k, pinned=1)
        keys = [oracles.changed_keys(row, 1) for row in scores.cpu()]
    else:
        indices, counts, scores = stc_kernels.select_changed_below(x, y, 0.0, k)
        assert counts.tolist() == (scores <= 0.0).sum(1).tolist()
        for row, similarity, count in zip(
            indices.cpu(), scores.cpu(), counts.tolist(), strict=True
        ):
            listed = min(count, k)
            assert row[listed:].eq(-1).all()
            oracles.assert_selects(
                row[:listed], oracles.changed_keys(similarity, 0), listed, slack=0
            )
        return
    for row, keys_of_row in zip(indices.cpu(), keys, strict=True):
        oracles.assert_selects(row, keys_of_row, k, slack=0)


@pytest.mark.parametrize("op", stc_kernels.OPS)
def test_repeated_calls_agree_bit_for_bit(backend, op, dtype):
    geometry = next(iter(_examples.geometries(op).values()))
    arguments = _examples.arguments(op, geometry, dtype, "cuda")
    expected = everything(op, arguments)
    for _ in range(5):
        assert_same(everything(op, arguments), expected)


@pytest.mark.parametrize("op", stc_kernels.OPS)
def test_runs_on_the_current_stream(backend, op):
    arguments = _examples.arguments(op, SMALL, torch.bfloat16, "cuda")
    expected = everything(op, arguments)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    late = tuple(torch.zeros_like(v) if isinstance(v, Tensor) else v for v in arguments)
    with torch.cuda.stream(stream):
        # The inputs arrive late on this stream; on any other the operator would see zeros.
        torch.cuda._sleep(20_000_000)
        for target, source in zip(late, arguments, strict=True):
            if isinstance(target, Tensor):
                target.copy_(source)
        results = everything(op, late)
    stream.synchronize()
    assert_same(results, expected)


@pytest.mark.parametrize("op", stc_kernels.OPS)
def test_capture_and_replay_in_a_graph(backend, op):
    arguments = _examples.arguments(op, SMALL, torch.bfloat16, "cuda")
    everything(op, arguments)  # compiles
    buffers = copies(arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = operator(op)(*buffers)
    other = tuple(v.flip(0) if isinstance(v, Tensor) and v.dim() > 2 else v for v in arguments)
    for values in (arguments, other):
        for buffer, value in zip(buffers, values, strict=True):
            if isinstance(buffer, Tensor):
                buffer.copy_(value)
        graph.replay()
        outputs = out if isinstance(out, tuple) else (out,)
        results = [t for t in (*outputs, *buffers) if isinstance(t, Tensor)]
        assert_same(results, everything(op, values))


@pytest.mark.parametrize("op", stc_kernels.OPS)
def test_compiles_without_a_graph_break(backend, op):
    torch.compiler.reset()
    arguments = _examples.arguments(op, SMALL, torch.bfloat16, "cuda")
    expected = everything(op, arguments)
    given = copies(arguments)
    out = torch.compile(operator(op), fullgraph=True)(*given)
    outputs = out if isinstance(out, tuple) else (out,)
    assert_same([t for t in (*outputs, *given) if isinstance(t, Tensor)], expected)


@pytest.mark.parametrize("op", stc_kernels.OPS)
def test_two_host_threads(backend, op):
    arguments = _examples.arguments(op, SMALL, torch.bfloat16, "cuda")
    expected = everything(op, arguments)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with torch.cuda.stream(torch.cuda.Stream()), torch.no_grad():
                with stc_kernels.use_backend(backend):
                    for _ in range(50):
                        results = everything(op, arguments)
                torch.cuda.current_stream().synchronize()
                assert_same(results, expected)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("op", stc_kernels.OPS)
def test_does_not_wait_for_the_gpu(backend, op):
    arguments = _examples.arguments(op, SMALL, torch.bfloat16, "cuda")
    everything(op, arguments)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        operator(op)(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("op", stc_kernels.OPS)
def test_empty_batch(backend, op):
    arguments = _examples.arguments(op, SMALL, torch.bfloat16, "cuda")
    empty = tuple(v[:0] if isinstance(v, Tensor) and v.dim() > 1 else v for v in arguments)
    if op == "channel_variance":  # is refused without a token
        return
    everything(op, empty)
    torch.cuda.synchronize()


def need_native(op: str) -> None:
    if "native" not in (backends := stc_kernels.available_backends(op, "cuda")):
        pytest.skip(backends.unavailable["native"])


def kernels_of(call: Callable[[], Any]) -> list[str]:
    """Names of the CUDA kernels of ours that a call launches."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    return [event.name for event in profile.events() if "stc::cuda::" in event.name]


#: kernels that a call launches, where it is not one: docs/architecture.md
LAUNCHES = {
    "channel_variance": 2,
    "saliency_topk": 2,
    "spatial_redundancy": 2,
    "compact_tokens": 3,
    "bipartite_match": 2,
    "attention_column_mean": 3,
}


@pytest.mark.parametrize("op", stc_kernels.OPS)
def test_the_cuda_kernels_take_few_launches(op):
    need_native(op)
    arguments = _examples.arguments(op, SMALL, torch.bfloat16, "cuda")
    operator(op)(*arguments, backend="native")
    kernels = kernels_of(lambda: operator(op)(*arguments, backend="native"))
    assert len(kernels) == LAUNCHES.get(op, 1), kernels


def pair(frames: int, tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    """Frames and their reference, with ties, a NaN and zeros."""
    generator = torch.Generator("cuda").manual_seed(seed)
    x, y = torch.randn((2, frames, tokens, 72), device="cuda", generator=generator)
    x[:, ::5] = y[:, ::5]
    x[:, 3] = torch.nan
    x[:, 7] = 0.0
    return x, y


class TestSelectChangedInOneLaunch:
    """The blocks of a frame count in memory that outlives the call: csrc/cuda/tickets.h."""

    @pytest.fixture(autouse=True)
    def native(self) -> Iterator[None]:
        need_native("select_changed")
        with stc_kernels.use_backend("native"), torch.no_grad():
            yield

    @pytest.mark.parametrize(("frames", "tokens"), [(65, 29), (1, 11265)])
    def test_two_launches_where_one_cannot_be_give_the_same(self, frames, tokens):
        x, y = pair(frames, tokens, seed=frames)
        k = tokens // 3
        assert len(kernels_of(lambda: stc_kernels.select_changed(x, y, k))) == 2
        indices, similarity = stc_kernels.select_changed(x, y, k)
        for frame in range(frames):
            part = slice(frame, frame + 1), slice(0, 11264)
            selected = stc_kernels.select_changed(x[part], y[part], min(k, 11264))
            assert_same([similarity[part]], [selected[1]])
            if tokens <= 11264:
                assert_same([indices[part]], [selected[0]])

    def test_streams_and_graphs_at_once(self):
        """Graphs that were recorded on one stream and calls, all at once on streams of their own."""
        streams = [torch.cuda.Stream() for _ in range(4)]
        recorder = streams[0]
        inputs = [pair(2, 500 + 61 * i, seed=i) for i in range(len(streams))]
        expected = [stc_kernels.select_changed(x, y, 120) for x, y in inputs]
        graphs, recorded = [], []
        torch.cuda.synchronize()
        for x, y in inputs[:2]:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=recorder):
                recorded.append(stc_kernels.select_changed(x, y, 120))
            graphs.append(graph)
        torch.cuda.synchronize()
        seen: list[tuple[int, tuple[Tensor, Tensor]]] = []
        for _ in range(50):
            for number, stream in enumerate(streams):
                with torch.cuda.stream(stream):
                    if number < 2:
                        graphs[number].replay()
                        first, second = recorded[number]
                        seen.append((number, (first.clone(), second.clone())))
                    other = (number + 1) % len(streams)
                    seen.append((other, stc_kernels.select_changed(*inputs[other], 120)))
        torch.cuda.synchronize()
        for number, results in seen:
            assert_same(list(results), list(expected[number]))

    def test_a_graph_that_is_gone_leaves_its_place_to_others(self):
        x, y = pair(1, 20, seed=0)
        expected = stc_kernels.select_changed(x, y, 5)
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(1100):  # more than there are places
                graph = torch.cuda.CUDAGraph()
                graph.capture_begin()
                results = stc_kernels.select_changed(x, y, 5)
                graph.capture_end()
                graph.replay()
                torch.cuda.synchronize()
        assert len(kernels_of(graph.replay)) == 1
        assert_same(list(results), list(expected))
