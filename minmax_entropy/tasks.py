"""Tasks: one class per image ("multiclass", the paper's), or any number of them ("multilabel")."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class Multiclass:
    """One class per image; scores go through a softmax (arXiv 1907.12934)."""

    @staticmethod
    def probabilities(logits: Tensor) -> Tensor:
        """Turn scores `[B, K]` into probabilities `[B, K]` that sum to 1."""
        return logits.softmax(dim=1)

    @staticmethod
    def predicted(logits: Tensor) -> Tensor:
        """Map `[B, K]` to `[B, K]`: 1 at the class of the highest score, else 0."""
        return torch.zeros_like(logits).scatter(1, logits.argmax(dim=1, keepdim=True), 1.0)

    @staticmethod
    def loss(logits: Tensor, target: Tensor, smoothing: float = 0.0, weights: Tensor | None = None) -> Tensor:
        """Compute the cross-entropy: `[B, K]` and `[B]` to `[B]`; `weights` `[K]` are those of the classes."""
        loss = F.cross_entropy(logits, target, reduction="none", label_smoothing=smoothing)
        return loss if weights is None else loss * weights[target]

    @staticmethod
    def label_loss(logits: Tensor, target: Tensor) -> Tensor:
        """Compute `-log p` of the label, `[B, K]` and `[B]` to `[B]`."""
        return Multiclass.loss(logits, target)

    @staticmethod
    def agreement(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return whether the prediction is right (bool `[B]`), and the probability of the predicted class (`[B]`)."""
        confidence, predicted = logits.softmax(dim=1).max(dim=1)
        return predicted == target, confidence

    @staticmethod
    def check(target: Tensor, batch: int, num_classes: int) -> None:
        """Check that the target holds class indices `[B]`."""
        hint = '; for several classes an image use task="multilabel"' if target.ndim == 2 else ""
        if target.dtype != torch.int64:
            fix = "target.argmax(dim=1)" if target.ndim == 2 else "target.long()"
            raise TypeError(f"target must hold class indices as torch.int64, got {target.dtype}; use {fix}{hint}")
        if tuple(target.shape) != (batch,):
            raise ValueError(f"target must be [{batch}] as there are images, got {tuple(target.shape)}{hint}")
        if _has_readable_values(target):
            low, high = int(target.min()), int(target.max())
            if low < 0 or high >= num_classes:
                raise ValueError(f"target must lie in [0, {num_classes}), got values in [{low}, {high}]")


class Multilabel:
    """Any number of classes per image, or none: K binary decisions, each through a sigmoid. Our extension.

    The labels of an image are taken as independent given the image: `p(c | x) = prod_k p_k^c_k (1 - p_k)^(1 - c_k)`
    with `p_k = sigmoid(s_k)`. Everything else follows from the paper's principle:

    - cross-entropy: `-log p(y | x)`, the sum of the K binary cross-entropies. (Their mean has K times less weight
      against the other terms than a single label per image has; with it, the area penalty prevailed, and nothing was
      learned: docs/results/multilabel.md);
    - mask: `T = sum_k p_k A_k`, the expected sum of the maps of the classes that are present;
    - a prediction is right for the erasing when every labelled class is found (`p_k >= 1/2`): erasing hides what is
      there, and can't add a class. Its confidence is the mean `p_k` of these classes. An image without a
      class has nothing to erase: it is never trusted.
    """

    @staticmethod
    def probabilities(logits: Tensor) -> Tensor:
        """Turn scores `[B, K]` into probabilities `[B, K]`, each in [0, 1]."""
        return logits.sigmoid()

    @staticmethod
    def predicted(logits: Tensor) -> Tensor:
        """Mark the classes with a probability of 1/2 or more (the highest, if none has) by 1, `[B, K]` to `[B, K]`."""
        return torch.where(logits >= 0, 1.0, Multiclass.predicted(logits) * (logits < 0).all(dim=1, keepdim=True))

    @staticmethod
    def loss(logits: Tensor, target: Tensor, smoothing: float = 0.0, weights: Tensor | None = None) -> Tensor:
        """Sum the binary cross-entropies: `[B, K]` and `[B, K]` to `[B]`; `weights` `[K]` are those of the classes."""
        smooth = target.to(logits.dtype) * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, smooth, weights, reduction="none").sum(dim=1)

    @staticmethod
    def label_loss(logits: Tensor, target: Tensor) -> Tensor:
        """Average `-log p_k` over the classes that an image has, `[B, K]` and `[B, K]` to `[B]`; 0 without any."""
        labelled = target.to(logits.dtype)
        return -(F.logsigmoid(logits) * labelled).sum(dim=1) / labelled.sum(dim=1).clamp(min=1)

    @staticmethod
    def agreement(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return whether all labelled classes are found (bool `[B]`), and their mean probability `[B]`."""
        labelled = target.to(logits.dtype)
        count = labelled.sum(dim=1)
        right = ((logits >= 0) | (labelled == 0)).all(dim=1) & (count > 0)
        return right, (logits.sigmoid() * labelled).sum(dim=1) / count.clamp(min=1)

    @staticmethod
    def check(target: Tensor, batch: int, num_classes: int) -> None:
        """Check that the target is `[B, K]` of zeros and ones."""
        if tuple(target.shape) != (batch, num_classes):
            hint = "; one_hot(target, num_classes) turns indices into it" if target.ndim == 1 else ""
            raise ValueError(
                f"a multilabel target must be [{batch}, {num_classes}], 1 where the image has the class and 0 "
                f"elsewhere, got {tuple(target.shape)}{hint}"
            )
        if target.is_complex():
            raise TypeError(f"a multilabel target must be real, got {target.dtype}")
        if _has_readable_values(target) and not ((target == 0) | (target == 1)).all():
            raise ValueError("a multilabel target must hold 0 and 1 only")


TASKS = {"multiclass": Multiclass, "multilabel": Multilabel}


def _has_readable_values(tensor: Tensor) -> bool:
    """Return whether values can be checked; on an accelerator, that would make the host wait for it."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()
