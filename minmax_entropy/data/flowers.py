"""Reader of Oxford Flowers 102 (Nilsback and Zisserman, ICVGIP 2008), as distributed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from minmax_entropy._extras import require
from minmax_entropy.data.downloads import Download
from minmax_entropy.data.files import ImageFiles, Record, select_records
from minmax_entropy.data.images import read_image
from minmax_entropy.data.sources import register_reader

_logger = logging.getLogger(__name__)

LABELS, SPLITS = "imagelabels.mat", "setid.mat"
ARCHIVE, MASK_ARCHIVE = "102flowers.tgz", "102segmentations.tgz"
DOWNLOAD = Download(
    "102 Category Flower Dataset",
    "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
    (ARCHIVE, MASK_ARCHIVE, LABELS, SPLITS),
)
SPLIT_KEYS = {"train": "trnid", "valid": "valid", "test": "tstid"}
NUM_CLASSES = 102
# The colour around the flower in the segmentations, which JPEG blurs at the outline. Objects of photographs pasted on
# it and saved as JPEG are found with an intersection over union of 0.97 to 1.00 at this distance: docs/data.md.
BACKGROUND = (0, 0, 254)
BACKGROUND_DISTANCE = 100


def _is_flowers(root: Path) -> bool:
    return (root / "jpg" / "image_00001.jpg").is_file() or DOWNLOAD.lies_in(root)


@register_reader("flowers", detect=_is_flowers)
def open_flowers(root: Path, split: str = "train", classes: Sequence[str] | None = None) -> ImageFiles:
    """Open Oxford Flowers 102: 8189 photographs of 102 kinds of flowers, with masks from a separate archive.

    The parts are the official ones: 1020 ("trnid" of `setid.mat`), 1020 ("valid") and 6149 ("tstid"). The archive does
    not name the classes: they are "001" to "102", the labels of `imagelabels.mat`. For masks, see `read_flowers_mask`.

    Args:
        root: folder with `imagelabels.mat`, `setid.mat`, `jpg/` and, for evaluation, `segmim/`.
        split, classes: as in `open_split`.

    Raises:
        FileNotFoundError: a file is missing; the message says where to get it.
        ValueError: `imagelabels.mat` or `setid.mat` is damaged.
        ImportError: SciPy, of the extra `data`, is missing.
    """
    labels = _read_mat(root, LABELS, "labels")
    ids = _read_mat(root, SPLITS, SPLIT_KEYS[split])
    if ids.min() < 1 or ids.max() > len(labels):
        raise ValueError(f"{root / SPLITS} names images 1 to {ids.max()}, {LABELS} has {len(labels)}")
    masks = root / "segmim" if (root / "segmim").is_dir() else None
    if masks is None:
        _logger.info("%s has no masks: %s of %r, %s, has them", root, MASK_ARCHIVE, DOWNLOAD.title, DOWNLOAD.url)
    records = []
    for number in sorted(ids.tolist()):
        image = root / "jpg" / f"image_{number:05d}.jpg"
        mask = None if masks is None else masks / f"segmim_{number:05d}.jpg"
        records.append(Record(image, mask, f"{labels[number - 1]:03d}"))
    records = select_records(records, classes, split, root)
    DOWNLOAD.require((record.image for record in records), ARCHIVE, root)
    names = [f"{label:03d}" for label in range(1, NUM_CLASSES + 1)]
    return ImageFiles(records, classes or names, read_flowers_mask)


def read_flowers_mask(path: Path) -> np.ndarray:
    """Return a segmentation as bool `[H, W]`: foreground where the colour is further than 100 (of 255, Euclidean in
    RGB) from the background's blue, (0, 0, 254)."""
    DOWNLOAD.require([path], MASK_ARCHIVE, path.parents[1])
    difference = np.asarray(read_image(path), dtype=np.float32) - np.asarray(BACKGROUND, dtype=np.float32)
    return (difference**2).sum(axis=2) > BACKGROUND_DISTANCE**2


def _read_mat(root: Path, file: str, key: str) -> np.ndarray:
    """Read the integers of a MATLAB file, flattened."""
    loadmat = require("scipy.io", "data", "Flowers 102").loadmat
    path = root / file
    DOWNLOAD.require([path], file, root)
    try:
        values = loadmat(path, variable_names=[key])
    except Exception as error:  # SciPy's reader raises many kinds
        raise ValueError(f"{path} can't be read as a MATLAB file: {error}") from error
    if key not in values or not values[key].size:
        raise ValueError(f"{path} has no {key!r}: it is not {file} of {DOWNLOAD.title!r}, {DOWNLOAD.url}")
    return values[key].ravel().astype(np.int64)
