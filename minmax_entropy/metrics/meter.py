"""Meter for an evaluation: classification errors, F1+, F1-, PxAP, pIoU, box metrics, area of the mask."""

from __future__ import annotations

import numpy as np

from minmax_entropy.metrics.boxes import BoxAccuracy, Boxes, LocalizationAccuracy, box_iou, checked_boxes
from minmax_entropy.metrics.classification import ClassificationError, resolve_rank
from minmax_entropy.metrics.pixel import MaskScores, PixelPrecisionRecall, checked_mask, checked_target
from minmax_entropy.metrics.regions import region_boxes
from minmax_entropy.metrics.state import UNIT, MergeableState, to_units

THRESHOLD = 0.5


class LocalizationMeter(MergeableState):
    """Metrics of an evaluation, collected image by image in bounded memory; meters of parts of a data set merge.

    Images count at their own size. F1+, F1- and pIoU use the mask binarized at `threshold` (the evaluation of arXiv
    1907.12934); PxAP and the best pIoU over all pixels; MaxBoxAcc and MaxBoxAccV2 over all thresholds (Choe et al.,
    CVPR 2020); GT-known, Top-1 and Top-5 localization by the box of the largest region at `threshold`. Each metric is
    computed over the images where it is known, and `compute` returns only those known for at least one image.

    Args:
        threshold: a pixel is foreground where the mask is at least this, in (0, 1].
        boxes: None computes box metrics for images whose true boxes are given; True also for images with object pixels,
            whose connected regions then give the true boxes; False for none. They take most of the time.

    Raises:
        ValueError: the threshold is out of range.
        TypeError: `boxes` is none of these.

    >>> meter = LocalizationMeter(boxes=True)
    >>> mask = np.array([[0.9, 0.8, 0.1], [0.2, 0.6, 0.0]])
    >>> scores = meter.update(mask, np.array([[1, 1, 0], [0, 0, 0]], dtype=bool), rank=1)
    >>> {name: round(value, 3) for name, value in scores.items()}
    {'mask_area': 0.433, 'f1_foreground': 0.8, 'f1_background': 0.857, 'box_iou': 0.5}
    >>> {name: value for name, value in meter.compute().items() if name.startswith("top")}
    {'top5_error': 0.0, 'top1_loc': 0.0, 'top5_loc': 1.0}
    """

    settings = ("threshold",)
    sums = ("images", "area")
    parts = ("classes", "masks", "pixels", "box_accuracy", "localization")

    def __init__(self, threshold: float = THRESHOLD, boxes: bool | None = None) -> None:
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold must be in (0, 1], got {threshold!r}")
        if boxes is not None and not isinstance(boxes, bool):
            raise TypeError(f"boxes must be None, True or False, got {boxes!r}; boxes of an image go to `update`")
        self.threshold = float(threshold)
        self.boxes = boxes
        self.images = self.area = 0
        self.classes = ClassificationError()
        self.masks = MaskScores(threshold)
        self.pixels = PixelPrecisionRecall()
        self.box_accuracy = BoxAccuracy()
        self.localization = LocalizationAccuracy()

    def update(
        self,
        mask: np.ndarray,
        target_mask: np.ndarray | None = None,
        correct: bool | None = None,
        *,
        rank: int | None = None,
        boxes: Boxes | None = None,
    ) -> dict[str, float]:
        """Add an image; invalid input adds nothing.

        Args:
            mask: values in [0, 1], `[H, W]`.
            target_mask: object pixels, bool `[H, W]`, where they are known.
            correct: whether the class was correct, where that is known.
            rank: rank of the true class among the sorted scores, 0 for the first (see `target_rank`); `correct`
                follows from it. With five classes or fewer, leave it out: Top-5 is meaningless there.
            boxes: true boxes `(x0, y0, x1, y1)` in pixels, `x1` and `y1` exclusive. An image without boxes (an
                empty sequence or an empty `target_mask`) is left out of the box metrics.

        Returns:
            The image's `mask_area`; `f1_foreground` and `f1_background` where its object pixels are known; `box_iou` of
            the largest region at the threshold where box metrics are computed (0 if there is no region).

        Raises:
            ValueError: the mask is not `[H, W]`, holds NaN or leaves [0, 1]; the target mask has another shape or is
                not boolean; a box has no area; `rank` is negative or contradicts `correct`.
        """
        mask = checked_mask(mask)
        if target_mask is not None:
            target_mask = checked_target(target_mask, mask.shape)
        correct, rank = resolve_rank(correct, rank)
        true_boxes = self._true_boxes(target_mask, boxes)

        scores = {"mask_area": float(mask.mean())}
        self.images += 1
        self.area += to_units(scores["mask_area"])
        self.classes.update(correct, rank)
        if target_mask is not None:
            scores |= self.masks.update(mask, target_mask)
            self.pixels.update(mask, target_mask)
        if len(true_boxes):
            found = region_boxes(mask >= self.threshold)[:1]
            scores["box_iou"] = float(box_iou(found, true_boxes).max(initial=0.0))
            self.localization.update(scores["box_iou"], correct, rank)
            self.box_accuracy.update(mask, true_boxes)
        return scores

    def _true_boxes(self, target_mask: np.ndarray | None, boxes: Boxes | None) -> np.ndarray:
        """Return the true boxes to evaluate, `[N, 4]`; N may be 0."""
        if self.boxes and boxes is None and target_mask is not None:
            boxes = region_boxes(target_mask)
        given = checked_boxes([] if boxes is None else boxes)
        return given[:0] if self.boxes is False else given

    def compute(self) -> dict[str, float]:
        """Return the metrics over all images, in [0, 1], as far as they are known.

        `error`, `top5_error`; `f1_foreground`, `f1_background`, `piou` at the threshold; `pxap`; `max_piou`, the best
        over the thresholds, and `max_piou_threshold`; `max_box_acc`, `max_box_acc_v2`; `gt_known_loc`, `top1_loc`,
        `top5_loc`; `mask_area`. Metrics of object pixels are NaN if masks were given and all were empty.
        """
        result: dict[str, float] = {}
        for part in self.parts:
            result |= getattr(self, part).compute()
        if self.images:
            result["mask_area"] = self.area / (self.images * UNIT)
        return result
