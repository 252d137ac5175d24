"""Training: a plain loop over image-level labels, for a number of epochs or of seconds."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import logging
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from minmax_entropy.data import DamagedFileError, LabelledImages, Preprocess, TrainingBatch, TrainingImages, collate
from minmax_entropy.engine.evaluate import evaluate, require_multiclass
from minmax_entropy.engine.progress import progress_bar
from minmax_entropy.engine.recipes import Recipe
from minmax_entropy.model import WSLModel

_logger = logging.getLogger(__name__)

# A mean mask outside of this range marks next to nothing, or nearly the whole image: the trivial optimum.
MASK_AREA_RANGE = (0.02, 0.9)


class TrainingError(RuntimeError):
    """The training can't go on; the message says where and why."""


@dataclasses.dataclass
class TrainingResult:
    """What a training leaves behind: the log (a row per epoch), the best epoch, and the files that were skipped."""

    log: list[dict]
    best_epoch: int
    damaged: list[str]
    seconds: float


def fit(
    model: WSLModel,
    train: LabelledImages,
    transform: Callable[[Image.Image], Tensor],
    recipe: Recipe,
    *,
    epochs: int | None = None,
    seconds: float | None = None,
    valid: LabelledImages | None = None,
    preprocess: Preprocess | None = None,
    keep_best: bool = True,
    seed: int = 0,
    workers: int = 0,
    skip_damaged: bool = False,
    progress: bool = True,
    title: str = "train",
    log_path: str | Path | None = None,
) -> TrainingResult:
    """Train with class labels alone.

    The model of the epoch with the lowest classification error on `valid` is kept, the first of equals; no mask is
    looked at. The mean of the mask over an epoch is logged, and a warning says when it leaves [0.02, 0.9].

    Args:
        model: trained in place, on the device it is on.
        train: labelled images.
        transform: image to the network's input `[C, H, W]`.
        recipe: optimizer, schedule, erasing.
        epochs: passes over the images; or
        seconds: time to train for, in which a started step is finished (validation not counted).
        valid: labelled images for the choice of the epoch; without it the last epoch is kept.
        preprocess: of the validation images.
        keep_best: False keeps the last epoch.
        seed: of the order of the images, augmentation, dropout.
        workers: loader processes.
        skip_damaged: leave out files that can't be read, and list them, instead of raising.
        progress: show a progress bar.
        title: text before the bar.
        log_path: CSV file, a row is added as each epoch ends.

    Raises:
        DamagedFileError: a file can't be read, unless `skip_damaged`.
        TrainingError: the loss is not finite.
        ValueError: a model of another task than "multiclass"; neither or both of `epochs` and `seconds`, or not over 0.
    """
    require_multiclass(model)
    if (epochs is None) == (seconds is None):
        raise ValueError("give either epochs or seconds")
    if not (epochs if seconds is None else seconds) > 0:
        raise ValueError(f"epochs or seconds must be over 0, got {epochs if seconds is None else seconds!r}")
    device = next(model.parameters()).device
    random.seed(seed)  # timm's augmentations draw from it
    torch.manual_seed(seed)
    model.to(memory_format=torch.channels_last)  # convolutions run faster in it, on CPU and GPU
    loader = DataLoader(
        TrainingImages(train, transform),
        batch_size=recipe.batch_size,
        shuffle=True,
        drop_last=len(train) > recipe.batch_size,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(seed),
    )
    optimizer = recipe.build_optimizer(model)
    own_erasing = model.erasing.steps
    erasing_steps = own_erasing if recipe.erasing_steps is None else recipe.erasing_steps
    clock = _Clock(epochs, seconds, len(loader))
    log: list[dict] = []
    damaged: dict[str, None] = {}
    best: tuple[float, int, dict[str, Tensor]] | None = None
    writer = _CsvLog(log_path)
    with progress_bar(None, title, progress, total=100, bar_format="{desc} {percentage:3.0f}%|{bar}| {postfix}") as bar:
        while not clock.done:
            epoch = clock.epoch
            model.train()
            model.erasing.steps = erasing_steps if epoch >= recipe.erasing_from_epoch else 0
            row = _train_epoch(model, loader, optimizer, recipe, clock, bar, damaged, skip_damaged)
            if valid is not None:
                with clock.stopped():
                    result = evaluate(model, valid, preprocess, with_masks=False, skip_damaged=skip_damaged)
                damaged.update(dict.fromkeys(result.damaged))
                scores = result.metrics
                row["valid_error"] = scores["error"]
                row["valid_mask_area"] = scores["mask_area"]
                if keep_best and (best is None or scores["error"] < best[0]):
                    best = scores["error"], epoch, {k: v.detach().clone() for k, v in model.state_dict().items()}
            log.append(row)
            writer.add(row)
            if model.classifier is not None:
                _warn_of_collapse(row)
    model.erasing.steps = own_erasing
    if best is not None:
        model.load_state_dict(best[2])
    return TrainingResult(log, best[1] if best else len(log) - 1, list(damaged), clock.elapsed)


