"""What every data set offers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from minmax_entropy.data.images import MaskSizeError


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
