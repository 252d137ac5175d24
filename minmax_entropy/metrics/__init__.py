"""Metrics of classification and localization: pure functions, mergeable states, and a meter that combines them."""

from minmax_entropy.metrics.boxes import BoxAccuracy, LocalizationAccuracy, box_iou, box_overlaps
from minmax_entropy.metrics.classification import ClassificationError, target_rank
from minmax_entropy.metrics.meter import LocalizationMeter
from minmax_entropy.metrics.pixel import MaskScores, PixelPrecisionRecall, dice
from minmax_entropy.metrics.placement import MaskPlaces, border_share
from minmax_entropy.metrics.regions import region_boxes
from minmax_entropy.metrics.state import MergeableState

__all__ = [
    "BoxAccuracy",
    "ClassificationError",
    "LocalizationAccuracy",
    "LocalizationMeter",
    "MaskPlaces",
    "MaskScores",
    "MergeableState",
    "PixelPrecisionRecall",
    "border_share",
    "box_iou",
    "box_overlaps",
    "dice",
    "region_boxes",
    "target_rank",
]
