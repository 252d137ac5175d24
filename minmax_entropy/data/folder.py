"""Reader of class folders, with optional masks and boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from minmax_entropy.data.dataset import Box
from minmax_entropy.data.files import ImageFiles, Record, hold_out, read_csv, select_records
from minmax_entropy.data.images import IMAGE_SUFFIXES
from minmax_entropy.data.selection import SPLIT_NAMES, SPLIT_SEED, SPLITS
from minmax_entropy.data.sources import register_reader

BOXES = "boxes.csv"
BOXES_HEADER = ["image", "x0", "y0", "x1", "y1"]


@register_reader("folders")
def open_folders(
    root: Path, split: str = "train", classes: Sequence[str] | None = None, seed: int = SPLIT_SEED
) -> ImageFiles:
    """Open images in class folders.

    - `root/[images/]train/<class>/*`, `valid/...` (or `val`, `validation`), `test/...`; without a validation part, 15 %
      of each class of "train" are held out for it; or
    - `root/[images/]<class>/*` without splits: 15 % of each class are held out for "valid" and 25 % for "test".

    The mask of `images/a/b.jpg` is `masks/a/b.png` (any image suffix), where it exists. `root/boxes.csv`, where it
    exists, holds the boxes: see `read_boxes`.

    Args:
        root: folder of the data set.
        split, classes: as in `open_split`.
        seed: seed of the draw of held-out images.

    Raises:
        FileNotFoundError: folders for other splits, but not for this one.
        ValueError: no class folders, one without images, or a malformed `boxes.csv`.
    """
    records = _read_folders(root, split, seed)
    if (root / BOXES).is_file():
        images = _images_of(root)
        boxes = read_boxes(root / BOXES, images)
        records = [record._replace(boxes=boxes.get(record.image.relative_to(images))) for record in records]
    return ImageFiles(select_records(records, classes, split, root), classes)


def read_boxes(path: Path, images: Path) -> dict[Path, tuple[Box, ...]]:
    """Read boxes by the path of the image relative to `images`, from a CSV file with the header `image,x0,y0,x1,y1`.

    Each row is a box; an image may have several. Coordinates are pixels of the upright image, `x1` and `y1` exclusive.

    Raises:
        ValueError: another header, a row that is no box, or text that is not UTF-8, with its line.
        FileNotFoundError: an image that does not exist, with its line.
    """
    rows = read_csv(path)
    header = rows[0][1] if rows else []
    if [cell.lower() for cell in header] != BOXES_HEADER:
        raise ValueError(f"{path}: the first line is {','.join(BOXES_HEADER)}, got {','.join(header)}")
    boxes: dict[Path, tuple[Box, ...]] = {}
    for number, row in rows[1:]:
        box = _box(row)
        if box is None:
            raise ValueError(f"{path}, line {number}: a row is image,x0,y0,x1,y1 with x0 < x1 and y0 < y1, got {row}")
        image = Path(row[0])
        if image not in boxes and not (images / image).is_file():
            raise FileNotFoundError(f"{path}, line {number}: no image {images / image}")
        boxes[image] = (*boxes.get(image, ()), box)
    return boxes


def _box(row: list[str]) -> Box | None:
    try:
        _, x0, y0, x1, y1 = row[0], *map(float, row[1:])
    except ValueError:
        return None
    return (x0, y0, x1, y1) if all(map(math.isfinite, (x0, y0, x1, y1))) and x0 < x1 and y0 < y1 else None


def _images_of(root: Path) -> Path:
    return root / "images" if (root / "images").is_dir() else root


def _read_folders(root: Path, split: str, seed: int) -> list[Record]:
    images = _images_of(root)
    found = {
        part: images / name for part, names in SPLIT_NAMES.items() for name in names[::-1] if _is_split(images / name)
    }
    if not found:
        held = {"valid", "test"}
    else:
        held = {"valid"} if "train" in found and "valid" not in found else set()
    folder = found.get("train" if split in held else split) if found else images
    if folder is None:
        raise FileNotFoundError(f"{images} has folders for some of {SPLITS}, but none for {split!r}")
    classes = sorted(
        entry for entry in folder.iterdir() if entry.is_dir() and entry.name != "masks" and entry.name[0] != "."
    )
    if not classes:
        raise ValueError(f"{folder} has no class folders: expected {folder}/<class>/<image>")
    records = []
    for entry in classes:
        files = image_files(entry)
        if not files:
            raise ValueError(f"class folder {entry} holds no images ({', '.join(IMAGE_SUFFIXES)})")
        records += [Record(file, _mask_of(root / "masks" / file.relative_to(images)), entry.name) for file in files]
    return hold_out(records, split, held, seed, root) if split in held or (held and split == "train") else records


def _is_split(folder: Path) -> bool:
    """Return whether a folder holds class folders rather than images: a class may be called "train", too."""
    return folder.is_dir() and any(entry.is_dir() and entry.name[0] != "." for entry in folder.iterdir())


def image_files(folder: Path) -> list[Path]:
    """Return the image files in a folder and its subfolders, sorted, without hidden ones (`._a.jpg`)."""
    files = (file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
    return sorted(file for file in files if not any(part[0] == "." for part in file.relative_to(folder).parts))


def _mask_of(path: Path) -> Path | None:
    suffixes = (".png", *IMAGE_SUFFIXES)
    candidates = (path.with_suffix(suffix) for suffix in (*suffixes, *map(str.upper, suffixes)))
    return next((candidate for candidate in candidates if candidate.is_file()), None)
