# SPDX-License-Identifier: Apache-2.0
"""The cases of `stc bench`, checked before anything is built."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

import torch

from stc_video.bench.contenders import KINDS
from stc_video.loading.geometries import GEOMETRIES, TOWERS
from stc_video.loading.placement import find_device, find_dtype

T = TypeVar("T")


@dataclass(frozen=True)
class Grid:
    """Every combination of these is a case; in each of them the contenders take turns.

    Attributes
    ----------
    geometries, streams, ratios
        The cases.
    contenders
        Keys of :data:`stc_video.bench.contenders.KINDS`, at least one of them dense.
    device, dtype
        Where the towers run, and in what type.
    layers
        Number of layers, instead of each geometry's own.
    rounds
        How often each contender is timed in a case.
    seconds
        After so many a case ends earlier; None for never.
    """

    geometries: tuple[str, ...]
    streams: tuple[int, ...]
    ratios: tuple[Fraction, ...]
    contenders: tuple[str, ...]
    device: torch.device
    dtype: torch.dtype
    layers: int | None
    rounds: int
    seconds: float | None

    @classmethod
    def parse(
        cls,
        *,
        geometries: Sequence[str],
        streams: str,
        ratios: str,
        contenders: str | None,
        compiled: bool,
        device: str,
        dtype: str,
        layers: int | None,
        rounds: int,
        seconds: float | None,
    ) -> Grid:
        """Read the options of `stc bench` as they are typed, lists with commas between.

        Raises
        ------
        ValueError
            If one is not possible; the message says in one sentence which, and what is.
        """
        found = find_device(device)
        if found.type not in ("cpu", "cuda"):
            raise ValueError(f"--device must be cpu or cuda, got {device!r}")
        if seconds is not None and not seconds > 0.0:
            raise ValueError(f"--seconds must be above 0, got {seconds:g}")
        chosen = _geometries(geometries)
        _check_layers(chosen, layers)
        return cls(
            geometries=chosen,
            streams=_parsed("streams", streams, _count, "whole numbers from 1"),
            ratios=_parsed("ratios", ratios, _ratio, "fractions above 0 and at most 1"),
            contenders=_contenders(contenders, compiled, found),
            device=found,
            dtype=find_dtype(dtype, found),
            layers=layers,
            rounds=rounds,
            seconds=seconds,
        )

    @property
    def cases(self) -> int:
        """Number of combinations."""
        return len(self.geometries) * len(self.streams) * len(self.ratios)


def _geometries(given: Sequence[str]) -> tuple[str, ...]:
    names = _parts(",".join(given))
    if names == ["all"]:
        return TOWERS
    return _unique("geometry", (_one_of("geometry", name, (*TOWERS, "all")) for name in names))


def _check_layers(geometries: Sequence[str], layers: int | None) -> None:
    if layers is None:
        return
    for name in geometries:
        most = GEOMETRIES[name][1].get("num_hidden_layers", 12)
        if layers > most:
            raise ValueError(f"--layers must be at most {most}, those of {name}, got {layers}")


def _contenders(given: str | None, compiled: bool, device: torch.device) -> tuple[str, ...]:
    here = [name for name, kind in KINDS.items() if device.type == "cuda" or not kind.needs_cuda]
    names = here if given is None else _parts(given)
    for name in names:
        _one_of("contenders", name, tuple(KINDS))
        if name not in here:
            raise ValueError(f"--contenders: {name} needs a CUDA device, and this is {device}")
    if not compiled:
        names = [name for name in names if not KINDS[name].is_compiled]
    if not any(KINDS[name].is_dense for name in names):
        dense = ", ".join(name for name in here if KINDS[name].is_dense)
        raise ValueError(f"--contenders: one must be dense, to compare with: {dense}")
    return _unique("contenders", names)


def _count(text: str) -> int:
    if (count := int(text)) < 1:
        raise ValueError
    return count


def _ratio(text: str) -> Fraction:
    if not 0 < (ratio := Fraction(text)) <= 1:
        raise ValueError
    return ratio


def _parsed(option: str, text: str, read: Callable[[str], T], allowed: str) -> tuple[T, ...]:
    found = []
    for part in _parts(text):
        try:
            found.append(read(part))
        except (ValueError, ZeroDivisionError):
            raise ValueError(
                f"--{option} must be {allowed} with commas between, got {part!r}"
            ) from None
    return _unique(option, found)


def _one_of(option: str, name: str, allowed: Sequence[str]) -> str:
    if name not in allowed:
        raise ValueError(f"--{option} must be among {', '.join(allowed)}; got {name!r}")
    return name


def _unique(option: str, values: Iterable[T]) -> tuple[T, ...]:
    found: list[T] = []
    for value in values:
        if value in found:
            raise ValueError(f"--{option}: got {value} twice")
        found.append(value)
    return tuple(found)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]
