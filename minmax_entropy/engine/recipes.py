"""Training recipes as data: augmentation, sampling, optimizer, learning rate and schedule, erasing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch
from timm.models import group_parameters
from torch import nn

from minmax_entropy._registry import unknown_name
from minmax_entropy.data.loading import SAMPLINGS
from minmax_entropy.data.transforms import AUGMENTATIONS

MIN_LR = 1e-7
BACKBONE_PREFIXES = ("backbone.net.", "classifier_backbone.net.")  # a neck starts afresh, as the heads do
WARMUP_START = 0.01  # share of the learning rate at the very first step


def step_decay(
    epoch: int, lr: float, step_size: int = 40, gamma: float = 0.1, min_lr: float = MIN_LR, delay: int = 0
) -> float:
    """Return the learning rate of an epoch, counted from 0: `lr * gamma ** floor((epoch - delay) / step_size)`, at
    least `min_lr`.

    The authors' schedule takes effect one epoch late: `delay=1`.
    """
    return max(lr * gamma ** (max(epoch - delay, 0) // step_size), min_lr)


def warmup_cosine(progress: float, lr: float, warmup: float = 0.0, min_lr: float = 0.0) -> float:
    """Return the learning rate at `progress`, a share of the training in [0, 1]: a linear rise over the share
    `warmup`, then half a cosine."""
    if progress < warmup:
        return lr * max(progress / warmup, WARMUP_START)
    share = (progress - warmup) / max(1 - warmup, 1e-12)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


_CHOICES = {
    "optimizer": ("adamw", "sgd"),
    "schedule": ("cosine", "step"),
    "augmentation": tuple(AUGMENTATIONS),
    "sampling": SAMPLINGS,
    "class_weights": (None, "balanced"),
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Recipe of a training.

    Args:
        optimizer: "adamw" or "sgd" (Nesterov).
        lr: highest learning rate.
        head_lr_factor: learning rate of the heads, as a multiple of `lr`.
        layer_decay: factor of the learning rate from each layer of the backbone to the one before it, in (0, 1]; 1
            trains all of them alike. Other values need a backbone with timm's `group_matcher`.
        momentum: momentum of SGD.
        weight_decay: decay of the weights.
        decay_all: apply weight decay to biases and normalization layers as well.
        schedule: "cosine" (per step, after a warm-up) or "step" (per epoch).
        warmup: share of the training that the warm-up takes.
        step_size, step_delay: epochs of the step schedule, see `step_decay`.
        size_warmup: share of the training in which the weight of the size term rises from 0 to the model's
            `size_weight`. Otherwise, in training from scratch, the area penalty shrinks masks before the localizer has
            learned anything (docs/results/localization_trials.md).
        clip_grad: largest norm of the gradient, or None.
        batch_size: images per step, over all processes and accumulated batches.
        augmentation: augmentation of the training images, a name in `minmax_entropy.data.AUGMENTATIONS`.
        sampling: "shuffle" (each image once per epoch) or "balanced" (each class with the same probability).
        class_weights: None, or "balanced": factors of the cross-entropies against class imbalance.
        ema_decay: decay of an exponential moving average of the weights, which is then evaluated and kept in their
            place; or None.
        selection_tolerance: keep the latest epoch whose validation error exceeds the lowest by at most this many
            standard errors, or images if that is more; 0 keeps the latest epoch with the lowest error.
        patience: epochs without a lower validation error after which the training ends; None trains for all epochs.
        erasing_steps: passes of recursive erasing, 0 for none; None takes the model's (`model.erasing.steps`).
        erasing_from_epoch: first epoch with erasing, counted from 0.
    """

    optimizer: str = "adamw"
    lr: float = 1e-3
    head_lr_factor: float = 1.0
    layer_decay: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 0.01
    decay_all: bool = False
    schedule: str = "cosine"
    warmup: float = 0.05
    step_size: int = 40
    step_delay: int = 0
    size_warmup: float = 0.0
    clip_grad: float | None = None
    batch_size: int = 16
    augmentation: str = "crop"
    sampling: str = "shuffle"
    class_weights: str | None = None
    ema_decay: float | None = None
    selection_tolerance: float = 1.0
    patience: int | None = None
    erasing_steps: int | None = None
    erasing_from_epoch: int = 1

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"lr must be over 0, got {self.lr!r}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must be in (0, 1], got {self.layer_decay!r}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {self.batch_size!r}")
        if self.erasing_steps is not None and self.erasing_steps < 0:
            raise ValueError(f"erasing_steps must be 0 or more, got {self.erasing_steps!r}")
        if not 0 <= self.size_warmup <= 1:
            raise ValueError(f"size_warmup must be in [0, 1], got {self.size_warmup!r}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in (0, 1), got {self.ema_decay!r}")
        if not 0 <= self.selection_tolerance < float("inf"):
            raise ValueError(f"selection_tolerance must be a number of 0 or more, got {self.selection_tolerance!r}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be 1 or more, got {self.patience!r}")

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return an optimizer for the parameters that are trained."""
        groups = list(self._groups(model))
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=True)
        return torch.optim.AdamW(groups, lr=self.lr)

    def _groups(self, model: nn.Module) -> Iterator[dict]:
        """Yield parameter groups by learning rate and weight decay, each with its `lr_factor`."""
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        scales = self._layer_scales(model)
        no_decay = set() if self.decay_all else model.no_weight_decay()
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            factor = scales.get(name, 1.0) if name.startswith(BACKBONE_PREFIXES) else self.head_lr_factor
            decays = self.decay_all or (parameter.ndim > 1 and name not in no_decay)
            groups.setdefault((factor, self.weight_decay if decays else 0.0), []).append(parameter)
        for (factor, decay), parameters in groups.items():
            yield {"params": parameters, "weight_decay": decay, "lr_factor": factor, "lr": self.lr * factor}

    def _layer_scales(self, model: nn.Module) -> dict[str, float]:
        """Return the factor of the learning rate by parameter, 1 for the last layer of the backbone."""
        if self.layer_decay == 1:
            return {}
        layers = group_parameters(model, model.group_matcher(), reverse=True)
        last = max(layer for name, layer in layers.items() if name.startswith(BACKBONE_PREFIXES))
        return {name: self.layer_decay ** max(last - layer, 0) for name, layer in layers.items()}

    def lr_at(self, epoch: int, progress: float) -> float:
        """Return the learning rate at an epoch (counted from 0) and a share of the training."""
        if self.schedule == "step":
            return step_decay(epoch, self.lr, self.step_size, delay=self.step_delay)
        return warmup_cosine(progress, self.lr, self.warmup)

    def size_share_at(self, progress: float) -> float:
        """Return the share of the size term's weight, in [0, 1], at a share of the training."""
        return min(progress / self.size_warmup, 1.0) if self.size_warmup > 0 else 1.0


RECIPES: dict[str, Recipe] = {
    # Fine-tuning a pretrained backbone.
    "finetune": Recipe(lr=2e-4, head_lr_factor=10.0, weight_decay=0.05, warmup=0.1, clip_grad=5.0),
    # From scratch on small images.
    "scratch": Recipe(optimizer="adamw", lr=1e-2, weight_decay=0.02, warmup=0.1, size_warmup=0.2, batch_size=16),
    # The authors' implementation (arXiv 1907.12934). Their GlaS runs take augmentation="glas".
    "reference": Recipe(
        optimizer="sgd",
        lr=1e-3,
        weight_decay=1e-5,
        decay_all=True,
        schedule="step",
        step_delay=1,
        batch_size=8,
        augmentation="paper",
        selection_tolerance=0.0,
        erasing_steps=4,
    ),
}


def get_recipe(name: str, **changes) -> Recipe:
    """Return a recipe by name, with some values replaced; changes that are None are ignored."""
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    return dataclasses.replace(RECIPES[name], **{key: value for key, value in changes.items() if value is not None})
