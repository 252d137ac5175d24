"""Reader of CSV lists of rows `image,mask,class`, the format of the authors of arXiv 1907.12934."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from minmax_entropy.data.files import ImageFiles, Record, hold_out, read_csv, select_records
from minmax_entropy.data.selection import SPLIT_NAMES, SPLIT_SEED, SPLITS
from minmax_entropy.data.sources import register_reader

# First cells that mark the first row of a list as a header.
HEADERS = ("image", "images", "image_path", "img", "img_path", "path", "file", "filename", "file_name")


def _has_lists(root: Path) -> bool:
    return any((root / f"{split}.csv").is_file() for split in SPLITS)


@register_reader("lists", detect=_has_lists)
def open_lists(
    root: Path,
    split: str = "train",
    classes: Sequence[str] | None = None,
    lists: Mapping[str, str | Path] | None = None,
    seed: int = SPLIT_SEED,
) -> ImageFiles:
    """Open the images of a list; see `read_list`. Without one for "valid", 15 % of each class of "train" are held out.

    Args:
        root: folder that the paths in the lists are relative to. It holds `train.csv`, `valid.csv` (or `val.csv`,
            `validation.csv`) and `test.csv`, unless `lists` is given.
        lists: paths of the lists, `{"train": path, "valid": path, "test": path}`, or some of them.
        split, classes: as in `open_split`.
        seed: seed of the draw of held-out images.

    Raises:
        FileNotFoundError: no list for `split`, or a file in it does not exist.
        ValueError: a malformed list, a class without images, or too few images to hold any out.
    """
    if lists is not None:
        unknown = [name for name in lists if name not in SPLITS]
        if unknown:
            raise ValueError(f"lists are given for {SPLITS}, got {unknown[0]!r}")
        found = {part: Path(path) for part, path in lists.items()}
    else:
        paths = {part: [root / f"{name}.csv" for name in names] for part, names in SPLIT_NAMES.items()}
        found = {part: path for part, either in paths.items() for path in either[::-1] if path.is_file()}
    held_out = split != "test" and "train" in found and "valid" not in found
    path = found.get("train" if held_out else split)
    if path is None and lists is not None:
        raise FileNotFoundError(f"no list for {split!r} is given, only for {sorted(lists)}")
    if path is None:
        raise FileNotFoundError(f"{root} has {'lists, but no' if found else 'no list'} {split}.csv")
    if not path.is_file():
        raise FileNotFoundError(f"no list {path}")
    records = read_list(path, root)
    if held_out:
        records = hold_out(records, split, {"valid"}, seed, path)
    return ImageFiles(select_records(records, classes, split, root), classes)


def read_list(path: str | Path, root: str | Path) -> list[Record]:
    """Read the rows `image,mask,class` of a CSV list, paths relative to `root`; every file named must exist.

    Raises:
        ValueError: a row that does not have three cells, no rows, or text that is not UTF-8.
        FileNotFoundError: an image or mask that does not exist, with its line.
    """
    path, root = Path(path), Path(root)
    records = []
    for number, cells in read_csv(path):
        if len(cells) != 3 or not cells[0] or not cells[2]:
            raise ValueError(f"{path}, line {number}: a row is image,mask,class (the mask may be empty), got {cells}")
        image, mask, class_name = root / cells[0], (root / cells[1] if cells[1] else None), cells[2]
        if not image.is_file():
            if number == 1 and cells[0].lower() in HEADERS:
                continue
            raise FileNotFoundError(f"{path}, line {number}: no image {image}")
        if mask is not None and not mask.is_file():
            raise FileNotFoundError(f"{path}, line {number}: no mask {mask}")
        records.append(Record(image, mask, class_name))
    if not records:
        raise ValueError(f"{path} lists no images")
    return records
