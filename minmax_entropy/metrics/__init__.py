"""Metrics of classification and localization: pure functions, and one meter that collects them over a data set."""

from minmax_entropy.metrics.meter import LocalizationMeter
from minmax_entropy.metrics.pixel import PixelPrecisionRecall, dice
from minmax_entropy.metrics.regions import region_boxes

__all__ = ["LocalizationMeter", "PixelPrecisionRecall", "dice", "region_boxes"]
