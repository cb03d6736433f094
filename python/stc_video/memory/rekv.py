# SPDX-License-Identifier: Apache-2.0
"""ReKV (arXiv 2503.00540): a sliding window, and retrieval from what has left it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from stc_video.errors import MemoryFullError
from stc_video.memory.base import (
    Context,
    Frame,
    Memory,
    MemoryChangedError,
    Reading,
    Retrieved,
    Snapshot,
)
from stc_video.memory.blocks import Asked, block_of, length_of, start_of
from stc_video.memory.codecs import make_codec
from stc_video.memory.config import RekvConfig
from stc_video.memory.decoder import Decoder
from stc_video.memory.deepstack import joined, split_layers
from stc_video.memory.index import BlockIndex
from stc_video.memory.masks import pictures_of, rows_mask
from stc_video.memory.restoring import check_counts, check_fields, check_shape, checked_blocks
from stc_video.memory.retrieval import block_order, choose
from stc_video.memory.stores import (
    DiskStore,
    SlabStore,
    Store,
    StoredFile,
    TieredStore,
    read_record,
)
from stc_video.memory.window import Block, Window
from stc_video.rotary import apply_rotary


class RekvMemory(Memory):
    """Bounded on the device, in host memory and on disk, for a stream of any length.

    It differs from the authors' code where that has an error or a limit: the prompt's beginning is
    attended to once, never twice; a key is rotated once for the window and once when it is
    retrieved, not for every token; the index holds key heads and not query heads; frames may have
    any number of tokens; the question passes through the model once; and what leaves a full store
    is decided and counted. The prompt's beginning has the positions directly in front of the
    window, where theirs has one constant distance for all of it.

    Parameters
    ----------
    language_model
        Without its head, such as ``Qwen2Model``.
    config
        The settings.
    """

    def __init__(self, language_model: nn.Module, config: RekvConfig) -> None:
        self.config = config
        self._decoder = decoder = Decoder(language_model)
        layer = decoder.layers[0]
        self._codec = make_codec(config.storage, layer.key_heads, layer.width, decoder.dtype)
        self._window = Window(decoder, config.window_tokens)
        self._index = BlockIndex(
            len(decoder.layers),
            layer.key_heads * layer.width,
            decoder.device,
            nearest=config.eviction == "redundant",
        )
        slab = config.slab_bytes
        stores: list[Store] = [
            SlabStore("device", decoder.device, config.device_bytes, slab),
            SlabStore("host", torch.device("cpu"), config.host_bytes, slab),
            DiskStore(config.disk_folder, config.disk_bytes),
        ]
        self._store = TieredStore(stores, self._evict)
        self._blocks: dict[int, Block] = {}
        self.evicted = 0
        self._forgotten = 0  # like evicted, and never begins anew

    @property
    def tokens(self) -> int:
        """Number of tokens held, in all stores together."""
        return self._window.prefix_tokens + sum(b.tokens for b in self._blocks.values())

    def nbytes(self) -> dict[str, int]:
        """Bytes of the window, the index and each store."""
        return {
            "window": self._window.nbytes,
            "index": self._index.nbytes,
            **self._store.nbytes(),
        }

    # -- the video ---------------------------------------------------------------------------

    def begin(self, prefix: Tensor) -> None:
        """Start anew with the embeddings (P, D) of what comes before the video."""
        self.clear()
        count, layers = len(prefix), self._decoder.layers
        kept, x = [], prefix
        tables = self._decoder.tables(torch.arange(count))
        for layer, table in zip(layers, tables, strict=True) if count else ():
            query, key, value = layer.project(x)
            kept.append(torch.stack([key, value]))
            rotated = apply_rotary(query, *table), apply_rotary(key, *table)
            x = layer.run(x, *rotated, value, lambda: None)
        self._window.begin(torch.stack(kept) if kept else self._window.prefix[:, :, :, :0])

    def append(self, frames: Sequence[Frame]) -> None:
        """Take in the next frames."""
        limit = self.config.window_tokens
        largest = max((len(frame.embeds) for frame in frames), default=0)
        if largest > limit:
            raise ValueError(
                f"memory: a frame must fit into the window of {limit} tokens (window_tokens), "
                f"got one of {largest}"
            )
        piece: list[Frame] = []
        for frame in frames:
            size = sum(len(f.embeds) for f in piece)
            if piece and size + len(frame.embeds) > max(limit // 4, largest):
                self._append_piece(piece)
                piece = []
            piece.append(frame)
        self._append_piece(piece)

    def holds(self, number: int) -> bool:
        """Tell whether a frame is held, after an :meth:`append` that failed."""
        return number in self._blocks

    def _append_piece(self, frames: Sequence[Frame]) -> None:
        """Encode frames that fit into a fraction of the window together."""
        window, decoder = self._window, self._decoder
        sizes = [len(frame.embeds) for frame in frames]
        free = [window.position + sum(f.span for f in frames[:i]) for i in range(len(frames))]
        if not (count := sum(sizes)):
            window.position += sum(frame.span for frame in frames)
            return
        window.make_room(count)
        starts = [start_of(frame, position) for frame, position in zip(frames, free, strict=True)]
        groups, leaving = window.plan(sizes, starts)
        for _ in range(leaving):
            self._move_out()
        pairs = zip(frames, free, strict=True)
        positions = torch.cat([start + frame.offsets for frame, start in pairs], dim=-1)
        tables, pictures = decoder.tables(positions), pictures_of(frames)
        x, added = split_layers(joined([frame.embeds for frame in frames]), decoder.size)
        masks: dict[tuple[int, int | None], Any] = {}
        means = []
        for number, (layer, table) in enumerate(zip(decoder.layers, tables, strict=True)):
            query, key, value = layer.project(x)
            # An empty frame has no mean and gets no block.
            means.append([part.float().mean(1).flatten() for part in key.split(sizes, 1)])
            query = apply_rotary(query, *table)
            window.write(number, apply_rotary(key, *table), value)
            parts = []
            for at, group in enumerate(groups):
                seen_keys, seen_values = window.visible(number, group)
                if (mask := (at, layer.window)) not in masks:
                    seen = seen_keys.shape[1]
                    masks[mask] = rows_mask(group.rows, seen, x.device, layer.window, pictures)
                rows_query = query[:, group.rows]
                parts.append(layer.attend(rows_query, seen_keys, seen_values, masks[mask]))
            x = layer.finish(x, torch.cat(parts))
            x = x + added[number] if number < len(added) else x
        for at, frame in enumerate(frames):
            if sizes[at]:
                block = block_of(frame, *starts[at])
                window.commit(block, sizes[at])
                self._blocks[block.number] = block
                self._index.add(block.number, torch.stack([layer[at] for layer in means]))
        window.position += sum(frame.span for frame in frames)

    def _move_out(self) -> None:
        """Move the window's first block to the stores; it stays if there is no room for it."""
        block = self._window.blocks[0]
        self._store.put(block.number, self._codec.encode(self._window.block(block)))
        self._window.leave()

    def _evict(self, store: Store) -> int:
        """Name a block of the last store to forget, and forget it everywhere else."""
        if self.config.eviction == "refuse":
            raise MemoryFullError(
                f"memory: the {store.name} store of {store.budget} bytes is full and "
                "eviction='refuse' forbids to forget a frame"
            )
        pair = None
        if self.config.eviction == "redundant":
            pair = self._index.most_redundant(store.blocks())
        if pair is None:
            number = store.blocks()[0]
            self._index.remove(number)
        else:
            number, survivor = pair
            kept, gone = self._blocks[survivor], self._blocks[number]
            self._index.merge(number, survivor, (kept.stands_for, gone.stands_for))
            kept.stands_for += gone.stands_for
        del self._blocks[number]
        self.evicted += 1
        self._forgotten += 1
        return number

    # -- questions ---------------------------------------------------------------------------

    def context(
        self, prompt: Tensor, question: slice, text: str, reading: Reading | None = None
    ) -> Context:
        """Retrieve in each layer by the question's queries, and let the prompt attend to it."""
        from transformers import DynamicCache

        make_cache: Any = DynamicCache  # has no types
        cache, decoder, reading = make_cache(), self._decoder, reading or Reading()
        with reading.lock:
            asked = self._asked(text)
            held = self._window.prefix_tokens + asked.budget
        count = len(prompt)
        tables = decoder.tables(torch.arange(held, held + count))
        used: Counter[int] = Counter()
        x = prompt
        for number, (layer, table) in enumerate(zip(decoder.layers, tables, strict=True)):
            query, key, value = layer.project(x)
            keys = key.new_empty((key.shape[0], held + count, key.shape[2]))
            values = torch.empty_like(keys)
            with reading.lock:
                reading.check()
                # A layer with a window of its own sees no more than the last blocks.
                slides = layer.window is not None
                wanted = None if slides else layer.question_query(query[:, question])
                chosen = self._chosen(number, wanted, asked)
                self._gather(number, chosen, keys[:, :held], values[:, :held])
                self._store.done_reading()
            if wanted is not None:
                used.update(block.number for block, _ in chosen)
            keys[:, held:] = apply_rotary(key, *table)
            values[:, held:] = value
            x = layer.run(x, apply_rotary(query, *table), keys, values, reading.check)
            cache.update(keys[None, :, :-1], values[None, :, :-1], number)
        retrieved = tuple(
            Retrieved(block.number, block.time, used[block.number])
            for block in asked.blocks
            if used[block.number]
        )
        return Context(cache, held + count - 1, retrieved)

    def _asked(self, text: str) -> Asked:
        """Collect the blocks that there are to answer a question from."""
        numbers = self._index.numbers()
        blocks = [self._blocks[number] for number in numbers]
        held = min(sum(block.tokens for block in blocks), self.config.retrieve_tokens)
        return Asked(blocks, self._external_scores(text, numbers), held, self._forgotten)

    def _chosen(self, layer: int, query: Tensor | None, asked: Asked) -> list[tuple[Block, int]]:
        """Blocks for one layer, and how many of their tokens, in temporal order.

        Those that a query retrieves, or the last ones.
        """
        blocks, scores = asked.blocks, asked.scores
        if asked.forgotten != self._forgotten:  # other threads go on pushing
            left = [at for at, b in enumerate(blocks) if self._blocks.get(b.number) is b]
            blocks = [blocks[at] for at in left]
            scores = None if scores is None else scores[left]
        sizes = [block.tokens for block in blocks]
        if sum(sizes) < asked.budget:
            raise MemoryChangedError("memory: frames of this question have been forgotten")
        if query is None:
            order = list(reversed(range(len(sizes))))
        else:
            vectors = self._index.vectors(layer)[: len(sizes)]  # newer ones are behind these
            order = block_order(query, vectors, sizes, scores, self.config)
        return [(blocks[at], take) for at, take in choose(order, sizes, asked.budget)]

    def _external_scores(self, text: str, numbers: list[int]) -> Tensor | None:
        if self.config.scorer is None:
            return None
        scores = torch.as_tensor(self.config.scorer(text, numbers), dtype=torch.float32).cpu()
        if scores.shape != (len(numbers),):
            raise ValueError(
                f"memory: scorer must return one score for each of {len(numbers)} frames, "
                f"got shape {tuple(scores.shape)}"
            )
        return scores

    def _gather(
        self, layer: int, blocks: Sequence[tuple[Block, int]], keys: Tensor, values: Tensor
    ) -> None:
        """Fill keys and values (H, P + n, d) with the prefix and blocks, without gaps.

        Keys are rotated on from the position they had to that behind the block before, such that
        text goes on at the number of tokens. With positions in time, height and width, blocks of a
        video become one: their times follow each other, their rows and columns lie on each other.
        """
        # A block in part takes as many positions as tokens, unless it has gaps anyway.
        in_a_row = self._decoder.axes == 1
        spans = [
            take if block.span == block.tokens and in_a_row else block.span
            for block, take in blocks
        ]
        start = origin = keys.shape[1] - length_of([block for block, _ in blocks], spans)
        prefix = self._window.prefix[layer]
        at = prefix.shape[2]
        rotary = self._decoder.layers[layer].rotary
        table = rotary.table(torch.arange(start - at, start))
        keys[:, :at] = apply_rotary(prefix[0], *table)
        values[:, :at] = prefix[1]
        moves, shifts = [], []
        for (block, take), span in zip(blocks, spans, strict=True):
            stored = self._read(block, layer)
            keys[:, at : at + take] = stored[0, :, :take]
            values[:, at : at + take] = stored[1, :, :take]
            moves.append(start - block.start)
            shifts.append(origin - block.origin)
            at, start = at + take, start + span
            if not block.side:  # a picture of its own
                origin = start
        differences = rotary.axes_of(torch.tensor(moves), torch.tensor(shifts))
        if differences.any():
            takes = torch.tensor([take for _, take in blocks], device=keys.device)
            cos, sin = rotary.shift_table(differences)
            cos, sin = (part.repeat_interleave(takes, 0) for part in (cos, sin))
            video = keys[:, prefix.shape[2] :]
            video.copy_(apply_rotary(video, cos, sin))

    def _read(self, block: Block, layer: int) -> Tensor:
        """(2, H, n, d) of a block in one layer, wherever it is."""
        if block.slot >= 0:
            return self._window.block(block)[layer]
        return self._codec.decode(self._store.read(block.number, layer), block.tokens)

    # -- saving ------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Describe everything that is held."""
        snapshot = Snapshot(
            values={
                "blocks": [asdict(block) for block in self._blocks.values()],
                "position": self._window.position,
                "evicted": self.evicted,
                "nearest": self._index.nearest(),
                "stores": {store.name: store.blocks() for store in self._store.stores},
            },
            tensors={
                "prefix": self._window.prefix,
                "window": self._window.live(),
                "index": self._index.all_vectors(),
            },
        )
        for store in self._store.stores:
            for number in store.blocks():
                if isinstance(store, DiskStore):
                    snapshot.records[number] = store.file(number)
                else:
                    snapshot.records[number] = store.record(number)
        return snapshot

    def restore(self, snapshot: Snapshot) -> None:
        """Take over everything from a snapshot."""
        self.clear()
        device, values = self._decoder.device, snapshot.values
        check_fields(values, ("blocks", "position", "evicted", "nearest", "stores"))
        check_counts(values, "position", "evicted")
        layers, _, heads, _, width = self._window.prefix.shape
        for name in ("prefix", "window"):
            check_shape(name, snapshot.tensors[name], (layers, 2, heads, None, width))
        check_shape("index", snapshot.tensors["index"], (layers, None, heads * width))
        blocks = checked_blocks(snapshot)
        inside = [block for block in blocks if block.slot >= 0]
        prefix, live = (snapshot.tensors[name].to(device) for name in ("prefix", "window"))
        self._window.restore(prefix, live, inside, values["position"])
        self._blocks = {block.number: block for block in blocks}
        keys = snapshot.tensors["index"]
        self._index.restore(list(self._blocks), keys, values["nearest"])
        self.evicted = values["evicted"]
        stores = {store.name: store for store in self._store.stores}
        for name, numbers in values["stores"].items():
            store = stores[name]
            for number in numbers:
                record = snapshot.records[number]
                if isinstance(store, DiskStore) and isinstance(record, StoredFile):
                    store.adopt(number, record)
                elif not store.put(number, read_record(record)):
                    raise MemoryFullError(f"memory: the saved frames do not fit into {name}")

    def clear(self) -> None:
        """Forget everything and give memory and files back."""
        self._store.clear()
        self._index.clear()
        self._blocks.clear()
        self._forgotten += 1
        self._window.begin(self._window.prefix[:, :, :, :0])
        self.evicted = 0
