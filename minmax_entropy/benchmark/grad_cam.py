"""Grad-CAM of a trained model, through the `grad-cam` package: the baseline that most users know."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minmax_entropy._extras import require
from minmax_entropy.model import WSLModel, WSLOutput

# Method -> class of the package, and where it is from.
METHODS = {
    "grad_cam": "GradCAM",  # Selvaraju et al., ICCV 2017
    "grad_cam++": "GradCAMPlusPlus",  # Chattopadhay et al., WACV 2018
    "layer_cam": "LayerCAM",  # Jiang et al., TIP 2021
}


def _of_the_model(name: str) -> property:
    return property(lambda self: getattr(self.model, name), lambda self, value: setattr(self.model, name, value))


class GradCAM(nn.Module):
    """A model whose mask is a gradient-weighted activation map of its localizer; the class stays the model's own.

    The map is taken at the backbone's features, which are `[B, D, h, w]` for every backbone, so that no
    `reshape_transform` is needed; it is that of the class of the highest localizer score. It is normalized to [0, 1]
    per image and turned into a mask as the model does it, `sigmoid(omega * (map - sigma))`, its refinement included, of
    the map at the size of the features, and its `evaluation_scales` and `evaluation_zoom`.

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
        """What is not its own is the model's: preprocessing, class names, threshold, ..."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    evaluation_scales, evaluation_flip, evaluation_zoom = map(
        _of_the_model, ("evaluation_scales", "evaluation_flip", "evaluation_zoom")
    )

    def forward(self, images: Tensor) -> WSLOutput:
        """Logits `[B, K]` of the model and the mask `[B, 1, H, W]` in [0, 1]; its weights get no gradients."""
        localizer_logits, _ = self.model.class_maps(images)
        logits = self.model(images, background=False).logits if self.model.classifier_decides else localizer_logits
        chosen = self.model.without_empty(localizer_logits).argmax(dim=1)
        others = (self.model._turned(self._region(view, chosen)) for view in self.model.at_other_sizes(images))
        masks = [self.model._mask(region, images) for region in (self._region(images, chosen), *others)]
        mask = self.model._looked_closer(
            images, torch.stack(masks).mean(dim=0), lambda larger, rows: self._region(larger, chosen[rows])
        )
        return WSLOutput(logits=logits, mask=mask, localizer_logits=localizer_logits)

    def _region(self, images: Tensor, classes: Tensor) -> Tensor:
        """Maps `[B, 1, h, w]` in [0, 1] of classes `[B]` of images, at the size of the features for a refinement."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        try:
            for parameter in trained:
                parameter.requires_grad_(False)
            with torch.inference_mode(False), torch.enable_grad(), self._cam(self.scores, [self.model.backbone]) as cam:
                targets = [self._target(index) for index in classes.tolist()]
                region = cam(images.clone().requires_grad_(), targets=targets)  # [B, H, W], each image's in [0, 1]
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)
        region = torch.from_numpy(np.asarray(region, dtype=np.float32)).to(images.device).unsqueeze(1)
        if self.model.refinement is not None and not self.model.training:  # which enlarges maps itself
            region = F.interpolate(region, self.scores.size, mode="bilinear")
        return region


class _LocalizerScores(nn.Module):
    """The localizer as a plain classifier: images to scores `[B, K]`; `size` is that of its last maps."""

    def __init__(self, model: WSLModel) -> None:
        super().__init__()
        self.model = model
        self.size: tuple[int, int] | None = None

    def forward(self, images: Tensor) -> Tensor:
        logits, maps = self.model.class_maps(images)
        self.size = tuple(maps.shape[-2:])
        return logits
