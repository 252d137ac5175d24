"""Filters of predicted masks that align them with the edges of the image."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from minmax_entropy._extras import require
from minmax_entropy._registry import Registry

# From an image, uint8 [H, W, 3], and its mask, float32 [H, W] in [0, 1], to a mask of the same kind.
Refinement = Callable[[np.ndarray, np.ndarray], np.ndarray]

MAX_REFINED = 2**20  # pixels; larger images are refined at this number
RGB_RANGE = 255.0

_REFINEMENTS = Registry("refinement")
register_refinement = _REFINEMENTS.register


def list_refinements() -> list[str]:
    """Return the names of the registered filters."""
    return _REFINEMENTS.names()


def create_refinement(name: str, **options: float) -> Refinement:
    """Create a filter by name.

    Args:
        name: "guided_filter", "dense_crf", or one of `register_refinement`.
        options: keywords of the factory of that name.

    Raises:
        ValueError: unknown name, or an option out of its range.
        TypeError: unknown option.
        ImportError: a package is not installed; the message names the extra that has it.
    """
    factory = _REFINEMENTS[name]
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        raise TypeError(f"{name}: {error}; its options are {list(inspect.signature(factory).parameters)}") from None
    return factory(**options)


@register_refinement
def guided_filter(radius: float = 0.16, eps: float = 1e-3) -> Refinement:
    """Filter the mask as a local linear function of the image (He et al., TPAMI 2013), by kornia.

    The default radius is that of the highest F1+ on the validation images of docs/results/refinement.md.

    Args:
        radius: radius of the window, as a share of the image's shorter side, over 0 and up to 1 (a pixel at least).
        eps: regularization, over 0, for pixels in [0, 1]: edges of a lower variance than this are smoothed over.

    Raises:
        ValueError: an option out of its range.
        ImportError: `kornia` is not installed.
    """
    _check("radius", radius, most=1.0)
    _check("eps", eps)
    guided_blur = require("kornia.filters", "refine", "guided_filter").guided_blur

    def refine(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        side = 2 * max(1, round(radius * min(mask.shape))) + 1
        guide = torch.from_numpy(image.astype(np.float32) / np.float32(RGB_RANGE)).permute(2, 0, 1)[None]
        result = guided_blur(guide, torch.from_numpy(mask)[None, None], side, eps, "replicate", separable=True)
        return result[0, 0].clamp(0, 1).numpy()

    return refine


@register_refinement
def dense_crf(
    weight: float = 10.0,
    position: float = 0.1,
    colour: float = 13.0,
    smooth_weight: float = 3.0,
    smooth_position: float = 0.01,
    iterations: int = 5,
) -> Refinement:
    """Filter the mask with a fully connected CRF of two labels (Krähenbühl and Koltun, NIPS 2011), by `pydensecrf2`.

    The mask is the probability of the foreground; the result is its mean-field marginal. The default weight is that of
    the highest F1+ on the validation images of docs/results/refinement.md.

    Args:
        weight: weight of the bilateral term, which favours one label for close pixels of similar colour; 0 or more.
        position: its standard deviation, as a share of the image's shorter side, over 0 and up to 1.
        colour: its standard deviation in the colours, [0, 255], over 0.
        smooth_weight, smooth_position: weight and standard deviation of the term of distance alone.
        iterations: number of steps of the mean-field inference, 1 or more.

    Raises:
        ValueError: an option out of its range.
        ImportError: `pydensecrf2` is not installed.
    """
    for name, value in (("position", position), ("smooth_position", smooth_position)):
        _check(name, value, most=1.0)
    _check("colour", colour)
    for name, value in (("weight", weight), ("smooth_weight", smooth_weight)):
        _check(name, value, zero=True)
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise ValueError(f"iterations must be an integer of 1 or more, got {iterations!r}")
    DenseCRF2D = require("pydensecrf.densecrf", "crf", "dense_crf").DenseCRF2D
    unary_from_softmax = require("pydensecrf.utils", "crf", "dense_crf").unary_from_softmax

    def refine(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        height, width = mask.shape
        side = min(height, width)
        crf = DenseCRF2D(width, height, 2)
        crf.setUnaryEnergy(unary_from_softmax(np.stack([1 - mask, mask])))
        crf.addPairwiseGaussian(sxy=smooth_position * side, compat=smooth_weight)
        crf.addPairwiseBilateral(sxy=position * side, srgb=colour, rgbim=image, compat=weight)
        return np.array(crf.inference(iterations), dtype=np.float32)[1].reshape(height, width)

    return refine


def refine_mask(refine: Refinement, image: Image.Image, mask: np.ndarray) -> np.ndarray:
    """Filter the mask of an image of any size.

    Images of more than 1,048,576 pixels are filtered at that number, and the mask is resized: filters need many times
    the memory of a pixel for each.

    Args:
        refine: a refinement.
        image: RGB.
        mask: float32 `[H, W]` in [0, 1], the image's size.

    Raises:
        ValueError: the refinement gave something else than a mask of the size it was given.
    """
    ratio = math.sqrt(MAX_REFINED / mask.size)
    small = image.convert("RGB")
    values = Image.fromarray(mask)
    if ratio < 1:
        size = max(1, int(image.width * ratio)), max(1, int(image.height * ratio))
        small, values = (picture.resize(size, Image.Resampling.BILINEAR) for picture in (small, values))
    given = np.array(values)  # of their own: not every filter takes what is read-only
    refined = np.asarray(refine(np.array(small), given), dtype=np.float32)
    if refined.shape != given.shape or not (refined.min() >= 0 and refined.max() <= 1):
        raise ValueError(f"a refinement gives a mask {given.shape} in [0, 1], it gave {refined.shape} {refined!r:.80}")
    return np.asarray(Image.fromarray(refined).resize(image.size, Image.Resampling.BILINEAR)) if ratio < 1 else refined


def _check(name: str, value: float, most: float = math.inf, zero: bool = False) -> None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and value <= most
    if not (good and (0 <= value if zero else 0 < value) and value < math.inf):
        bound = "0 or more" if zero else "over 0"
        raise ValueError(f"{name} must be {bound}{f' and up to {most:g}' if most < math.inf else ''}, got {value!r}")
