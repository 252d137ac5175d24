"""The method: localize, mask, split, classify (arXiv 1907.12934), and the whole objective in one forward call."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minmax_entropy._checks import check_choice, check_flag, check_input_scale
from minmax_entropy._symbolic import truncated_share
from minmax_entropy.backbones.margin import ReflectedMargin
from minmax_entropy.backbones.passes import features_of
from minmax_entropy.erasing import RecursiveErasing
from minmax_entropy.heads import scores_and_maps
from minmax_entropy.losses import MinMaxEntropyLoss
from minmax_entropy.mask import Masking, control_mask, one_half, resize, split_regions, weighted_map
from minmax_entropy.settings import setting
from minmax_entropy.tasks import TASKS

DECISIONS = ("classifier", "localizer")
BN_STATISTICS = ("passes", "images")


class WSLOutput(NamedTuple):
    """Output of `WSLModel`. Fields that were not computed are None.

    Attributes:
        loss: weighted sum of `losses`, a scalar to back-propagate; with a target only.
        logits: `[B, K]` of the classifier on the relevant region X+ (of the localizer where there is no classifier, or
            with `decision="localizer"`).
        mask: `[B, 1, H, W]` in [0, 1], M+. With erasing, the accumulated mask. `localize(images, classes=...)` gives
            one for each class asked for, `[B, N, H, W]`.
        localizer_logits: `[B, K]` of the whole images. With erasing, of the first pass.
        localizer_maps: `[B, K, h, w]` class activation maps, likewise.
        background_logits: `[B, K]` of the classifier on the irrelevant region X-; None while training with a control
            term, which takes half of the images.
        losses: the unweighted terms by name: `localizer`, `foreground`, `background`, `size`, `border`,
            `control`; with a target only.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    mask: Tensor | None = None
    localizer_logits: Tensor | None = None
    localizer_maps: Tensor | None = None
    background_logits: Tensor | None = None
    losses: dict[str, Tensor] | None = None


