"""Recursive erasing: blank what has been found, localize again, and collect the regions that can be trusted."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from minmax_entropy._checks import check_choice, check_flag, check_positive
from minmax_entropy.settings import setting
from minmax_entropy.tasks import TASKS

SCOPES = ("image", "batch")
REDUCTIONS = ("sum", "mean")
FALLBACKS = ("first", "blank")
MAX_STEPS = 1000  # passes, far beyond any use

Localize = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]


def _check_steps(label: str, value: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or not 0 <= value <= MAX_STEPS:
        raise ValueError(f"{label} must be an integer of 0 or more, up to {MAX_STEPS}, got {value!r}")
    return operator.index(value)


class ErasingPass(NamedTuple):
    """One pass of the loop. Only `logits`, `maps`, `mask`, `loss` and `accumulated` carry a gradient."""

    logits: Tensor  # [B, K] localizer scores of the erased image
    maps: Tensor  # [B, K, h, w] class activation maps
    mask: Tensor  # [B, 1, H, W] mask found in this pass
    loss: Tensor  # [B] cross-entropy of the localizer
    took_part: Tensor  # [B] 1 where the image was still in the loop, else 0
    history: Tensor  # [B] 1 where every pass so far was right, else 0
    trust: Tensor  # [B] trust in this pass, in [0, 1]
    accumulated: Tensor  # [B, 1, H, W] max over the passes of trust * mask
    erased: Tensor  # [B, C, H, W] input of the next pass


class ErasingOutput(NamedTuple):
    """Output of the loop for the objective."""

    mask: Tensor  # [B, 1, H, W] accumulated mask
    localizer_loss: Tensor  # [B] cross-entropy over the passes
    logits: Tensor  # [B, K] of the first pass
    maps: Tensor  # [B, K, h, w] of the first pass


class RecursiveErasing(nn.Module):
    """Recursive erasing (arXiv 1907.12934), which grows the region by erasing what was found while the label holds.

    For each image, with `M_t` the mask and `l_t` the localizer's cross-entropy at pass `t`:
    `trust_t = exp(-t / sigma) * max softmax * [right in every pass so far] * [l_t <= l_0]`,
    `M_acc = max_t trust_t * M_t`, and the next input is `x_t * (1 - M_acc)` where `trust_t > 0`.
    No gradient flows through trust and erasing.

    Args:
        steps: number of localizer passes U; 0 switches erasing off. May be changed between epochs.
        sigma: decay of the trust, in passes.
        scope: "image": an image leaves the loop when its history ends, so that its result does not depend on the rest
            of the batch (normalization layers aside) and the loop needs no host synchronisation; "batch": all images
            stay until every history has ended (in all processes, in distributed training), as in the authors'
            implementation.
        reduction: "sum" or "mean" of the localizer's cross-entropy over the passes that an image took part in.
        fallback: mask of an image without a trusted pass: "first" takes that of the first pass, "blank" zeros.
        normalize_trust: divide `M_acc` by the highest trust of the image, so that it has the scale of a plain mask.
        task: what labels mean, "multiclass" or "multilabel"; see `minmax_entropy.tasks` for what counts as right.
    """

    steps = setting("steps", _check_steps, "erasing_steps", "Number of localizer passes; 0 switches erasing off.")
    sigma = setting("sigma", check_positive, "erasing_sigma")
    scope = setting("scope", functools.partial(check_choice, known=SCOPES), "erasing_scope")
    reduction = setting("reduction", functools.partial(check_choice, known=REDUCTIONS), "erasing_reduction")
    fallback = setting("fallback", functools.partial(check_choice, known=FALLBACKS), "erasing_fallback")
    normalize_trust = setting("normalize_trust", check_flag, "erasing_normalize_trust")

    def __init__(
        self,
        steps: int = 0,
        sigma: float = 10.0,
        scope: str = "image",
        reduction: str = "sum",
        fallback: str = "first",
        normalize_trust: bool = True,
        task: str = "multiclass",
    ) -> None:
        super().__init__()
        self.steps, self.sigma, self.scope = steps, sigma, scope
        self.reduction, self.fallback, self.normalize_trust = reduction, fallback, normalize_trust
        self.task = check_choice("task", task, tuple(TASKS))

    def passes(
        self, images: Tensor, target: Tensor, localize: Localize, loss_of: Loss | None = None
    ) -> Iterator[ErasingPass]:
        """Yield the passes, one at a time.

        Args:
            images: `[B, C, H, W]`.
            target: class indices `[B]`; `[B, K]` of zeros and ones for the multilabel task.
            localize: maps images to `(logits [B, K], maps [B, K, h, w], mask [B, 1, H, W])`.
            loss_of: maps logits and target to the cross-entropy of each image `[B]`; by default the task's own.
        """
        task = TASKS[self.task]
        loss_of = loss_of or task.loss
        erased = images
        history = first_loss = accumulated = None
        for t in range(self.steps):
            if self.scope == "batch" and t > 0 and not _any_process(history.any()):
                return
            logits, maps, mask = localize(erased)
            loss = loss_of(logits, target)  # [B]
            with torch.no_grad():
                if t == 0:
                    history, first_loss = torch.ones_like(loss), loss
                took_part = history
                is_right, confidence = task.agreement(logits, target)
                history = history * is_right
                trust = math.exp(-t / self.sigma) * confidence * history * (loss <= first_loss)
            found = trust[:, None, None, None] * mask
            accumulated = found if t == 0 else torch.maximum(accumulated, found)
            with torch.no_grad():
                keep = torch.where(trust[:, None, None, None] > 0, 1 - accumulated, 1.0)
                erased = (erased * keep).to(images.dtype)
            yield ErasingPass(logits, maps, mask, loss, took_part, history, trust, accumulated, erased)

    def forward(self, images: Tensor, target: Tensor, localize: Localize, loss_of: Loss | None = None) -> ErasingOutput:
        """Run the loop; arguments as in `passes`."""
        first = total = count = best = last = None
        for last in self.passes(images, target, localize, loss_of):
            took_part = last.took_part if self.scope == "image" else torch.ones_like(last.took_part)
            if first is None:
                first, total, count, best = last, last.loss, took_part, last.trust
            else:
                # An image that has left must not contribute, not even 0 * inf.
                total = total + torch.where(took_part > 0, last.loss, 0.0)
                count, best = count + took_part, torch.maximum(best, last.trust)
        if first is None:
            raise ValueError("erasing is off: set steps to 1 or more")
        mask = last.accumulated
        best = best[:, None, None, None]
        if self.normalize_trust:
            mask = mask / torch.where(best > 0, best, 1.0)
        if self.fallback == "first":
            mask = torch.where(best > 0, mask, first.mask)
        localizer_loss = total if self.reduction == "sum" else total / count
        return ErasingOutput(mask, localizer_loss, first.logits, first.maps)

    def extra_repr(self) -> str:
        return (
            f"steps={self.steps}, sigma={self.sigma}, scope={self.scope!r}, reduction={self.reduction!r}, "
            f"fallback={self.fallback!r}, normalize_trust={self.normalize_trust}"
        )


def _any_process(flag: Tensor) -> bool:
    """Return whether the flag is set in any process: the batch is split over all of them, and none continues alone, so
    that synchronised BatchNorm layers do not wait for a pass that another process skips."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        flag = flag.to(torch.int32)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)
