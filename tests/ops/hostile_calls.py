# SPDX-License-Identifier: Apache-2.0
"""Calls that nobody should make: typical arguments of an operator, then spoilt, by a seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stc_kernels import OPS, _examples, _schemas

INTEGERS = [-(2**63), -1, 0, 1, 2, 7, 2**31 - 1, 2**31, 2**32 + 1, 2**60, 2**62, 2**63 - 1, 2**63,
            10**30, 2.5, float("nan"), "3", None, True, [1], torch.tensor(2), torch.ones(2),
            torch.tensor(2, device="meta")]  # fmt: skip
NUMBERS = [0.0, -1.0, 0.5, 3, 1e300, -1e300, 1e-300, float("nan"), float("inf"), -float("inf"),
           10**400, "x", "0.5", b"1", None, 1j, True, [0.5], torch.tensor(0.5), torch.ones(2),
           torch.tensor(0.5, device="meta")]  # fmt: skip
NAMES = ["", "none", "tanh", "gaussian", "dual_anchor", "GAUSSIAN", "none\0", b"tanh", 3, None]
INDICES = [-1, -2, 0, 1, 5, 2**31 - 1, -(2**31), 2**31, 2**32 - 1, 2**32 + 3, -(2**32) + 3,
           2**63 - 1, -(2**63)]  # fmt: skip
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
          torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64,
          torch.float8_e5m2]  # fmt: skip


class Call(NamedTuple):
    """One call: an operator, its arguments by the schema, what was done to them, and how it is made.

    ``way`` is ``"public"`` (the function of the package), ``"dispatcher"`` (the operator of
    torch.ops), ``"library"`` (what the compiled library registers, without the checks of Python),
    ``"threads"`` or ``"fork"``.
    """

    op: str
    arguments: list[Any]
    spoilt: list[str]
    way: str

    def __str__(self) -> str:
        names = _schemas.parameter_names(self.op)
        shown = ", ".join(f"{n}={_show(v)}" for n, v in zip(names, self.arguments, strict=True))
        return f"{self.op}({shown}) by {self.way}, spoilt: {', '.join(self.spoilt) or 'nothing'}"


class Subclass(Tensor):
    """A tensor subclass with nothing of its own."""


def make(seed: int) -> Call:
    """Return the call of a seed: the same one, with memory of its own, each time."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    op = rng.choice(OPS)
    tokens, heads = rng.choice([1, 2, 5, 9, 33]), rng.randint(1, 2)
    width = rng.choice([1, 3, 8, 24])
    if rng.random() < 0.03:
        # Enough for several threads. Triton's interpreter takes minutes for 400 patches.
        tokens, width = (100, 3) if "patches" in op else (400, 128)
    geometry = _examples.Geometry(
        tokens, heads * width, rng.randint(1, tokens), heads, rng.choice([1, 1, 2, 3, 5])
    )
    dtype = rng.choice([torch.float32, torch.float16, torch.bfloat16])
    arguments = list(_examples.arguments(op, geometry, dtype, "cpu"))
    spoilt: list[str] = []
    tensors = {place for place, value in enumerate(arguments) if isinstance(value, Tensor)}
    for _ in range(rng.choice([0, 1, 1, 1, 2, 2, 3])):
        # Nothing more with a tensor that torch itself would crash on or never end with.
        if not any(kind in what for what in spoilt for kind in ("short", "huge")):
            spoilt.append(_spoil(rng, arguments, tensors))
    ways = ["public"] * 12 + ["dispatcher"] * 3 + ["library"] * 3 + ["threads"] + ["fork"]
    way = rng.choice(ways)
    if any("negated" in what for what in spoilt):
        # The dispatcher resolves it, and torch fails half-way where an operator returns nothing.
        way = "public"
    return Call(op, arguments, spoilt, way)


def _spoil(rng: random.Random, arguments: list[Any], tensors: set[int]) -> str:
    place = rng.randrange(len(arguments))
    value = arguments[place]
    if isinstance(value, Tensor):
        kind = rng.choice(list(_TENSORS))
        if kind == "short storage" and place not in tensors:
            # Refusing a tensor in place of a number, torch prints it, beyond its storage.
            return f"{place}: not {kind}"
        try:
            arguments[place] = _TENSORS[kind](rng, value, arguments)
        except (RuntimeError, TypeError, ValueError, IndexError):  # a second one on a broken tensor
            return f"{place}: not {kind}"
        return f"{place}: {kind}"
    choices = NAMES if isinstance(value, str) else INTEGERS if type(value) is int else NUMBERS
    arguments[place] = rng.choice(choices)
    return f"{place}: {_show(arguments[place])}"


def _strided(rng: random.Random, t: Tensor, _: list[Any]) -> Tensor:
    """Any strides that stay within the storage: most of them overlap."""
    storage = t.contiguous().view(-1)
    strides, room = [], storage.numel() - 1
    for size in t.shape:
        most = room // max(1, size - 1)
        strides.append(rng.randint(0, min(most, 40)))
        room -= (size - 1) * strides[-1]
    return storage.as_strided(t.shape, strides)


def _expanded(rng: random.Random, t: Tensor, _: list[Any]) -> Tensor:
    return t.narrow(rng.randrange(t.dim()), 0, 1).expand(t.shape)


