"""Training with image-level labels on Accelerate: on one core or many machines, resumable at any moment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from torch import Tensor

from minmax_entropy.backbones.sizes import as_pair
from minmax_entropy.data import Preprocess, TrainingTransform
from minmax_entropy.engine.loop import Images, Training, TrainingResult
from minmax_entropy.engine.recipes import Recipe
from minmax_entropy.engine.run import Run, own_state
from minmax_entropy.inference.options import require_multiclass
from minmax_entropy.wsl import WSLModel

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from minmax_entropy.engine.run import RunKeywords


def fit(
    model: WSLModel,
    train: Images,
    recipe: Recipe,
    epochs: int,
    *,
    valid: Images | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    transform: Callable[[Image.Image], Tensor] | None = None,
    size: int | tuple[int, int] | None = None,
    preprocess: Preprocess | None = None,
    valid_masks: bool = True,
    keep_best: bool = True,
    **run: Unpack[RunKeywords],
) -> TrainingResult:
    """Train a model with class labels alone.

    The model kept is that of the latest epoch whose classification error on `valid` is within a standard error, or an
    image, of the lowest one (`Recipe.selection_tolerance`). Masks of `valid` are never trained on and do not choose the
    model; the best one by F1+ is written beside it.

    Under `accelerate launch` or `torchrun` every process calls this function. The `Recipe.batch_size` images of a step
    are shared among them, and the gradients equal those of one process with all images (except for BatchNorm, unless
    it is frozen or `sync_bn`, and for the control term, which takes masks of its own process's images).

    Args:
        model: model, trained in place, on the device that Accelerate chooses.
        train: labelled images, or a stream of them.
        recipe: settings of what is learned and how.
        epochs: passes over the images.
        valid: labelled images for the choice of the epoch; without them the last epoch is kept.
        output: folder for `log.csv`, `curves.png`, `model/` (the one kept so far), `model_best_f1/` (if `valid` has
            masks), `run.json` and checkpoints; None writes nothing.
        resume: continue the run in `output`, or start one if there is none yet. It ends with the weights and figures
            that it would have had without the interruption.
        overwrite: replace a run in `output`.
        transform: function from an image to the network's input `[C, H, W]`; by default the recipe's augmentation.
        size: `(height, width)` of the training images; by default that of the model's `data_config`.
        preprocess: preprocessing of the validation images; by default `preprocess_for(model)`.
        valid_masks: False does not read the masks of `valid`.
        keep_best: False keeps the last epoch.
        run: fields of `Run`.

    Raises:
        DamagedFileError: a file can't be read, unless `skip_damaged`.
        FileExistsError: `output` holds a run, and neither `resume` nor `overwrite` is True; or a folder for a model
            holds something else.
        ImportError: Accelerate is not installed (the `[train]` extra).
        TrainingError: the loss is not finite.
        ValueError: the task is not "multiclass", `epochs` is below 1, the classes of model, `train` and `valid` differ,
            the run was started with other settings, or there are more processes than images in a step.
    """
    require_multiclass(model)
    if epochs < 1:
        raise ValueError(f"epochs must be 1 or more, got {epochs!r}")
    if resume and output is None:
        raise ValueError("resume needs the output folder of the run")
    if recipe.patience is not None and (valid is None or not keep_best):
        raise ValueError("patience needs images to validate, and the best epoch to be kept")
    _check_classes(model, train, valid)
    options = Run(**run)
    size = as_pair(size or model.data_config["input_size"][-2:])
    settings = {"size": size, "valid_masks": valid_masks, "keep_best": keep_best}
    settings |= {"transform": transform is not None, "preprocess": repr(preprocess)}
    if transform is None:
        config = model.data_config
        values = config["mean"], config["std"], config["interpolation"]
        transform = TrainingTransform(recipe.augmentation, size, *values)
    with own_state():
        training = Training(
            model,
            train,
            recipe,
            epochs,
            options,
            valid=valid,
            output=None if output is None else Path(output),
            transform=transform,
            preprocess=preprocess,
            valid_masks=valid_masks,
            keep_best=keep_best,
            settings=settings,
        )
        return training.run(resume, overwrite)


def _check_classes(model: WSLModel, train: Images, valid: Images | None) -> None:
    """Check that model and data sets share their class indices."""
    names = train.class_names
    if len(names) != model.num_classes:
        raise ValueError(f"the model has {model.num_classes} classes, the images to train have {len(names)}: {names}")
    if model.class_names is not None and model.class_names != names:
        raise ValueError(
            f"the model's classes are {model.class_names}, those of the images are {names}: open the images with "
            "`classes=model.class_names`, or set `model.class_names = None` (and `model.empty_classes = []`) to name "
            "them anew"
        )
    if valid is not None and valid.class_names != names:
        raise ValueError(
            f"the classes of the images to validate are {valid.class_names}, those of the images to train are {names}: "
            "open them with `classes=train.class_names`, or use `valid.with_classes(train.class_names)`"
        )
