"""Variants of the method that the library does not have: the model `wsl_trial`, a plugin of `*_trials.json`.

    create_model("wsl_trial", backbone="test_resnet", trial=dict(name="top", classes=2), preset="refined", ...)

Trainings of it save a model without the variant, which is a matter of training and evaluation here alone: pictures and
`thresholds.py` do not show it. `first` and `last` count training steps from the start of the process: a training with
"detached" that was interrupted has to be done anew.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from minmax_entropy import WSLModel, WSLOutput, register_model
from minmax_entropy.factory import build_model
from minmax_entropy.heads import scores_and_maps
from minmax_entropy.losses import register_loss
from minmax_entropy.mask import control_mask, resize, weighted_map


@contextlib.contextmanager
def with_settings(model: WSLModel, **settings: object) -> Iterator[None]:
    """Other values of some settings for a while."""
    before = {name: getattr(model, name) for name in settings}
    try:
        for name, value in settings.items():
            setattr(model, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(model, name, value)


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

    def make_mask(self, regions: Tensor, images: Tensor, refined: bool = True) -> Tensor:
        if self.refinement is not None and refined and not self.training:
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
    """Other control masks: of "whole" images alone, of "others" alone, or beside whole images masks of others without
    their rest ("regions"), "random" ones, or the image's own, "shifted" by half of each side."""

    masks = "whole"

    def control_region(self, images: Tensor, mask: Tensor) -> Tensor:
        if self.masks == "whole":
            return images
        others = mask.detach().roll(1, dims=0)
        if self.masks == "random":
            coarse = torch.rand(len(images), 1, 4, 4, device=images.device) > 0.5
            others = F.interpolate(coarse.to(mask.dtype), mask.shape[2:], mode="bilinear")
        if self.masks == "shifted":
            others = mask.detach().roll([side // 2 for side in mask.shape[2:]], dims=(2, 3))
        if self.masks != "others":
            whole = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
            others = torch.where(whole, 1.0, others)
        return (images * others).to(images.dtype)


class Filled(WSLModel):
    """What is cut in training is filled, in the place of zeros, with "noise", with the image "blurred", or with what
    "others" of the batch have outside of their own masks."""

    fill = "noise"

    def control_region(self, images: Tensor, mask: Tensor) -> Tensor:
        control = control_mask(mask)
        return (images * control + self._filling(images, mask) * (1 - control)).to(images.dtype)

    def split(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if not self.training:
            return super().split(images, mask)
        filling = self._filling(images, mask)
        parts = (images * mask + filling * (1 - mask), images * (1 - mask) + filling * mask)
        return tuple(part.to(images.dtype) for part in parts)

    def _filling(self, images: Tensor, mask: Tensor) -> Tensor:
        if self.fill == "noise":
            return torch.randn_like(images)
        if self.fill == "others":
            return (images * (1 - mask.detach())).roll(1, dims=0)
        coarse = F.interpolate(images, (4, 4), mode="bilinear", antialias=True)
        return F.interpolate(coarse, images.shape[2:], mode="bicubic")


class Averaged(WSLModel):
    """An average over the steps (EMA) of backbone and classifier judges X+; the classifier itself is trained on X+ as
    it is, without gradient to the mask, in a pass more."""

    decay = 0.95
    _average, _own = None, None

    def forward(self, images: Tensor, target: Tensor | None = None, *args, **kwargs) -> WSLOutput:
        if not self.training:
            return super().forward(images, target, *args, **kwargs)
        live = [*self.backbone.parameters(), *self.classifier.parameters()]
        if self._average is None:
            average = copy.deepcopy((self.backbone, self.classifier))
            for parameter in itertools.chain(*(module.parameters() for module in average)):
                parameter.requires_grad_(False)
            self.__dict__["_average"] = average  # no part of what is saved
        averaged = itertools.chain(*(module.parameters() for module in self._average))
        with torch.no_grad():
            for mean, now in zip(averaged, live, strict=True):
                mean.lerp_(now, 1 - self.decay)
        self._own = []
        output = super().forward(images, target, *args, **kwargs)
        own, self._own = self._own, None
        return output._replace(loss=output.loss + self.criterion.cross_entropy(own[0], target).mean())

    def classify(self, region: Tensor) -> Tensor:
        if self._own is None or self._own:  # in evaluation, and for X-, which comes second
            return super().classify(region)
        self._own.append(super().classify(region.detach()))
        backbone, classifier = self._average
        features = backbone(resize(region, self.classifier_size(*region.shape[-2:])))
        return scores_and_maps(classifier, features, self.num_classes)[0]


class Follows(WSLModel):
    """The expected map of a part of each image, cut by chance at 0.6 to 1 of each side, shown at half of the image's
    size and as often as not flipped, must be that part of the image's map: their mean difference is a term."""

    weight = 1.0

    def forward(self, images: Tensor, target: Tensor | None = None, *args, **kwargs) -> WSLOutput:
        output = super().forward(images, target, *args, **kwargs)
        if output.loss is None or not self.training:
            return output
        height, width = images.shape[-2:]
        share = float(torch.empty(()).uniform_(0.6, 1.0))
        rows, columns = int(share * height), int(share * width)
        top, left = (int(torch.randint(n + 1, ())) for n in (height - rows, width - columns))
        cut = (..., slice(top, top + rows), slice(left, left + columns))
        flipped = bool(torch.rand(()) < 0.5)
        part = resize(images[cut], self.classifier_size(height, width))
        found = self.localizer(self.backbone(part.flip(-1) if flipped else part))[1].float()
        weights = self.map_weights(output.localizer_logits).detach()
        whole = weighted_map(output.localizer_maps, weights)
        found = weighted_map(found.flip(-1) if flipped else found, weights)
        sought = F.interpolate(resize(whole, (height, width))[cut], found.shape[-2:], mode="bilinear", antialias=True)
        difference = (sought - found).abs().mean() / (sought.detach().abs().mean() + 1e-3)
        return output._replace(loss=output.loss + self.weight * difference)


class Crop(WSLModel):
    """X+ is cut to the box of what the mask marks (at least half of each side), and enlarged to the classifier's size:
    what is relevant is seen at a higher resolution."""

    _marked: Tensor | None = None

    def split(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        self._marked = mask.detach() > 0.5
        return super().split(images, mask)

    def classify(self, region: Tensor) -> Tensor:
        marked, self._marked = self._marked, None
        if marked is not None:  # X+ comes first, X- is seen as it is
            size = self.classifier_size(*region.shape[-2:])
            boxes = [tuple(_span(each[0].any(dim=side)) for side in (1, 0)) for each in marked]
            cut = [one[None, :, rows, columns] for one, (rows, columns) in zip(region, boxes, strict=True)]
            region = torch.cat([F.interpolate(one, size, mode="bilinear", align_corners=True) for one in cut])
            return scores_and_maps(self.classifier, self.backbone(region), self.num_classes)[0]
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


@register_loss("size", "prior")
def prior(mask: Tensor, share: float = 0.25) -> Tensor:
    """`(mean(M+) - share)^2`, `[B, 1, H, W]` to `[B]`; a penalty with a weight."""
    return (mask.mean(dim=(1, 2, 3)) - share).square()


TRIALS = {
    "detached": Detached,
    "top": Top,
    "learned": Learned,
    "whole": Whole,
    "control": Control,
    "filled": Filled,
    "averaged": Averaged,
    "follows": Follows,
    "crop": Crop,
    "random-scale": RandomScale,
    None: WSLModel,
}


@register_model
def wsl_trial(pretrained: bool = False, *, backbone: str, trial: dict | None = None, **kwargs) -> WSLModel:
    """A model with one of `TRIALS`, by its `name`; the other entries are the variant's numbers."""
    options = dict(trial or {"name": None})
    model = build_model(backbone, pretrained, kind=TRIALS[options.pop("name")], **kwargs)
    for name, value in options.items():
        setattr(model, name, value)
    return model
