"""The model that users build: keywords become the parts of the method, and settings of its evaluation."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from minmax_entropy._checks import check_channels, check_choice, check_count, check_flag
from minmax_entropy.backbones import create_backbone
from minmax_entropy.backbones.data_config import check_data_config, per_channel
from minmax_entropy.backbones.init import INITIALIZATIONS
from minmax_entropy.backbones.margin import ReflectedMargin
from minmax_entropy.conventions import TimmConventions
from minmax_entropy.erasing import RecursiveErasing
from minmax_entropy.heads import create_head
from minmax_entropy.hub.shareable import Shareable
from minmax_entropy.inference.evaluation import EVALUATION, EvaluatedModel
from minmax_entropy.inputs import check_images, check_target, class_index, resolve_alias
from minmax_entropy.losses import MinMaxEntropyLoss
from minmax_entropy.mask import Masking
from minmax_entropy.model import WSLOutput
from minmax_entropy.presets import resolve_preset
from minmax_entropy.settings import Keywords, options_of, setting_of
from minmax_entropy.tasks import TASKS

# Fact about weights -> key of timm's card.
CARD = {"backbone_weights": "hf_hub_id", "license": "license"}


def _with_preset(init: Callable) -> Callable:
    """Fill keywords that the caller does not give with those of `preset`."""

    @functools.wraps(init)
    def wrapped(self: WSLModel, *args, preset: str | None = None, **kwargs) -> None:
        init(self, *args, preset=preset, **resolve_preset(preset, kwargs))

    return wrapped


def _check_network(config: dict) -> None:
    """Refuse keywords of the network that are out of range."""
    for name in ("shared_backbone", "freeze_backbone", "freeze_bn"):
        check_flag(name, config[name])
    check_data_config({} if config["data_config"] is None else config["data_config"])
    if config["backbone_init"] is not None:
        check_choice("backbone_init", config["backbone_init"], tuple(INITIALIZATIONS))


def _detached(detach_mask: bool | None, size_loss: str | None, border_weight: float) -> bool:
    """Choose whether the mask is detached where that is left open, and refuse terms that need its gradient."""
    if detach_mask is None:
        detach_mask = size_loss is None
    for name, asked in (("size_loss", size_loss is not None), ("border_weight", border_weight > 0)):
        if asked and detach_mask is True:
            raise ValueError(
                f"{name} needs detach_mask=False: no gradient reaches a detached mask (preset='paper' has none)"
            )
    return detach_mask


def _built(kind: type[nn.Module], config: dict, prefix: str = "") -> nn.Module:
    """Build a part from the keywords that are its own."""
    names = inspect.signature(kind).parameters
    return kind(**{name: config[name if name == "task" else f"{prefix}{name}"] for name in names})


def _backbones(backbone: str | nn.Module, options: dict, two: bool) -> tuple[nn.Module, nn.Module | None]:
    """Build the localizer's backbone, and the classifier's where it has one of its own."""
    if not isinstance(backbone, nn.Module):
        return create_backbone(backbone, **options), create_backbone(backbone, **options) if two else None
    options = {name: value for name, value in options.items() if name != "pretrained"}
    own = copy.deepcopy(backbone) if two else None
    return create_backbone(backbone, **options), create_backbone(own, **options) if two else None


class WSLModel(EvaluatedModel, TimmConventions, Shareable):
    """A localizer that finds the relevant region and a classifier that decides on it, trained with image-level labels.

    "Min-max Entropy for Weakly Supervised Pointwise Localization" (Belharbi et al., arXiv 1907.12934).

    Args:
        backbone: timm name (with or without a tag), name of `register_backbone`, or a module that maps
            `[B, C, H, W]` to `[B, D, h, w]`.
        num_classes: K, 1 or more.
        task: "multiclass", one class an image; or "multilabel", any number of them or none, with targets `[B, K]` of
            zeros and ones and scores through a sigmoid (`minmax_entropy.tasks.Multilabel`; our extension).
        preset: a name of `minmax_entropy.presets.PRESETS`, "refined" by default, the best-scoring one. Its values hold
            for keywords that are not given, and for options that are not given in `mask_refinement` and other
            dictionaries without a name. The defaults of this signature are those of `preset="paper"`.
        in_chans: channels C of the images.
        img_size: `(height, width)` or a number, for backbones that are built for one size.
        pretrained: load the backbone's weights (timm's, from the Hugging Face Hub).
        backbone_kwargs: passed to the backbone's factory (`output_stride`, `drop_path_rate`, ...).
        backbone_init: "he_fan_out" draws the convolutions of a backbone given by name afresh, where no weights are
            loaded; by default timm's own initialization stays.
        shared_backbone: localizer and classifier share one backbone; False gives the classifier one of its own.
        freeze_backbone: keep the backbone in evaluation mode and without gradients; a neck and the heads are trained.
        freeze_bn: keep the statistics, scale and shift of the backbone's BatchNorm layers. By default ("pretrained")
            where `pretrained` loads them, which gave lower errors and better masks
            (docs/results/localization_appendix.md), and not elsewhere: a fresh ResNet of timm's starts with a scale of
            0 in each residual branch, which would stay. The configuration holds the outcome, True or False. Give True
            for a module with weights of its own, and with the `checkpoint_path` of a model that was trained so.
        bn_statistics: passes that count for the running statistics of trained BatchNorm layers of the localizer: all
            "passes", over images, erased images, X+ and X-, as in the authors' implementation; or those over "images"
            alone, as in evaluation, for `decision="localizer"`. A classifier that shares the backbone is then less
            exact in evaluation mode. In training each pass is normalized by its own batch either way.
        data_config: `mean`, `std`, ... that replace the backbone's own.
        localizer: head of the localizer: a name, a dictionary of options with its `name`, or a module.
        classifier: head of the classifier, likewise; None leaves out the classifier, and every term but the
            localizer's: a plain CAM-style baseline.
        decision: scores that become `logits`: the "classifier"'s on X+, as in the paper, or the "localizer"'s on the
            whole image. The second needs no pass of the backbone beyond that for the mask; the classifier then serves
            the training alone.
        classifier_scale: size of the classifier's input, as a share of the image or as `(height, width)`.
        mask_source: "expected" (maps averaged under the predicted probabilities) or "predicted" (map of the top
            class); by default the first with a classifier, the second without.
        mask_sigma: threshold on the normalized map, in [0, 1]; in evaluation a `sigma` of `mask_refinement` replaces
            it.
        mask_omega: steepness of the mask, over 0.
        mask_threshold: a pixel is marked where the mask is at least this, in (0, 1). For evaluation, boxes and
            pictures; it takes no part in the training.
        min_probability: minimum probability of the class, in [0, 1]; below it predictions say that there is nothing:
            an empty mask, and no class. Every map has a maximum, so masks alone don't tell whether there is an object
            (`minmax_entropy.engine.choose_min_probability`, docs/results/localization_appendix.md). The model's own
            output, and exported programs, leave this to the caller. For the multiclass task.
        empty_classes: indices of classes whose images hold no object, such as "good" beside kinds of defects (our
            extension, for the multiclass task). In evaluation the mask comes from the maps of the other classes, and
            predictions of such a class have an empty mask; the model's own output, and exported programs, leave that
            to the caller. The training is the same (docs/results/localization_appendix.md).
        mask_refinement: options of `AffinityRefinement` as a dictionary ({} for its defaults), which aligns the map
            with the image's edges in evaluation mode, and may have a `sigma` of its own; None for no refinement.
            Training through it costs more and gave the same (docs/results/localization_trials.md).
        evaluation_scales: test-time views that are recommended to a `Predictor`, `evaluate` and `predict`; a call of
            the model is one pass. Up to 8 sizes, as shares of the image's own, from 0.1 to 4, with a pass of the
            backbone each. The mask is the mean over the views. The class is that of size 1, which must be among them.
            A backbone of one size sees that alone.
        evaluation_flip: likewise, whether the other sizes are seen flipped horizontally, which costs nothing more. Set
            it to False for classes that are mirror images of each other.
        evaluation_zoom: likewise, options of `Zoom` as a dictionary ({} for its defaults): images with a small mask are
            seen `scale` times as large as well, for `scale**2` times the cost. None for no zoom. A backbone of one
            size has none.
        mask_normalization: range of the map per "image", or over the "batch" as in the authors' implementation.
        reflect_margin: share of the training steps, drawn at random, in which the localizer sees each image within a
            margin of its own reflection, which is cut off the features again (`ReflectedMargin`, ours). Convolutions
            pad with zeros, and masks may settle along the border. The margin has 16 pixels, rounded up to whole
            positions of the features (32 at a stride of 32). Plain transformers and backbones of one size have none.
        detach_mask: keep the classifier's gradient from the localizer's head; it flows through the mask otherwise, and
            without a size term the mask then grows to the whole image, a trivial optimum. By default True without
            `size_loss`, False with it.
        background_loss, size_loss, size_condition, localizer_weight, foreground_weight, background_weight, size_weight,
            control_weight, border_weight, label_smoothing, class_weights: see `MinMaxEntropyLoss`; without a classifier
            the localizer's term alone is there.
        erasing_steps, erasing_sigma, erasing_scope, erasing_reduction, erasing_fallback, erasing_normalize_trust: see
            `RecursiveErasing`; `model.erasing.steps` may be set between epochs.
        checkpoint_passes: compute the features of each pass again in the backward instead of keeping them: with U
            erasing steps one pass is in memory instead of U + 2, with the same gradients and BatchNorm statistics.
            Measured for resnet18 with U = 4: 0.45 of the peak memory for 1.34 of the time (docs/results/passes.md).

    Attributes:
        config: the keywords it was built with; `settings()` returns them with what was changed since.
        data_config: mean, std, input size, interpolation and crop of the images.
        class_names: in the order of the logits, or None.
        info: facts about the weights: `license`, `training_data`, `metrics`, `backbone_weights`.

    Raises:
        ValueError, TypeError: an argument out of its range, an unknown name, or an unknown option.
    """

    class_names: list[str] | None = None
    info: dict

    @_with_preset
    def __init__(
        self,
        backbone: str | nn.Module,
        num_classes: int = 1000,
        *,
        preset: str | None = None,
        task: str = "multiclass",
        in_chans: int = 3,
        img_size: int | tuple[int, int] | None = None,
        pretrained: bool = False,
        backbone_kwargs: dict | None = None,
        backbone_init: str | None = None,
        shared_backbone: bool = True,
        freeze_backbone: bool = False,
        freeze_bn: bool | str = "pretrained",
        bn_statistics: str = "passes",
        data_config: dict | None = None,
        localizer: str | dict | nn.Module = "wildcat",
        classifier: str | dict | nn.Module | None = "wildcat",
        decision: str = "classifier",
        classifier_scale: float | tuple[int, int] = 0.5,
        mask_source: str | None = None,
        mask_sigma: float = 0.5,
        mask_omega: float = 8.0,
        mask_threshold: float = 0.5,
        min_probability: float = 0.0,
        empty_classes: Sequence[int] = (),
        mask_refinement: dict | None = None,
        evaluation_scales: Sequence[float] = (1.0,),
        evaluation_flip: bool = False,
        evaluation_zoom: dict | None = None,
        mask_normalization: str = "image",
        reflect_margin: float = 0.0,
        detach_mask: bool | None = None,
        background_loss: str = "sem",
        size_loss: str | None = None,
        size_condition: str | None = None,
        localizer_weight: float = 1.0,
        foreground_weight: float = 1.0,
        background_weight: float = 1.0,
        size_weight: float = 1.0,
        control_weight: float = 0.0,
        border_weight: float = 0.0,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
        erasing_steps: int = 0,
        erasing_sigma: float = 10.0,
        erasing_scope: str = "image",
        erasing_reduction: str = "sum",
        erasing_fallback: str = "first",
        erasing_normalize_trust: bool = True,
        checkpoint_passes: bool = False,
    ) -> None:
        num_classes, in_chans = check_count("num_classes", num_classes), check_channels("in_chans", in_chans)
        if isinstance(reflect_margin, bool):
            reflect_margin = float(reflect_margin)  # every step, or none
        if freeze_bn == "pretrained":
            freeze_bn = bool(pretrained) and isinstance(backbone, str)  # a module comes with its weights, or without
        config = {name: value for name, value in locals().items() if name in _MODEL_KEYWORDS}
        config.update({name: copy.deepcopy(value) for name, value in config.items() if isinstance(value, (dict, list))})

        # What is checked quickly comes first: a backbone may have to be downloaded.
        _check_network(config)
        if mask_source is None:
            mask_source = "predicted" if classifier is None else "expected"
        parts = dict(
            masking=Masking(mask_source, mask_sigma, mask_omega, mask_normalization),
            erasing=_built(RecursiveErasing, config, prefix="erasing_"),
            criterion=_built(MinMaxEntropyLoss, config),
        )
        if class_weights is not None and len(class_weights) != num_classes:
            raise ValueError(
                f"class_weights must be {num_classes} numbers as there are classes, got {len(class_weights)}"
            )
        detach_mask = _detached(detach_mask, size_loss, border_weight)

        options = dict(pretrained=pretrained, in_chans=in_chans, img_size=img_size, **(backbone_kwargs or {}))
        created, of_classifier = _backbones(backbone, options, classifier is not None and not shared_backbone)
        if backbone_init is not None and not pretrained and isinstance(backbone, str):
            for each in (created, of_classifier):
                if each is not None:
                    INITIALIZATIONS[backbone_init](each.net)
        localizer, classifier = (
            None if spec is None else create_head(spec, created.num_features, num_classes)
            for spec in (localizer, classifier)
        )
        super().__init__(
            created,
            localizer,
            classifier,
            **parts,
            num_classes=num_classes,
            in_chans=in_chans,
            classifier_backbone=of_classifier,
            margin=ReflectedMargin(created, reflect_margin),
            **{name: config[name] for name in ("decision", "classifier_scale", "bn_statistics", "checkpoint_passes")},
            detach_mask=detach_mask,
        )
        self.config = Keywords(config)
        for layer in self._frozen_layers():
            layer.requires_grad_(False).eval()
        for name in EVALUATION:
            setattr(self, name, config[name])
        self.config.update(mask_refinement=self.mask_refinement, evaluation_zoom=self.evaluation_zoom)  # all options
        self.data_config = per_channel({**created.data_config, **(data_config or {})}, in_chans)
        self.info = {}
        if pretrained:
            self.info = {name: self.pretrained_cfg[key] for name, key in CARD.items() if self.pretrained_cfg.get(key)}

    # Settings. Those of the parts are theirs, and may be set here as well.

    mask_source = setting_of("masking", "source")
    mask_sigma = setting_of("masking", "sigma")
    mask_omega = setting_of("masking", "omega")
    mask_normalization = setting_of("masking", "normalization")
    reflect_margin = setting_of("margin", "share")
    freeze_backbone = property(lambda model: model.config["freeze_backbone"], doc="As it was built.")
    freeze_bn = property(lambda model: model.config["freeze_bn"], doc="As it was built.")

    def settings(self) -> dict:
        """Return the keywords that rebuild the model: `config`, with each setting as it is now."""
        now = {
            **options_of(self),
            "empty_classes": self.empty_classes,
            "mask_refinement": self.mask_refinement,
            "reflect_margin": self.reflect_margin,
            **{f"mask_{name}": value for name, value in options_of(self.masking).items()},
            **{f"erasing_{name}": value for name, value in options_of(self.erasing).items()},
            **self.criterion.options,
        }
        # Keywords that were left to others (None) stay None while they have the value that follows from them.
        left = {
            "mask_source": "predicted" if self.classifier is None else "expected",
            "detach_mask": self.criterion.size_loss is None,
        }
        now |= {name: None for name, value in left.items() if self.config[name] is None and now[name] == value}
        return {**self.config, **now}

    @staticmethod
    def config_defaults() -> dict:
        """Return the preset for keywords that a saved configuration of an earlier version does not have."""
        return {"preset": "paper"}

    @staticmethod
    def config_keywords() -> frozenset[str]:
        """Return the names of the keywords that rebuild a model; `model.config` holds their values."""
        return _MODEL_KEYWORDS

    # Calls, with checks of what is given.

    def forward(
        self,
        images: Tensor | None = None,
        target: Tensor | None = None,
        background: bool | None = None,
        *,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> WSLOutput:
        """Localize, mask, split, classify; with a target, the whole objective (`MinMaxEntropy.forward`).

        Args:
            images: `[B, C, H, W]`, normalized with `data_config`'s mean and std.
            target: class indices `[B]` (int64); for the multilabel task `[B, K]` of zeros and ones. In training mode
                with `erasing.steps` over 0, recursive erasing then finds the mask.
            background: run the classifier on X- as well; by default in training mode or with a target. False leaves
                out the terms of background and control.
            pixel_values, labels: `images` and `target` by the names that Hugging Face's `Trainer` gives them.

        Raises:
            ValueError, TypeError: images or target of a wrong shape, dtype or range; one of them by both of its names.
        """
        images = resolve_alias("images", images, "pixel_values", pixel_values)
        target = resolve_alias("target", target, "labels", labels)
        self.check_images(images)
        if target is not None:
            check_target(target, images, self.num_classes, TASKS[self.task])
        return super().forward(images, target, background)

    def localize(self, images: Tensor, classes: str | Sequence[int | str] | Tensor | None = None) -> WSLOutput:
        """Compute mask, localizer scores and maps in one pass of the backbone. The classifier does not run.

        Args:
            images: `[B, C, H, W]`, normalized with `data_config`'s mean and std.
            classes: None returns the mask of the prediction (among the classes with an object), `[B, 1, H, W]`; N
                classes, by index or by name, return a mask for each, `[B, N, H, W]`, and so does "all" (N = K); a
                tensor `[B, N]` of indices asks for other classes in each image. Each mask is the class's own map,
                normalized by itself: where the class would be. `localizer_logits` say whether it is there.

        Raises:
            ValueError, TypeError: images of a wrong shape or dtype; a class that the model does not have.
        """
        self.check_images(images)
        if classes is not None:
            classes = class_index(classes, images.shape[0], self.num_classes, self.class_names).to(images.device)
        return super().localize(images, classes)

    def class_maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute localizer scores `[B, K]` and class maps `[B, K, h, w]` of images `[B, C, H, W]` in one pass of the
        backbone, without a mask.

        Raises:
            ValueError, TypeError: images of a wrong shape or dtype.
        """
        self.check_images(images)
        return super().class_maps(images)

    def check_images(self, images: Tensor) -> None:
        """Refuse images that the model can't take.

        Raises:
            ValueError, TypeError: what is wrong with them, and what would work.
        """
        dtype = next(self.parameters(), torch.empty(())).dtype
        check_images(images, self.in_chans, dtype, self.backbone.sizes)


# The keywords that rebuild a model, without its weights and the preset's name.
_MODEL_KEYWORDS = frozenset(inspect.signature(WSLModel.__init__).parameters) - {"self", "preset", "pretrained"}
