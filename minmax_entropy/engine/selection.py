"""Validation after each epoch, and the choice of the models to keep by its figures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from minmax_entropy.data import LabelledImages, LabelledStream, Preprocess
from minmax_entropy.engine.diagnosis import warnings_of
from minmax_entropy.engine.evaluate import Evaluation, evaluate, length_of
from minmax_entropy.engine.faithfulness import Probes
from minmax_entropy.engine.run import gather_objects
from minmax_entropy.hub import check_target
from minmax_entropy.hub.weights import SavedWeights, weight_files
from minmax_entropy.inference.options import Inference
from minmax_entropy.inference.views import Views
from minmax_entropy.wsl import WSLModel

if TYPE_CHECKING:
    from accelerate import Accelerator

    from minmax_entropy.engine.checkpoints import Progress

# Figure of the validation -> folder of the best model by it, and whether higher is better.
ERROR, F1 = "valid_error", "valid_f1_foreground"
BEST = {ERROR: ("model", False), F1: ("model_best_f1", True)}
FOLDERS = tuple(folder for folder, _ in BEST.values())
SINGLE = Inference(views=Views(refined=False))  # more views may take most of the time


class Selection:
    """Choice of the epochs of a training to keep, in folders of `output`; without it the best one by error, in memory.

    The error chooses the latest epoch within `tolerance` standard errors of the lowest error, or within that many
    images if that is more (with 1, the one-standard-error rule of Breiman et al., "Classification and Regression
    Trees", 1984). Differences within that are chance, and masks keep improving after the classes are learned
    (docs/results/localization_appendix.md).

    Args:
        accelerator: accelerator of the training; each process evaluates its share of the images.
        valid: labelled images, or None to keep the latest epoch.
        output: folder of the run, or None.
        preprocess, with_masks, skip_damaged: as for `evaluate`.
        keep_best: False keeps the latest epoch, whatever its error.
        tolerance: `Recipe.selection_tolerance`.

    Raises:
        FileExistsError: a folder for a model holds something else.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        valid: LabelledImages | LabelledStream | None,
        output: Path | None,
        *,
        preprocess: Preprocess | None,
        with_masks: bool,
        skip_damaged: bool,
        keep_best: bool,
        tolerance: float,
    ) -> None:
        self.accelerator, self.valid, self.output = accelerator, valid, output
        self.preprocess, self.skip_damaged = preprocess, skip_damaged
        self.with_masks = with_masks and valid is not None and valid.has_masks
        self.by_error = keep_best and valid is not None
        self.tolerance = tolerance
        self._weights: dict[str, Tensor] = {}
        for folder in () if output is None else FOLDERS:  # before the training, not after it
            check_target(output / folder, WSLModel)

    def validate(self, model: WSLModel) -> tuple[dict[str, float], int, list[str]]:
        """Return figures by name (`valid_...`), the same in every process, the number of images, and files that could
        not be read.

        The model's `min_probability` does not empty any mask. If no masks are compared and the class does not depend on
        them, images are seen in one view, at their own size, and `valid_mask_area` is that of the mask before its
        refinement, as in training."""
        if self.valid is None:
            return {}, 0, []
        inference = None if self.with_masks or model.classifier_decides else SINGLE
        result = self._evaluate(model, with_masks=self.with_masks, inference=inference)
        figures = {f"valid_{name}": float(value) for name, value in result.metrics.items()}
        return figures, len(result.rows), result.damaged

    def diagnose(self, model: WSLModel) -> list[str]:
        """Return the warnings of `warnings_of` on the validation images, in every process."""
        if self.valid is None:
            return []
        found = self._evaluate(model, with_masks=False, probes=Probes(), inference=SINGLE)
        return warnings_of(found, self.valid.class_names)

    def _evaluate(self, model: WSLModel, **options: object) -> Evaluation:
        """Evaluate this process's share of the images, and return the whole evaluation in every process."""
        share = self.accelerator.process_index, self.accelerator.num_processes
        part = None
        if length_of(self.valid, share) != 0:
            common = dict(skip_damaged=self.skip_damaged, boxes=False, share=share, min_probability=0.0)
            part = evaluate(model, self.valid, self.preprocess, **common, **options)
        return Evaluation.merged([part for part in gather_objects(self.accelerator, part) if part is not None])

    def keep(self, model: WSLModel, row: dict, images: int, progress: Progress) -> None:
        """Keep the weights if a figure is better than in every epoch before, or the error is within its tolerance.

        Args:
            model: model after the epoch.
            row: row of the log, with its `epoch` and the figures of `validate`.
            images: number of images behind these figures.
            progress: progress whose `best` and `kept` are updated.
        """
        best = progress.best
        for key, (folder, higher) in BEST.items():
            value = row.get(key)
            if key == ERROR and not self.by_error:
                value = -float(row["epoch"])  # each epoch is better than those before
            if value is None or value != value:
                continue
            if key not in best or (value > best[key][0] if higher else value < best[key][0]):
                best[key] = value, row["epoch"]
            elif key != ERROR or not _is_within(self.tolerance, best[key][0], value, images):
                continue
            progress.kept[folder] = row["epoch"]
            if self.output is None:
                if key == ERROR and self.by_error:
                    self._weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
            elif self.accelerator.is_main_process:
                figures = {name: value for name, value in row.items() if name.startswith("valid_")}
                model.save_pretrained(self.output / folder, metrics={**figures, "epoch": row["epoch"]})

    def restore(self, model: WSLModel, latest: WSLModel) -> None:
        """Load the weights that the error chose into `model`, or those of `latest` if nothing was kept."""
        self.accelerator.wait_for_everyone()
        if self.output is not None:
            model.load_state_dict(dict(SavedWeights(weight_files(self.output / BEST[ERROR][0])).items()))
        elif self._weights:
            model.load_state_dict(self._weights)
        elif latest is not model:
            model.load_state_dict(latest.state_dict())


def _is_within(tolerance: float, lowest: float, error: float, images: int) -> bool:
    """Return whether an error exceeds the lowest one by at most `tolerance` standard errors, or images if that is more.
    Images are counted, since errors of 0 and 1 have no standard error."""
    fewest = round(lowest * images)
    deviation = math.sqrt(fewest * (1 - fewest / images))
    return round(error * images) - fewest <= tolerance * max(deviation, 1.0)
