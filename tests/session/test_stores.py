# SPDX-License-Identifier: Apache-2.0
"""Stores of blocks: budgets, reuse of space, codecs."""

from __future__ import annotations

import os
import random
import signal

import pytest
import torch
from forking import fork

from stc_video.errors import MemoryFullError
from stc_video.memory.codecs import make_codec
from stc_video.memory.stores import DiskStore, SlabStore, TieredStore

CPU = torch.device("cpu")
PAGE = 4096  # a block of the file systems that tests run on


def record(number: int, size: int) -> torch.Tensor:
    return torch.full((2, size), number % 251, dtype=torch.uint8)


def test_slabs_keep_what_is_put_and_never_pass_their_budget():
    store, held = SlabStore("host", CPU, budget=40_000, slab_bytes=9_000), {}
    draw = random.Random(0)
    refused = 0
    for number in range(600):
        size = draw.randint(1, 1500)
        if store.put(number, record(number, size)):
            held[number] = size
        else:
            refused += 1
            for gone in draw.sample(sorted(held), k=min(4, len(held))):
                store.remove(gone)
                del held[gone]
        assert store.nbytes <= 40_000
        assert store.blocks() == sorted(held)
    assert refused > 20
    for number, size in held.items():
        assert torch.equal(store.record(number), record(number, size))
        assert torch.equal(store.read(number, 1), record(number, size)[1])


def test_freed_space_is_merged_and_used_again():
    store = SlabStore("host", CPU, budget=1024, slab_bytes=1024)
    for number in range(4):
        assert store.put(number, record(number, 128))
    assert not store.put(9, record(9, 128))
    for number in (1, 3, 2):
        store.remove(number)
    assert store.put(5, record(5, 384))  # as much as the three together
    assert torch.equal(store.record(0), record(0, 128))
    assert store.nbytes == 1024
    store.clear()
    assert store.nbytes == len(store) == 0


def test_a_slab_smaller_than_a_record_is_given_up():
    store = SlabStore("host", CPU, budget=1024, slab_bytes=512)
    assert store.put(0, record(0, 200))
    assert not store.put(1, record(1, 400))
    store.remove(0)
    assert store.put(1, record(1, 400))
    assert store.nbytes <= 1024


def test_a_disk_store_counts_and_deletes_its_files(tmp_path):
    store = DiskStore(tmp_path, budget=3 * PAGE)
    assert [store.put(n, record(n, 500)) for n in range(4)] == [True, True, True, False]
    files = list(tmp_path.rglob("*.safetensors"))
    # A file takes up whole blocks of the file system, however little is in it.
    assert store.nbytes == sum(512 * file.stat().st_blocks for file in files) <= 3 * PAGE
    assert torch.equal(store.read(2, 1), record(2, 500)[1])
    store.remove(1)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    assert store.put(7, record(7, 500))
    assert store.blocks() == [0, 2, 7]
    other = DiskStore(tmp_path, budget=3 * PAGE)
    other.adopt(0, store.file(7))
    store.clear()
    assert torch.equal(other.record(0), record(7, 500))  # its own name of the file
    other.clear()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_is_in_use_is_not(tmp_path):
    def put_and_die() -> int:
        store = DiskStore(tmp_path, budget=8 * PAGE)
        assert store.put(0, record(0, 500))
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    for _ in range(3):
        if (child := fork()) == 0:
            os._exit(put_and_die())
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
    first, second = DiskStore(tmp_path, budget=PAGE), DiskStore(tmp_path, budget=PAGE)
    assert first.put(1, record(1, 500))
    assert second.put(2, record(2, 500))
    assert len(list(tmp_path.iterdir())) == 2
    assert torch.equal(first.record(1), record(1, 500))
    first.clear()
    second.clear()
    assert list(tmp_path.iterdir()) == []


