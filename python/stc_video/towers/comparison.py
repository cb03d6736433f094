# SPDX-License-Identifier: Apache-2.0
"""Whether what a block's parts give is what the block itself gives, up to rounding."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from stc_video.towers.block import Block
from stc_video.towers.block_calls import PLACES, Arguments, bind
from stc_video.towers.observers import unobserved
from stc_video.towers.positions import tables_in

#: tokens of each of the two pictures of :func:`try_out`
_FEW = 8
#: standard deviation of the attention logits in :func:`try_out`
_SHARPNESS = 3.0
#: size of their channels
_RESIDUAL = 2.0**-5

_PLAIN = (bool, int, float, str)


def is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same shape and values, NaN counting as a value."""
    if one.shape != other.shape:
        return False
    return torch.equal(one, other) or torch.equal(one.nan_to_num(), other.nan_to_num())


def from_parts(block: Block, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Output (F, N, C) of a block for all tokens, by its parts; or of rows, (N, C)."""
    if x.dim() == 2:
        return from_parts(block, x[None], mask)[0]
    with unobserved(block.layer):
        query, key, value = block.project(block.norm1(x))
        middle = x + block.attention(query, key, value, mask)
        return middle + block.feed_forward(middle)


def disagreement(stock: Tensor, ours: Tensor, x: Tensor) -> str:
    """Say how far two outputs of a block are apart; empty if no further than rounding explains.

    What the block adds to its input ``x`` is what counts: a residual stream is often so much
    larger that it hides the difference. Each token's difference (root mean square over the
    channels) is held against the size of what the block adds to all tokens, and against the
    rounding of the sum.

    Parameters
    ----------
    stock, ours, x
        (..., C), the two outputs and the input, in the same dtype.
    """
    if stock.shape != ours.shape:
        return f"it returns shape {tuple(stock.shape)}, its parts give {tuple(ours.shape)}"
    precision, share = _rounding(stock)
    stock, ours = stock.float(), ours.float()
    added = _size(stock - x.float()).square().mean().sqrt()
    allowed = share * added + 4.0 * precision * _size(stock)
    off = _size(stock - ours)
    if bool((off <= allowed).all()):
        return ""
    same = (stock == ours) | (stock.isnan() & ours.isnan())
    if bool(same.all()):  # infinite, or not a number, in both
        return ""
    largest = float(off.max())
    return (
        f"its output differs from what its parts give by up to {largest:.2g} a token, "
        f"{largest / max(float(added), 1e-30):.2g} of what it adds to its input"
    )


@contextmanager
def mlp_for(block: Block, rows: Tensor, known: Tensor | None) -> Iterator[None]:
    """Inside, a block's MLP runs for some of its rows only, and gives ``known`` for the others.

    The MLP is two thirds of a block, and does the same to each row; attention runs for all.
    ``known`` (..., N, C) is what it gave for all rows of the same frame; zeros if it is None.
    """
    whole: list[int] = []

    def take(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        whole.append(args[0].shape[-2])
        return (args[0].index_select(-2, rows), *args[1:])

    def give(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        shape = (*output.shape[:-2], whole.pop(), output.shape[-1])
        others = output.new_zeros(shape) if known is None else known.reshape(shape)
        return others.to(output.dtype).index_copy(-2, rows, output)

    hooks = [
        block.mlp.register_forward_pre_hook(take),
        block.last_of_mlp.register_forward_hook(give),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _size(x: Tensor) -> Tensor:
    """Root mean square over the channels."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1)
    return norm / math.sqrt(x.shape[-1])


def _rounding(x: Tensor) -> tuple[float, float]:
    """Precision of a tower's arithmetic, and how far its results may be apart by it.

    A block multiplies long rows, and its attention amplifies what its projections round: the
    second is many times the first. ``docs/limits.md`` says how far below towers stay.
    """
    dtype = x.dtype
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    if dtype == torch.bfloat16:
        return 2.0**-8, 0.1
    if dtype == torch.float16:
        return 2.0**-11, 0.02
    if torch.get_float32_matmul_precision() != "highest":
        return 2.0**-8, 0.02
    return 2.0**-24, 2e-4


