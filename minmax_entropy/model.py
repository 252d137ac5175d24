"""The model: localize, mask, split, classify (arXiv 1907.12934), and the whole objective in one forward call."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import itertools
import numbers
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minmax_entropy._checks import (
    MAX_CHANNELS,
    MAX_SCALE,
    MAX_SIDE,
    check_choice,
    check_count,
    check_data_config,
    check_flag,
    check_mask,
    check_share,
    check_threshold,
)
from minmax_entropy._symbolic import truncated_share
from minmax_entropy.backbones import create_backbone
from minmax_entropy.backbones.init import INITIALIZATIONS
from minmax_entropy.backbones.margin import ReflectedMargin
from minmax_entropy.backbones.passes import frozen_statistics
from minmax_entropy.conventions import TimmConventions
from minmax_entropy.erasing import RecursiveErasing
from minmax_entropy.heads import create_head
from minmax_entropy.hub.shareable import Shareable
from minmax_entropy.inputs import check_images, check_target, class_index, either
from minmax_entropy.keywords import Keywords
from minmax_entropy.losses import MinMaxEntropyLoss
from minmax_entropy.mask import (
    MASK_SOURCES,
    NORMALIZATIONS,
    control_mask,
    min_max_normalize,
    one_half,
    resize,
    soft_mask,
    split_regions,
    weighted_map,
)
from minmax_entropy.presets import resolve_preset
from minmax_entropy.settings import LiveSettings
from minmax_entropy.tasks import TASKS

Rows = Tensor | slice  # of a batch


class WSLOutput(NamedTuple):
    """What `WSLModel` returns. Fields that were not computed are None.

    Attributes:
        loss: weighted sum of `losses`, a scalar to back-propagate; with a target only.
        logits: `[B, K]` of the classifier on the relevant region X+ (of the localizer where there is no classifier, or
            with `decision="localizer"`).
        mask: `[B, 1, H, W]` in [0, 1], M+. With erasing, the accumulated mask. `localize(images, classes=...)` gives
            one for each class it was asked for, `[B, N, H, W]`.
        localizer_logits: `[B, K]` of the images at their own size. With erasing, those of the first pass.
        localizer_maps: `[B, K, h, w]` class activation maps, likewise.
        background_logits: `[B, K]` of the classifier on the irrelevant region X-; None in a training with a control
            term, where half of the images alone are seen so.
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


def _with_preset(init: Callable) -> Callable:
    """Keywords of `preset` hold where the caller gives none."""

    @functools.wraps(init)
    def wrapped(self: WSLModel, *args, preset: str | None = None, **kwargs) -> None:
        init(self, *args, preset=preset, **resolve_preset(preset, kwargs))

    return wrapped


