"""timm's conventions for models: modes and frozen parts, resetting of heads, groups of layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from minmax_entropy._checks import check_count
from minmax_entropy.backbones.sizes import Size, as_pair
from minmax_entropy.heads import create_head

if TYPE_CHECKING:
    from typing_extensions import Self


class TimmConventions(nn.Module):
    """Methods of timm's models for a model with a `backbone`, a `classifier_backbone` or None, and two heads."""

    def _backbones(self) -> dict[str, nn.Module]:
        names = ("backbone", "classifier_backbone")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        if mode:
            for layer in self._frozen_layers():
                layer.eval()
        return self

    def _frozen_layers(self) -> Iterator[nn.Module]:
        for backbone in self._backbones().values():
            if self.freeze_backbone:
                yield backbone.net
            elif self.freeze_bn:
                yield from (layer for layer in backbone.net.modules() if isinstance(layer, _BatchNorm))

    @property
    def num_features(self) -> int:
        """Channels D of the backbone's features."""
        return self.backbone.num_features

    @property
    def pretrained_cfg(self) -> dict:
        """timm's card of the backbone's weights (source, licence, mean, std, ...); empty if it is not timm's."""
        return dict(getattr(self.backbone.net, "pretrained_cfg", {}))

    def forward_features(self, images: Tensor) -> Tensor:
        """Compute the features of the localizer's backbone: `[B, C, H, W]` to `[B, D, h, w]`."""
        self.check_images(images)
        return self.backbone(images)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace both heads by new ones of the same kinds for another number of classes. Class names, `class_weights`,
        `min_probability` and `empty_classes` are reset."""
        num_classes = check_count("num_classes", num_classes)
        weight = next(self.localizer.parameters())
        specs = {name: self.config[name] for name in ("localizer", "classifier") if self.config[name] is not None}
        for name, spec in specs.items():
            if isinstance(spec, nn.Module):
                raise ValueError(
                    f"the {name} was given as a module: set model.{name} to a new one, and model.num_classes"
                )
        for name, spec in specs.items():
            head = create_head(spec, self.num_features, num_classes).to(weight.device, weight.dtype)
            setattr(self, name, head.train(self.training))
        self.num_classes = self.config["num_classes"] = num_classes
        self.class_names = None
        self.criterion.class_weights, self.min_probability, self.empty_classes = None, 0.0, []

    def set_input_size(self, img_size: int | Size) -> None:
        """Set the expected image size, `(height, width)` or a number, also in `data_config`. A backbone that is built
        for one size is adapted by timm, which resamples the weights that depend on the size.

        Raises:
            ValueError: the architecture doesn't take that size, or timm can't adapt its weights to it.
        """
        size = as_pair(img_size)
        for backbone in self._backbones().values():
            backbone.set_input_size(size)
        self.data_config["input_size"] = (self.in_chans, *size)
        if self.backbone.sizes.fixed is not None:
            self.config["img_size"] = size

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Enable or disable timm's own checkpointing in the backbones; for whole passes, see `checkpoint_passes`.

        Raises:
            ValueError: the backbone has none; or its BatchNorm layers are trained with `bn_statistics="images"`:
                parts that are run again in the backward pass would be counted again.
        """
        counted = (layer for layer in self.backbone.net.modules() if isinstance(layer, _BatchNorm))
        if enable and self.bn_statistics == "images" and not set(counted) <= set(self._frozen_layers()):
            raise ValueError(
                'BatchNorm statistics of images alone (bn_statistics="images") are not kept by a checkpointing that '
                "runs parts of the backbone again in the backward: use checkpoint_passes=True instead"
            )
        for backbone in self._backbones().values():
            try:
                backbone.net.set_grad_checkpointing(enable)
            except (AttributeError, AssertionError) as error:  # timm's families without it assert that it stays off
                raise ValueError(
                    f"{type(backbone.net).__name__} has no gradient checkpointing of its own; checkpoint_passes=True "
                    "works with every backbone"
                ) from error

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """Group layers by depth, for timm's `param_groups_layer_decay`, `create_optimizer_v2(model, layer_decay=0.75)`.

        Args:
            coarse: stages instead of blocks.

        Returns:
            A function from a parameter's name to the number of its layer: timm's number for the backbone (0 for the
            stem), and a higher one for neck and heads.

        Raises:
            ValueError: the backbone has no `group_matcher`.
        """
        layers: dict[str, float] = {}
        for name, backbone in self._backbones().items():
            if not hasattr(backbone.net, "group_matcher"):
                raise ValueError(f"{type(backbone.net).__name__} has no group_matcher: its layers have no known order")
            groups = group_parameters(backbone.net, backbone.net.group_matcher(coarse=coarse), reverse=True)
            layers.update({f"{name}.net.{parameter}": float(layer) for parameter, layer in groups.items()})
        return lambda parameter: layers.get(parameter, float("inf"))

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that timm keeps from weight decay (position embeddings, class tokens, ...)."""
        return {
            f"{name}.net.{parameter}"
            for name, backbone in self._backbones().items()
            for parameter in getattr(backbone.net, "no_weight_decay", set)()
        }
