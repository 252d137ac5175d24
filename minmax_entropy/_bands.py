"""Masks of large images, one band of rows at a time; the size of a band is bounded whatever the image's size."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minmax_entropy.mask import FLAT_ROUNDINGS, soft_mask

BAND_PIXELS = 2**22


def row_bands(height: int, width: int) -> Iterator[slice]:
    """Yield slices that cut `height` rows of `width` pixels into bands of at most `BAND_PIXELS` (at least one row)."""
    rows = max(1, BAND_PIXELS // max(width, 1))
    for start in range(0, height, rows):
        yield slice(start, min(start + rows, height))


def resized_rows(maps: Tensor, size: tuple[int, int], rows: slice, height: int | None = None, first: int = 0) -> Tensor:
    """Return some rows of `resize(maps, size)`: bilinear, with aligned corners.

    Args:
        maps: `[C, h, w]`; the rows from `first` on of maps with `height` rows (by default all of them).
        size: `(H, W)` of the whole result.
        rows: which of the H rows to return; `maps` must hold the rows around them.

    Returns:
        `[C, rows, W]`.
    """
    height = maps.shape[1] if height is None else height
    upper, lower, share = _between(rows, size[0], height)
    lines = torch.lerp(maps[:, upper - first], maps[:, lower - first], share[:, None].to(maps.dtype))
    return F.interpolate(lines[None], (lines.shape[1], size[1]), mode="bilinear", align_corners=True)[0]


def _between(rows: slice, size: int, height: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two source rows around each of the rows, and its position between them in [0, 1]."""
    position = torch.arange(rows.start, rows.stop, dtype=torch.float64) * ((height - 1) / max(size - 1, 1))
    upper = position.long().clamp(max=height - 1)
    return upper, (upper + 1).clamp(max=height - 1), position - upper


class RegionMask:
    """Mask of an image from its coarse map, computed without ever holding the mask at the network's scale.

    The steps are those for an ordinary image: the map is resized to the network's input, normalized with its lowest and
    highest values there, soft-thresholded, cropped to remove the padding, and resized to the image's own size.

    Args:
        region: the map T, `[h, w]`.
        network: `(H, W)` of the network's input, padding included.
        inner: rows and columns of that input that hold the image.
        size: `(height, width)` of the image.
        sigma, omega: parameters of `soft_mask`.
    """

    def __init__(
        self,
        region: Tensor,
        network: tuple[int, int],
        inner: tuple[slice, slice],
        size: tuple[int, int],
        sigma: float,
        omega: float,
    ) -> None:
        self.region, self.network, self.inner, self.size = region[None], network, inner, size
        self.sigma, self.omega = sigma, omega
        ranges = [resized_rows(self.region, network, rows).aminmax() for rows in row_bands(*network)]
        self.low = min(float(low) for low, _ in ranges)
        self.high = max(float(high) for _, high in ranges)

    def network_rows(self, rows: slice) -> Tensor:
        """Return rows of the mask at the network's scale, `[1, rows, W]`."""
        values = resized_rows(self.region, self.network, rows)
        spread = self.high - self.low
        noise = FLAT_ROUNDINGS * torch.finfo(values.dtype).eps * max(abs(self.low), abs(self.high))
        normalized = torch.zeros_like(values) if spread <= noise else (values - self.low) / spread
        return soft_mask(normalized, self.sigma, self.omega)

    def bands(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield the mask at the image's own size: rows, and their values in [0, 1], float32 `[rows, width]`."""
        top, columns = self.inner[0].start, self.inner[1]
        height = self.inner[0].stop - top
        pixels_a_row = max(self.size[1], self.network[1] * height // self.size[0])
        for rows in row_bands(self.size[0], pixels_a_row):
            upper, lower, _ = _between(rows, self.size[0], height)
            first, last = int(upper[0]), int(lower[-1])
            source = self.network_rows(slice(top + first, top + last + 1))[:, :, columns]
            yield rows, resized_rows(source, self.size, rows, height, first)[0].numpy()
