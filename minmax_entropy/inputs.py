"""Checks of the images, targets and classes that a model is given."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from minmax_entropy.backbones.sizes import ImageSizes


def resolve_alias(name: str, value: Tensor | None, other_name: str, other: Tensor | None) -> Tensor | None:
    """Return an argument that has two names.

    Raises:
        TypeError: both are given.
    """
    if value is not None and other is not None:
        raise TypeError(f"{name} and {other_name} are two names of one argument, give one of them")
    return other if value is None else value


def check_images(images: Tensor, in_chans: int, dtype: torch.dtype, sizes: ImageSizes) -> None:
    """Check that the model can take images. Values on an accelerator are not checked: the host would wait for it.

    Args:
        images: `[B, C, H, W]`, floating point.
        in_chans: channels C.
        dtype: dtype of the model.
        sizes: sizes that the backbone takes.

    Raises:
        ValueError, TypeError: the message says what was wrong, and what would work.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor [B, {in_chans}, H, W], got {type(images).__name__}")
    shape = tuple(images.shape)
    if images.ndim != 4:
        hint = "; add a batch dimension with images.unsqueeze(0)" if images.ndim == 3 else ""
        raise ValueError(f"images must be [B, {in_chans}, H, W], got {images.ndim} dimensions {shape}{hint}")
    if shape[1] != in_chans:
        hint = "; channels come before height and width" if shape[3] == in_chans else ""
        raise ValueError(f"images must have {in_chans} channels, got {shape[1]} in {shape}{hint}")
    if not images.is_floating_point():
        raise TypeError(f"images must be floating point, normalized with mean and std, got {images.dtype}")
    if images.dtype != dtype and not torch.is_autocast_enabled(images.device.type):
        raise TypeError(f"images are {images.dtype}, the model is {dtype}: use images.to({dtype}), or autocast")
    if shape[0] == 0:
        raise ValueError("images is an empty batch")
    _check_size(shape[2], shape[3], sizes)
    if images.device.type == "cpu" and not torch.compiler.is_compiling() and not images.isfinite().all():
        bad = (~images.isfinite()).flatten(1).any(dim=1).nonzero().flatten().tolist()
        raise ValueError(f"images hold NaN or infinite pixels, at batch index {bad}")


def _check_size(height: int, width: int, sizes: ImageSizes) -> None:
    if sizes.accepts(height, width):
        return
    nearest = sizes.nearest(height, width)
    if sizes.fixed is not None:
        buildable = sizes.without_fixed_size.nearest(height, width)
        raise ValueError(
            f"this backbone takes images of {sizes.fixed} only, got {(height, width)}; resize them, or build it with "
            f"img_size={buildable}"
        )
    if min(height, width) < sizes.stride:
        raise ValueError(
            f"images of {height} x {width} are smaller than the backbone's stride of {sizes.stride} pixels; the "
            f"nearest size that works is {nearest}"
        )
    raise ValueError(
        f"this backbone can't take images of {(height, width)}; the nearest size that works is {nearest} "
        f"(it takes {sizes})"
    )


def check_target(target: Tensor, images: Tensor, num_classes: int, task: type) -> None:
    """Check that a target fits the images.

    Args:
        target: target as `task` requires it.
        images: `[B, C, H, W]`.
        num_classes: K.
        task: one of `minmax_entropy.tasks.TASKS`.

    Raises:
        ValueError, TypeError: the message says what was wrong, and what would work.
    """
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be a tensor, got {type(target).__name__}")
    if target.device != images.device:
        raise ValueError(f"target is on {target.device}, images are on {images.device}")
    task.check(target, images.shape[0], num_classes)


def class_index(
    classes: str | Iterable[int | str] | Tensor, batch: int, num_classes: int, class_names: Sequence[str] | None
) -> Tensor:
    """Return the indices `[B, N]` of the classes requested from `WSLModel.localize`.

    Args:
        classes: "all", N indices or names, or a tensor of indices `[N]` or `[B, N]`.
        batch: B.
        num_classes: K.
        class_names: class names of the model, if it has any.

    Raises:
        ValueError, TypeError: the message says what was wrong, and what would work.
    """
    wanted = 'classes must be "all", a list of indices or names, or a tensor of indices [N] or [B, N]'
    if isinstance(classes, str) and classes == "all":
        classes = range(num_classes)
    if isinstance(classes, Tensor):
        index = classes.expand(batch, -1) if classes.ndim == 1 else classes
    elif isinstance(classes, str) or not isinstance(classes, Iterable):
        raise TypeError(f"{wanted}, got {classes!r}")
    else:
        index = torch.tensor([[_class_number(each, class_names, wanted) for each in classes]], dtype=torch.long)
        index = index.expand(batch, -1)
    if index.dtype == torch.bool or index.is_floating_point() or index.is_complex():
        raise TypeError(f"{wanted}, got a tensor of {index.dtype}")
    if index.ndim != 2 or index.shape[0] != batch or not index.shape[1]:
        raise ValueError(f"{wanted} with B = {batch} and N over 0, got shape {tuple(index.shape)}")
    readable = index.device.type == "cpu" and not torch.compiler.is_compiling()
    if readable and not (0 <= int(index.min()) and int(index.max()) < num_classes):
        raise ValueError(f"classes must lie in [0, {num_classes}), got {index.unique().tolist()}")
    return index.long()


def _class_number(each: int | str, class_names: Sequence[str] | None, wanted: str) -> int:
    if isinstance(each, str):
        if each not in (class_names or []):
            raise ValueError(f"the model has no class {each!r}; its class_names are {class_names}")
        return class_names.index(each)
    if isinstance(each, bool) or not hasattr(each, "__index__"):
        raise TypeError(f"{wanted}, got {each!r} in it")
    return operator.index(each)
