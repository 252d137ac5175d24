"""Creation of timm models by name, for as many image sizes as possible, with errors that say what would work."""

from __future__ import annotations

import timm
import torch
from torch import nn

from minmax_entropy.backbones.sizes import FLEXIBLE, Size, family_of

SIZE_ERRORS = (AssertionError, IndexError, RuntimeError)  # raised by model families for unsupported sizes


def create_timm_model(name: str, size: Size | None, options: dict) -> nn.Module:
    """Create a timm model that accepts as many image sizes as possible; errors say what would work."""
    if options.get("features_only"):
        raise TypeError("features_only is not for a backbone: use out_index for the level, or neck for several")
    if options.get("patch_drop_rate"):
        raise ValueError("patch_drop_rate leaves holes in the feature map: it must be 0")
    try:
        return _first_accepted(name, size, options)
    except TypeError as error:
        if "output_stride" in options and "'output_stride'" in str(error):
            raise _no_output_stride(name, options["output_stride"]) from error
        raise
    except (AssertionError, NotImplementedError) as refused:
        if size is not None and _working_size(name, size) != size:
            raise not_buildable(name, size, refused) from refused
        if "output_stride" in options:
            raise _no_output_stride(name, options["output_stride"]) from refused
        raise ValueError(f"timm's {name} refuses {options}: {refused}") from refused
    except RuntimeError as mismatch:  # weights of another size, in a family that does not resize them on loading
        if size is None or "size mismatch" not in str(mismatch):
            raise
        raise ValueError(
            f"the weights of {name} can't be brought to img_size={size}; leave img_size out and resize the images to "
            "the size of the weights, or start with pretrained=False"
        ) from mismatch


def _first_accepted(name: str, size: Size | None, options: dict) -> nn.Module:
    """Create a model with the first keywords that its family accepts: a position embedding that follows the image
    (`dynamic_img_size`), else a size at construction (`img_size`), else neither (convolutional networks)."""
    family = family_of(name)
    if family == "gemma4_vit":
        options = {"global_pool": "", **options}  # its pooling would require other multiples than the map
    dynamic = {} if "dynamic_img_size" in options else {"dynamic_img_size": True}
    sized = {} if size is None or family in FLEXIBLE else {"img_size": size}
    error: TypeError
    for extra in ({**dynamic, **sized}, sized, {}):
        try:
            return timm.create_model(name, **options, **extra)
        except TypeError as unknown_keyword:
            error = unknown_keyword
    raise error


def _working_size(name: str, size: Size) -> Size | None:
    """Return a size near `size` at which a model can be built and run, tried on the meta device."""
    near = [tuple(max(round(side / step), 1) * step for side in size) for step in (32, 64, 96, 128, 224)]
    for candidate in [size, *near, *((max(pair),) * 2 for pair in near)]:
        try:
            with torch.device("meta"), torch.no_grad():
                net = _first_accepted(name, candidate, {"num_classes": 0}).eval()
                net.forward_intermediates(torch.empty(1, 3, *candidate), indices=1, intermediates_only=True)
        except (*SIZE_ERRORS, ValueError):
            continue
        return candidate
    return None


def not_buildable(name: str, size: Size, reason: Exception) -> ValueError:
    working = _working_size(name, size)
    instead = f"a size that works is {working}" if working else "leave img_size out"
    said = f" ({reason})" if str(reason) else ""
    return ValueError(f"{name} can't be built for img_size={size}{said}; {instead}")


def _no_output_stride(name: str, stride: int) -> ValueError:
    return ValueError(
        f"timm's {name} can't be built with output_stride={stride!r}; for finer maps use out_index (an earlier level), "
        'neck="fpn", or larger images'
    )
