"""One meter for an evaluation: classification error, F1+, F1-, PxAP, area of the mask."""

from __future__ import annotations

import numpy as np

from minmax_entropy.metrics.pixel import PixelPrecisionRecall, dice

THRESHOLD = 0.5


class LocalizationMeter:
    """Collects the figures of an evaluation, image by image, in bounded memory.

    Per image at its own size, mask binarized at `threshold`, averaged over the images (the evaluation of arXiv
    1907.12934); PxAP over all pixels (Choe et al., CVPR 2020).

    Args:
        threshold: a pixel is foreground where the mask is at least this.
    """

    def __init__(self, threshold: float = THRESHOLD) -> None:
        self.threshold = threshold
        self.images = self.errors = self.masks = 0
        self.foreground = self.background = self.area = 0.0
        self.pixels = PixelPrecisionRecall()

    def update(
        self, mask: np.ndarray, target_mask: np.ndarray | None = None, correct: bool | None = None
    ) -> tuple[float, float] | None:
        """Count an image.

        Args:
            mask: values in [0, 1], `[H, W]`.
            target_mask: object pixels, bool `[H, W]`, where they are known.
            correct: whether the class was right, where that is known.

        Returns:
            F1+ and F1- of the image, where its object pixels are known.
        """
        self.images += 1
        self.errors += correct is not None and not correct
        self.area += float(mask.mean())
        if target_mask is None:
            return None
        binary = mask >= self.threshold
        scores = dice(binary, target_mask), dice(~binary, ~target_mask)
        self.masks += 1
        self.foreground += scores[0]
        self.background += scores[1]
        self.pixels.update(mask, target_mask)
        return scores

    def compute(self) -> dict[str, float]:
        """`error`, `f1_foreground`, `f1_background`, `pxap`, `mask_area`, in [0, 1]; without masks first and last."""
        result = {"error": self.errors / max(self.images, 1)}
        if self.masks:
            result["f1_foreground"] = self.foreground / self.masks
            result["f1_background"] = self.background / self.masks
            result["pxap"] = self.pixels.average_precision()
        result["mask_area"] = self.area / max(self.images, 1)
        return result
