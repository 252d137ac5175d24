"""Large images by overlapping tiles: their class maps are stitched, and become scores and one mask afterwards.

A tile can't have a mask of its own: masks are normalized over the image, and a tile without an object would mark
something all the same. So the un-normalized class maps of the tiles are stitched on the grid of the whole image. The
head pools them to scores, the expected map of the whole image is normalized once, and the classifier sees X+ through
the same tiles, its maps stitched and pooled likewise. Two differences remain: convolutions don't see beyond a tile,
which a wide enough overlap makes good, and layers with a global view see a tile instead of the image.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from minmax_entropy._bands import RegionMask
from minmax_entropy.data import Preprocess, padding, scaled_size
from minmax_entropy.data.preprocess import MAX_ASPECT
from minmax_entropy.heads import ClassMapHead
from minmax_entropy.inference.views import View, Views, class_weights
from minmax_entropy.mask import resize, split_regions, weighted_map
from minmax_entropy.model import MinMaxEntropy

MAX_WHOLE = 2**22  # pixels of a network input that is taken whole by default, and of the tiles of one pass
TILE, OVERLAP = 2048, 256  # pixels
MAX_MAP_BYTES = 2**31  # of the stitched maps
BLENDED = 0.5  # share of the overlap in which neighbouring tiles are blended
LEAST_WEIGHT = 1e-4  # at a tile's edge, so that the image's own border has one

Size = tuple[int, int]

# Flip -> what brings a picture there, and back.
TRANSPOSED = {
    "horizontal": Image.Transpose.FLIP_LEFT_RIGHT,
    "vertical": Image.Transpose.FLIP_TOP_BOTTOM,
    "both": Image.Transpose.ROTATE_180,
}


def why_not_tiled(model: MinMaxEntropy) -> str | None:
    """Return why a model can't work by tiles, or None."""
    if not isinstance(model, MinMaxEntropy):
        return f"they need a model whose mask is made of class maps, that of {type(model).__name__} is not"
    heads = [model.localizer, *([model.classifier] if model.classifier_decides else [])]
    for head in heads:
        if not isinstance(head, ClassMapHead):
            return f"they need heads that pool their class maps (`ClassMapHead`), {type(head).__name__} does not"
    if model.classifier_decides and isinstance(model.classifier_scale, tuple):
        return f"they need a classifier_scale that is a share of the image, it is {model.classifier_scale}"
    return None


