"""Variants of the method that the library does not have: the model `wsl_trial`, a plugin of `*_trials.json`.

    create_model("wsl_trial", backbone="test_resnet", trial=dict(name="top", classes=2), preset="refined", ...)

Trainings of it save a model without the variant, which is a matter of training and evaluation here alone: pictures and
`thresholds.py` do not show it. `first` and `last` count training steps from the start of the process: a training with
"detached" that was interrupted has to be done anew.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from minmax_entropy import WSLModel, WSLOutput, register_model
from minmax_entropy.factory import build_model
from minmax_entropy.losses import SIZE_LOSSES
from minmax_entropy.mask import resize
from minmax_entropy.modes import with_settings


class Detached(WSLModel):
    """No gradient goes through the mask in some of the training's steps, from `first` up to `last`."""

    first, last, _steps = 0, 0, 0

    def forward(self, *args, **kwargs) -> WSLOutput:
        if not self.training:
            return super().forward(*args, **kwargs)
        detached = self.first <= self._steps < self.last
        self._steps += 1
        with with_settings(self, detach_mask=detached):  # what is saved must load
            return super().forward(*args, **kwargs)


class Top(WSLModel):
    """The maps of the `classes` with the highest probabilities, by these, and none of the others."""

    classes = 2

    def map_weights(self, logits: Tensor) -> Tensor:
        values, index = logits.topk(self.classes, dim=1)
        return torch.zeros_like(logits).scatter(1, index, values.softmax(dim=1))


class Learned(WSLModel):
    """`M+ = sigmoid(T)`: scale and offset are those that the localizer's weights and bias have learned."""

    def _mask(self, regions: Tensor, images: Tensor) -> Tensor:
        if self.refinement is not None and not self.training:
            regions = self.refinement(regions, images)  # its compression keeps the sign
        return resize(regions, images.shape[-2:]).sigmoid()


class Whole(WSLModel):
    """The classifier is trained on the whole image as well, at its own scale."""

    def forward(self, images: Tensor, target: Tensor | None = None, *args, **kwargs) -> WSLOutput:
        output = super().forward(images, target, *args, **kwargs)
        if output.loss is None or not self.training:
            return output
        whole = self.criterion.cross_entropy(self.classify(images), target).mean()
        return output._replace(loss=output.loss + whole)


class Control(WSLModel):
    """Other control masks: of "whole" images alone, of "others" alone, or "random" in the place of others'."""

    masks = "whole"

    def control_region(self, images: Tensor, mask: Tensor) -> Tensor:
        if self.masks == "whole":
            return images
        others = mask.detach().roll(1, dims=0)
        if self.masks == "random":
            coarse = torch.rand(len(images), 1, 4, 4, device=images.device) > 0.5
            others = F.interpolate(coarse.to(mask.dtype), mask.shape[2:], mode="bilinear")
            whole = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
            others = torch.where(whole, 1.0, others)
        return (images * others).to(images.dtype)


class Crop(WSLModel):
    """X+ is cut to the box of what the mask marks (at least half of each side), and enlarged to the classifier's size:
    what is relevant is seen at a higher resolution."""

    _marked: Tensor | None = None

    def _localize(self, images: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor, Tensor]:
        logits, maps, mask = super()._localize(images, *args, **kwargs)
        self._marked = mask.detach() > 0.5
        return logits, maps, mask

    def classify(self, region: Tensor) -> Tensor:
        marked, self._marked = self._marked, None
        if marked is not None:  # X+ comes first, X- is seen as it is
            size = self.classifier_size(*region.shape[-2:])
            boxes = [tuple(_span(each[0].any(dim=side)) for side in (1, 0)) for each in marked]
            cut = [one[None, :, rows, columns] for one, (rows, columns) in zip(region, boxes, strict=True)]
            enlarged = [F.interpolate(one, size, mode="bilinear", align_corners=True) for one in cut]
            region = torch.cat(enlarged)
            return self._head(self.classifier, self._features(self.backbone, region, False))[0]
        return super().classify(region)


class RandomScale(WSLModel):
    """The classifier sees X+ and X- of each training step at a scale drawn between `low` and `high`."""

    low, high = 0.5, 1.0

    def forward(self, *args, **kwargs) -> WSLOutput:
        if not self.training:
            return super().forward(*args, **kwargs)
        scale = float(torch.empty(()).uniform_(self.low, self.high))
        with with_settings(self, classifier_scale=scale):  # what is saved has its own
            return super().forward(*args, **kwargs)


def _span(marked: Tensor) -> slice:
    """From the first to the last marked position of a side `[n]`, widened to half of it."""
    side, places = len(marked), marked.nonzero()
    low, high = (0, side) if len(places) == 0 else (int(places.min()), int(places.max()) + 1)
    missing = max(side // 2 - (high - low), 0)
    low = min(max(low - missing // 2, 0), side - max(high - low, side // 2))
    return slice(low, max(high, low + side // 2))


def prior(mask: Tensor, share: float = 0.25) -> Tensor:
    """`(mean(M+) - share)^2`, `[B, 1, H, W]` to `[B]`; the weight makes it a price."""
    return (mask.mean(dim=(1, 2, 3)) - share).square()


SIZE_LOSSES["prior"] = prior
TRIALS = {
    "detached": Detached,
    "top": Top,
    "learned": Learned,
    "whole": Whole,
    "control": Control,
    "crop": Crop,
    "random-scale": RandomScale,
    None: WSLModel,
}


@register_model
def wsl_trial(pretrained: bool = False, *, backbone: str, trial: dict | None = None, **kwargs) -> WSLModel:
    """A model with one of `TRIALS`, by its `name`; the other entries are the variant's numbers."""
    model = build_model(backbone, pretrained, **kwargs)
    options = dict(trial or {"name": None})
    model.__class__ = TRIALS[options.pop("name")]
    for name, value in options.items():
        setattr(model, name, value)
    return model
