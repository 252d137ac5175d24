"""Training loop on Accelerate: epochs, steps, checkpoints, the choice of the epoch."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import logging
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.utils import tqdm
from PIL import Image
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.utils.data import DataLoader

from minmax_entropy._files import write_csv
from minmax_entropy._progress import progress_bar
from minmax_entropy.data import DamagedFileError, LabelledImages, LabelledStream, Preprocess, TrainingBatch
from minmax_entropy.data.loading import TrainingPlan, TrainingStream, stream_loader, training_loader
from minmax_entropy.data.subsets import class_weights, targets_of
from minmax_entropy.engine.checkpoints import Checkpoints, Progress, fingerprint
from minmax_entropy.engine.diagnosis import warn_of_collapse
from minmax_entropy.engine.recipes import Recipe
from minmax_entropy.engine.run import MACHINE, Run, create_accelerator, gather_objects, share_buffers
from minmax_entropy.engine.selection import BEST, ERROR, F1, FOLDERS, Selection
from minmax_entropy.hub.config import to_config
from minmax_entropy.report.curves import write_curves
from minmax_entropy.wsl import WSLModel

_logger = logging.getLogger(__name__)

Images = LabelledImages | LabelledStream

# Values of settings that are missing in a run because an earlier version started it.
DEFAULTS = {
    name: {key: keyword.default for key, keyword in inspect.signature(built).parameters.items()}
    for name, built in (("model", WSLModel), ("recipe", Recipe))
}
STATUS_STEPS = 10
CURVES_SECONDS = 30  # between pictures, which take a second


class TrainingError(RuntimeError):
    """Failure of a training that can't go on; the message says where and why."""


@dataclasses.dataclass
class TrainingResult:
    """Result of a training.

    Attributes:
        log: a row per epoch.
        best_epoch: epoch whose weights the model has, chosen by the validation error; without validation the last one.
        best_f1_epoch: epoch with the highest F1+ on the validation masks, or None without masks.
        damaged: files that were skipped.
        seconds: duration, validation included.
        is_main: whether this is the process that writes and prints.
        warnings: signs on the validation images that it went wrong (`minmax_entropy.engine.warnings_of`).
    """

    log: list[dict]
    best_epoch: int
    best_f1_epoch: int | None
    damaged: list[str]
    seconds: float
    is_main: bool = True
    warnings: list[str] = dataclasses.field(default_factory=list)


