# SPDX-License-Identifier: Apache-2.0
"""Count what a call launches on a GPU, and the bytes and operations of each launch, without one.

The call runs on tensors without data that say they are on a GPU: shapes are computed and every
branch for GPUs is taken, but nothing is calculated. A view counts nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stc_kernels import _schemas
from stc_kernels.ops import _register

#: kernels of an operator of ours in its default backend on a GPU, where it is not one
LAUNCHES = {
    "select_changed": 2,
    "select_changed_below": 2,
    "channel_variance": 2,
    "saliency_topk": 3,
    "compact_tokens": 3,
    "bipartite_match": 5,
    "attention_column_mean": 2,
}
#: operators that touch as many rows of the tensor as they have indices -> the argument or result
#: (-1) that has these rows, and how often a row is moved
_MOVES = {
    "gather_rows": (-1, 2),
    "gather_layer_norm": (-1, 2),
    "scatter_rows_": (2, 2),
    "scatter_key_value_": (3, 4),
    "index_select": (-1, 2),
    "gather": (-1, 2),
    "embedding": (-1, 2),
    "index_copy_": (3, 2),
}
#: the same of torch's operators that are several kernels: two norms with their limits, quotients,
#: product and sum; choosing and sorting
_LAUNCHES_OF_TORCH = {"cosine_similarity": 8, "topk": 2}
_NOTHING = (
    *("empty", "new_empty", "empty_like", "empty_strided", "device", "lift_fresh"),
    *("detach", "detach_", "flatten"),
)


@dataclass(frozen=True)
class Call:
    """One call of an operator.

    Attributes
    ----------
    op
        Its name without the namespace.
    launches
        Kernels.
    nbytes
        Read and written at least, if nothing stays in a cache between two calls.
    product
        (count, rows, columns, depth) of its matrix products; None if it has none.
    """

    op: str
    launches: int
    nbytes: int
    product: tuple[int, int, int, int] | None = None

    @property
    def flops(self) -> int:
        """Floating-point operations of the products."""
        if self.product is None:
            return 0
        count, rows, columns, depth = self.product
        return 2 * count * rows * columns * depth


class Counter(TorchDispatchMode):
    """Lists the calls of operators that launch something."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2]
        is_attention = name == "scaled_dot_product_attention" and args[0].is_meta
        out = _attention_result(*args[:3]) if is_attention else func(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if name not in _NOTHING and (func._schema.is_mutable or not _are_views(made, given)):
            self.calls.append(_call(name, func.namespace, args, given, made))
        return out


def _are_views(made: list[Tensor], given: list[Tensor]) -> bool:
    """Whether all results lie in the arguments' memory; so it is if there are none."""
    storages = {tensor.untyped_storage()._cdata for tensor in given}
    return all(tensor.untyped_storage()._cdata in storages for tensor in made)


def _call(
    name: str, namespace: str, args: tuple[Any, ...], given: list[Tensor], made: list[Tensor]
) -> Call:
    launches = (LAUNCHES if namespace == _schemas.NAMESPACE else _LAUNCHES_OF_TORCH).get(name, 1)
    if name in _MOVES:
        place, times = _MOVES[name]
        moved = times * _touched((made if place < 0 else args)[place])
        moved += sum(t.nbytes for t in given if t.dtype in (torch.int32, torch.int64))
    else:
        moved = sum(map(_touched, given)) + sum(map(_touched, made))
    return Call(name, launches, moved, _product(name, args))


def _touched(tensor: Tensor) -> int:
    """Bytes of a tensor's elements, those that are repeated counted once."""
    numbers = zip(tensor.shape, tensor.stride(), strict=True)
    count = tensor.element_size()
    for size, stride in numbers:
        count *= size if stride else min(size, 1)
    return count


def _product(name: str, args: tuple[Any, ...]) -> tuple[int, int, int, int] | None:
    if name == "linear":
        x, weight = args[:2]
        return 1, x.numel() // x.shape[-1], weight.shape[0], weight.shape[1]
    if name.startswith("conv2d"):
        x, weight = args[:2]
        depth = weight[0].numel()
        return 1, x.numel() // (weight.shape[1] * weight[0, 0].numel()), weight.shape[0], depth
    if name == "scaled_dot_product_attention":
        query, key = args[:2]
        batch, heads, rows, width = query.shape
        return 2 * batch * heads, rows, key.shape[2], width
    if name == "sparse_query_attention":
        query, key = args[:2]
        batch, rows, heads, width = query.shape
        return 2 * batch * heads, rows, key.shape[1], width
    return None


def _attention_result(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Result of torch's fused attention: heads beside each other in memory, as it leaves them."""
    batch, heads, rows, _ = query.shape
    return query.new_empty((batch, rows, heads, value.shape[-1])).transpose(1, 2)


class _PretendedGpu(TorchFunctionMode):
    """Lets tensors of another device say that they are on a GPU."""

    def __init__(self, home: str) -> None:
        super().__init__()
        self.home = torch.device(home)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == torch.Tensor.is_cuda.__get__:
            return True
        if func == torch.Tensor.device.__get__:
            return torch.device("cuda", 0)
        named = {name: self._made_here(value) for name, value in (kwargs or {}).items()}
        return func(*map(self._made_here, args), **named)

    def _made_here(self, value: Any) -> Any:
        is_gpu = isinstance(value, torch.device) and value.type == "cuda"
        return self.home if is_gpu or (isinstance(value, str) and value == "cuda") else value


@contextmanager
def pretended_gpu(home: str = "meta") -> Iterator[None]:
    """Inside the block, tensors on the meta device, or another one, say that they are on a GPU."""
    with _PretendedGpu(home), torch.inference_mode():
        yield


class Waits(TorchFunctionMode):
    """Counts how often numbers of a device are asked for, for which one waits."""

    _ASKING = frozenset({"tolist", "item", "nonzero", "__bool__", "__int__", "__float__", "numpy"})

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        is_here = bool(given) and all(getattr(one, "_is_here", False) for one in given)
        fetches = func is Tensor.cpu
        self.count += not is_here and (fetches or func.__name__ in self._ASKING)
        out = func(*args, **(kwargs or {}))
        if is_here or fetches:  # what was fetched is here, and so is what is made of it
            for made in tree_leaves(out):
                if isinstance(made, Tensor):
                    made._is_here = True  # type: ignore[attr-defined]
        return out


def count(call: Callable[[], object]) -> list[Call]:
    """Run a function and list what it launches."""
    # An operator of ours goes straight to its backend, unless it needs the dispatcher, where the
    # counter sees it.
    is_plain = _register._is_plain
    _register._is_plain = lambda *_: False
    try:
        with Counter() as counter:
            call()
    finally:
        _register._is_plain = is_plain
    return counter.calls