def _indices(rng: random.Random, t: Tensor, _: list[Any]) -> Tensor:
    t = t.long().clone() if not t.is_floating_point() else torch.zeros(t.shape[:2]).long()
    for _ in range(rng.randint(1, 3)):
        t.view(-1)[rng.randrange(t.numel())] = rng.choice(INDICES)
    return t


def _short(rng: random.Random, t: Tensor, _: list[Any]) -> Tensor:
    t = t.resolve_neg().clone()
    t.untyped_storage().resize_(rng.randrange(t.nbytes))
    return t


def _misaligned(rng: random.Random, t: Tensor, _: list[Any]) -> Tensor:
    block = bytearray(t.nbytes + 1)
    return torch.frombuffer(block, dtype=t.dtype, offset=1, count=t.numel()).view(t.shape)


def _shared(rng: random.Random, t: Tensor, arguments: list[Any]) -> Tensor:
    """Memory of another argument, from some place on; perhaps the other argument itself."""
    other = rng.choice([value for value in arguments if isinstance(value, Tensor)])
    if rng.random() < 0.2:
        return other
    flat = other.contiguous() if not other.is_contiguous() else other
    flat = flat.view(-1).view(torch.uint8).view(t.dtype)
    first = rng.randint(0, max(0, flat.numel() - t.numel()))
    return flat[first : first + t.numel()].view(t.shape)


def _interleaved(rng: random.Random, t: Tensor, arguments: list[Any]) -> Tensor:
    """One half of the channels of a block whose other half becomes another argument."""
    block = torch.cat([t, t], -1)
    mine, others = block.chunk(2, -1)
    same = [i for i, v in enumerate(arguments)
            if isinstance(v, Tensor) and v.shape == t.shape and v.dtype == t.dtype]  # fmt: skip
    arguments[rng.choice(same)] = others
    return mine


def _resized(rng: random.Random, t: Tensor, _: list[Any]) -> Tensor:
    shape = list(t.shape)
    shape[rng.randrange(len(shape))] = rng.choice([0, 1, 2, 4])
    return torch.zeros(shape, dtype=t.dtype)


def _huge(rng: random.Random, t: Tensor, _: list[Any]) -> Tensor:
    """Sizes without the memory for them: an expanded tensor, or one without channels."""
    axis = rng.randrange(t.dim())
    if rng.random() < 0.5:
        return t.narrow(axis, 0, 1).expand(*t.shape[:axis], 2**41, *t.shape[axis + 1 :])
    shape = [*t.shape]
    shape[axis], shape[axis - 1] = 2 ** rng.choice([33, 41, 62]), 0
    return torch.empty(shape, dtype=t.dtype)


def _numbers(rng: random.Random, t: Tensor, _: list[Any]) -> Tensor:
    t = t.clone()
    t.view(-1)[rng.randrange(t.numel())] = rng.choice([torch.nan, torch.inf, -torch.inf, 0.0, 6e4])
    return t


def _inference(rng: random.Random, t: Tensor, _: list[Any]) -> Tensor:
    with torch.inference_mode():
        return t.clone()


_TENSORS: dict[str, Callable[[random.Random, Tensor, list[Any]], Any]] = {
    "another dtype": lambda rng, t, _: t.to(rng.choice(DTYPES)),
    "another device": lambda rng, t, _: t.to("meta"),
    "sparse": lambda rng, t, _: rng.choice([t.to_sparse, lambda: t.view(-1, 1).to_sparse_csr()])(),
    "nested": lambda rng, t, _: torch.nested.nested_tensor([t, t]),
    "subclass": lambda rng, t, _: t.as_subclass(Subclass),
    "parameter": lambda rng, t, _: torch.nn.Parameter(t, requires_grad=rng.random() < 0.5),
    "negated": lambda rng, t, _: torch._neg_view(t) if t.is_floating_point() else t,
    "transposed": lambda rng, t, _: t.transpose(0, -1),
    "channels first": lambda rng, t, _: t.transpose(-1, -2).contiguous().transpose(-1, -2),
    "every other": lambda rng, t, _: torch.cat([t, t], -1)[..., ::2],
    "expanded": _expanded,
    "overlapping": _strided,
    "huge": _huge,
    "another size": _resized,
    "a dimension less": lambda rng, t, _: t[0],
    "a dimension more": lambda rng, t, _: t[None],
    "short storage": _short,
    "misaligned": _misaligned,
    "made in inference mode": _inference,
    "shared": _shared,
    "interleaved": _interleaved,
    "numbers": _numbers,
    "indices": _indices,
    "bytes as a mask": lambda rng, t, _: torch.randint(0, 256, t.shape).byte().view(torch.bool),
    "no tensor": lambda rng, t, _: rng.choice([None, 3, "x", t.tolist()]),
}


def _show(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)[:40]
    kind = str(value.dtype).removeprefix("torch.")
    if value.layout is not torch.strided or value.is_nested:
        return f"<{kind} {value.layout}>"
    where = "" if value.is_cpu else f" on {value.device}"
    return f"<{kind} {tuple(value.shape)} strides {value.stride()}{where}>"