def try_out(block: Block, stock: Callable[..., Any], x: Tensor, arguments: Arguments) -> str:
    """Compare a block with its parts on two small pictures; say how they differ.

    This shows what one frame of a tower hides: whether pictures of a call see each other, and
    whether a token's place counts inside the attention. Positions hardly matter as long as all
    logits are small (weights as they are initialised), or all tokens are the same (a black
    frame). So the tokens are made to differ, and queries and keys are scaled for a while.

    Parameters
    ----------
    block
        The block.
    stock
        Its forward.
    x
        (1, N, C) a frame's input of the block.
    arguments
        What else the block gets; tensors are left out, but for those that tell places.
    """
    bound = bind(block.layer, *arguments)
    tables = tables_in(bound)
    prefix = 0 if tables is None else x.shape[1] - tables.cos.shape[0]
    few = _two_pictures(x[0], _FEW + prefix)
    placed = [id(bound.get(name)) for name in PLACES]
    args, kwargs = _for_two(arguments, placed, few.shape[1] - prefix)
    given = few
    if isinstance(bounds := arguments[1].get("cu_seqlens"), Tensor):
        given, kwargs = few.flatten(0, 1)[None], _in_row(kwargs, bounds, few.shape[1])
    if tables is not None:
        rows = slice(few.shape[1] - prefix)
        tables = tables._replace(cos=tables.cos[rows], sin=tables.sin[rows])
    with _sharpened(block), block.geometry.replaced(tables, few.shape[1]):
        try:
            stock_states = states_of(stock(given, *args, **kwargs)).view_as(few)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            return f"it takes no two pictures of {few.shape[1]} tokens ({_first_line(error)})"
        return disagreement(stock_states, from_parts(block, few), few)


def settings_of(layer: nn.Module) -> Hashable:
    """The kind of a block: the classes and plain settings of its modules."""
    return tuple(
        (type(module), *((k, v) for k, v in vars(module).items() if isinstance(v, _PLAIN)))
        for module in layer.modules()
    )


def states_of(output: Any) -> Tensor:
    """Hidden states in what a block returned."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def hint(layer: nn.Module) -> str:
    """Say what may be behind a difference."""
    for name, module in layer.named_modules():
        if getattr(module, "is_causal", False) is True:
            return f"; {name} has is_causal=True"
    return ""


def _for_two(value: Any, placed: Sequence[int], rows: int) -> Any:
    """Arguments with None in place of each tensor, but for places: those of the first rows."""
    if isinstance(value, dict):
        return {name: _for_two(part, placed, rows) for name, part in value.items()}
    if id(value) in placed and isinstance(value, Tensor):
        if value.dim() < 2 or value.shape[-2] < rows:  # numbers of places, (1, N)
            return value[..., :rows]
        few = value.narrow(-2, 0, rows)
        return few[:1].expand(2, -1, -1) if few.dim() == 3 else few
    if isinstance(value, (tuple, list)):
        inside = [*placed, *map(id, value)] if id(value) in placed else placed
        return type(value)(_for_two(part, inside, rows) for part in value)
    return None if isinstance(value, Tensor) else value


def _in_row(kwargs: dict[str, Any], bounds: Tensor, tokens: int) -> dict[str, Any]:
    """Arguments of two pictures of so many tokens that lie in one row."""
    both = kwargs | {"cu_seqlens": torch.tensor([0, tokens, 2 * tokens]).to(bounds)}
    places = kwargs.get("position_embeddings")
    if isinstance(places, (tuple, list)):
        both["position_embeddings"] = type(places)(torch.cat([one, one], -2) for one in places)
    return both


def _two_pictures(tokens: Tensor, number: int) -> Tensor:
    """(2, n, C) of tokens (N, C) from all over a frame, with noise of their own size."""
    number = min(number, tokens.shape[0])
    places = torch.linspace(0, tokens.shape[0] - 1, 2 * number, device=tokens.device).long()
    noise = torch.randn((2, number, tokens.shape[1]), generator=torch.Generator().manual_seed(0))
    chosen = tokens[places].view(2, number, -1)
    size = chosen.float().square().mean().sqrt().clamp_min(1e-6)
    mixed = chosen.float() / size + noise.to(tokens.device)
    # Small, so that the sum with what a block adds rounds little of it away.
    return (_RESIDUAL * mixed).to(tokens.dtype)


@contextmanager
def _sharpened(block: Block) -> Iterator[None]:
    """Inside, queries and keys are scaled so that the attention is far from uniform."""

    def scaled(output: Tensor) -> Tensor:
        size = output.float().square().mean().sqrt().clamp_min(1e-12)
        sharp: Tensor = output * (_SHARPNESS**0.5 / size)
        return sharp.to(output.dtype)

    def scale(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return scaled(output)

    def scale_two(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        query, key = output[..., : block.channels], output[..., block.channels :]
        narrow = key.shape[-1] // 2
        return torch.cat([scaled(query), scaled(key[..., :narrow]), key[..., narrow:]], dim=-1)

    if block.qkv is not None:
        hooks = [block.qkv.register_forward_hook(scale_two)]
    else:
        hooks = [part.register_forward_hook(scale) for part in (block.query, block.key)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
