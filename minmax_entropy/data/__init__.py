"""Data: embedded images, readers of folders and lists, and what turns them into the network's input."""

from minmax_entropy.data.dataset import LabelledImages, Sample, TrainingBatch, TrainingImages, collate
from minmax_entropy.data.folder import ImageFiles, Record, open_split, read_list
from minmax_entropy.data.images import DamagedFileError, read_image, read_mask
from minmax_entropy.data.preprocess import Preprocess, padding, scaled_size
from minmax_entropy.data.synthetic import SyntheticShapes

__all__ = [
    "DamagedFileError",
    "ImageFiles",
    "LabelledImages",
    "Preprocess",
    "Record",
    "Sample",
    "SyntheticShapes",
    "TrainingBatch",
    "TrainingImages",
    "collate",
    "open_split",
    "padding",
    "read_image",
    "read_list",
    "read_mask",
    "scaled_size",
]