def test_full_tiers_pass_on_their_oldest_and_then_forget(tmp_path):
    stores = [
        SlabStore("device", CPU, 512, 256),
        SlabStore("host", CPU, 512, 256),
        DiskStore(tmp_path, 2 * PAGE),
    ]
    forgotten = []

    def evict(store):
        forgotten.append(store.oldest())
        return store.oldest()

    tiers = TieredStore(stores, evict)
    for number in range(9):
        tiers.put(number, record(number, 128))
    assert [store.blocks() for store in stores] == [[7, 8], [5, 6], [3, 4]]
    assert forgotten == [0, 1, 2]
    for number in range(3, 9):
        assert torch.equal(tiers.read(number, 0), record(number, 128)[0])
    assert tiers.nbytes().keys() == {"device", "host", "disk"}


def test_refusing_loses_nothing(tmp_path):
    def refuse(store):
        raise MemoryFullError("no")

    tiers = TieredStore([SlabStore("device", CPU, 256, 256), DiskStore(tmp_path, PAGE)], refuse)
    tiers.put(0, record(0, 128))
    tiers.put(1, record(1, 128))
    with pytest.raises(MemoryFullError):
        tiers.put(2, record(2, 128))
    assert torch.equal(tiers.read(0, 0), record(0, 128)[0])
    assert torch.equal(tiers.read(1, 0), record(1, 128)[0])
    assert 2 not in tiers


def check_int4(kv: torch.Tensor, back: torch.Tensor, made: torch.Tensor) -> None:
    """Half a step of each group's range, and the rounding of the range and of the dtype."""
    tokens = kv.shape[-2]
    if tokens == 64:
        # Four bits, and 32 bits of range for 32 key tokens or 16 value channels.
        assert made.nbytes == kv.numel() * (4 + (1 + 2) / 2) / 8
    rounding = torch.finfo(torch.float16).eps + torch.finfo(kv.dtype).eps
    for part, dim in ((0, -2), (1, -1)):
        for piece, got in zip(
            kv[:, part].float().split(32, dim), back[:, part].float().split(32, dim), strict=True
        ):
            low, high = piece.amin(dim, keepdim=True), piece.amax(dim, keepdim=True)
            most = torch.maximum(low.abs(), high.abs())
            assert ((got - piece).abs() <= (high - low) / 30 + 2 * rounding * most).all()


def test_int4_cuts_off_what_its_ranges_cannot_hold_and_keeps_what_is_constant():
    kv = torch.full((1, 2, 1, 5, 3), 7.0)
    kv[0, 0, 0, 2, 1] = 1e6
    codec = make_codec("int4", 1, 3, torch.float32)
    back = codec.decode(codec.encode(kv)[0], 5)
    assert torch.isfinite(back).all()
    assert back[0, 0, 2, 1] > 60_000
    assert torch.equal(back[1], kv[0, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 3, 64])
@pytest.mark.parametrize("storage", ["exact", "int8", "int4"])
def test_codecs(storage, tokens, dtype):
    generator = torch.Generator().manual_seed(tokens)
    kv = torch.randn((3, 2, 2, tokens, 16), generator=generator)
    kv[:, 0, :, :, 5] *= 100  # a channel like those of Qwen2's keys
    kv[1, 1, 0, 0] = 0
    kv = kv.to(dtype)
    codec = make_codec(storage, 2, 16, dtype)
    made = codec.encode(kv)
    assert made.dtype == torch.uint8
    assert made.shape[0] == 3
    back = torch.stack([codec.decode(row, tokens) for row in made])
    assert back.dtype == dtype
    if storage == "exact":
        assert torch.equal(back, kv)
        return
    if storage == "int4":
        check_int4(kv, back, made)
        return
    assert made.nbytes < 3 * kv.nbytes  # few tokens: the scales weigh more than the codes
    if tokens == 64:
        assert made.nbytes < 0.72 * kv.nbytes
    # Half a step of the scale, and the rounding of the dtype.
    rounding = torch.finfo(dtype).eps
    step = kv.float().abs().amax(-2, keepdim=True)[:, 0] / 127
    assert ((back[:, 0].float() - kv[:, 0].float()).abs() <= step * (0.501 + 127 * rounding)).all()
    step = kv.float().abs().amax(-1, keepdim=True)[:, 1] / 127
    assert ((back[:, 1].float() - kv[:, 1].float()).abs() <= step * (0.501 + 127 * rounding)).all()
