# SPDX-License-Identifier: Apache-2.0
"""From pictures to normalised patches, of whole frames or only of what changed."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_kernels._checks import (
    check_dense,
    check_device,
    check_float,
    check_range,
    check_same,
    check_shape,
    integer,
)
from stc_kernels.ops._register import call, register
from stc_kernels.ops.patch_plan import MOST_PIXELS
from stc_kernels.reference import patches as _reference
from stc_kernels.reference.patches import BYTES


def frames_to_patches(
    pictures: Tensor,
    rows: Tensor,
    columns: Tensor,
    values: Tensor,
    patch_height: int,
    patch_width: int,
    *,
    backend: str | None = None,
) -> Tensor:
    """Resize pictures with antialiasing, normalise them and cut them into patches.

    All but the pictures comes from :func:`stc_kernels.patch_plan`::

        plan = stc_kernels.patch_plan((1080, 1920), (384, 384), (14, 14), mean=mean, std=std)
        patches = stc_kernels.frames_to_patches(pictures, *plan)

    A patch embedding that is a convolution takes ``patches @ conv.weight.flatten(1).T``. With the
    whole picture as the one patch the result is that of an image processor, and
    ``patches.view(B, 3, height, width)`` are its pixel values.

    Parameters
    ----------
    pictures
        (B, H, W, 3) uint8, any strides.
    rows, columns, values, patch_height, patch_width
        See :class:`stc_kernels.PatchPlan`. A window that does not lie within the picture is moved
        there.
    backend
        Backend to use; see :func:`stc_kernels.use_backend`.

    Returns
    -------
    Tensor
        (B, N, 3 * patch_height * patch_width) of the dtype of `values`: the patches row by row,
        and in each the pixels of the first channel row by row, then those of the second and third.

    Raises
    ------
    ValueError
        On a wrong shape, a mix of devices, or patches larger than the resized picture.
    TypeError
        On an unsupported dtype, or a patch size that is no integer.
    """
    height = integer("frames_to_patches", "patch_height", patch_height)
    width = integer("frames_to_patches", "patch_width", patch_width)
    patches: Tensor = call(
        "frames_to_patches", pictures, rows, columns, values, height, width, backend=backend
    )
    return patches


def update_patches_(
    patches: Tensor,
    pictures: Tensor,
    previous: Tensor,
    rows: Tensor,
    columns: Tensor,
    values: Tensor,
    patch_height: int,
    patch_width: int,
    *,
    backend: str | None = None,
) -> Tensor:
    """Overwrite the patches that see a pixel which differs from the previous picture.

    Equal bytes make equal patches, so the others need not be computed again: afterwards `patches`
    is what :func:`frames_to_patches` gives for `pictures`, if it was that of `previous`.

    Parameters
    ----------
    patches
        (B, N, 3 * patch_height * patch_width) of the previous pictures, of the dtype of `values`,
        any strides of slices and transposes; is written to, so no two places may be one element.
    pictures, previous
        (B, H, W, 3) uint8, any strides.
    rows, columns, values, patch_height, patch_width
        As in :func:`frames_to_patches`.
    backend
        Backend to use; see :func:`stc_kernels.use_backend`.

    Returns
    -------
    Tensor
        (B, N) bool: which patches were overwritten. A patch sees the pixels that it is a mixture
        of, from the first to the last, and those around them that the filter reaches.

    Raises
    ------
    ValueError
        On a wrong shape, a mix of devices, or shared memory; `patches` is unchanged.
    TypeError
        On an unsupported dtype, or a patch size that is no integer.
    RuntimeError
        If `patches` requires a gradient while gradients are enabled, or was made under
        ``torch.inference_mode()`` and is not written to there.
    """
    height = integer("update_patches_", "patch_height", patch_height)
    width = integer("update_patches_", "patch_width", patch_width)
    changed: Tensor = call(
        "update_patches_",
        patches,
        pictures,
        previous,
        rows,
        columns,
        values,
        height,
        width,
        backend=backend,
    )
    return changed


def _check_pictures(op: str, name: str, pictures: Tensor) -> None:
    check_dense(op, name, pictures)
    if pictures.dtype != torch.uint8:
        dtype = str(pictures.dtype).removeprefix("torch.")
        raise TypeError(f"`{op}`: {name} must be uint8, got {dtype}")
    if pictures.dim() != 4 or pictures.shape[3] != 3:
        raise ValueError(
            f"`{op}`: {name} must have shape (B, H, W, 3), got {tuple(pictures.shape)}"
        )


def _check_taps(op: str, name: str, taps: Tensor, pictures: Tensor, axis: int) -> None:
    check_dense(op, name, taps)
    if taps.dtype != torch.int32:
        raise TypeError(
            f"`{op}`: {name} must be int32, got {str(taps.dtype).removeprefix('torch.')}"
        )
    if taps.dim() != 2:
        raise ValueError(f"`{op}`: {name} must have 2 dimensions, got {taps.dim()}")
    check_device(op, name, taps, "pictures", pictures)
    check_range(op, f"the number of {name}", taps.shape[0], 1, MOST_PIXELS, "pixels")
    side = pictures.shape[axis]
    check_range(op, f"the {name} of pictures", side, 1, MOST_PIXELS, "pixels")
    check_range(op, f"the weights of {name}", taps.shape[1] - 1, 1, side, "pixels")


def _check(
    pictures: Tensor,
    rows: Tensor,
    columns: Tensor,
    values: Tensor,
    patch_height: int,
    patch_width: int,
    op: str = "frames_to_patches",
) -> None:
    _check_pictures(op, "pictures", pictures)
    _check_taps(op, "rows", rows, pictures, 1)
    _check_taps(op, "columns", columns, pictures, 2)
    check_float(op, "values", values, 2)
    check_device(op, "values", values, "pictures", pictures)
    check_shape(op, "values", values, (3, BYTES))
    check_range(op, "patch_height", patch_height, 1, len(rows), "rows")
    check_range(op, "patch_width", patch_width, 1, len(columns), "columns")


def _shape(
    pictures: Tensor, rows: Tensor, columns: Tensor, patch_height: int, patch_width: int
) -> tuple[int, int, int]:
    number = (rows.shape[0] // patch_height) * (columns.shape[0] // patch_width)
    return pictures.shape[0], number, 3 * patch_height * patch_width


def _fake(
    pictures: Tensor,
    rows: Tensor,
    columns: Tensor,
    values: Tensor,
    patch_height: int,
    patch_width: int,
) -> Tensor:
    return values.new_empty(_shape(pictures, rows, columns, patch_height, patch_width))


def _check_update(
    patches: Tensor,
    pictures: Tensor,
    previous: Tensor,
    rows: Tensor,
    columns: Tensor,
    values: Tensor,
    patch_height: int,
    patch_width: int,
) -> None:
    op = "update_patches_"
    _check(pictures, rows, columns, values, patch_height, patch_width, op)
    for name, tensor in (("patches", patches), ("values", values)):
        check_float(op, name, tensor, 3 if name == "patches" else 2)
        if (
            not torch.compiler.is_compiling() and tensor.is_neg()
        ):  # torch fails half-way where an operator writes and returns
            raise ValueError(
                f"`{op}`: {name} must not be a lazy negation: call resolve_neg() first"
            )
    if torch.is_grad_enabled() and (patches.requires_grad or values.requires_grad):
        raise RuntimeError(f"`{op}` is for inference only: call it under torch.no_grad()")
    _check_pictures(op, "previous", previous)
    check_device(op, "previous", previous, "pictures", pictures)
    check_shape(op, "previous", previous, tuple(pictures.shape))
    check_same(op, "patches", patches, "values", values)
    check_shape(op, "patches", patches, _shape(pictures, rows, columns, patch_height, patch_width))


def _fake_update(patches: Tensor, *_: object) -> Tensor:
    return patches.new_empty(patches.shape[:2], dtype=torch.bool)


register("frames_to_patches", _reference.frames_to_patches, _fake, _check)
register("update_patches_", _reference.update_patches_, _fake_update, _check_update)
