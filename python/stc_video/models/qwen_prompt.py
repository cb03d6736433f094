# SPDX-License-Identifier: Apache-2.0
"""Pictures and positions of Qwen-VL in a prompt without the placeholders of pruned tokens.

Positions are (time, height, width). Those of the whole conversation, nothing pruned, are computed
by the installed model's own rule, which differs between releases; kept tokens have theirs, and the
text behind a video goes on where it would if nothing had been pruned.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stc_video.models.placeholders import first_of_the_last, kept_places
from stc_video.models.prompt import Encoder, Written

#: kind of pictures -> the argument with their rows
_ROWS = {"image": "pixel_values", "video": "pixel_values_videos"}


def _none() -> Tensor:
    return torch.empty((0, 3), dtype=torch.int64)


@dataclass(frozen=True)
class QwenPictures:
    """The pictures of a conversation.

    Attributes
    ----------
    images, videos
        (V, 3) time, height and width of each, in rows of the tower.
    intervals
        Seconds per temporal patch of each video; empty if never given.
    """

    images: Tensor = field(default_factory=_none)
    videos: Tensor = field(default_factory=_none)
    intervals: tuple[float, ...] = ()


@dataclass(frozen=True)
class _New:
    """New pictures of a kind: grids (V, 3) and rows (n, P), None if there are none."""

    grids: Tensor
    rows: Tensor | None


def write_pictures(
    model: Any, arguments: dict[str, Any], written: Written, before: QwenPictures, encode: Encoder
) -> QwenPictures:
    """Write the tokens of images, and the kept ones of videos, into the embeddings of a prompt.

    Parameters
    ----------
    model
        A Qwen2-VL or Qwen2.5-VL.
    arguments
        What the model is called with.
    written
        The new part of the prompt.
    before
        The pictures so far.
    encode
        Encodes and prunes a video of temporal patches (T, h, w, P).

    Returns
    -------
    QwenPictures
        All pictures, the new ones among them.

    Raises
    ------
    ValueError
        If pixels, grids and placeholders do not fit.
    """
    images = _new(arguments, "image", model, written)
    videos = _new(arguments, "video", model, written)
    _put_images(model, images, written)
    _put_videos(model, videos, written, encode)
    return QwenPictures(
        torch.cat([before.images, images.grids]),
        torch.cat([before.videos, videos.grids]),
        _intervals(arguments, before, len(videos.grids)),
    )


def token_rows(output: Any) -> Tensor:
    """Tokens (n, W) of what a tower or `get_image_features` returned, with those of deepstack.

    They are parts of one tensor or several, in an object or, up to transformers 4.57, a tuple.
    """
    first, added = (
        getattr(output, "pooler_output", output),
        getattr(output, "deepstack_features", ()),
    )
    if isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], list):
        first, added = output
    rows = [
        torch.cat(list(p)) if isinstance(p, (list, tuple)) else p for p in (first, *(added or ()))
    ]
    return torch.cat(rows, dim=-1)


def positions(model: Any, ids: Tensor, mask: Tensor, pictures: QwenPictures) -> Tensor:
    """Positions (3, B, L) of the full conversation, by the installed release's rule."""
    config, rule = model.config, model.model.get_rope_index
    kinds = torch.zeros_like(ids, dtype=torch.int32)
    kinds[ids == config.image_token_id], kinds[ids == config.video_token_id] = 1, 2
    grids = {"image": pictures.images, "video": pictures.videos}
    some = {f"{kind}_grid_thw": g.to(ids.device) if len(g) else None for kind, g in grids.items()}
    offered = {
        "input_ids": ids,
        "attention_mask": mask,
        "mm_token_type_ids": kinds,
        "second_per_grid_ts": list(pictures.intervals) or None,
        **some,
    }
    taken = inspect.signature(rule).parameters
    found: Tensor = rule(**{k: v for k, v in offered.items() if k in taken})[0]
    return found


def _new(arguments: dict[str, Any], kind: str, model: Any, written: Written) -> _New:
    """New pictures of a kind: the last ones, if those of the whole conversation were given."""
    name = _ROWS[kind]
    rows, grids = arguments.get(name), arguments.get(f"{kind}_grid_thw")
    needed = int((written.ids == int(getattr(model.config, f"{kind}_token_id"))).sum())
    merged = _merge(model) ** 2
    if isinstance(rows, (list, tuple)):
        rows = torch.cat(list(rows))
    if rows is None:
        _check_count(kind, [], 0, needed)
        return _New(_none(), None)
    if grids is None:
        raise ValueError(f"accelerated model: {name} need {kind}_grid_thw, got none")
    grids = torch.as_tensor(grids).cpu()
    sizes = grids.prod(1).tolist()
    first = first_of_the_last(sizes, len(rows))
    if first is None:
        raise ValueError(
            f"accelerated model: {kind}_grid_thw must have as many places as {name} have rows "
            f"({len(rows)}), got {grids.tolist()}"
        )
    grids, sizes = grids[first:], sizes[first:]
    later = first_of_the_last(sizes, needed * merged)
    if later is None or (later and not written.past):
        _check_count(kind, grids.tolist(), sum(sizes) // merged, needed)
    later = later or 0
    return _New(grids[later:], rows[sum(sizes[:later]) :])


def _put_images(model: Any, images: _New, written: Written) -> None:
    """Write the tokens of images, of which none is pruned, into the embeddings."""
    if images.rows is None or not len(images.grids):
        return
    grids = images.grids.to(written.ids.device)
    output = model.model.get_image_features(images.rows, grids)
    is_image = written.ids == model.config.image_token_id
    written.embeds[is_image] = token_rows(output).to(written.embeds)


def _put_videos(model: Any, videos: _New, written: Written, encode: Encoder) -> None:
    """Write the kept tokens of videos into the embeddings, and which ones they are."""
    if videos.rows is None or not len(videos.grids):
        return
    stay, features = [], []
    for number, rows in enumerate(videos.rows.split(videos.grids.prod(1).tolist())):
        time, height, width = videos.grids[number].tolist()
        kept = encode(rows.view(time, height, width, -1), number)
        stay.append(kept_places(kept, height * width // _merge(model) ** 2))
        features.append(kept.packed())
    is_video = written.ids == model.config.video_token_id
    written.keep[is_video] = torch.cat(stay).to(written.keep.device)
    written.embeds[is_video & written.keep] = torch.cat(features).to(written.embeds)


def _check_count(kind: str, grids: list[list[int]], expected: int, found: int) -> None:
    if found != expected:
        raise ValueError(
            f"accelerated model: {kind}s of {grids} (time, height, width) need {expected} "
            f"placeholders, got {found}"
        )


def _merge(model: Any) -> int:
    return int(model.model.visual.spatial_merge_size)


def _intervals(arguments: dict[str, Any], before: QwenPictures, videos: int) -> tuple[float, ...]:
    """Seconds per temporal patch of all videos; empty if never given."""
    given = arguments.get("second_per_grid_ts")
    if given is None and not before.intervals:
        return ()
    earlier = before.intervals or (1.0,) * len(before.videos)
    new = [1.0] * videos if given is None else [float(value) for value in given][-videos or None :]
    return (*earlier, *(new if videos else ()))
