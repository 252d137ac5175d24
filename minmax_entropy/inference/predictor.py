"""Prediction of images: whole and in batches, by tiles, averaged over views, refined; masks at the images' own size."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from minmax_entropy._modes import in_evaluation
from minmax_entropy.data import Preprocess, preprocess_for
from minmax_entropy.inference.filters import Refinement, refine_mask
from minmax_entropy.inference.tiles import check_tile, needs_tiles, see_tiled, why_not_tiled
from minmax_entropy.inference.views import FLIPS, Views, mean, recommended_views, see
from minmax_entropy.model import MinMaxEntropy


def require_multiclass(model: MinMaxEntropy) -> None:
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
        scales: factors of the network's input size; every scale has every flip. Masks are averaged; the class is that
            of the scale nearest to 1, its probabilities averaged over the flips. They take the place of the views that
            the model recommends (`evaluation_scales`, `evaluation_flip`, `evaluation_zoom`).
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

    def views(self, model: MinMaxEntropy) -> Views:
        """The views of each image: with scales these, or else what the model recommends; every one with the flips."""
        views = recommended_views(model) if self.scales is None else Views(tuple(map(float, self.scales)))
        return dataclasses.replace(views, flips=tuple(self.flips))


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a model says of one image."""

    index: int
    class_index: int  # the most probable one, also where there is nothing
    probability: float
    mask: np.ndarray  # float32 [H, W] in [0, 1]; zeros where there is nothing, and for one of `empty_classes`
    probabilities: np.ndarray  # float32 [K]
    nothing: bool = False  # the probability is under the model's `min_probability`


@torch.inference_mode()
def predict_images(
    model: MinMaxEntropy,
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
    views = inference.views(model)
    full_size = full_size or inference.refine is not None
    whole = functools.partial(_predict_whole, model, preprocess, views, inference.refine, full_size)

    with in_evaluation(model):
        batch: list[tuple[int, Image.Image, Tensor]] = []
        for index, image in images:
            if needs_tiles(model, preprocess, image, views, inference.tile):
                yield from whole(batch)
                batch = []
                options = inference.tile, inference.overlap, batch_size
                scores, mask = see_tiled(model, image, preprocess, views, *options)
                yield _prediction(model, index, image, _mean_probabilities(scores)[0], mask, inference.refine)
            else:
                tensor = preprocess(image)
                if len(batch) == batch_size or (batch and batch[0][2].shape != tensor.shape):
                    yield from whole(batch)
                    batch = []
                batch.append((index, image, tensor))
        yield from whole(batch)


def check_inference(model: MinMaxEntropy, inference: Inference) -> None:
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
        if reason := why_not_tiled(model):
            raise ValueError(f"this model can't work by tiles: {reason}")


def _predict_whole(
    model: MinMaxEntropy,
    preprocess: Preprocess,
    views: Views,
    refine: Refinement | None,
    full_size: bool,
    batch: list[tuple[int, Image.Image, Tensor]],
) -> Iterator[Prediction]:
    """Whole images of one network size."""
    if not batch:
        return
    device = next(model.parameters()).device
    tensors = torch.stack([tensor for _, _, tensor in batch]).to(device)
    scores, masks = see(model, tensors, views)
    probabilities = _mean_probabilities(model.decide(tensors, scores, masks)).float().cpu()
    masks = masks.float().cpu()
    for (index, image, _), each, mask in zip(batch, probabilities, masks, strict=True):
        mask = preprocess.restore(mask, (image.height, image.width)) if full_size else mask
        yield _prediction(model, index, image, each, mask[0].numpy(), refine)


def _mean_probabilities(scores: Sequence[Tensor]) -> Tensor:
    return mean([each.softmax(dim=1) for each in scores])


def _prediction(
    model: MinMaxEntropy,
    index: int,
    image: Image.Image,
    probabilities: Tensor,
    mask: np.ndarray,
    refine: Refinement | None,
) -> Prediction:
    """What is said of an image with class probabilities `[K]` and a mask."""
    probability, class_index = probabilities.max(dim=0)
    predicted = int(class_index)
    nothing = float(probability) < model.min_probability
    if nothing or predicted in model.empty_classes:
        mask = np.zeros_like(mask)
    elif refine is not None:
        mask = refine_mask(refine, image, mask)
    return Prediction(index, predicted, float(probability), mask, probabilities.numpy(), nothing)
