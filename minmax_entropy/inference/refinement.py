"""Refinement of coarse maps along the image's edges: close pixels of similar colour share their values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minmax_entropy._checks import check_count, check_number
from minmax_entropy._symbolic import is_symbolic
from minmax_entropy.mask import resample, resize

MAX_ITERATIONS, MAX_DILATION, MAX_DILATIONS = 1000, 1024, 16
MAX_POSITIONS = 2**20  # of an enlarged map; the neighbours of one take some 1.2 KB for a while (four dilations)
EPSILON = 1e-6  # of the standard deviation, for surroundings of one colour


def _deviation(values: Tensor) -> Tensor:
    """Sample standard deviation over dimension 2, which stays; `Tensor.std` takes ten times as long on a CPU."""
    distances = (values - values.mean(dim=2, keepdim=True)).square()
    return (distances.sum(dim=2, keepdim=True) / (values.shape[2] - 1)).sqrt()


class AffinityRefinement(nn.Module):
    """Pixel-adaptive mask refinement (PAMR; Araslanov and Roth, "Single-Stage Semantic Segmentation from Image Labels",
    CVPR 2020). It has no parameters, and gradients flow through it to the map.

    Each pixel becomes the average of its neighbours, at distances of `dilations` in eight directions, weighted by the
    similarity of their colours: softmax over the neighbours of `-|x - x'| / (temperature * std)`, the mean over the
    channels, with the standard deviation of the channel over the neighbourhood. This is repeated `iterations` times.
    Scale and offset of the image play no part.

    With `compression` c, a map A, in units of the localizer's scores, becomes `sign(A) * log(1 + c * |A|)` first: it
    peaks at the parts that tell the class, such as a face, and lower values around them belong to the same object.

    It works on maps that are enlarged `scale` times, at most to the image's size and to `MAX_POSITIONS`, with the image
    resized to match: time and memory are proportional to `8 * len(dilations)` times the positions there.

    Args:
        iterations: number of times that averages are taken; values travel as far as iterations and dilations allow.
        dilations: distances of the neighbours, in positions of the enlarged map.
        temperature: over 0; the smaller, the sharper the edges.
        scale: factor by which the map is enlarged.
        sigma: threshold on the refined map, normalized to [0, 1], in place of the model's `mask_sigma`; None keeps
            that. Averaging within objects raises their values, and so does compression: the threshold may be higher.
        compression: c, 0 (none) or more.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        iterations: int = 10,
        dilations: Sequence[int] = (1, 2, 4, 8),
        temperature: float = 0.2,
        scale: int = 4,
        sigma: float | None = None,
        compression: float = 0.0,
    ) -> None:
        super().__init__()
        self.iterations = check_count("iterations", iterations)
        if not isinstance(dilations, (list, tuple)) or not 1 <= len(dilations) <= MAX_DILATIONS:
            raise ValueError(f"dilations must be a list of 1 to {MAX_DILATIONS} distances, got {dilations!r:.80}")
        self.dilations = tuple(check_count("dilations", dilation) for dilation in dilations)
        if self.iterations > MAX_ITERATIONS or max(self.dilations) > MAX_DILATION:
            raise ValueError(
                f"at most {MAX_ITERATIONS} iterations and dilations up to {MAX_DILATION}, got {iterations} and "
                f"{max(self.dilations)}"
            )
        check_number("temperature", temperature)
        if not temperature > 0:
            raise ValueError(f"temperature must be over 0, got {temperature!r}")
        self.temperature = float(temperature)
        self.scale = check_count("scale", scale)
        check_number("compression", compression)
        if compression < 0:
            raise ValueError(f"compression must be 0 or more, got {compression!r}")
        self.compression = float(compression)
        if sigma is not None:
            check_number("sigma", sigma)
            if not 0 <= sigma <= 1:
                raise ValueError(f"sigma is a threshold on a map in [0, 1], got {sigma!r}")
        self.sigma = sigma

    def forward(self, maps: Tensor, images: Tensor) -> Tensor:
        """Refine maps along the edges of images.

        Args:
            maps: `[B, N, h, w]`. Without compression, a map with another scale or offset gives the same with these.
            images: `[B, C, H, W]`.

        Returns:
            `[B, N, H', W']` with `H' x W'` as `size` says, in float32 at least.
        """
        size = self.size(maps.shape[-2:], images.shape[-2:])
        dtype = torch.promote_types(maps.dtype, torch.float32)
        maps = resize(self._compressed(maps.to(dtype)), size)
        with torch.no_grad():
            weights = self.weights(resample(images.to(dtype), size))
        return torch.cat([self._averaged(each, weights) for each in maps.split(1, dim=1)], dim=1)

    def size(self, maps: tuple[int, int], images: tuple[int, int]) -> tuple[int, int]:
        """Return the size at which maps and images of these sizes are refined."""
        scale = self.scale
        if not any(map(is_symbolic, (*maps, *images))):
            scale = max(min(scale, math.isqrt(MAX_POSITIONS // (maps[0] * maps[1]))), 1)
        return tuple(torch.sym_min(scale * small, large) for small, large in zip(maps, images, strict=True))

    def _compressed(self, maps: Tensor) -> Tensor:
        return maps if self.compression == 0 else maps.sign() * (self.compression * maps.abs()).log1p()

    def _averaged(self, maps: Tensor, weights: Tensor) -> Tensor:
        for _ in range(self.iterations):
            maps = (self._neighbours(maps) * weights).sum(dim=2)
        return maps

    @property
    def options(self) -> dict:
        """The options that it was built with."""
        names = ("iterations", "dilations", "temperature", "scale", "sigma", "compression")
        return {name: getattr(self, name) for name in names}

    def weights(self, images: Tensor) -> Tensor:
        """Weigh the neighbours of each pixel, `[B, 1, 8 * dilations, H, W]`, in [0, 1] and with a sum of 1."""
        neighbours = self._neighbours(images)  # [B, C, 8 * dilations, H, W]
        centre = images.unsqueeze(2)
        spread = _deviation(torch.cat([neighbours, centre], dim=2))
        distance = (neighbours - centre).abs() / (self.temperature * (spread + EPSILON))
        return (-distance.mean(dim=1, keepdim=True)).softmax(dim=2)

    def _neighbours(self, maps: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, C, 8 * dilations, H, W]`; beyond its border a picture goes on as at the border."""
        height, width = maps.shape[-2:]
        border = max(self.dilations)
        padded = F.pad(maps, [border] * 4, mode="replicate")
        starts = [(border - dilation, border, border + dilation) for dilation in self.dilations]
        found = [
            padded[..., top : top + height, left : left + width]
            for steps in starts
            for top in steps
            for left in steps
            if not top == left == border
        ]
        return torch.stack(found, dim=2)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.options.items())
