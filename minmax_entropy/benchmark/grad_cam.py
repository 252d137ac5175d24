"""Grad-CAM of a trained model, through the `grad-cam` package: the baseline that most users know."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minmax_entropy._extras import require
from minmax_entropy.model import WSLOutput
from minmax_entropy.wsl import WSLModel

# Method -> class of the package, and its paper.
METHODS = {
    "grad_cam": "GradCAM",  # Selvaraju et al., ICCV 2017
    "grad_cam++": "GradCAMPlusPlus",  # Chattopadhay et al., WACV 2018
    "layer_cam": "LayerCAM",  # Jiang et al., TIP 2021
}


def _of_the_model(name: str) -> property:
    return property(lambda self: getattr(self.model, name), lambda self, value: setattr(self.model, name, value))


class GradCAM(nn.Module):
    """A model whose mask is a gradient-weighted activation map of its localizer; the class stays the model's own.

    The map is that of the class with the highest localizer score, taken at the backbone's features, which are
    `[B, D, h, w]` for every backbone, so that no `reshape_transform` is needed. It is normalized to [0, 1] per image
    and turned into a mask as in the model, `sigmoid(omega * (map - sigma))`; a refinement takes the map at the size of
    the features. Test-time views are those of any model (`predict_images`).

    Args:
        model: a trained model; its weights are shared.
        method: "grad_cam", "grad_cam++" or "layer_cam".

    Raises:
        ImportError: the package is not installed (the `[benchmark]` extra).
        ValueError: an unknown method.
    """

    def __init__(self, model: WSLModel, method: str = "grad_cam") -> None:
        super().__init__()
        if method not in METHODS:
            raise ValueError(f"method must be one of {tuple(METHODS)}, got {method!r}")
        package = require("pytorch_grad_cam", "benchmark", "Grad-CAM")
        self.model = model
        self.scores = _LocalizerScores(model)
        self._cam = getattr(package, METHODS[method])
        self._target = require("pytorch_grad_cam.utils.model_targets", "benchmark", "Grad-CAM").ClassifierOutputTarget

    def __getattr__(self, name: str):
        """Take missing attributes from the model: preprocessing, class names, threshold, ..."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    evaluation_scales, evaluation_flip, evaluation_zoom = map(
        _of_the_model, ("evaluation_scales", "evaluation_flip", "evaluation_zoom")
    )

    mask_source = "predicted"

    def forward(self, images: Tensor) -> WSLOutput:
        """Compute logits `[B, K]` of the model and the mask `[B, 1, H, W]` in [0, 1]; weights get no gradients."""
        scores, maps = self.class_maps(images)
        mask = self.make_mask(self.region(images, maps, self.map_weights(scores)), images)
        (logits,) = self.decide(images, [scores], mask)
        return WSLOutput(logits=logits, mask=mask, localizer_logits=scores)

    def map_weights(self, scores: Tensor) -> Tensor:
        """Return weights `[B, K]`, 1 for the class with the highest localizer score among those with an object."""
        scores = self.model.without_empty(scores)
        return F.one_hot(scores.argmax(dim=1), scores.shape[1]).to(scores.dtype)

    def decide(self, images: Tensor, scores: Sequence[Tensor], mask: Tensor) -> list[Tensor]:
        """Return the model's own class scores, on its own X+ if its classifier decides."""
        return [self.model(images, background=False).logits] if self.model.classifier_decides else list(scores)

    def region(self, images: Tensor, maps: Tensor, weights: Tensor) -> Tensor:
        """Return the map `[B, 1, h, w]` in [0, 1] of the class with the highest weight; for a refinement, which
        enlarges maps itself, at the size of the class maps."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        try:
            for parameter in trained:
                parameter.requires_grad_(False)
            with torch.inference_mode(False), torch.enable_grad(), self._cam(self.scores, [self.model.backbone]) as cam:
                targets = [self._target(index) for index in weights.argmax(dim=1).tolist()]
                region = cam(images.clone().requires_grad_(), targets=targets)  # [B, H, W], each image's in [0, 1]
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)
        region = torch.from_numpy(np.asarray(region, dtype=np.float32)).to(images.device).unsqueeze(1)
        if self.model.refinement is not None and not self.model.training:
            region = F.interpolate(region, maps.shape[-2:], mode="bilinear")
        return region


class _LocalizerScores(nn.Module):
    """The localizer as a plain classifier: images to scores `[B, K]`."""

    def __init__(self, model: WSLModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.class_maps(images)[0]