class WSLModel(LiveSettings, TimmConventions, Shareable):
    """A localizer finds the relevant region, a classifier decides on it; trained with image-level labels alone.

    "Min-max Entropy for Weakly Supervised Pointwise Localization" (Belharbi et al., arXiv 1907.12934).

    Args:
        backbone: timm name (with or without a tag), name of `register_backbone`, or a module that maps
            `[B, C, H, W]` to `[B, D, h, w]`.
        num_classes: K, 1 or more.
        task: "multiclass", one class an image; or "multilabel", any number of them or none, with targets `[B, K]` of
            zeros and ones and scores through a sigmoid (`minmax_entropy.tasks.Multilabel`; our extension).
        preset: a name of `minmax_entropy.presets.PRESETS`, whose values hold for keywords that are not given, and for
            options that are not given in `mask_refinement` and other dictionaries without a name.
        in_chans: channels C of the images.
        img_size: `(height, width)` or a number, for backbones that are built for one size.
        pretrained: load the backbone's weights (timm's, from the Hugging Face Hub).
        backbone_kwargs: passed to the backbone's factory (`output_stride`, `drop_path_rate`, ...).
        backbone_init: "he_fan_out" draws the convolutions of a backbone given by name afresh, where no weights are
            loaded; by default timm's own initialization stays.
        shared_backbone: localizer and classifier share one backbone; False gives the classifier one of its own.
        freeze_backbone: keep the backbone as it is, in evaluation mode and without gradients for its parameters; a neck
            and the heads are trained.
        freeze_bn: keep the BatchNorm layers of the backbone as they are: their statistics, scale and shift. By default
            ("pretrained") where `pretrained` loads their weights, which gave lower errors and better masks
            (docs/results/localization_appendix.md), and not elsewhere: in a fresh ResNet of timm's the scale of each
            residual branch is 0, which would stay. The configuration has what it came to, True or False. Give True for
            a module with weights of its own, and where `checkpoint_path` goes on with such a model.
        bn_statistics: the running statistics of the localizer's BatchNorm layers, where they are trained, are of all
            "passes", over images, erased images, X+ and X-, as in the authors' implementation, or of the "images"
            alone, which is what the localizer meets in evaluation: for `decision="localizer"`. A classifier that shares
            the backbone is then less exact in evaluation mode, where X+ and X- meet statistics of images. In training
            each pass is normalized by its own batch either way.
        data_config: `mean`, `std`, ... that replace the backbone's own.
        localizer: head of the localizer: a name, a dictionary of options with its `name`, or a module.
        classifier: head of the classifier, likewise; None leaves the classifier out, and every term but
            the localizer's: a plain CAM-style baseline.
        decision: whose scores are `logits`: the "classifier"'s on X+, as in the paper, or the "localizer"'s on the
            whole image. The second needs no pass of the backbone beyond those for the mask; the classifier then serves
            the training alone.
        classifier_scale: size of the classifier's input, as a share of the image or as `(height, width)`.
        mask_source: "expected" (maps averaged under the predicted probabilities) or "predicted" (map of the top
            class); by default the first with a classifier, the second without.
        mask_sigma: threshold on the normalized map, in [0, 1]; a `sigma` of `mask_refinement` takes its place in
            evaluation.
        mask_omega: steepness of the mask, over 0.
        mask_threshold: a pixel counts as marked where the mask is at least this, in (0, 1): for evaluation, boxes and
            pictures; it takes no part in the training.
        min_probability: images whose class has less are answered with "nothing here" by the engine and the command
            line: an empty mask, and no class; in [0, 1]. Every map has a highest place, so masks themselves don't say
            whether there is an object (`minmax_entropy.engine.choose_min_probability`,
            docs/results/localization_appendix.md). The model itself, and what is exported, leave it to the caller. For
            the multiclass task.
        empty_classes: indices of classes whose images hold no object, such as "good" beside kinds of defects (our
            extension, for the multiclass task). In evaluation the mask is made of the other classes' maps alone, and
            where one of these is predicted, the engine and the command line leave it empty; the model itself, and what
            is exported, leave that to the caller. The training is the same (docs/results/localization_appendix.md).
        mask_refinement: a dictionary of options of `AffinityRefinement` ({} for its defaults), which in evaluation mode
            brings the map to the image's edges, and may have a `sigma` of its own for it; None leaves the map as it is.
            Training through it costs more and gave the same (docs/results/localization_trials.md).
        evaluation_scales: recommended for predictions (`predict_images`, `evaluate`); the model's own calls are one pass.
            Sizes, as shares of the image's own, at which the localizer sees each image,
            for a pass of the backbone each: up to 8 of 0.1 to 4. The mask is the mean of theirs, each made of maps that
            are weighted by the mean scores. The class is that of the image at its own size, 1, which must be among
            them. A backbone of one size sees that alone.
        evaluation_flip: likewise, whether the other sizes are seen flipped horizontally, and their maps flipped back.
            It costs nothing more. Not for classes that differ in left and right.
        evaluation_zoom: likewise, a dictionary of options of `Zoom` ({} for its defaults): masks that mark little are
            made from a closer look at the image as well, a pass of the backbone on an image `scale` times as large, of
            `scale**2` times the cost. None: no closer look. A backbone of one size has none.
        mask_normalization: range of the map per "image", or over the "batch" as in the authors' implementation.
        reflect_margin: share of the training steps, drawn by chance, in which the localizer sees each image within a
            margin of its own reflection, 16 pixels rounded up to whole positions of the features (32 at a stride of
            32), which is cut off them again (`ReflectedMargin`, ours). Convolutions pad with zeros, and masks may
            settle along the border. Such a pass takes longer as there are more pixels. Plain transformers and backbones
            of one size have none.
        detach_mask: keep the classifier's gradient from the localizer's head; it flows through the mask otherwise, and
            without a size term the mask then grows to the whole image, a trivial optimum. By default True without
            `size_loss`, False with it.
        background_loss, size_loss, size_condition, localizer_weight, foreground_weight, background_weight, size_weight,
            control_weight, border_weight, label_smoothing, class_weights: see `MinMaxEntropyLoss`; without a classifier
            the localizer's term alone is there.
        erasing_steps, erasing_sigma, erasing_scope, erasing_reduction, erasing_fallback, erasing_normalize_trust: see
            `RecursiveErasing`; `model.erasing.steps` may be set between epochs.
        checkpoint_passes: keep the features of no pass for the backward, compute them again there: with U erasing
            steps one pass is in memory instead of U + 2, with the same gradients and BatchNorm statistics. Measured for
            resnet18 with U = 4: 0.45 of the peak memory for 1.34 of the time (docs/results/passes.md).

    Attributes:
        config: the keywords it was built with; `settings()` has them with what was changed since.
        data_config: mean, std, input size, interpolation and crop of the images.
        class_names: in the order of the logits, or None.
        info: what is known of the weights: `license`, `training_data`, `metrics`, `backbone_weights`.

    Raises:
        ValueError, TypeError: an argument out of its range, an unknown name, or an unknown option.
    """

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
        num_classes, in_chans = check_count("num_classes", num_classes), check_count("in_chans", in_chans)
        if in_chans > MAX_CHANNELS:
            raise ValueError(f"in_chans must be at most {MAX_CHANNELS}, got {in_chans}")
        if isinstance(reflect_margin, bool):
            reflect_margin = float(reflect_margin)  # every step, or none
        if freeze_bn == "pretrained":
            freeze_bn = bool(pretrained) and isinstance(backbone, str)  # a module comes with its weights, or without
        config = {name: value for name, value in locals().items() if name in _MODEL_KEYWORDS}
        config.update({name: copy.deepcopy(value) for name, value in config.items() if isinstance(value, (dict, list))})
        super().__init__()
        self.config = Keywords(config)
        check_choice("task", task, tuple(TASKS))
        self.task = task
        if mask_source is None:
            mask_source = "predicted" if classifier is None else "expected"
        check_choice("mask_source", mask_source, MASK_SOURCES)
        check_choice("mask_normalization", mask_normalization, NORMALIZATIONS)
        check_mask(mask_sigma, mask_omega)
        check_threshold("mask_threshold", mask_threshold)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.class_names: list[str] | None = None
        self.info: dict = {}
        self.decision = decision
        self.classifier_scale = _check_scale(classifier_scale)
        self.mask_source = mask_source
        self.mask_sigma = float(mask_sigma)
        self.mask_omega = float(mask_omega)
        self.mask_threshold = float(mask_threshold)
        self.min_probability = min_probability
        self.mask_refinement = mask_refinement
        self.evaluation_scales = evaluation_scales
        self.evaluation_flip = evaluation_flip
        self.evaluation_zoom = evaluation_zoom
        self.mask_normalization = mask_normalization
        flags = dict(shared_backbone=shared_backbone, freeze_backbone=freeze_backbone, freeze_bn=freeze_bn)
        for name, flag in dict(flags, checkpoint_passes=checkpoint_passes).items():
            check_flag(name, flag)
        self.freeze_backbone, self.freeze_bn = freeze_backbone, freeze_bn
        self.bn_statistics = bn_statistics
        if detach_mask is None:
            detach_mask = size_loss is None
        elif detach_mask and size_loss is not None:
            raise ValueError("size_loss needs detach_mask=False: no gradient reaches a detached mask")
        check_flag("detach_mask", detach_mask)
        self.detach_mask = detach_mask
        self.checkpoint_passes = checkpoint_passes

        options = dict(pretrained=pretrained, in_chans=in_chans, img_size=img_size, **(backbone_kwargs or {}))
        if isinstance(backbone, nn.Module):
            del options["pretrained"]
        self.backbone = create_backbone(backbone, **options)
        check_share("reflect_margin", reflect_margin)
        self.margin = ReflectedMargin(self.backbone, reflect_margin) if reflect_margin else None
        self.classifier_backbone = None
        if classifier is not None and not shared_backbone:
            own = copy.deepcopy(backbone) if isinstance(backbone, nn.Module) else backbone
            self.classifier_backbone = create_backbone(own, **options)
        if backbone_init is not None:
            check_choice("backbone_init", backbone_init, tuple(INITIALIZATIONS))
            if not pretrained and isinstance(backbone, str):
                for module in self._backbones().values():
                    INITIALIZATIONS[backbone_init](module.net)
        for layer in self._frozen_layers():
            layer.requires_grad_(False).eval()
        check_data_config({} if data_config is None else data_config)
        self.data_config = _per_channel({**self.backbone.data_config, **(data_config or {})}, in_chans)
        if pretrained:
            card = {"backbone_weights": "hf_hub_id", "license": "license"}
            self.info = {name: self.pretrained_cfg[key] for name, key in card.items() if self.pretrained_cfg.get(key)}

        self.localizer = create_head(localizer, self.num_features, num_classes)
        self.classifier = None if classifier is None else create_head(classifier, self.num_features, num_classes)
        self.erasing = RecursiveErasing(
            erasing_steps,
            erasing_sigma,
            scope=erasing_scope,
            reduction=erasing_reduction,
            fallback=erasing_fallback,
            normalize_trust=erasing_normalize_trust,
            task=task,
        )
        self.criterion = MinMaxEntropyLoss(
            background_loss,
            size_loss,
            localizer_weight=localizer_weight,
            foreground_weight=foreground_weight,
            background_weight=background_weight,
            size_weight=size_weight,
            control_weight=control_weight,
            border_weight=border_weight,
            size_condition=size_condition,
            task=task,
            label_smoothing=label_smoothing,
            class_weights=class_weights,
        )
        if detach_mask and self.criterion.weights["border"] > 0:
            raise ValueError("border_weight needs detach_mask=False: no gradient reaches a detached mask")
        self.empty_classes = empty_classes
        if class_weights is not None and len(class_weights) != num_classes:
            raise ValueError(
                f"class_weights must be {num_classes} numbers as there are classes, got {len(class_weights)}"
            )
        self._as_built = self._live()

    # The method, in the paper's order.

    def forward(
        self,
        images: Tensor | None = None,
        target: Tensor | None = None,
        background: bool | None = None,
        *,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> WSLOutput:
        """Localize, mask, split, classify; with a target, the whole objective.

        Args:
            images: `[B, C, H, W]`, normalized with `data_config`'s mean and std.
            target: class indices `[B]` (int64); for the multilabel task `[B, K]` of zeros and ones. In training mode,
                and where `erasing.steps` is set, the mask is then found by recursive erasing.
            background: compute the classifier on X- as well; by default in training mode or with a target. False
                leaves out the terms of background and control.
            pixel_values, labels: `images` and `target` by the names that Hugging Face's `Trainer` gives them.

        Returns:
            `WSLOutput`.

        Raises:
            ValueError, TypeError: images or target of a wrong shape, dtype or range; one of them by both of its names.
        """
        images = either("images", images, "pixel_values", pixel_values)
        target = either("target", target, "labels", labels)
        self._check_images(images)
        if target is not None:
            check_target(target, images, self.num_classes, TASKS[self.task])
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
            relevant, irrelevant = split_regions(images, mask)  # [B, C, H, W] each
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

    def localize(self, images: Tensor, classes: str | Sequence[int | str] | Tensor | None = None) -> WSLOutput:
        """Mask, localizer scores and maps, for one pass of the backbone. The classifier does not run.

        Args:
            images: `[B, C, H, W]`, normalized with `data_config`'s mean and std.
            classes: None gives the mask of what is predicted (among the classes with an object), `[B, 1, H, W]`; N
                classes, by index or by name, give a mask for each, `[B, N, H, W]`, and so does "all" (N = K); a tensor
                `[B, N]` of indices asks each image for its own. Each mask is the class's own map, normalized by itself:
                it says where the class would be, `localizer_logits` say whether it is there.

        Returns:
            `WSLOutput` with `mask`, `localizer_logits` and `localizer_maps`.

        Raises:
            ValueError, TypeError: images of a wrong shape or dtype; a class that the model does not have.
        """
        self._check_images(images)
        localizer_logits, maps, mask = self._localize(images, classes=classes)
        return WSLOutput(mask=mask, localizer_logits=localizer_logits, localizer_maps=maps)

    def class_maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Localizer scores `[B, K]` and class maps `[B, K, h, w]` of images `[B, C, H, W]` at their own size alone, for
        one pass of the backbone; there is no mask.

        Raises:
            ValueError, TypeError: images of a wrong shape or dtype.
        """
        self._check_images(images)
        return self._head(self.localizer, self._seen(images, True))

    def _localize(
        self, images: Tensor, whole: bool = True, classes: str | Sequence[int | str] | Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Localizer scores `[B, K]`, class maps `[B, K, h, w]` and mask `[B, 1, H, W]`; `whole` or erased images; with
        `classes` the mask is `[B, N, H, W]`."""
        logits, maps = self._head(self.localizer, self._seen(images, whole))
        with torch.no_grad() if self.detach_mask else contextlib.nullcontext():
            if classes is None:
                regions = self.region(images, maps, self.map_weights(logits))
            else:
                index = class_index(classes, images.shape[0], self.num_classes, self.class_names).to(logits.device)
                regions = maps.gather(1, index[:, :, None, None].expand(-1, -1, *maps.shape[2:]))  # [B, N, h, w]
            return logits, maps, self.make_mask(regions, images)

    def map_weights(self, logits: Tensor) -> Tensor:
        """What each class's map counts in the map that becomes the mask: `[B, K]` from the localizer's `[B, K]`, by
        `mask_source`; in evaluation among the classes that have an object."""
        logits = logits if self.training else self.without_empty(logits)
        task = TASKS[self.task]
        return task.probabilities(logits) if self.mask_source == "expected" else task.predicted(logits)

    def region(self, images: Tensor, maps: Tensor, weights: Tensor) -> Tensor:
        """The map `[B, 1, h, w]` that becomes the mask, of class maps `[B, K, h, w]` with weights `[B, K]`."""
        return weighted_map(maps, weights)

    def without_empty(self, logits: Tensor) -> Tensor:
        """Scores `[B, K]` with minus infinity for `empty_classes`."""
        if not self._empty_classes:
            return logits
        return logits.index_fill(1, torch.tensor(self._empty_classes, device=logits.device), -torch.inf)

    def make_mask(self, regions: Tensor, images: Tensor) -> Tensor:
        """From maps `[B, N, h, w]` of images `[B, C, H, W]` to masks `[B, N, H, W]` in [0, 1], a map by itself."""
        if self.refinement is not None and not self.training:
            regions = self.refinement(regions, images)
        regions = resize(regions, images.shape[-2:])
        parts = [min_max_normalize(region, self.mask_normalization) for region in regions.split(1, dim=1)]
        sigma = self.mask_sigma if self.training else self.evaluation_sigma
        return soft_mask(torch.cat(parts, dim=1), sigma, self.mask_omega)

    def classify(self, region: Tensor) -> Tensor:
        """Scores `[B, K]` of the classifier for a region, which it sees at its own scale.

        Args:
            region: normalized images `[B, C, H, W]`, 0 where they are cut.

        Raises:
            ValueError: the model has no classifier.
        """
        if self.classifier is None:
            raise ValueError("this model has no classifier, it was built with classifier=None")
        region = resize(region, self.classifier_size(*region.shape[-2:]))
        backbone = self.classifier_backbone or self.backbone
        features = self._features(backbone, region, backbone is not self.backbone)  # [B, D, h', w']
        logits, _ = self._head(self.classifier, features)
        return logits

    def decide(self, images: Tensor, scores: Sequence[Tensor], mask: Tensor) -> list[Tensor]:
        """Scores of the class `[B, K]`: where the classifier decides its own on X+, or else the localizer's.

        Args:
            images: `[B, C, H, W]`.
            scores: of the localizer, `[B, K]` for each way that it has seen the images.
            mask: `[B, 1, H, W]`.
        """
        return [self.classify(split_regions(images, mask)[0])] if self.classifier_decides else list(scores)

    def control_region(self, images: Tensor, mask: Tensor) -> Tensor:
        """Images `[B, C, H, W]` under masks that say nothing about them, made of those of the batch `[B, 1, H, W]`."""
        return (images * control_mask(mask)).to(images.dtype)

    def classifier_size(self, height: int, width: int) -> tuple[int, int]:
        """Size of the classifier's input for images of `height` x `width`.

        `floor(scale * height) x floor(scale * width)`, or the nearest size that the backbone takes: at least its
        stride, a multiple of its patch size, or the one size it is built for.
        """
        if isinstance(self.classifier_scale, tuple):
            size = self.classifier_scale
        else:
            size = tuple(truncated_share(self.classifier_scale, side) for side in (height, width))
        return (self.classifier_backbone or self.backbone).sizes.nearest(*size)

    def _head(self, head: nn.Module, features: Tensor) -> tuple[Tensor, Tensor]:
        """Scores `[B, K]` and maps `[B, K, h, w]`. They leave autocast: ranges and losses need the precision."""
        result = head(features)
        shapes = [tuple(part.shape) for part in result] if isinstance(result, (tuple, list)) else tuple(result.shape)
        expected = (features.shape[0], self.num_classes)
        if len(shapes) != 2 or shapes[0] != expected or len(shapes[1]) != 4 or shapes[1][:2] != expected:
            raise ValueError(
                f"the head {type(head).__name__} must give scores {expected} and maps {(*expected, 'h', 'w')}, "
                f"it gave {shapes} for features {tuple(features.shape)}"
            )
        return tuple(part.float() if part.dtype in (torch.float16, torch.bfloat16) else part for part in result)

    def _seen(self, images: Tensor, counts: bool) -> Tensor:
        """Features `[B, D, h, w]` of images as the localizer sees them, in some of the training steps within their
        margin."""
        if self.margin is None or not self.training or not self.margin.drawn():
            return self._features(self.backbone, images, counts)
        extended = self.margin.extend(images)
        return self.margin(self._features(self.backbone, extended, counts), tuple(extended.shape[-2:]))

    def _features(self, backbone: nn.Module, images: Tensor, counts: bool) -> Tensor:
        """Features `[B, D, h, w]` of a pass, which `counts` for BatchNorm's statistics of images or does not."""

        def statistics() -> contextlib.AbstractContextManager:
            frozen = self.training and self.bn_statistics == "images" and not counts
            return frozen_statistics(backbone) if frozen else contextlib.nullcontext()

        try:
            if self.checkpoint_passes and self.training and torch.is_grad_enabled():
                return checkpoint(
                    backbone,
                    images,
                    use_reentrant=False,
                    context_fn=lambda: (statistics(), frozen_statistics(backbone)),
                )
            with statistics():
                return backbone(images)
        except ValueError as error:
            if "Expected more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                f"BatchNorm can't train on a batch of one whose feature map is a single position (images of "
                f"{images.shape[2]} x {images.shape[3]}): use larger images, a larger batch, or put the BatchNorm "
                "layers in eval mode"
            ) from error

    def _check_images(self, images: Tensor) -> None:
        dtype = next(self.parameters(), torch.empty(())).dtype
        check_images(images, self.in_chans, dtype, self.backbone.sizes)

    @staticmethod
    def config_keywords() -> frozenset[str]:
        """Keywords that rebuild a model; `model.config` holds their values."""
        return _MODEL_KEYWORDS


