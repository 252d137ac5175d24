"""From class activation maps to a soft mask, and from an image to its foreground and background regions."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minmax_entropy._checks import check_choice, check_positive, check_sigma
from minmax_entropy._symbolic import is_symbolic
from minmax_entropy.settings import options_of, setting

NORMALIZATIONS = ("image", "batch")
MASK_SOURCES = ("expected", "predicted")

# A range of so many roundings of the largest value is a flat map: resizing a constant map leaves a few.
FLAT_ROUNDINGS = 16

BORDER = 0.08  # width of the border, as a share of each side of the image


def weighted_map(maps: Tensor, weights: Tensor) -> Tensor:
    """Sum class maps with weights: `T = sum_k w_k A_k`.

    With the predicted probabilities as weights it is the expected map (arXiv 1907.12934); with 1 for the predicted
    class and 0 elsewhere, that class's map (CAM, Zhou et al., CVPR 2016).

    Args:
        maps: `[B, K, h, w]`.
        weights: `[B, K]`.

    Returns:
        `[B, 1, h, w]`.
    """
    return (weights[:, :, None, None] * maps).sum(dim=1, keepdim=True)  # autocast would run an einsum in half precision


def resize(tensor: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize bilinearly with aligned corners (arXiv 1907.12934): `[B, C, h, w]` to `[B, C, *size]`."""
    sides = (*tensor.shape[-2:], *size)
    if not any(map(is_symbolic, sides)) and sides[:2] == sides[2:]:
        return tensor
    return F.interpolate(tensor, size=size, mode="bilinear", align_corners=True)


def resample(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize images with antialiasing: `[B, C, h, w]` to `[B, C, *size]`."""
    sides = (*images.shape[-2:], *size)
    if not any(map(is_symbolic, sides)) and sides[:2] == sides[2:]:
        return images
    dtype = torch.promote_types(images.dtype, torch.float32)  # a CPU does no antialiasing in half precision
    return F.interpolate(images.to(dtype), size, mode="bilinear", antialias=True).to(images.dtype)


def min_max_normalize(maps: Tensor, over: str = "image") -> Tensor:
    """Scale maps to [0, 1] by their minimum and maximum, per image or over the whole batch.

    A flat map (its range lies within rounding) becomes 0 everywhere, with finite gradients.

    Args:
        maps: `[B, 1, H, W]`.
        over: "image", or "batch" as the authors' implementation does.

    Returns:
        `[B, 1, H, W]` in [0, 1].
    """
    if over not in NORMALIZATIONS:
        raise ValueError(f"normalization must be one of {NORMALIZATIONS}, got {over!r}")
    dims = (1, 2, 3) if over == "image" else (0, 1, 2, 3)
    low = maps.amin(dim=dims, keepdim=True)
    high = maps.amax(dim=dims, keepdim=True)
    spread = high - low
    noise = FLAT_ROUNDINGS * torch.finfo(maps.dtype).eps * torch.maximum(low.abs(), high.abs())
    flat = spread <= noise
    return torch.where(flat, 0.0, (maps - low) / torch.where(flat, 1.0, spread))


def soft_mask(maps: Tensor, sigma: float = 0.5, omega: float = 8.0) -> Tensor:
    """Apply the soft threshold `M+ = sigmoid(omega * (T - sigma))` (arXiv 1907.12934).

    Args:
        maps: normalized maps in [0, 1], any shape.
        sigma: threshold on the normalized map, where the mask is 0.5.
        omega: steepness.

    Returns:
        Values in (0, 1), same shape.
    """
    return torch.sigmoid(omega * (maps - sigma))


class Masking(nn.Module):
    """Turn class maps into a mask: `T = sum_k w_k A_k`, normalized to [0, 1], then `M+ = sigmoid(omega * (T - sigma))`.

    Args:
        source: "expected", maps weighted by the predicted probabilities; or "predicted", the map of the top class.
        sigma: threshold on the normalized map, in [0, 1].
        omega: steepness, over 0.
        normalization: range of the map per "image", or over the "batch".

    Raises:
        ValueError: an argument out of its range.
    """

    source = setting("source", functools.partial(check_choice, known=MASK_SOURCES), "mask_source")
    sigma = setting("sigma", check_sigma, "mask_sigma")
    omega = setting("omega", check_positive, "mask_omega")
    normalization = setting(
        "normalization", functools.partial(check_choice, known=NORMALIZATIONS), "mask_normalization"
    )

    def __init__(
        self, source: str = "expected", sigma: float = 0.5, omega: float = 8.0, normalization: str = "image"
    ) -> None:
        super().__init__()
        self.source, self.sigma, self.omega, self.normalization = source, sigma, omega, normalization

    def forward(self, regions: Tensor, size: tuple[int, int], sigma: float | None = None) -> Tensor:
        """Turn maps `[B, N, h, w]` into masks `[B, N, *size]` in [0, 1], each by itself."""
        regions = resize(regions, size)
        parts = [min_max_normalize(region, self.normalization) for region in regions.split(1, dim=1)]
        return soft_mask(torch.cat(parts, dim=1), self.sigma if sigma is None else sigma, self.omega)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in options_of(self).items())


def split_regions(images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Split images into the relevant and the irrelevant region, `X+ = x * M+` and `X- = x * (1 - M+)`.

    Args:
        images: normalized images `[B, C, H, W]`.
        mask: `[B, 1, H, W]` in [0, 1].

    Returns:
        Foreground and background, `[B, C, H, W]` each, in the images' dtype.
    """
    return (images * mask).to(images.dtype), (images * (1 - mask)).to(images.dtype)


def without_border(height: int, width: int, share: float = BORDER) -> tuple[slice, slice]:
    """Return the rows and columns of an image without its border, which is a `share` of each side."""
    return tuple(slice(round(share * side), side - round(share * side)) for side in (height, width))


def one_half(images: Tensor) -> Tensor:
    """Draw half of the images of a batch at random, bool `[B]`; of an odd number one more or one less."""
    order = torch.randperm(len(images), device=images.device)
    return 2 * order + torch.randint(2, (1,), device=images.device) < len(images)


def control_mask(mask: Tensor) -> Tensor:
    """Draw a mask for each image that carries no information about it: 1 everywhere (the whole image), the mask of the
    previous image of the batch, or the rest of that image, each in a third of the cases.

    A classifier that finds the class under such a mask has found it in the pixels: neither place nor shape of the mask
    can have told it (`MinMaxEntropyLoss`, the term `control`). Without the rest, a hole in an image would tell the
    classifier that it sees an X-, on which it may be undecided whatever is left. In a batch of one the image is seen
    whole.

    Args:
        mask: `[B, 1, H, W]` in [0, 1].

    Returns:
        `[B, 1, H, W]`, without gradient.
    """
    others = mask.detach().roll(1, dims=0)
    drawn = torch.randint(3 if len(mask) > 1 else 1, (len(mask), 1, 1, 1), device=mask.device)
    return torch.where(drawn == 0, 1.0, torch.where(drawn == 1, others, 1 - others))
