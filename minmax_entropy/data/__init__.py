"""Data: embedded images, readers of folders and lists, and what turns them into the network's input."""

from minmax_entropy.data.dataset import LabelledImages, Sample
from minmax_entropy.data.folder import ImageFiles, Record, open_split, read_list
from minmax_entropy.data.images import DamagedFileError, read_image, read_mask
from minmax_entropy.data.loading import TrainingBatch, TrainingImages, TrainingPlan, TransformedImages, training_loader
from minmax_entropy.data.preprocess import Preprocess, padding, scaled_size
from minmax_entropy.data.subsets import Subset, class_weights, few_shots, fold
from minmax_entropy.data.synthetic import SyntheticShapes
from minmax_entropy.data.transforms import AUGMENTATIONS, TrainingTransform

__all__ = [
    "AUGMENTATIONS",
    "DamagedFileError",
    "ImageFiles",
    "LabelledImages",
    "Preprocess",
    "Record",
    "Sample",
    "Subset",
    "SyntheticShapes",
    "TrainingBatch",
    "TrainingImages",
    "TrainingPlan",
    "TrainingTransform",
    "TransformedImages",
    "class_weights",
    "few_shots",
    "fold",
    "open_split",
    "padding",
    "read_image",
    "read_list",
    "read_mask",
    "scaled_size",
    "training_loader",
]