class MinMaxEntropy(nn.Module):
    """Localizer, mask and classifier of the method. Its parts are handed in; `WSLModel` builds them from keywords.

    Args:
        backbone: maps images `[B, C, H, W]` to features `[B, D, h, w]`; it knows its `sizes` and its `reduction`.
        localizer: head of the localizer, which maps features to scores `[B, K]` and class maps `[B, K, h, w]`.
        classifier: head of the classifier, likewise; None for a plain class activation map.
        classifier_backbone: of the classifier; by default the localizer's.
        masking, erasing, criterion: class maps to masks, recursive erasing, and the objective.
        margin: margin around the images that the localizer sees in training, or None.
        num_classes: K.
        in_chans: C.
        decision, classifier_scale, bn_statistics, detach_mask, checkpoint_passes: see `WSLModel`.
    """

    decision = setting("decision", functools.partial(check_choice, known=DECISIONS))
    classifier_scale = setting("classifier_scale", check_input_scale)
    bn_statistics = setting("bn_statistics", functools.partial(check_choice, known=BN_STATISTICS))
    detach_mask = setting("detach_mask", check_flag)
    checkpoint_passes = setting("checkpoint_passes", check_flag)

    def __init__(
        self,
        backbone: nn.Module,
        localizer: nn.Module,
        classifier: nn.Module | None,
        *,
        masking: Masking,
        erasing: RecursiveErasing,
        criterion: MinMaxEntropyLoss,
        num_classes: int,
        in_chans: int = 3,
        classifier_backbone: nn.Module | None = None,
        margin: ReflectedMargin | None = None,
        decision: str = "classifier",
        classifier_scale: float | tuple[int, int] = 0.5,
        bn_statistics: str = "passes",
        detach_mask: bool = True,
        checkpoint_passes: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans, self.task = num_classes, in_chans, criterion.task
        self.decision, self.classifier_scale, self.bn_statistics = decision, classifier_scale, bn_statistics
        self.detach_mask, self.checkpoint_passes = detach_mask, checkpoint_passes
        self.backbone, self.margin, self.classifier_backbone = backbone, margin, classifier_backbone
        self.localizer, self.classifier = localizer, classifier
        self.masking, self.erasing, self.criterion = masking, erasing, criterion

    def forward(self, images: Tensor, target: Tensor | None = None, background: bool | None = None) -> WSLOutput:
        """Localize, mask, split, classify; with a target, the whole objective.

        Args:
            images: `[B, C, H, W]`, normalized.
            target: class indices `[B]`, or `[B, K]` of zeros and ones for the multilabel task.
            background: compute the classifier on X- as well; by default in training mode or with a target.
        """
        if background is None:
            background = self.training or target is not None

        localizer_loss = None
        if target is not None and self.training and self.erasing.steps > 0:
            mask, localizer_loss, localizer_logits, maps = self.erasing(
                images, target, lambda erased: self._localize(erased, erased is images), self.criterion.cross_entropy
            )
        else:
            localizer_logits, maps, mask = self._localize(images)

        foreground_logits = background_logits = control = None
        if self.classifier is not None and (background or target is not None or self.classifier_decides):
            relevant, irrelevant = self.split(images, mask)  # [B, C, H, W] each
            foreground_logits = self.classify(relevant)  # [B, K]
            if background and target is not None and self.training and self.criterion.weights["control"] > 0:
                control = one_half(images)
                irrelevant = torch.where(control[:, None, None, None], self.control_region(images, mask), irrelevant)
            background_logits = self.classify(irrelevant) if background else None

        logits = foreground_logits if self.classifier_decides else localizer_logits
        shown = background_logits if control is None else None
        output = WSLOutput(None, logits, mask, localizer_logits, maps, shown)
        if target is None:
            return output
        loss, losses = self.criterion(
            target,
            localizer_logits,
            foreground_logits,
            background_logits,
            None if self.classifier is None else mask,
            localizer_loss,
            control,
        )
        return output._replace(loss=loss, losses=losses)

    def localize(self, images: Tensor, classes: Tensor | None = None) -> WSLOutput:
        """Compute mask, localizer scores and maps of images `[B, C, H, W]` in one pass of the backbone; with indices of
        classes `[B, N]` a mask for each, `[B, N, H, W]`."""
        localizer_logits, maps, mask = self._localize(images, classes=classes)
        return WSLOutput(mask=mask, localizer_logits=localizer_logits, localizer_maps=maps)

    def _localize(
        self, images: Tensor, whole: bool = True, classes: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute scores `[B, K]`, class maps `[B, K, h, w]` and mask of `whole` or erased images."""
        logits, maps = self._class_maps(images, whole)
        with torch.no_grad() if self.detach_mask else contextlib.nullcontext():
            if classes is None:
                regions = self.region(images, maps, self.map_weights(logits))  # [B, 1, h, w]
            else:
                regions = maps.gather(1, classes[:, :, None, None].expand(-1, -1, *maps.shape[2:]))  # [B, N, h, w]
            return logits, maps, self.make_mask(regions, images)

    def class_maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute localizer scores `[B, K]` and class maps `[B, K, h, w]` of images `[B, C, H, W]` in one pass."""
        return self._class_maps(images)

    def _class_maps(self, images: Tensor, whole: bool = True) -> tuple[Tensor, Tensor]:
        """Do the same as the localizer sees the images: in some training steps within a margin of their reflection."""
        if self.margin is None or not self.training or not self.margin.drawn():
            features = self._features(self.backbone, images, counts=whole)  # [B, D, h, w]
        else:
            extended = self.margin.extend(images)
            features = self._features(self.backbone, extended, counts=whole)
            features = self.margin(features, tuple(extended.shape[-2:]))
        return scores_and_maps(self.localizer, features, self.num_classes)

    def map_weights(self, logits: Tensor) -> Tensor:
        """Weigh the class maps for the map of the mask: `[B, K]` from the localizer's scores `[B, K]`."""
        task = TASKS[self.task]
        return task.probabilities(logits) if self.masking.source == "expected" else task.predicted(logits)

    def region(self, images: Tensor, maps: Tensor, weights: Tensor) -> Tensor:
        """Combine class maps `[B, K, h, w]` with weights `[B, K]` into the map of the mask, `[B, 1, h, w]`."""
        return weighted_map(maps, weights)

    def make_mask(self, regions: Tensor, images: Tensor, refined: bool = True) -> Tensor:
        """Turn maps `[B, N, h, w]` of images `[B, C, H, W]` into masks `[B, N, H, W]` in [0, 1], each by itself; with
        `refined`, maps may be refined first (`EvaluatedModel`)."""
        return self.masking(regions, tuple(images.shape[-2:]))

    def split(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Split images by a mask `[B, 1, H, W]` into X+ and X-, `[B, C, H, W]` each."""
        return split_regions(images, mask)

    @property
    def classifier_decides(self) -> bool:
        """Whether `logits` are the classifier's, which then runs in evaluation as well."""
        return self.classifier is not None and self.decision == "classifier"

    def classify(self, region: Tensor) -> Tensor:
        """Compute the classifier's scores `[B, K]` for a region, which it sees at its own scale.

        Args:
            region: normalized images `[B, C, H, W]`, 0 outside of the region.

        Raises:
            ValueError: the model has no classifier.
        """
        if self.classifier is None:
            raise ValueError("this model has no classifier, it was built with classifier=None")
        region = resize(region, self.classifier_size(*region.shape[-2:]))
        backbone = self.classifier_backbone or self.backbone
        features = self._features(backbone, region, counts=backbone is not self.backbone)  # [B, D, h', w']
        return scores_and_maps(self.classifier, features, self.num_classes)[0]

    def decide(self, images: Tensor, scores: Sequence[Tensor], mask: Tensor) -> list[Tensor]:
        """Return the scores that decide the class, `[B, K]` each: the classifier's on X+, or else the localizer's.

        Args:
            images: `[B, C, H, W]`.
            scores: the localizer's, `[B, K]` for each view of the images.
            mask: `[B, 1, H, W]`.
        """
        return [self.classify(self.split(images, mask)[0])] if self.classifier_decides else list(scores)

    def control_region(self, images: Tensor, mask: Tensor) -> Tensor:
        """Put images `[B, C, H, W]` under control masks, drawn from the masks of the batch `[B, 1, H, W]`."""
        return (images * control_mask(mask)).to(images.dtype)

    def classifier_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size of the classifier's input for images of `height` x `width`.

        `floor(scale * height) x floor(scale * width)`, or the nearest size that the backbone takes: at least its
        stride, a multiple of its patch size, or the one size it is built for.
        """
        if isinstance(self.classifier_scale, tuple):
            size = self.classifier_scale
        else:
            size = tuple(truncated_share(self.classifier_scale, side) for side in (height, width))
        return (self.classifier_backbone or self.backbone).sizes.nearest(*size)

    def _features(self, backbone: nn.Module, images: Tensor, counts: bool) -> Tensor:
        """Compute features `[B, D, h, w]` in a pass that `counts` for BatchNorm's running statistics or does not."""
        counts = counts or not self.training or self.bn_statistics == "passes"
        return features_of(backbone, images, counts=counts, again=self.checkpoint_passes and self.training)
