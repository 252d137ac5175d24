"""What every data set offers, and how it becomes training batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from minmax_entropy.data.images import DamagedFileError, MaskSizeError


class Sample(NamedTuple):
    """One labelled image."""

    image: Image.Image  # RGB
    target: int  # class index
    mask: np.ndarray | None  # bool [H, W], the image's size; for evaluation only
    name: str  # where it comes from, for messages and results


class LabelledImages:
    """Images with class labels and, for evaluation, masks where they exist. `dataset[i]` is a `Sample`.

    Subclasses give `class_names`, `__len__`, `image` and `target`, and `mask` and `name` where they have them. Taking a
    sample raises `DamagedFileError` for a file that can't be read, and `ValueError` for a mask of another size.
    """

    class_names: list[str]

    def __len__(self) -> int:
        raise NotImplementedError

    def image(self, index: int) -> Image.Image:
        """RGB image."""
        raise NotImplementedError

    def target(self, index: int) -> int:
        """Class index in `[0, len(class_names))`."""
        raise NotImplementedError

    def mask(self, index: int) -> np.ndarray | None:
        """Object pixels, bool `[H, W]`, or None where there is no mask."""
        return None

    def name(self, index: int) -> str:
        """Where the image comes from."""
        return str(index)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside of {len(self)} images")
        image, mask = self.image(index), self.mask(index)
        if mask is not None and mask.shape != (image.height, image.width):
            raise MaskSizeError(
                self.name(index),
                f"{mask.shape[0]} x {mask.shape[1]}, the image is {image.height} x {image.width} (height x width)",
            )
        return Sample(image, self.target(index), mask, self.name(index))


class TrainingBatch(NamedTuple):
    """Images `[B, C, H, W]`, class indices `[B]`, and the errors of files that are damaged and not among them."""

    images: Tensor
    target: Tensor
    damaged: tuple[DamagedFileError, ...] = ()


class TrainingImages(Dataset):
    """A data set as the trainer reads it: transformed images and class indices; masks are never opened.

    Args:
        dataset: the images.
        transform: `PIL.Image` to a tensor `[C, H, W]`.

    A damaged file is handed on as its error, for `collate` to set apart: raised in a loader process, it would arrive as
    a `RuntimeError` with a traceback for its text.
    """

    def __init__(self, dataset: LabelledImages, transform: Callable[[Image.Image], Tensor]) -> None:
        self.dataset, self.transform = dataset, transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | DamagedFileError:
        try:
            image = self.dataset.image(index)
        except DamagedFileError as error:
            return error
        return self.transform(image), self.dataset.target(index)


def collate(items: Sequence[tuple[Tensor, int] | DamagedFileError]) -> TrainingBatch:
    """Stack what could be read; the batch is empty (`[0]`) if nothing could."""
    damaged = tuple(item for item in items if isinstance(item, DamagedFileError))
    good = [item for item in items if not isinstance(item, DamagedFileError)]
    images = torch.stack([image for image, _ in good]) if good else torch.empty(0)
    return TrainingBatch(images, torch.tensor([target for _, target in good], dtype=torch.int64), damaged)