class Tiling:
    """Tiles of one size that cover the network's input, on whole positions of the feature map.

    Args:
        model: the model.
        size: `(height, width)` of the network's input, padded to whole positions.
        tile: side of a tile in pixels; None is 2048, or the nearest below that the backbone takes.
        overlap: pixels that neighbours share at least; None is 256, or a quarter of smaller tiles, an eighth of
            larger ones. What is within the reach of the backbone's padding from a tile's edge is wrong there:
            measured in docs/results/large_images.md.

    Raises:
        ValueError: tile or overlap do not fit the backbone, or the model can't work by tiles.
    """

    def __init__(self, model: MinMaxEntropy, size: Size, tile: int | None = None, overlap: int | None = None) -> None:
        reason = why_not_tiled(model)
        if reason is not None:
            raise ValueError(f"this model can't work by tiles: {reason}")
        sizes = model.backbone.sizes
        self.stride = model.backbone.reduction
        side = check_tile(model, tile, overlap)
        if overlap is None:
            overlap = max(side // 8, min(side // 4, OVERLAP), self.stride)
        overlap = max(overlap // self.stride * self.stride, self.stride)
        self.size = size
        self.tile: Size = sizes.fixed or tuple(min(side, length) for length in size)
        self.cells = overlap // self.stride
        self.classifier_tile = model.classifier_size(*self.tile) if model.classifier_decides else self.tile
        rows, columns = (
            _starts(length, part, overlap, self._unit(part, small))
            for length, part, small in zip(size, self.tile, self.classifier_tile, strict=True)
        )
        self.places = list(itertools.product(rows, columns))

    def _unit(self, tile: int, small: int) -> int:
        """Return the step of the starts; the classifier's smaller tiles start on whole positions too, if possible."""
        unit = self.stride * (tile // math.gcd(tile, small))
        return unit if unit <= self.cells * self.stride else self.stride


def check_tile(model: MinMaxEntropy, tile: int | None, overlap: int | None = None) -> int:
    """Check and return the side of a tile, by default 2048 or the nearest that the backbone takes.

    Raises:
        ValueError: the backbone does not take such tiles, or the overlap is not one position to half a tile.
    """
    sizes, stride = model.backbone.sizes, model.backbone.reduction
    step = math.lcm(sizes.multiple, stride)
    if sizes.fixed is not None:
        side = sizes.fixed[0] if tile is None else tile
        if (side, side) != sizes.fixed:
            raise ValueError(f"this backbone takes images of {sizes}, which is the size of its tiles, got {tile}")
    else:
        side = max(TILE // step, math.ceil(sizes.floor / step)) * step if tile is None else tile
        if side % step or side < sizes.floor:
            nearest = max(round(side / step), math.ceil(sizes.floor / step), 1) * step
            raise ValueError(f"tiles of this backbone are multiples of {step} pixels, got {side}; try {nearest}")
    if overlap is not None and not stride <= overlap <= side // 2:
        raise ValueError(
            f"the overlap of tiles of {side} pixels is {stride} (one position of the features) to {side // 2} pixels, "
            f"got {overlap}"
        )
    return side


def _starts(length: int, tile: int, overlap: int, unit: int) -> list[int]:
    """Return the first pixels of tiles that cover `length`: multiples of `unit`, but the last ends with the image."""
    if length <= tile:
        return [0]
    return [*range(0, length - tile, (tile - overlap) // unit * unit), length - tile]


class TiledImage:
    """The network's input of an image, a tile at a time: scaled, reflect-padded and normalized as `Preprocess` does.

    Args:
        image: RGB.
        preprocess: gives scale and normalization; the aspect ratio is kept for backbones of one size as well.
        model: the model; the input is padded to whole positions of its features, and to a tile where it takes one size.
    """

    def __init__(self, image: Image.Image, preprocess: Preprocess, model: MinMaxEntropy) -> None:
        height, width = scaled_size(image.height, image.width, preprocess.short_side, preprocess.reference)
        self.own = image.height, image.width
        self.image = preprocess.resized(image, height, width)
        self.normalize = Preprocess(preprocess.mean, preprocess.std, multiple=1)
        pads = [self._pads(length, preprocess, model, axis) for axis, length in enumerate((height, width))]
        self.size: Size = tuple(sum(pad) + length for pad, length in zip(pads, (height, width), strict=True))
        self.inner = tuple(slice(pad[0], pad[0] + length) for pad, length in zip(pads, (height, width), strict=True))

    @staticmethod
    def _pads(length: int, preprocess: Preprocess, model: MinMaxEntropy, axis: int) -> tuple[int, int]:
        sizes = model.backbone.sizes
        if sizes.fixed is not None and length < sizes.fixed[axis]:
            return padding(length, sizes.fixed[axis])
        return padding(length, math.lcm(preprocess.multiple, sizes.multiple, model.backbone.reduction))

    def tile(self, top: int, left: int, size: Size) -> Tensor:
        """Return a part of the input, `[C, *size]`."""
        rows = _reflected(top - self.inner[0].start, size[0], self.image.height)
        columns = _reflected(left - self.inner[1].start, size[1], self.image.width)
        box = int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1
        part = self.image.crop(box)
        if part.size == size[::-1]:
            return self.normalize(part)
        pixels = np.asarray(part)
        return self.normalize(Image.fromarray(pixels[(rows - box[1])[:, None], columns - box[0]]))

    def reduced(self, size: Size) -> Tensor:
        """Return the whole input, padding included, at a smaller size: `[C, *size]`."""
        shares = [small / large for small, large in zip(size, self.size, strict=True)]
        inner = [round(part.start * s) for part, s in zip(self.inner, shares, strict=True)]
        sides = [max(round(length * s), 1) for length, s in zip(self.image.size[::-1], shares, strict=True)]
        pixels = np.asarray(self.image.resize(sides[::-1], Image.Resampling.BILINEAR))
        rows, columns = (_reflected(-first, n, side) for first, n, side in zip(inner, size, sides, strict=True))
        return self.normalize(Image.fromarray(pixels[rows[:, None], columns]))


def _reflected(start: int, count: int, length: int) -> np.ndarray:
    """Return `count` indices in [0, length) from `start` on, mirrored at both ends without repeating them."""
    period = max(2 * (length - 1), 1)
    index = np.arange(start, start + count) % period
    return np.minimum(index, period - index) if length > 1 else np.zeros(count, dtype=int)


class TiledView:
    """Class maps of an image in one view, stitched from tiles.

    Memory: the image at the network's scale, `batch_size` tiles of at most `MAX_WHOLE` pixels together in one pass, and
    the stitched class maps, `4 K h w` bytes.

    Args:
        model: in evaluation mode, for one class an image.
        image: RGB, of any size, as the view has it.
        preprocess: see `TiledImage`.
        tile, overlap: see `Tiling`.
        batch_size: largest number of tiles in one pass.

    Attributes:
        scores: `[1, K]` of the localizer.

    Raises:
        ValueError: as `Tiling`; or the stitched maps would take more than 2 GiB.
    """

    def __init__(
        self,
        model: MinMaxEntropy,
        image: Image.Image,
        preprocess: Preprocess,
        tile: int | None = None,
        overlap: int | None = None,
        batch_size: int = 16,
    ) -> None:
        self.model = model
        self.picture = TiledImage(image, preprocess, model)
        self.tiling = Tiling(model, self.picture.size, tile, overlap)
        self.batch_size = max(1, min(batch_size, MAX_WHOLE // math.prod(self.tiling.tile)))
        maps = self._passes(lambda tiles, _: model.class_maps(tiles)[1])
        self._maps = stitch(maps, self.tiling, self.tiling.tile)[None]  # [1, K, h, w]
        self.scores = model.localizer.pool(self._maps)

    def mask(self, weights: Tensor, refined: bool = True) -> RegionMask:
        """Compute the mask at the image's own size, with weights `[1, K]` of the class maps."""
        region = weighted_map(self._maps, weights)
        if self.model.refinement is not None and refined:
            size = self.model.refinement.size(region.shape[-2:], self.picture.size)
            region = self.model.refinement(region, self.picture.reduced(size)[None])
        sigma, omega = self.model.evaluation_sigma(refined), self.model.mask_omega
        return RegionMask(region[0, 0], self.picture.size, self.picture.inner, self.picture.own, sigma, omega)

    def classify(self, mask: RegionMask) -> Tensor:
        """Compute the classifier's scores `[1, K]` on X+, by tiles as well, its maps stitched and pooled."""
        model, tiling = self.model, self.tiling
        height, width = tiling.tile

        def classified(tiles: Tensor, places: Sequence[Size]) -> Tensor:
            rows = {top: mask.network_rows(slice(top, top + height)) for top in {top for top, _ in places}}
            parts = torch.stack([rows[top][:, :, left : left + width] for top, left in places])
            relevant, _ = split_regions(tiles, parts.to(tiles))
            backbone = model.classifier_backbone or model.backbone
            return model.classifier(backbone(resize(relevant, tiling.classifier_tile)))[1]

        return model.classifier.pool(stitch(self._passes(classified), tiling, tiling.classifier_tile)[None])

    def _passes(self, forward: Callable[[Tensor, Sequence[Size]], Tensor]) -> Iterator[tuple[Sequence[Size], Tensor]]:
        device = next(self.model.parameters()).device
        for start in range(0, len(self.tiling.places), self.batch_size):
            places = self.tiling.places[start : start + self.batch_size]
            tiles = torch.stack([self.picture.tile(*place, self.tiling.tile) for place in places]).to(device)
            yield places, forward(tiles, places).float().cpu()


def see_tiled(
    model: MinMaxEntropy,
    image: Image.Image,
    preprocess: Preprocess,
    views: Views,
    tile: int | None = None,
    overlap: int | None = None,
    batch_size: int = 16,
) -> tuple[list[Tensor], np.ndarray]:
    """Do for one image by tiles what `see` and `decide` do: return the scores `[1, K]` of each view that decides, and
    the mask of all views, float32 `[height, width]` at the image's own size. Arguments as in `TiledView`.
    """

    def seen(view: View) -> TiledView:
        turned = image if view.flip is None else image.transpose(TRANSPOSED[view.flip])
        return TiledView(model, turned, scaled(preprocess, image, view.scale), tile, overlap, batch_size)

    tiled = [(view, seen(view)) for view in views]
    weights = class_weights(model, [each.scores for _, each in tiled])
    masks = [(view, each.mask(weights, views.refined)) for view, each in tiled]
    scores = [
        each.classify(mask) if model.classifier_decides else each.scores
        for (view, each), (_, mask) in zip(tiled, masks, strict=True)
        if view.scale == views.deciding
    ]
    del tiled
    mask = _mean_mask(masks, image)
    if views.zoom is not None and mask.mean() < views.zoom.below:
        closer = _mean_mask([(view, seen(view).mask(weights, views.refined)) for view in views.closer()], image)
        mask += np.float32(views.zoom.share) * (closer - mask)
    return scores, mask


def _mean_mask(masks: Sequence[tuple[View, RegionMask]], image: Image.Image) -> np.ndarray:
    """Return the mean of the masks of an image's views, flipped back, in bands of rows."""
    mean = np.zeros((image.height, image.width), dtype=np.float32)
    for view, mask in masks:
        for rows, values in mask.bands():
            if view.flip in ("vertical", "both"):
                rows, values = slice(image.height - rows.stop, image.height - rows.start), values[::-1]
            mean[rows] += (values[:, ::-1] if view.flip in ("horizontal", "both") else values) / len(masks)
    return mean


def scaled(preprocess: Preprocess, image: Image.Image, scale: float) -> Preprocess:
    """Return the preprocessing of an input that is `scale` times as large."""
    if scale == 1:
        return preprocess
    usual = scaled_size(image.height, image.width, preprocess.short_side, preprocess.reference)
    side = max(min(usual), max(usual) / MAX_ASPECT)  # which gives the usual size, of strips as well
    return dataclasses.replace(preprocess, short_side=max(round(scale * side), 1), reference=False)


def needs_tiles(
    model: MinMaxEntropy, preprocess: Preprocess, image: Image.Image, views: Views, tile: int | None
) -> bool:
    """Return whether an image goes by tiles: in one of its views it is larger than a tile, or than `MAX_WHOLE`."""
    for each in (scaled(preprocess, image, scale) for scale in {view.scale for view in [*views, *views.closer()]}):
        height, width = (
            length + sum(padding(length, each.multiple))
            for length in scaled_size(image.height, image.width, each.short_side, each.reference)
        )
        if tile is not None:
            fixed = each.fixed_size
            if max(height, width) > tile if fixed is None else (height, width) != fixed:
                return True
        elif each.fixed_size is None and height * width > MAX_WHOLE and why_not_tiled(model) is None:
            return True
    return False


def stitch(passes: Iterator[tuple[Sequence[Size], Tensor]], tiling: Tiling, seen: Size) -> Tensor:
    """Blend the class maps of tiles into those of the whole image.

    The middle half of each overlap is blended; what is nearer to a tile's edge sees too little of its surroundings, and
    counts only where there is nothing else.

    Args:
        passes: places of tiles, `(top, left)` in pixels, and their maps `[B, K, h, w]`.
        tiling: how the image is cut.
        seen: `(height, width)` of the tiles as the maps' backbone sees them.

    Returns:
        `[K, h, w]`, float32.

    Raises:
        ValueError: the maps of neighbouring tiles leave a gap, or take more than 2 GiB.
    """
    shares = [small / (part * tiling.stride) for small, part in zip(seen, tiling.tile, strict=True)]
    total = weights = None
    for places, maps in passes:
        if total is None:
            count, *shape = maps.shape[1:]
            last = (max(starts) for starts in zip(*tiling.places, strict=True))
            grid = [round(start * share) + side for start, share, side in zip(last, shares, shape, strict=True)]
            needed = 4 * count * math.prod(grid)
            if needed > MAX_MAP_BYTES:
                raise ValueError(
                    f"the class maps of the whole image, [{count}, {grid[0]}, {grid[1]}], would take "
                    f"{needed / 2**30:.1f} GiB, the limit is {MAX_MAP_BYTES / 2**30:.0f}: take a smaller size of it"
                )
            total, weights = torch.zeros(count, *grid), torch.zeros(grid)
            rises = [tiling.cells * tiling.stride * share for share in shares]
            window = _window(shape[0], rises[0])[:, None] * _window(shape[1], rises[1])
        for (top, left), each in zip(places, maps, strict=True):
            row, column = round(top * shares[0]), round(left * shares[1])
            part = slice(row, row + shape[0]), slice(column, column + shape[1])
            total[:, part[0], part[1]] += each * window
            weights[part] += window
    if not weights.all():
        raise ValueError("the feature maps of neighbouring tiles leave a gap: give them a larger overlap")
    return total.div_(weights)


def _window(length: int, overlap: float) -> Tensor:
    """Return the weights of a tile's positions: near 0 at its edge, a raised cosine within the overlap, then 1."""
    position = torch.arange(length)
    depth = (torch.minimum(position, length - 1 - position) + 0.5) / overlap  # in overlaps
    rise = ((depth - (1 - BLENDED) / 2) / BLENDED).clamp(0, 1)
    return (0.5 - 0.5 * torch.cos(torch.pi * rise)).clamp(min=LEAST_WEIGHT)
