"""Predictions of pictures: in batches or by tiles, in several views, with masks at the pictures' own size."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from minmax_entropy._checks import check_share, check_threshold
from minmax_entropy._modes import in_evaluation
from minmax_entropy._progress import progress_bar
from minmax_entropy.data import Preprocess, preprocess_for
from minmax_entropy.data.folder import image_files
from minmax_entropy.data.images import as_image
from minmax_entropy.data.limits import allow_pixels
from minmax_entropy.inference.filters import Refinement, refine_mask
from minmax_entropy.inference.options import Inference, check_inference, require_multiclass
from minmax_entropy.inference.prediction import Prediction
from minmax_entropy.inference.tiles import needs_tiles, see_tiled
from minmax_entropy.inference.views import Views, mean, see
from minmax_entropy.model import MinMaxEntropy

Picture = str | Path | Image.Image | np.ndarray | Tensor


class Predictor:
    """Turn pictures into predictions.

    Args:
        model: a model for one class an image; it stays unchanged.
        views: views of each picture; by default those that the model recommends. `Views()` is a single pass.
        size: shorter side of the network's input, or "native" for the picture's own; by default the model's.
        tile, overlap: tiles of large pictures; see `Inference`.
        refine: filter of the masks; see `minmax_entropy.engine.create_refinement`.
        threshold: a pixel is marked where the mask is at least this; by default the model's `mask_threshold`.
        min_probability: minimum probability of the class, below which there is nothing; by default the model's.
        batch_size: maximum number of pictures in one pass.
        max_pixels: maximum size of a picture; see `minmax_entropy.data.allow_pixels`.
        progress: show a progress bar.

    Raises:
        ValueError: the model's task is not "multiclass", or it does not support the options.

    Example:
        >>> import minmax_entropy, numpy
        >>> model = minmax_entropy.create_model("wsl_test_resnet", num_classes=3, img_size=64)
        >>> predictor = minmax_entropy.Predictor(model)
        >>> picture = numpy.zeros((48, 80, 3), dtype=numpy.uint8)
        >>> prediction = predictor(picture)
        >>> prediction.mask.shape, len(prediction.probabilities)
        ((48, 80), 3)
        >>> [each.index for each in predictor([picture, picture])]
        [0, 1]
    """

    def __init__(
        self,
        model: MinMaxEntropy,
        views: Views | None = None,
        *,
        size: int | str | None = None,
        tile: int | None = None,
        overlap: int | None = None,
        refine: Refinement | None = None,
        threshold: float | None = None,
        min_probability: float | None = None,
        batch_size: int = 16,
        max_pixels: int | None = None,
        progress: bool = False,
    ) -> None:
        self.model = model
        self.inference = Inference(tile, overlap, refine=refine, views=views)
        require_multiclass(model)
        check_inference(model, self.inference)
        self.preprocess = preprocess_for(model, size)
        self.threshold = None if threshold is None else check_threshold("threshold", threshold)
        self.min_probability = None if min_probability is None else check_share("min_probability", min_probability)
        self.batch_size, self.max_pixels, self.progress = batch_size, max_pixels, progress

    def __call__(self, pictures: Picture | Iterable[Picture]) -> Prediction | list[Prediction]:
        """Predict one picture, or a list of several; a folder counts as several. See `stream`."""
        if _is_one(pictures):
            return next(self.stream([pictures]))
        return list(self.stream(pictures))

    def stream(self, pictures: Iterable[Picture]) -> Iterator[Prediction]:
        """Predict pictures lazily, one after the other.

        Args:
            pictures: files, folders of them, PIL images, arrays `[H, W]` or `[H, W, 3]` of bytes, tensors `[3, H, W]`
                of bytes or of floating point in [0, 1].

        Raises:
            FileNotFoundError, DamagedFileError: a file is missing, or can't be read.
            TypeError, ValueError: not a picture.
        """
        listed = [pictures] if isinstance(pictures, (str, Path)) else pictures
        sources = list(_expanded(listed)) if self.progress else _expanded(listed)
        waiting: dict[int, tuple[Image.Image, Path | None]] = {}

        def opened() -> Iterator[tuple[int, Image.Image]]:
            for index, picture in enumerate(sources):
                with allow_pixels(self.max_pixels):
                    image = as_image(picture)
                waiting[index] = image, Path(picture) if isinstance(picture, (str, Path)) else None
                yield index, image

        options = dict(batch_size=self.batch_size, inference=self.inference, min_probability=self.min_probability)
        found = predict_images(self.model, opened(), self.preprocess, **options)
        total = len(sources) if isinstance(sources, list) else None
        for prediction in progress_bar(found, "predict", self.progress, total=total):
            image, source = waiting.pop(prediction.index)
            threshold = self.model.mask_threshold if self.threshold is None else self.threshold
            yield dataclasses.replace(prediction, image=image, source=source, threshold=threshold)


def explain(picture: Picture, model: MinMaxEntropy, **options: object) -> Prediction:
    """Predict one picture: its class, and the pixels that the decision rests on.

    Args:
        picture: see `Predictor.stream`.
        model: a model for one class an image.
        options: keywords of `Predictor`.
    """
    return Predictor(model, **options)(picture)


def _is_one(pictures: Picture | Iterable[Picture]) -> bool:
    if isinstance(pictures, (str, Path)):
        return not Path(pictures).is_dir()
    if isinstance(pictures, (np.ndarray, Tensor)):
        return pictures.ndim < 4
    return isinstance(pictures, Image.Image)


def _expanded(pictures: Iterable[Picture]) -> Iterator[Picture]:
    """Replace folders by the image files in them."""
    for picture in pictures:
        if isinstance(picture, (str, Path)) and Path(picture).is_dir():
            yield from image_files(Path(picture))
        else:
            yield picture


@torch.inference_mode()
def predict_images(
    model: MinMaxEntropy,
    images: Iterable[tuple[int, Image.Image]],
    preprocess: Preprocess | None = None,
    batch_size: int = 16,
    full_size: bool = True,
    inference: Inference | None = None,
    min_probability: float | None = None,
) -> Iterator[Prediction]:
    """Predict images lazily; consecutive images of one network size share a pass.

    Args:
        model: a model for one class an image; it runs in evaluation mode, and goes back to its own.
        images: pairs of an index and an RGB image.
        preprocess: by default `preprocess_for(model)`.
        batch_size: maximum number of images in one pass; 1 for a model whose mask depends on the batch.
        full_size: resize masks to the images' own sizes; False leaves those of whole images at the network's size,
            padding included.
        inference: tiles, views and refinement; by default the views that the model recommends.
        min_probability: minimum probability of the class, below which there is nothing; by default the model's.

    Raises:
        ValueError: the model's task is not "multiclass", or the model does not support `inference`.
    """
    require_multiclass(model)
    if model.mask_normalization == "batch":
        batch_size = 1
    inference = inference or Inference()
    preprocess = preprocess or preprocess_for(model)
    check_inference(model, inference)
    views = inference.views_of(model)
    full_size = full_size or inference.refine is not None
    if min_probability is None:
        min_probability = model.min_probability
    predicted = functools.partial(_prediction, model, inference.refine, min_probability)
    whole = functools.partial(_predict_whole, model, preprocess, views, full_size, predicted)

    with in_evaluation(model):
        batch: list[tuple[int, Image.Image, Tensor]] = []
        for index, image in images:
            if needs_tiles(model, preprocess, image, views, inference.tile):
                yield from whole(batch)
                batch = []
                options = inference.tile, inference.overlap, batch_size
                scores, mask = see_tiled(model, image, preprocess, views, *options)
                yield predicted(index, image, _mean_probabilities(scores)[0], mask)
            else:
                tensor = preprocess(image)
                if len(batch) == batch_size or (batch and batch[0][2].shape != tensor.shape):
                    yield from whole(batch)
                    batch = []
                batch.append((index, image, tensor))
        yield from whole(batch)


def _predict_whole(
    model: MinMaxEntropy,
    preprocess: Preprocess,
    views: Views,
    full_size: bool,
    predicted: Callable[[int, Image.Image, Tensor, np.ndarray], Prediction],
    batch: list[tuple[int, Image.Image, Tensor]],
) -> Iterator[Prediction]:
    """Predict whole images of one network size in one pass."""
    if not batch:
        return
    device = next(model.parameters()).device
    tensors = torch.stack([tensor for _, _, tensor in batch]).to(device)
    scores, masks = see(model, tensors, views)
    probabilities = _mean_probabilities(model.decide(tensors, scores, masks)).float().cpu()
    masks = masks.float().cpu()
    for (index, image, _), each, mask in zip(batch, probabilities, masks, strict=True):
        mask = preprocess.restore(mask, (image.height, image.width)) if full_size else mask
        yield predicted(index, image, each, mask[0].numpy())


def _mean_probabilities(scores: Sequence[Tensor]) -> Tensor:
    return mean([each.softmax(dim=1) for each in scores])


def _prediction(
    model: MinMaxEntropy,
    refine: Refinement | None,
    min_probability: float,
    index: int,
    image: Image.Image,
    probabilities: Tensor,
    mask: np.ndarray,
) -> Prediction:
    """Build the prediction of an image from class probabilities `[K]` and a mask."""
    probability, class_index = probabilities.max(dim=0)
    found = int(class_index)
    nothing = float(probability) < min_probability
    if nothing or found in model.empty_classes:
        mask = np.zeros_like(mask)
    elif refine is not None:
        mask = refine_mask(refine, image, mask)
    name = model.class_names[found] if model.class_names else None
    numbers = float(probability), mask, probabilities.numpy()
    return Prediction(index, found, *numbers, nothing, name, model.mask_threshold)