class Training:
    """A training, carried out by `run`. Other arguments are those of `fit`.

    Args:
        transform: function from an image to the network's input.
        settings: further settings that affect the result; see `Checkpoints`.
    """

    def __init__(
        self,
        model: WSLModel,
        train: Images,
        recipe: Recipe,
        epochs: int,
        options: Run,
        *,
        valid: Images | None,
        output: Path | None,
        transform: Callable[[Image.Image], Tensor],
        preprocess: Preprocess | None,
        valid_masks: bool,
        keep_best: bool,
        settings: dict,
    ) -> None:
        self.recipe, self.epochs, self.options = recipe, epochs, options
        self.train, self.valid, self.output = train, valid, output
        self.accelerator = create_accelerator(options, self.output)
        self.is_main = self.accelerator.is_main_process
        if model.class_names is None:
            model.class_names = train.class_names
        self.model = model
        self.plan, self.loader = self._data(transform)
        self.own_erasing, self.own_weights = model.erasing.steps, model.criterion.class_weights
        self.drawn = time.perf_counter()
        self.progress = Progress()
        self.ema: ModelEmaV3 | None = None
        self.wrapped: torch.nn.Module | None = None  # by Accelerate
        self.selection = Selection(
            self.accelerator,
            valid,
            self.output,
            preprocess=preprocess,
            with_masks=valid_masks,
            skip_damaged=options.skip_damaged,
            keep_best=keep_best,
            tolerance=recipe.selection_tolerance,
        )
        self.checkpoints = None
        if self.output is not None:
            self.checkpoints = Checkpoints(self.output, {**self._settings(), **settings}, DEFAULTS)

    def run(self, resume: bool, overwrite: bool) -> TrainingResult:
        random.seed(self.options.seed)
        np.random.seed(self.options.seed)
        torch.manual_seed(self.options.seed + self.accelerator.process_index)  # dropout differs between processes
        if self.checkpoints is not None:
            self.checkpoints.start(resume, overwrite, FOLDERS, self.progress, self.accelerator)
        try:
            if self.recipe.class_weights is not None:
                self.model.criterion.class_weights = class_weights(self.train)
            self._prepare()
            self._run_epochs()
        finally:
            self._hand_back()
        self.selection.restore(self.model, self._evaluated())
        self._diagnose()
        if self.checkpoints is not None and self.is_main:
            self.checkpoints.finish(self.progress)
        return self._result()

    def _run_epochs(self) -> None:
        if self.checkpoints is not None and self.checkpoints.load(self.accelerator):
            _logger.info("going on at epoch %d, step %d", self.progress.epoch, self.progress.step)
        started = time.perf_counter() - self.progress.seconds
        self._start_trackers()
        total = self.epochs * self.plan.steps
        bar = progress_bar(
            None, self.options.title, self.options.progress and self.is_main, total=total, initial=self._steps_done()
        )
        with bar:
            while not self._is_over():
                row = self._train_epoch(bar, started)
                self._select(row)
                self._end_epoch(row, started)
        for tracker in self.accelerator.trackers:
            tracker.finish()

    # Before the first epoch

    def _data(self, transform: Callable[[Image.Image], Tensor]) -> tuple[TrainingPlan | TrainingStream, DataLoader]:
        """Build the plan of the steps, and the loader of this process."""
        recipe, options, accelerator = self.recipe, self.options, self.accelerator
        shares = dict(
            seed=options.seed,
            accumulation=options.accumulation,
            process=accelerator.process_index,
            processes=accelerator.num_processes,
        )
        pin_memory = accelerator.device.type == "cuda"
        if isinstance(self.train, LabelledStream):
            steps = options.steps_per_epoch
            if steps is None or recipe.sampling != "shuffle" or recipe.class_weights is not None:
                raise ValueError("a stream needs steps_per_epoch, and can't be balanced: its classes are not counted")
            shares |= dict(skip_damaged=options.skip_damaged)
            plan = TrainingStream(self.train, transform, steps, recipe.batch_size, **shares)
            return plan, stream_loader(plan, options.workers, pin_memory)
        if options.steps_per_epoch is not None:
            raise ValueError(f"steps_per_epoch is for streams: an epoch of this data set has {len(self.train)} images")
        plan = TrainingPlan(targets_of(self.train), recipe.batch_size, sampling=recipe.sampling, **shares)
        loading = dict(workers=options.workers, skip_damaged=options.skip_damaged, pin_memory=pin_memory)
        return plan, training_loader(self.train, transform, plan, **loading)

    def _settings(self) -> dict:
        """Return the settings that affect the result; see `Checkpoints`."""
        options = dataclasses.asdict(self.options)
        return {
            "epochs": self.epochs,
            "recipe": dataclasses.asdict(self.recipe),
            "run": {key: value for key, value in options.items() if key not in MACHINE},
            "processes": self.accelerator.num_processes,
            "train": fingerprint(self.train),
            "valid": None if self.valid is None else fingerprint(self.valid),
            "model": json.loads(to_config(self.model, self.model.class_names, {}))["model"],
        }

    def _prepare(self) -> None:
        """Hand model and optimizer to Accelerate, and register what a checkpoint must hold."""
        device, processes = self.accelerator.device, self.accelerator.num_processes
        self.model.to(device, memory_format=torch.channels_last)  # convolutions run faster in it, on CPU and GPU
        if self.options.sync_bn and processes > 1:
            if device.type == "cpu":
                raise ValueError("sync_bn needs accelerators: torch has no synchronised CPU BatchNorm; try freeze_bn")
            convert_sync_batchnorm(self.model)
        if self.recipe.ema_decay is not None:  # a copy, before Accelerate wraps the model's forward
            self.ema = ModelEmaV3(self.model, decay=self.recipe.ema_decay, use_warmup=True)
            self.accelerator.register_for_checkpointing(self.ema)
        optimizer = self.recipe.build_optimizer(self.model)
        self.wrapped, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        self.accelerator.register_for_checkpointing(self.progress)

    def _start_trackers(self) -> None:
        if self.options.trackers:
            config = {**dataclasses.asdict(self.recipe), "epochs": self.epochs, "seed": self.options.seed}
            known = {key: value for key, value in config.items() if isinstance(value, (int, float, str, bool))}
            self.accelerator.init_trackers("minmax_entropy", config=known)

    # An epoch

    def _train_epoch(self, bar: tqdm, started: float) -> dict:
        """Train for the rest of the current epoch; return the mean of each figure over all of its images."""
        progress, process, device = self.progress, self.accelerator.process_index, self.accelerator.device
        erasing = self.own_erasing if self.recipe.erasing_steps is None else self.recipe.erasing_steps
        self.model.erasing.steps = erasing if progress.epoch >= self.recipe.erasing_from_epoch else 0
        self.wrapped.train()
        self.plan.epoch, self.plan.start, self.plan.position = progress.epoch, progress.step, progress.position
        sums = {name: torch.tensor(values[process], device=device) for name, values in progress.sums.items()}
        damaged: dict[str, None] = {}
        lr = self.recipe.lr_at(progress.epoch, self._share_done())
        batch: TrainingBatch
        for number, batch in enumerate(self.loader, start=1):
            self._check_readable(batch, damaged)
            ends_step = number % self.options.accumulation == 0
            with contextlib.nullcontext() if ends_step else self.accelerator.no_sync(self.wrapped):
                self._backward(batch, sums)
            if not ends_step:
                continue
            lr = self._step()
            progress.step += 1
            progress.position = batch.position or progress.position
            bar.update()
            if not bar.disable and (progress.step % STATUS_STEPS == 0 or progress.step == self.plan.steps):
                bar.set_postfix_str(self._status(sums, bar.format_dict))
            if progress.step % self.options.checkpoint_steps == 0 and progress.step < self.plan.steps:
                self._gather(sums, damaged)
                self._save_checkpoint(started)
        self._gather(sums, damaged)
        self.model.erasing.steps = self.own_erasing  # which is to be saved
        means = {name: sum(values) / self.plan.steps for name, values in progress.sums.items()}
        if not np.isfinite(means["loss"]):
            raise TrainingError(
                f"epoch {progress.epoch}: the loss is {means['loss']} "
                f"({', '.join(f'{key}={value:.4g}' for key, value in means.items())}); "
                "lower the learning rate, or look for images with NaN or infinite pixels"
            )
        images = self.plan.steps * self.plan.batch_size
        return {"epoch": progress.epoch, "seconds": 0.0, "lr": lr, "images": images, **means}

    def _check_readable(self, batch: TrainingBatch, damaged: dict[str, None]) -> None:
        if batch.damaged and not self.options.skip_damaged:
            # A new error: the old one would refer to this frame, a cycle that keeps the loader's processes alive.
            raise DamagedFileError(batch.damaged[0].path, batch.damaged[0].reason)
        damaged.update(dict.fromkeys(error.path for error in batch.damaged))
        if not len(batch.images):
            raise TrainingError(f"none of the images of a step can be read: {list(damaged)[:3]}")

    def _backward(self, batch: TrainingBatch, sums: dict[str, Tensor]) -> None:
        """Compute the gradients of a batch, and add its part to the means of the epoch."""
        device = self.accelerator.device
        images = batch.images.to(device, non_blocking=True, memory_format=torch.channels_last)
        target = batch.target.to(device, non_blocking=True)
        self.model.criterion.size_share = self.recipe.size_share_at(self._share_done())
        output = self.wrapped(images, target)
        self.model.criterion.size_share = 1.0
        # The batch's mean is scaled to its part of the step's mean; gradients are averaged over the processes.
        self.accelerator.backward(output.loss * (batch.share * self.accelerator.num_processes))
        with torch.no_grad():
            figures = {"loss": output.loss, **output.losses, "mask_area": output.mask.mean()}
            figures["train_error"] = (output.logits.argmax(dim=1) != target).float().mean()
            for name, value in figures.items():
                sums[name] = sums.get(name, 0.0) + value.detach().float() * batch.share

    def _step(self) -> float:
        """Update the weights; return the learning rate."""
        lr = self.recipe.lr_at(self.progress.epoch, self._share_done())
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_factor"]
        if self.recipe.clip_grad is not None:
            self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.recipe.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.model, step=self._steps_done())
        return lr

    def _gather(self, sums: dict[str, Tensor], damaged: dict[str, None]) -> None:
        """Gather the figures of all processes in the progress, which is the same in each of them."""
        if sums:
            values = self.accelerator.gather(torch.stack(list(sums.values())).unsqueeze(0))  # [processes, figures]
            self.progress.sums = dict(zip(sums, values.T.tolist(), strict=True))
        if self.options.skip_damaged:
            found = gather_objects(self.accelerator, list(damaged))
            self._note_damaged(path for paths in found for path in paths)

    def _note_damaged(self, paths: Iterable[str]) -> None:
        self.progress.damaged = list(dict.fromkeys([*self.progress.damaged, *paths]))

    def _select(self, row: dict) -> None:
        """Validate, and keep the model if its figures are good enough."""
        if self.valid is not None:
            share_buffers(self.accelerator, self.model, self.ema)
        figures, images, damaged = self.selection.validate(self._evaluated())
        self._note_damaged(damaged)
        row.update(figures)
        self.selection.keep(self._evaluated(), row, images, self.progress)

    def _evaluated(self) -> WSLModel:
        return self.model if self.ema is None else self.ema.module

    def _end_epoch(self, row: dict, started: float) -> None:
        """Write the log, and a checkpoint from which the next epoch starts."""
        row["seconds"] = round(time.perf_counter() - started, 2)
        progress = self.progress
        progress.log.append(row)
        progress.epoch, progress.step, progress.sums = progress.epoch + 1, 0, {}
        if self.is_main:
            if self.model.classifier is not None:
                warn_of_collapse(row)
            if self.output is not None:
                write_csv(self.output / "log.csv", progress.log)
                if self._is_over() or time.perf_counter() - self.drawn > CURVES_SECONDS:
                    write_curves(progress.log, self.output / "curves.png", self.options.title)
                    self.drawn = time.perf_counter()
        if self.options.trackers:
            self.accelerator.log({key: value for key, value in row.items() if key != "epoch"}, step=row["epoch"])
        if self.checkpoints is not None:
            self._save_checkpoint(started)

    def _save_checkpoint(self, started: float) -> None:
        if self.checkpoints is not None:
            share_buffers(self.accelerator, self.model, self.ema)
            self.progress.seconds = time.perf_counter() - started
            self.checkpoints.save(self.accelerator, self._steps_done())

    # Progress

    def _steps_done(self) -> int:
        return self.progress.epoch * self.plan.steps + self.progress.step

    def _share_done(self) -> float:
        return self._steps_done() / (self.epochs * self.plan.steps)

    def _is_over(self) -> bool:
        best = self.progress.best.get(ERROR)
        waited = 0 if best is None else self.progress.epoch - 1 - best[1]
        return self.progress.epoch == self.epochs or waited >= (self.recipe.patience or self.epochs)

    def _status(self, sums: dict[str, Tensor], bar: dict) -> str:
        names = {"loss": "loss", "train_error": "error", "mask_area": "M+"}
        share = self.progress.step / self.accelerator.num_processes  # this process's part of the steps done
        means = {name: float(sums[name]) / share for name in names}
        steps = bar["rate"] or (bar["n"] - bar["initial"]) / max(bar["elapsed"], 1e-9)
        shown = " ".join(f"{short} {means[name]:.2f}" for name, short in names.items())
        return f"epoch {self.progress.epoch} {shown} {steps * self.plan.batch_size:.0f} img/s"

    # After the last epoch

    def _hand_back(self) -> None:
        """Restore the model to the state in which it was handed in, except for its weights."""
        if self.wrapped is not None:
            self.accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
        self.model.erasing.steps = self.own_erasing
        self.model.criterion.class_weights = self.own_weights

    def _diagnose(self) -> None:
        """Log warnings about the masks, unless the run was finished already."""
        if self.progress.warnings is not None:
            return
        self.progress.warnings = self.selection.diagnose(self.model)
        for warning in self.progress.warnings if self.is_main else ():
            _logger.warning("%s: %s", self.options.title, warning)

    def _result(self) -> TrainingResult:
        progress = self.progress
        return TrainingResult(
            progress.log,
            progress.kept[BEST[ERROR][0]],
            progress.kept.get(BEST[F1][0]),
            progress.damaged,
            progress.log[-1]["seconds"],
            self.is_main,
            progress.warnings,
        )
