"""Data: bundled synthetic images, readers of data sets, folders and lists, and preprocessing."""

from minmax_entropy.data.cub import open_cub, open_cub5
from minmax_entropy.data.dataset import LabelledImages, LabelledStream, Sample
from minmax_entropy.data.files import ImageFiles, Record
from minmax_entropy.data.flowers import open_flowers
from minmax_entropy.data.folder import open_folders
from minmax_entropy.data.glas import open_glas
from minmax_entropy.data.hub_datasets import HubImages, open_hub
from minmax_entropy.data.hub_stream import HubStream
from minmax_entropy.data.images import BoxError, DamagedFileError, MaskSizeError, image_size, read_image, read_mask
from minmax_entropy.data.limits import allow_pixels
from minmax_entropy.data.lists import open_lists, read_list
from minmax_entropy.data.loading import TrainingBatch, TrainingImages, TrainingPlan, TransformedImages, training_loader
from minmax_entropy.data.preprocess import Preprocess, padding, preprocess_for, scaled_size
from minmax_entropy.data.sources import list_readers, open_split, register_reader
from minmax_entropy.data.subsets import Subset, class_weights, few_shots, fold
from minmax_entropy.data.synthetic import SyntheticShapes, open_shapes
from minmax_entropy.data.transforms import AUGMENTATIONS, TrainingTransform

__all__ = [
    "AUGMENTATIONS",
    "BoxError",
    "DamagedFileError",
    "HubImages",
    "HubStream",
    "ImageFiles",
    "LabelledImages",
    "LabelledStream",
    "MaskSizeError",
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
    "allow_pixels",
    "class_weights",
    "few_shots",
    "fold",
    "image_size",
    "list_readers",
    "open_cub",
    "open_cub5",
    "open_flowers",
    "open_folders",
    "open_glas",
    "open_hub",
    "open_lists",
    "open_shapes",
    "open_split",
    "padding",
    "preprocess_for",
    "read_image",
    "read_list",
    "read_mask",
    "register_reader",
    "scaled_size",
    "training_loader",
]
