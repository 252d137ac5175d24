"""Sources of published data sets, for errors that say what is missing and where to get it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

EXTRACT = {".tgz": "tar -xf", ".zip": "unzip"}


@dataclasses.dataclass(frozen=True)
class Download:
    """Download page of a data set: its title, its address, and the files that it offers."""

    title: str
    url: str
    files: tuple[str, ...]

    def missing(self, path: Path, file: str, folder: Path) -> FileNotFoundError:
        """Return the error for a path that does not exist.

        Args:
            path: the missing path.
            file: the file on the page that is or holds it.
            folder: where the file belongs; an archive is to be extracted there, and may lie there or one level up.
        """
        command = EXTRACT.get(Path(file).suffix)
        archive = next((place / file for place in (folder, folder.parent) if (place / file).is_file()), None)
        if command is not None and archive is not None:
            text = f"{archive} is not extracted, or not completely: {command} {file} in {archive.parent}"
        elif command is not None:
            text = f"it is in {file} of {self.title!r}, {self.url}; extract that in {folder}"
        else:
            text = f"download {file} from {self.title!r}, {self.url}"
        return FileNotFoundError(f"no {path}: {text}")

    def require(self, paths: Iterable[Path], file: str, folder: Path) -> None:
        """Raise `missing` for the first path that does not exist."""
        for path in paths:
            if not path.is_file():
                raise self.missing(path, file, folder)

    def lies_in(self, folder: Path) -> bool:
        """Return whether one of the page's files lies in a folder."""
        return any((folder / file).is_file() for file in self.files)
