"""Prediction of images: whole and in batches, by tiles, averaged over views, refined; masks at the images' own size."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image

from minmax_entropy._bands import RegionMask
from minmax_entropy._modes import ONE_LOOK, in_evaluation, with_settings
from minmax_entropy.data import Preprocess, padding, preprocess_for, scaled_size
from minmax_entropy.data.preprocess import MAX_ASPECT
from minmax_entropy.inference.filters import Refinement, refine_mask
from minmax_entropy.inference.tiles import MAX_WHOLE, check_tile, obstacle, predict_tiled
from minmax_entropy.inference.zoom import Zoom
from minmax_entropy.model import WSLModel

# Flip -> what brings a picture there, and a mask back.
FLIPS = {
    "horizontal": Image.Transpose.FLIP_LEFT_RIGHT,
    "vertical": Image.Transpose.FLIP_TOP_BOTTOM,
    "both": Image.Transpose.ROTATE_180,
}
# Flip -> the same of a picture that was flipped horizontally before.
MIRRORED = {None: "horizontal", "horizontal": None, "vertical": "both", "both": "vertical"}


def require_multiclass(model: WSLModel) -> None:
    """Refuse models of other tasks: data sets and predictions here have one class an image.

    Raises:
        ValueError: the model's task is another.
    """
    if model.task != "multiclass":
        raise ValueError(
            f'one class an image is expected here, the model has task="{model.task}": call the model itself, '
            "`model(images, target)` in a training loop and `model(images)` for scores and mask"
        )


@dataclasses.dataclass(frozen=True)
class Inference:
    """How images are predicted. As it is: each whole image as the model does it.

    Args:
        tile: side in pixels, at the network's scale, of the tiles of images whose network input is larger (see
            `Tiling`). None: inputs of more than 4,194,304 pixels (2048 x 2048) at their largest scale, that of a closer
            look included, go by tiles of 2048, all others whole.
        overlap: pixels that neighbouring tiles share; 256 by default, a quarter of smaller tiles.
        flips: "horizontal", "vertical", "both": views that are averaged with the image as it is.
        scales: factors of the network's input size; every scale has every flip. Masks are averaged at the image's own
            size, class probabilities as they are. They take the place of the model's own `evaluation_scales` and closer
            look, which are in force with None and leave the class to the image at its own size. (By tiles each scale's
            mask is that of its own scores, and a classifier sees X+ of the image's own size.)
        refine: brings the mask closer to the image's edges; see `minmax_entropy.inference.filters`.

    Raises:
        ValueError: an unknown flip, no scale or one that is not over 0, tile or overlap below 1.
    """

    tile: int | None = None
    overlap: int | None = None
    flips: tuple[str, ...] = ()
    scales: tuple[float, ...] | None = None
    refine: Refinement | None = None

    def __post_init__(self) -> None:
        unknown = [flip for flip in self.flips if flip not in FLIPS]
        if unknown:
            raise ValueError(f"flips are any of {tuple(FLIPS)}, got {unknown[0]!r}")
        if self.scales is not None and (not self.scales or not all(0 < scale < math.inf for scale in self.scales)):
            raise ValueError(f"scales are numbers over 0, such as (0.75, 1.0, 1.25), got {self.scales!r}")
        for name in ("tile", "overlap"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is a number of pixels, 1 or more, got {getattr(self, name)!r}")

    def views(self, own: Sequence[float] = (1.0,)) -> list[tuple[str | None, float]]:
        """Flip and scale of each pass; `own` are the scales where it has none."""
        return [(flip, scale) for scale in self.scales or own for flip in (None, *self.flips)]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a model says of one image."""

    index: int
    class_index: int  # the most probable one, also where there is nothing
    probability: float
    mask: np.ndarray  # float32 [H, W] in [0, 1]; zeros where there is nothing, and for one of `empty_classes`
    probabilities: np.ndarray  # float32 [K]
    nothing: bool = False  # the probability is under the model's `min_probability`


@dataclasses.dataclass
class _View:
    """One picture that a model sees of an image: what goes in, and what came out."""

    index: int
    image: Image.Image | None
    flip: str | None
    preprocess: Preprocess
    size: tuple[int, int]
    tiled: bool
    decides: bool  # on the class, with the others of its image that do
    last: bool  # of its image
    probabilities: torch.Tensor | None = None  # [K]
    mask: np.ndarray | RegionMask | None = None

    def bands(self) -> Iterator[tuple[slice, np.ndarray]]:
        """The mask in bands of rows, flipped back."""
        height = self.size[0]
        for rows, values in self.mask.bands() if isinstance(self.mask, RegionMask) else [(slice(0, height), self.mask)]:
            if self.flip in ("vertical", "both"):
                rows, values = slice(height - rows.stop, height - rows.start), values[::-1]
            yield rows, values[:, ::-1] if self.flip in ("horizontal", "both") else values


@torch.inference_mode()
def predict_images(
    model: WSLModel,
    images: Iterable[tuple[int, Image.Image]],
    preprocess: Preprocess | None = None,
    batch_size: int = 16,
    full_size: bool = True,
    inference: Inference | None = None,
) -> Iterator[Prediction]:
    """Predict images one after the other; those of one network size that follow each other go through together.

    Args:
        model: the model, put into eval mode for the time being.
        images: pairs of an index and an RGB image.
        preprocess: by default `preprocess_for(model)`.
        batch_size: largest number of images in one forward pass; 1 for a model whose mask depends on the batch.
        full_size: masks at the images' own sizes; False leaves them at the network's, padding included, where they come
            from the whole image alone.
        inference: tiles, averaging and refinement; by default each whole image as the model does it.

    Raises:
        ValueError: the model's task is not "multiclass", or the model does not work as `inference` asks.
    """
    require_multiclass(model)
    if model.mask_normalization == "batch":
        batch_size = 1
    inference = inference or Inference()
    preprocess = preprocess or preprocess_for(model)
    check_inference(model, inference)
    full_size = full_size or len(inference.views()) > 1 or inference.refine is not None

    with in_evaluation(model):
        views = _views(model, images, preprocess, inference)
        pending: list[_View] = []
        for view in _passes(model, views, inference, batch_size, full_size):
            pending.append(view)
            if view.last:
                closer = functools.partial(_closer_look, model, pending, preprocess, inference, batch_size)
                yield _prediction(pending, inference, model, closer)
                pending = []


def check_inference(model: WSLModel, inference: Inference) -> None:
    """Refuse what a model can't do.

    Raises:
        ValueError: scales for a backbone of one size; tiles that the backbone or the heads don't work with.
    """
    if model.backbone.sizes.fixed is not None and inference.tile is None and set(inference.scales or (1.0,)) != {1.0}:
        raise ValueError(
            f"this backbone takes images of {model.backbone.sizes}: give a tile of that size to see images at other "
            "scales"
        )
    if inference.tile is not None:
        check_tile(model, inference.tile, inference.overlap)
        if reason := obstacle(model):
            raise ValueError(f"this model can't work by tiles: {reason}")


def _views(
    model: WSLModel, images: Iterable[tuple[int, Image.Image]], preprocess: Preprocess, inference: Inference
) -> Iterator[_View]:
    """A whole image is one view, with the model's own scales in it; by tiles there is one for each of them."""
    for index, image in images:
        size = image.height, image.width
        own = model.evaluation_scales if model.backbone.sizes.fixed is None else (1.0,)
        inputs = {scale: _scaled(preprocess, size, scale) for scale in inference.scales or own}
        tiled = {scale: _needs_tiles(model, each, size, inference) for scale, each in inputs.items()}
        if inference.scales is None:
            zoom = _zoom(model, inference)
            larger = [] if zoom is None else [_scaled(preprocess, size, zoom.scale)]
            by_tiles = any(tiled.values()) or any(_needs_tiles(model, each, size, inference) for each in larger)
            tiled = dict.fromkeys(inputs, by_tiles)
        views = inference.views(own if any(tiled.values()) else (1.0,))
        for number, (flip, scale) in enumerate(views, start=1):
            flip = _flip(model, inference, flip, scale)
            decides = inference.scales is not None or scale == 1
            picture = _flipped(image, flip)
            yield _View(index, picture, flip, inputs[scale], size, tiled[scale], decides, number == len(views))


def _closer_look(
    model: WSLModel, views: list[_View], preprocess: Preprocess, inference: Inference, batch_size: int
) -> Iterator[_View]:
    """An image that goes by tiles once more, at the scale of the model's closer look."""
    image, size, scale = _upright(views), views[0].size, model.closer_look.scale
    flips = [_flip(model, inference, flip, scale) for flip in (None, *inference.flips)]
    scaled = _scaled(preprocess, size, scale)
    larger = (_View(views[0].index, _flipped(image, flip), flip, scaled, size, True, False, False) for flip in flips)
    return _passes(model, larger, inference, batch_size, full_size=True)


def _zoom(model: WSLModel, inference: Inference) -> Zoom | None:
    """The model's closer look; scales of the inference take its place."""
    return model.closer_look if inference.scales is None else None


def _flip(model: WSLModel, inference: Inference, flip: str | None, scale: float) -> str | None:
    """How a view is flipped: at the model's other sizes as it says, beside `flip`."""
    return MIRRORED[flip] if inference.scales is None and scale != 1 and model.evaluation_flip else flip


def _flipped(image: Image.Image, flip: str | None) -> Image.Image:
    return image if flip is None else image.transpose(FLIPS[flip])


def _upright(views: list[_View]) -> Image.Image:
    """The image as it is."""
    return next(view.image for view in views if view.flip is None)


def _scaled(preprocess: Preprocess, size: tuple[int, int], scale: float) -> Preprocess:
    """The same for an input that is `scale` times as large."""
    if scale == 1:
        return preprocess
    usual = scaled_size(*size, preprocess.short_side, preprocess.reference)
    side = max(min(usual), max(usual) / MAX_ASPECT)  # which gives the usual size, of strips as well
    return dataclasses.replace(preprocess, short_side=max(round(scale * side), 1), reference=False)


def _passes(
    model: WSLModel, views: Iterable[_View], inference: Inference, batch_size: int, full_size: bool
) -> Iterator[_View]:
    """Views with their probabilities and masks, in the same order."""
    batch: list[tuple[_View, torch.Tensor]] = []
    for view in views:
        tensor = None if view.tiled else view.preprocess(view.image)
        if batch and (view.tiled or len(batch) == batch_size or batch[0][1].shape != tensor.shape):
            yield from _forward(model, batch, full_size, inference)
            batch = []
        if view.tiled:
            options = inference.tile, inference.overlap, batch_size
            logits, view.mask = predict_tiled(model, view.image, view.preprocess, *options, classify=view.decides)
            view.probabilities = logits.softmax(dim=0)
            yield _without_image(model, view, inference)
        else:
            batch.append((_without_image(model, view, inference), tensor))
    if batch:
        yield from _forward(model, batch, full_size, inference)


def _without_image(model: WSLModel, view: _View, inference: Inference) -> _View:
    """Images may be large: only a refinement, and a closer look by tiles, need them again."""
    again = inference.refine is not None or (view.tiled and _zoom(model, inference) is not None)
    return view if again and view.flip is None else dataclasses.replace(view, image=None)


def _needs_tiles(model: WSLModel, preprocess: Preprocess, size: tuple[int, int], inference: Inference) -> bool:
    """Whether an image of `size` goes by tiles."""
    height, width = (
        length + sum(padding(length, preprocess.multiple))
        for length in scaled_size(*size, preprocess.short_side, preprocess.reference)
    )
    if inference.tile is not None:
        fixed = preprocess.fixed_size
        return max(height, width) > inference.tile if fixed is None else (height, width) != fixed
    return preprocess.fixed_size is None and height * width > MAX_WHOLE and obstacle(model) is None


def _forward(
    model: WSLModel, batch: list[tuple[_View, torch.Tensor]], full_size: bool, inference: Inference
) -> Iterator[_View]:
    """Whole images of one network size."""
    device = next(model.parameters()).device
    with with_settings(model, **ONE_LOOK) if inference.scales else contextlib.nullcontext():
        output = model(torch.stack([tensor for _, tensor in batch]).to(device))
    probabilities = output.logits.softmax(dim=1).float().cpu()
    for (view, _), view.probabilities, mask in zip(batch, probabilities, output.mask.float().cpu(), strict=True):
        view.mask = (view.preprocess.restore(mask, view.size) if full_size else mask)[0].numpy()
        yield view


def _prediction(
    views: list[_View], inference: Inference, model: WSLModel, closer: Callable[[], Iterable[_View]]
) -> Prediction:
    """The views of one image as one prediction; one of them at least is not flipped. `closer` gives those of a closer
    look by tiles."""
    probabilities = torch.stack([view.probabilities for view in views if view.decides]).mean(dim=0)
    probability, class_index = probabilities.max(dim=0)
    said = int(class_index), float(probability)
    nothing = said[1] < model.min_probability
    if nothing or said[0] in model.empty_classes:
        size = views[0].mask.shape if isinstance(views[0].mask, np.ndarray) else views[0].size
        return Prediction(views[0].index, *said, np.zeros(size, dtype=np.float32), probabilities.numpy(), nothing)
    if len(views) == 1 and isinstance(views[0].mask, np.ndarray):
        mask = views[0].mask
    else:
        mask = _mean_mask(views)
        zoom = _zoom(model, inference)
        if views[0].tiled and zoom is not None and mask.mean() < zoom.below:
            mask += np.float32(zoom.share) * (_mean_mask(list(closer())) - mask)
    if inference.refine is not None:
        mask = refine_mask(inference.refine, _upright(views), mask)
    return Prediction(views[0].index, *said, mask, probabilities.numpy())


def _mean_mask(views: list[_View]) -> np.ndarray:
    mask = np.zeros(views[0].size, dtype=np.float32)
    for view in views:
        for rows, values in view.bands():
            mask[rows] += values / len(views)
    return mask
