"""The min-max entropy objective: certain on the relevant region, undecided on the rest."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minmax_entropy._checks import check_choice, check_not_negative, check_number
from minmax_entropy._registry import Registry
from minmax_entropy.mask import without_border
from minmax_entropy.settings import options_of, setting
from minmax_entropy.tasks import TASKS


def uniform_cross_entropy(logits: Tensor) -> Tensor:
    """Compute the cross-entropy to the uniform distribution, `mean_k -log softmax(logits)_k` ("sem", arXiv 1907.12934).

    A surrogate for maximizing the entropy; its minimum is `log K`, at the uniform distribution.

    Args:
        logits: `[B, K]`.

    Returns:
        `[B]`, at least `log K`.
    """
    return -logits.log_softmax(dim=1).mean(dim=1)


def negative_entropy(logits: Tensor) -> Tensor:
    """Compute the explicit entropy term, `-H(softmax(logits))` ("eem").

    Args:
        logits: `[B, K]`.

    Returns:
        `[B]` in `[-log K, 0]`.
    """
    log_probabilities = logits.log_softmax(dim=1)
    return (log_probabilities.exp() * log_probabilities).sum(dim=1)


def binary_uniform_cross_entropy(logits: Tensor) -> Tensor:
    """Compute `-(log p_k + log(1 - p_k)) / 2`, `uniform_cross_entropy` for each of K binary decisions.

    The uniform distribution over {0, 1}^K has every p_k = 1/2, and the cross-entropy to it is the sum over k.

    Args:
        logits: `[B, K]`, with p = sigmoid(logits).

    Returns:
        `[B, K]`, at least `log 2`.
    """
    return -0.5 * (F.logsigmoid(logits) + F.logsigmoid(-logits))


def binary_negative_entropy(logits: Tensor) -> Tensor:
    """Compute `p_k log p_k + (1 - p_k) log(1 - p_k)`, `negative_entropy` for each of K binary decisions.

    The entropy of independent decisions is the sum of theirs.

    Args:
        logits: `[B, K]`, with p = sigmoid(logits).

    Returns:
        `[B, K]` in `[-log 2, 0]`.
    """
    return logits.sigmoid() * F.logsigmoid(logits) + (-logits).sigmoid() * F.logsigmoid(-logits)


def log_barrier(value: Tensor, t: float = 5.0) -> Tensor:
    """Compute the extended log-barrier of `value >= 0` (Kervadec et al., arXiv 1904.04205, eq. 7 with z = -value).

    Finite everywhere: `-log(value) / t` for `value >= 1 / t**2`, and its tangent below.

    Args:
        value: any shape.
        t: sharpness, over 0; the barrier tends to the hard constraint as it grows.
    """
    edge = 1.0 / t**2
    inside = -torch.log(value.clamp(min=edge)) / t
    tangent = -t * (value - edge) - math.log(edge) / t
    return torch.where(value >= edge, inside, tangent)


def size_barrier(mask: Tensor, t: float = 5.0) -> Tensor:
    """Compute the size constraint on both regions, `mean(M+) >= 0` and `mean(M-) >= 0`, as extended log-barriers.

    Pushes the area away from 0 and from the whole image (the follow-up paper, IEEE TMI 2022).

    Args:
        mask: `[B, 1, H, W]` in [0, 1].

    Returns:
        `[B]`.
    """
    area = mask.mean(dim=(1, 2, 3))
    return log_barrier(area, t) + log_barrier(1 - area, t)


def area(mask: Tensor) -> Tensor:
    """Compute the area penalty, the share of the image in the relevant region: `mean(M+)`.

    With gradient through the mask the entropy terms alone have a trivial optimum, `M+ = 1` everywhere.

    Args:
        mask: `[B, 1, H, W]` in [0, 1].

    Returns:
        `[B]` in [0, 1].
    """
    return mask.mean(dim=(1, 2, 3))


def border_area(mask: Tensor) -> Tensor:
    """Compute the border penalty, the part of the area that lies within 8 % of the image's sides.

    Where the evidence for a class is everywhere, as in the texture of a surface, a strip along the border satisfies
    every other term. With a margin around the images (`ReflectedMargin`) fewer masks settle there.

    Args:
        mask: `[B, 1, H, W]` in [0, 1].

    Returns:
        `[B]` in [0, 0.3].
    """
    rows, columns = without_border(*mask.shape[-2:])
    inner = mask[..., rows, columns].sum(dim=(1, 2, 3))
    return mask.mean(dim=(1, 2, 3)) - inner / (mask.shape[-2] * mask.shape[-1])


# Excess of cross-entropy on X+ over that on the whole image, in nats: up to the margin the area penalty counts in
# full, and falls to a third over each slack beyond it. Chosen with single trainings, with the weights of "refined".
SUFFICIENT_MARGIN, SUFFICIENT_SLACK = 0.05, 0.2


def sufficiency(localizer_loss: Tensor, foreground_loss: Tensor) -> Tensor:
    """Measure how far a region decides its class: `p(y | image) * exp(-max(CE(X+) - CE(image) - m, 0) / r)`.

    It is 1 where the class is learned and the classifier is as certain of it on the region as the localizer on the
    image, and 0 where either is missing. As a factor of the area penalty it turns the penalty into a condition: the
    region shrinks only as far as the class allows, and not before the class is learned.

    Args:
        localizer_loss: `-log p(y | image)` of each image, `[B]`.
        foreground_loss: `-log p(y | X+)`, `[B]`.

    Returns:
        `[B]` in [0, 1], without gradient.
    """
    excess = (foreground_loss - localizer_loss - SUFFICIENT_MARGIN).clamp(min=0)
    return torch.exp(-localizer_loss - excess / SUFFICIENT_SLACK).detach()


# Losses of each kind, by name.
_LOSSES = {
    "background": Registry("background loss"),  # logits [B, K] on X- -> [B]
    "background, multilabel": Registry("background loss of several labels"),  # the same -> [B, K]
    "size": Registry("size loss"),  # mask [B, 1, H, W] -> [B]
}
SIZE_CONDITIONS = (None, "sufficient")


def register_loss(kind: str, name: str | None = None) -> Callable[[Callable], Callable]:
    """Register a function as a `background_loss` or a `size_loss`.

    Args:
        kind: "background", a function of the classifier's logits `[B, K]` on X- that returns `[B]`; "background,
            multilabel", the same with a value for each label, `[B, K]`; "size", a function of the mask `[B, 1, H, W]`
            that returns `[B]`.
        name: by default the function's name.

    Raises:
        ValueError: an unknown kind, or a name that is taken.

    Example:
        >>> @register_loss("size", name="quarter")
        ... def quarter(mask):
        ...     return (mask.mean(dim=(1, 2, 3)) - 0.25).square()
        >>> MinMaxEntropyLoss(size_loss="quarter", size_weight=4.0).size_loss
        'quarter'
    """
    check_choice("kind", kind, tuple(_LOSSES))
    return lambda function: _LOSSES[kind].register(function, name=name)


for _kind, _name, _function in (
    ("background", "sem", uniform_cross_entropy),
    ("background", "eem", negative_entropy),
    ("background, multilabel", "sem", binary_uniform_cross_entropy),
    ("background, multilabel", "eem", binary_negative_entropy),
    ("size", "area", area),
    ("size", "barrier", size_barrier),
):
    register_loss(_kind, _name)(_function)


def _check_background(label: str, name: str) -> str:
    return check_choice(label, name, _LOSSES["background"].names())


def _check_size(label: str, name: str | None) -> str | None:
    if name is not None and name not in _LOSSES["size"]:
        raise ValueError(f"{label} must be None or one of {_LOSSES['size'].names()}, got {name!r}")
    return name


def _check_smoothing(label: str, value: float) -> float:
    if not 0 <= check_number(label, value) < 1:
        raise ValueError(f"{label} must be in [0, 1), got {value!r}")
    return value


def _check_class_weights(label: str, weights: Sequence[float] | None) -> list[float] | None:
    if weights is None:
        return None
    if not isinstance(weights, (list, tuple)) or not weights:
        raise TypeError(f"{label} must be a list of a number for each class, got {weights!r:.80}")
    for weight in weights:
        if check_number(label, weight) < 0:
            raise ValueError(f"{label} must be 0 or more, got {weight!r}")
    return [float(weight) for weight in weights]


class _Weights(dict):
    """Weights of the terms by name, each checked when it is set."""

    def __init__(self, **weights: float) -> None:
        super().__init__()
        for name, weight in weights.items():
            self[name] = weight

    def __setitem__(self, name: str, weight: float) -> None:
        super().__setitem__(name, check_not_negative(f"{name}_weight", weight))


class MinMaxEntropyLoss(nn.Module):
    """`L = CE(s, y) + CE(logits+, y) + uniform(logits-)` and optional terms for size and control (arXiv 1907.12934).

    With `task="multilabel"` (our extension; the model of the labels is that of `minmax_entropy.tasks.Multilabel`) both
    CE are sums of K binary cross-entropies, `-log p(y | x)`, and the third term is, with y in {0, 1}^K,
    `sum_k y_k u(logits-_k)` with u the binary form of "sem" or "eem", and 0 for an image without a class. It is the
    paper's term for each class that is present: with its region hidden, that class must be undecided. Absent classes
    are left out: no region shows their absence, so hiding one must not put it in doubt.

    The control term, `CE(logits_c, y)`, is ours, beyond the paper. Localizer and classifier are trained together, and
    without it they may agree on a code: a mask at a place where there is nothing, whose position tells the class, while
    the classifier no longer sees the object (Yu et al., "Rethinking Cooperative Rationalization", EMNLP 2019; Jethani
    et al., "Have We Learned to Explain?", AISTATS 2021). Under masks that carry no information about the class
    (`minmax_entropy.mask.control_mask`), the classifier has to find it in the pixels. The term shares a pass with the
    background term: half of the images, drawn at random, are under a control mask, the others are X-.

    Args:
        task: "multiclass" (one class an image) or "multilabel" (any number of them).
        background_loss: "sem" (cross-entropy to the uniform distribution) or "eem" (negative entropy).
        size_loss: None, "area" (the mean of M+) or "barrier" (log-barrier on the areas of both regions).
        size_condition: None, or "sufficient": the size term of an image counts only as far as its region decides the
            class (`sufficiency`, ours; with several labels, the mean over those present). Without it a high
            `size_weight` empties masks before the classes are learned. It has no effect without a size term.
        localizer_weight, foreground_weight, background_weight, size_weight, control_weight, border_weight: weight of
            each term, 0 or more. With weight 0, control and border (`border_area`, ours) are not computed.
        label_smoothing: share of each label that is spread over all classes, in [0, 1) (Szegedy et al., CVPR 2016).
        class_weights: weights of the cross-entropies by class, K numbers of 0 or more; with a mean of 1 over the images
            the terms keep their balance (`minmax_entropy.data.class_weights`). An image's loss does not depend on the
            other images of the batch.
    """

    background_loss = setting("background_loss", _check_background)
    size_loss = setting("size_loss", _check_size)
    size_condition = setting("size_condition", functools.partial(check_choice, known=SIZE_CONDITIONS))
    label_smoothing = setting("label_smoothing", _check_smoothing)
    class_weights = setting("class_weights", _check_class_weights, doc="Weights by class, or None.")

    def __init__(
        self,
        background_loss: str = "sem",
        size_loss: str | None = None,
        localizer_weight: float = 1.0,
        foreground_weight: float = 1.0,
        background_weight: float = 1.0,
        size_weight: float = 1.0,
        control_weight: float = 0.0,
        border_weight: float = 0.0,
        size_condition: str | None = None,
        task: str = "multiclass",
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.task = check_choice("task", task, tuple(TASKS))
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self.background_loss = background_loss
        self.size_condition = size_condition
        self.size_loss = size_loss
        self.size_share = 1.0  # of `size_weight`, which a training may raise from 0 (`Recipe.size_warmup`)
        self.weights = _Weights(
            localizer=localizer_weight,
            foreground=foreground_weight,
            background=background_weight,
            size=size_weight,
            control=control_weight,
            border=border_weight,
        )

    @property
    def options(self) -> dict:
        """Return the keywords that rebuild it, without the task."""
        return {**options_of(self), **{f"{name}_weight": weight for name, weight in self.weights.items()}}

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the cross-entropy that trains both heads, for each image: logits `[B, K]` and a target to `[B]`.

        Raises:
            ValueError: `class_weights` are not K numbers.
        """
        weights = None if self.class_weights is None else torch.tensor(self.class_weights, device=logits.device)
        if weights is not None and len(weights) != logits.shape[1]:
            raise ValueError(
                f"class_weights must be {logits.shape[1]} numbers as there are classes, got {len(weights)}"
            )
        return TASKS[self.task].loss(logits, target, self.label_smoothing, weights)

    def forward(
        self,
        target: Tensor,
        localizer_logits: Tensor,
        logits: Tensor | None = None,
        background_logits: Tensor | None = None,
        mask: Tensor | None = None,
        localizer_loss: Tensor | None = None,
        control: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the objective. Terms whose input is None are left out (a plain CAM has only the first).

        Args:
            target: class indices `[B]`; `[B, K]` of zeros and ones for the multilabel task.
            localizer_logits, logits, background_logits: `[B, K]` each: localizer, classifier on X+, classifier on X-.
            mask: `[B, 1, H, W]`, for the terms of size and border.
            localizer_loss: `[B]`, replaces `CE(localizer_logits, target)`; erasing sums it over its passes.
            control: bool `[B]`, images whose `background_logits` are under a control mask. Each of the two terms is
                then the sum over its own images, divided by half of the batch.

        Returns:
            The weighted sum, a scalar, and the unweighted terms by name, scalars.
        """
        if localizer_loss is None:
            localizer_loss = self.cross_entropy(localizer_logits, target)
        losses = {"localizer": localizer_loss.mean()}
        if logits is not None:
            losses["foreground"] = self.cross_entropy(logits, target).mean()
        if background_logits is not None:
            background = self.background(background_logits, target)
            if control is None:
                losses["background"] = background.mean()
            else:
                controlled = self.cross_entropy(background_logits, target)
                losses["background"] = 2 * torch.where(control, 0.0, background).mean()
                losses["control"] = 2 * torch.where(control, controlled, 0.0).mean()
        if mask is not None and self.size_loss is not None:
            size = _LOSSES["size"][self.size_loss](mask)
            if self.size_condition is not None and logits is not None:
                loss = TASKS[self.task].label_loss
                size = size * sufficiency(loss(localizer_logits, target), loss(logits, target))
            losses["size"] = size.mean()
        if mask is not None and self.weights["border"] > 0:
            losses["border"] = border_area(mask).mean()
        weights = {**self.weights, "size": self.size_share * self.weights["size"]}
        return sum(weights[name] * value for name, value in losses.items()), losses

    def background(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the background term of each image, `[B]`, from the classifier's logits `[B, K]` on X-."""
        if self.task == "multiclass":
            return _LOSSES["background"][self.background_loss](logits)
        labelled = target.to(logits.dtype)
        undecided = _LOSSES["background, multilabel"][self.background_loss](logits)  # [B, K]
        return (undecided * labelled).sum(dim=1)

    def extra_repr(self) -> str:
        return (
            f"task={self.task!r}, background_loss={self.background_loss!r}, size_loss={self.size_loss!r}, "
            f"size_condition={self.size_condition!r}, "
            f"weights={self.weights}"
        )