def _train_epoch(model, loader, optimizer, recipe, clock, bar, damaged, skip_damaged) -> dict:
    """One pass over the images, or as much of it as there is time for; the mean of each figure."""
    sums: dict[str, Tensor] = {}
    count = 0
    lr = 0.0
    device = next(model.parameters()).device
    batch: TrainingBatch
    for batch in loader:
        if batch.damaged and not skip_damaged:
            # A new error: this frame holds the other, and a cycle keeps the loader's processes until it is collected.
            raise DamagedFileError(batch.damaged[0].path, batch.damaged[0].reason)
        damaged.update(dict.fromkeys(error.path for error in batch.damaged))
        # A remainder of one image is left out (BatchNorm has no statistics of it) unless there is nothing else.
        if len(batch.images) > 1 or (len(batch.images) == 1 and (len(loader) == 1 or recipe.batch_size == 1)):
            lr = _set_lr(optimizer, recipe.lr_at(clock.epoch, clock.progress))
            images = batch.images.to(device, non_blocking=True, memory_format=torch.channels_last)
            target = batch.target.to(device, non_blocking=True)
            output = model(images, target)
            optimizer.zero_grad(set_to_none=True)
            output.loss.backward()
            if recipe.clip_grad is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad)
            optimizer.step()
            with torch.no_grad():
                figures = {"loss": output.loss, **output.losses, "mask_area": output.mask.mean()}
                figures["train_error"] = (output.logits.argmax(dim=1) != target).float().mean()
                for name, value in figures.items():
                    sums[name] = sums.get(name, 0.0) + value.detach() * len(images)
            count += len(images)
        clock.tick()
        if not bar.disable and (clock.steps % 10 == 0 or clock.done):
            bar.n = round(100 * clock.progress)
            bar.set_postfix_str(_status(clock, sums, count))
        if clock.done:
            break
    if not count:
        raise TrainingError(f"epoch {clock.epoch}: none of the images could be read: {list(damaged)[:3]}")
    means = {name: float(value) / count for name, value in sums.items()}
    finished = clock.epoch
    clock.end_epoch()
    if not torch.isfinite(torch.tensor(means["loss"])):
        raise TrainingError(
            f"epoch {finished}: the loss is {means['loss']} ({', '.join(f'{k}={v:.4g}' for k, v in means.items())}); "
            "lower the learning rate, or look for images with NaN or infinite pixels"
        )
    return {"epoch": finished, "seconds": round(clock.elapsed, 2), "lr": lr, "images": count, **means}


def _set_lr(optimizer: torch.optim.Optimizer, lr: float) -> float:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
    return lr


def _status(clock: _Clock, sums: dict[str, Tensor], count: int) -> str:
    if not count:
        return ""
    figures = {"loss": "loss", "train_error": "error", "mask_area": "M+"}
    shown = " ".join(f"{short} {float(sums[name]) / count:.2f}" for name, short in figures.items())
    return f"epoch {clock.epoch} {shown} {clock.images_per_second(count):.0f} img/s"


def _warn_of_collapse(row: dict) -> None:
    low, high = MASK_AREA_RANGE
    if not low <= row["mask_area"] <= high:
        _logger.warning(
            "epoch %d: the mask covers %.1f %% of the images on average: it %s; change the weight of the area "
            "(size_loss='area', size_weight) or detach_mask",
            row["epoch"],
            100 * row["mask_area"],
            "marks next to nothing" if row["mask_area"] < low else "has collapsed to the whole image",
        )


class _Clock:
    """How much of the training is done: by epochs, or by seconds of training (pauses left out)."""

    def __init__(self, epochs: int | None, seconds: float | None, steps_per_epoch: int) -> None:
        self.epochs, self.seconds, self.steps_per_epoch = epochs, seconds, steps_per_epoch
        self.epoch = self.steps = 0
        self._started = self._epoch_started = time.perf_counter()

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self._started

    @property
    def progress(self) -> float:
        if self.epochs is not None:
            return min(self.steps / max(self.epochs * self.steps_per_epoch, 1), 1.0)
        return min(self.elapsed / self.seconds, 1.0)

    @property
    def done(self) -> bool:
        return self.progress >= 1

    def tick(self) -> None:
        self.steps += 1

    def end_epoch(self) -> None:
        self.epoch += 1
        self._epoch_started = time.perf_counter()

    def images_per_second(self, images: int) -> float:
        return images / max(time.perf_counter() - self._epoch_started, 1e-9)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        paused = time.perf_counter()
        yield
        pause = time.perf_counter() - paused
        self._started += pause
        self._epoch_started += pause


class _CsvLog:
    """A CSV file that grows by a row per epoch."""

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.unlink(missing_ok=True)

    def add(self, row: dict) -> None:
        if self.path is None:
            return
        is_new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            if is_new:
                writer.writeheader()
            writer.writerow(row)