# Everything that rebuilds a model; weights and the preset's name are not part of that.
_MODEL_KEYWORDS = frozenset(inspect.signature(WSLModel.__init__).parameters) - {"self", "preset", "pretrained"}


def _per_channel(data_config: dict, in_chans: int) -> dict:
    """Mean and std averaged for one channel, repeated for others, as timm does with the first convolution."""
    config = {**data_config, "input_size": (in_chans, *data_config["input_size"][-2:])}
    for key in ("mean", "std"):
        values = tuple(config[key]) if isinstance(config[key], (tuple, list)) else (config[key],)
        if in_chans == 1:
            config[key] = (sum(values) / len(values),)
        else:
            config[key] = tuple(itertools.islice(itertools.cycle(values), in_chans))
    return config


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.stack(tensors).mean(dim=0)


def _check_scale(value: float | tuple[int, int]) -> float | tuple[int, int]:
    if isinstance(value, (tuple, list)):
        if len(value) != 2 or any(
            isinstance(v, bool) or not isinstance(v, int) or not 1 <= v <= MAX_SIDE for v in value
        ):
            raise ValueError(f"classifier_scale must be a number, or (height, width) in pixels, got {value!r}")
        return tuple(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < value <= MAX_SCALE:
        raise ValueError(
            f"classifier_scale must be a share over 0, up to {MAX_SCALE}, or (height, width) in pixels, got {value!r}"
        )
    return float(value)
