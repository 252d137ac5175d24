"""Checkpoints of a training, written whole or not at all, so that it can be resumed after any interruption."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from minmax_entropy._files import write_text
from minmax_entropy.data import LabelledImages, LabelledStream
from minmax_entropy.data.subsets import targets_of

if TYPE_CHECKING:
    from accelerate import Accelerator

_logger = logging.getLogger(__name__)

SETTINGS_NAME = "run.json"
FOLDER = "checkpoints"
PREFIX = "step_"
INCOMPLETE = "incomplete_"


class Progress:
    """State that resuming needs beside weights, optimizer and random states; `accelerate` saves it with them.

    Attributes:
        epoch, step: the next epoch and step; steps count from the start of the epoch.
        sums: sum of each figure over the current epoch, a number per process.
        log: a row per epoch.
        best: best value of each criterion and its epoch, the first of several; `Recipe.patience` counts from there.
        kept: epoch whose weights are saved, by folder of the model.
        damaged: files that could not be read.
        seconds: duration of the training so far.
        position: position in a stream of images; see `TrainingStream`.
        warnings: warnings about the masks of the kept model; None before the end.
    """

    def __init__(self) -> None:
        self.epoch = self.step = 0
        self.sums: dict[str, list[float]] = {}
        self.log: list[dict] = []
        self.best: dict[str, tuple[float, int]] = {}
        self.kept: dict[str, int] = {}
        self.damaged: list[str] = []
        self.seconds = 0.0
        self.position: tuple[int, int] = (0, 0)
        self.warnings: list[str] | None = None

    def state_dict(self) -> dict:
        return {"json": json.dumps(vars(self))}  # as text: loading it can't run code

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(json.loads(state["json"]))
        self.best = {name: (value, epoch) for name, (value, epoch) in self.best.items()}
        self.position = tuple(self.position)


class Checkpoints:
    """Checkpoints of a run, in `output/checkpoints`; only the latest one is kept.

    Args:
        output: folder of the run.
        settings: all settings that affect the result of the training, as plain values; a resumed run must have the
            same ones.
        defaults: values of settings that are missing in a run because an earlier version started it.
    """

    def __init__(self, output: str | Path, settings: dict, defaults: dict[str, dict] | None = None) -> None:
        self.output = Path(output)
        self.folder = self.output / FOLDER
        self.settings = settings
        self.defaults = defaults or {}
        self._resumes = False

    def start(
        self, resume: bool, overwrite: bool, results: Sequence[str], progress: Progress, accelerator: Accelerator
    ) -> None:
        """Prepare the folder for a new run, or for one to resume. `progress` takes the state of a finished run.

        Args:
            resume: continue the run in the folder, if there is one.
            overwrite: let a new run replace the one in the folder.
            results: names of the folders with results, which are removed for a new run.
            progress: takes the state of a finished run.
            accelerator: accelerator of this run.

        Raises:
            FileExistsError: the folder holds a run, and neither `resume` nor `overwrite` is True.
            ValueError: the run in the folder has other settings.
        """
        path = self.output / SETTINGS_NAME
        saved = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        is_over = saved is not None and saved["progress"] is not None
        self._resumes = resume and saved is not None and not is_over
        if saved is not None and resume:
            compare_settings(self._completed(saved["settings"]), self.settings, self.output)
            if is_over:
                progress.load_state_dict(saved["progress"])
        elif not overwrite and (is_over or self.latest() is not None):
            raise FileExistsError(
                f"{self.output} holds {'a finished' if is_over else 'an unfinished'} run: go on with it (--resume), "
                "replace it (--overwrite), or choose another folder"
            )
        accelerator.wait_for_everyone()  # until all processes have read the folder
        if not accelerator.is_main_process:
            return
        for name in results:  # left where saving a model was interrupted
            for left in self.output.glob(f".{name}.*"):
                shutil.rmtree(left, ignore_errors=True)
        if saved is not None and resume:
            return
        if resume:
            _logger.info("there is no run in %s yet: it starts from the beginning", self.output)
        for name in (FOLDER, *results):
            shutil.rmtree(self.output / name, ignore_errors=True)
        self.output.mkdir(parents=True, exist_ok=True)
        self._write(None)

    def latest(self) -> Path | None:
        """Return the newest complete checkpoint, if there is one."""
        complete = sorted(self.folder.glob(f"{PREFIX}*"), key=lambda path: int(path.name.removeprefix(PREFIX)))
        return complete[-1] if complete else None

    def save(self, accelerator: Accelerator, step: int) -> None:
        """Write the state after `step` steps under a temporary name, rename it, and delete older checkpoints."""
        incomplete = self.folder / f"{INCOMPLETE}{step:09d}"
        if accelerator.is_main_process:
            shutil.rmtree(incomplete, ignore_errors=True)
            incomplete.mkdir(parents=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(incomplete))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            final = self.folder / f"{PREFIX}{step:09d}"
            incomplete.rename(final)
            for other in self.folder.iterdir():
                if other != final:
                    shutil.rmtree(other)
        accelerator.wait_for_everyone()

    def load(self, accelerator: Accelerator) -> bool:
        """Restore everything that is registered from the newest checkpoint; return False if there is none yet."""
        latest = self.latest() if self._resumes else None
        if latest is None:
            return False
        accelerator.load_state(str(latest))
        return True

    def finish(self, progress: Progress) -> None:
        """Record the end of a training whose results are written, and remove its checkpoints."""
        self._write(progress)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _completed(self, saved: dict) -> dict:
        """Return saved settings, completed with the defaults of missing ones."""
        parts = {
            name: {**{key: values[key] for key in self.settings[name] if key in values}, **saved.get(name, {})}
            for name, values in self.defaults.items()
        }
        return {**saved, **parts}

    def _write(self, progress: Progress | None) -> None:
        content = {"settings": self.settings, "progress": None if progress is None else progress.state_dict()}
        write_text(self.output / SETTINGS_NAME, json.dumps(content, indent=2) + "\n")


def compare_settings(saved: dict, settings: dict, place: Path) -> None:
    """Check that settings equal the saved ones.

    Raises:
        ValueError: they differ; the message says where.
    """
    saved, settings = (json.loads(json.dumps(one)) for one in (saved, settings))  # tuples become lists
    texts = list(_differences(saved, settings, ""))
    if texts:
        raise ValueError(f"the run in {place} can't be resumed with other settings than its own: {'; '.join(texts)}")


def _differences(saved: object, settings: object, path: str) -> Iterator[str]:
    """Describe where two nested dictionaries differ."""
    if isinstance(saved, dict) and isinstance(settings, dict):
        for key in sorted(saved.keys() | settings.keys()):
            yield from _differences(saved.get(key), settings.get(key), f"{path}.{key}" if path else key)
    elif saved != settings:
        yield f"{path}: it has {saved!r:.200}, asked for is {settings!r:.200}"


def fingerprint(dataset: LabelledImages | LabelledStream) -> dict:
    """Identify a data set: number of images, classes, and a hash of the images' names and labels."""
    if isinstance(dataset, LabelledStream):
        return {"classes": dataset.class_names}
    names = (f"{Path(dataset.name(index)).name}\t{target}\n" for index, target in enumerate(targets_of(dataset)))
    digest = hashlib.sha256("".join(names).encode()).hexdigest()
    return {"images": len(dataset), "classes": dataset.class_names, "sha256": digest}
