"""Lists in CSV, rows `image,mask,class`: the format of the authors of arXiv 1907.12934."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from minmax_entropy.data.files import ImageFiles, Record, read_csv, select_records
from minmax_entropy.data.selection import SPLIT_NAMES, SPLITS
from minmax_entropy.data.sources import register_reader

# First cells that make the first row of a list a header.
HEADERS = ("image", "images", "image_path", "img", "img_path", "path", "file", "filename", "file_name")


def _has_lists(root: Path) -> bool:
    return any((root / f"{split}.csv").is_file() for split in SPLITS)


@register_reader("lists", detect=_has_lists)
def open_lists(
    root: Path,
    split: str = "train",
    classes: Sequence[str] | None = None,
    lists: Mapping[str, str | Path] | None = None,
) -> ImageFiles:
    """Images of a list; see `read_list`.

    Args:
        root: folder that the paths in the lists are relative to. It holds `train.csv`, `valid.csv` (or `val.csv`,
            `validation.csv`) and `test.csv`, unless
        lists: says where they are: `{"train": path, "valid": path, "test": path}`, or some of them.
        split, classes: as in `open_split`.

    Raises:
        FileNotFoundError: no list for `split`, or a file in it does not exist.
        ValueError: a malformed list, or a class without images.
    """
    if lists is not None:
        unknown = [name for name in lists if name not in SPLITS]
        if unknown:
            raise ValueError(f"lists are given for {SPLITS}, got {unknown[0]!r}")
        if split not in lists:
            raise FileNotFoundError(f"no list for {split!r} is given, only for {sorted(lists)}")
        path = Path(lists[split])
        if not path.is_file():
            raise FileNotFoundError(f"no list {path}")
    else:
        paths = [root / f"{name}.csv" for name in SPLIT_NAMES[split]]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise FileNotFoundError(f"{root} has {'lists, but no' if _has_lists(root) else 'no list'} {split}.csv")
    return ImageFiles(select_records(read_list(path, root), classes, split, root), classes)


def read_list(path: str | Path, root: str | Path) -> list[Record]:
    """Rows `image,mask,class` of a CSV list, paths relative to `root`; every file named must exist.

    Raises:
        ValueError: a row that has not three cells, no rows, or text that is not UTF-8.
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
