"""Checkpoints of the authors' implementation: their key layout, mapped onto timm's deep-stem ResNets."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from minmax_entropy._checks import check_count, check_positive, check_sigma
from minmax_entropy.hub.bounds import build_without_memory
from minmax_entropy.hub.weights import check_fit, load_state_dict, read_state_dict
from minmax_entropy.presets import PRESETS, resolve_preset
from minmax_entropy.wsl import WSLModel

# The authors' stem is three convolutions, flat in the network; timm keeps the first two BatchNorms inside `conv1`.
_STEM = {"conv1": "conv1.0", "bn1": "conv1.1", "conv2": "conv1.3", "bn2": "conv1.4", "conv3": "conv1.6", "bn3": "bn1"}
_HEADS = {"headseg.to_modalities": "localizer.to_modalities", "cl32.to_modalities": "classifier.to_modalities"}
# Settings of the mask, which the authors' implementation keeps as scalar buffers.
_SCALARS = {"sigma": "mask_sigma", "w": "mask_omega"}


def reference_key(key: str) -> str | None:
    """Return our name for a parameter or buffer of the authors' implementation, or None for an unknown one."""
    stem, _, rest = key.rpartition(".")
    if stem in _STEM:
        return f"backbone.net.{_STEM[stem]}.{rest}"
    if stem in _HEADS:
        return f"{_HEADS[stem]}.{rest}"
    if re.match(r"layer[1-4]\.\d+\.", key):
        return f"backbone.net.{key}"
    return None


# Deep-stem ResNets by the blocks of their stages: name and keywords. Any other count is built from the smallest one.
_NETWORKS = {
    ("basic", (2, 2, 2, 2)): ("resnet18", {"stem_type": "deep", "stem_width": 64}),
    ("bottleneck", (3, 4, 6, 3)): ("resnet50s", {}),
    ("bottleneck", (3, 4, 23, 3)): ("resnet101s", {}),
}
_OTHER_NETWORKS = {"basic": "resnet18", "bottleneck": "resnet50"}

POOLING = ("kmax", "kmin", "alpha", "dropout")  # options of both heads
MAX_BLOCKS = 100  # in a stage; the largest ResNet has 36

# Classes of the data sets that the authors trained on, where they are few, in alphabetical order.
CLASSES = {
    "glas": ["benign", "malignant"],
    "cub5": ["Gray_Catbird", "Myrtle_Warbler", "Ovenbird", "Swainson_Warbler", "White_necked_Raven"],
}


def convert_reference_checkpoint(
    path_or_state_dict: str | Path | Mapping[str, Tensor],
    *,
    class_names: list[str] | None = None,
    modalities: int = 5,
    short_side: int | None = None,
    **settings,
) -> WSLModel:
    """Convert a checkpoint of the authors' implementation (arXiv 1907.12934) to a model in evaluation mode.

    The network (blocks of a deep-stem ResNet) and the number of classes are read from the checkpoint; images are
    normalized with mean and std 0.5 and resized as in the authors' implementation at evaluation.

    Args:
        path_or_state_dict: as in `load_reference_checkpoint`.
        class_names: class names in the order of the checkpoint's outputs.
        modalities: M, maps per class of its heads.
        short_side: images whose shorter side is below this are enlarged to it (CUB, Flowers); None keeps every image at
            its own size (GlaS).
        settings: keywords of `create_model` that replace the preset's, and options of both heads (`kmax`, `kmin`,
            `alpha`, `dropout`), which a checkpoint does not hold.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, is not such a checkpoint, or does not fit; keys are listed.
    """
    state, source = _read(path_or_state_dict)
    blocks: dict[int, set[int]] = {}
    for key in state:
        if match := re.match(r"layer([1-4])\.(\d{1,3})\.", key):
            blocks.setdefault(int(match[1]), set()).add(int(match[2]))
    head = state.get("headseg.to_modalities.bias")
    if set(blocks) != {1, 2, 3, 4} or head is None or not head.numel() or "conv3.weight" not in state:
        raise ValueError(f"{source} is no checkpoint of the authors' implementation: {_summary(state)}")
    modalities = check_count("modalities", modalities)
    if head.numel() % modalities:
        raise ValueError(
            f"{source} has {head.numel()} maps, which are not {modalities} for each class: give modalities"
        )
    num_classes = head.numel() // modalities
    if class_names is not None and len(class_names) != num_classes:
        raise ValueError(f"{source} has {num_classes} classes, {len(class_names)} names were given")
    kind = "bottleneck" if "layer1.0.conv3.weight" in state else "basic"
    stages = tuple(len(blocks[stage]) for stage in (1, 2, 3, 4))
    if max(stages) > MAX_BLOCKS:
        raise ValueError(f"{source} has {max(stages)} blocks in a stage, which no network of the authors has")
    other = (_OTHER_NETWORKS[kind], {"stem_type": "deep", "stem_width": 64, "layers": stages})
    backbone, options = _NETWORKS.get((kind, stages), other)
    pooling = {key: settings.pop(key) for key in POOLING if key in settings}
    heads = {
        name: {**PRESETS["reference"][name], "modalities": modalities, **pooling}
        for name in ("localizer", "classifier")
    }
    options = {**options, **{key: settings.pop(key) for key in set(settings) - WSLModel.config_keywords()}}
    data_config = dict(PRESETS["reference"]["data_config"], crop_pct=1.0)
    data_config["resize"] = "reference_native" if short_side is None else "reference"
    keywords = dict(heads, data_config=data_config, img_size=short_side, backbone_kwargs=options)
    keywords = resolve_preset("reference", {**keywords, **settings, "backbone": backbone, "num_classes": num_classes})
    check_fit(build_without_memory(WSLModel, keywords), _renamed(state, source)[0], source)
    model = load_reference_checkpoint(WSLModel(**keywords), state)
    model.class_names = class_names
    return model.eval()


def _read(path_or_state_dict: str | Path | Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Return the state dict without DataParallel's prefix, and its name for messages."""
    if isinstance(path_or_state_dict, Mapping):
        state, source = path_or_state_dict, "the state dict"
    elif isinstance(path_or_state_dict, (str, Path)):
        state, source = read_state_dict(path_or_state_dict), str(path_or_state_dict)
    else:
        raise TypeError(f"expected a path or a state dict, got {type(path_or_state_dict).__name__}")
    named = {key.removeprefix("module."): value for key, value in state.items()}  # DataParallel's prefix
    if len(named) < len(state):
        raise ValueError(f"{source} has keys both with and without the prefix 'module.'")
    return named, source


def _summary(state: Mapping[str, Tensor]) -> str:
    shown = ", ".join(list(state)[:5])
    return f"it has {len(state)} keys, {shown}, ..." if state else "it is empty"


def load_reference_checkpoint(model: WSLModel, path_or_state_dict: str | Path | Mapping[str, Tensor]) -> WSLModel:
    """Load a checkpoint of the authors' implementation (arXiv 1907.12934) into a model.

    The model must have WILDCAT heads and a deep-stem ResNet: `wsl_resnet50s`, `wsl_resnet101s`, or `wsl_resnet18` with
    `stem_width=64, stem_type="deep"`. Files are read with `weights_only=True`. Scalars named `sigma` and `w` set the
    model's `mask_sigma` and `mask_omega`.

    Args:
        model: the model to load into; unchanged if anything does not fit.
        path_or_state_dict: a file of `torch.save` or `.safetensors`, or the state dict.

    Returns:
        The model.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or keys are missing, left over or of another shape; all are listed.
    """
    state, source = _read(path_or_state_dict)
    ours, scalars = _renamed(state, source)
    own = model.state_dict()
    if not any(key.startswith("backbone.net.conv1.0.") for key in own):
        raise ValueError(
            "the authors' checkpoints need a deep-stem ResNet: wsl_resnet50s, wsl_resnet101s, "
            'or wsl_resnet18 with stem_width=64, stem_type="deep"'
        )
    try:  # before anything is loaded
        check_sigma("mask_sigma", scalars.get("mask_sigma", model.mask_sigma))
        check_positive("mask_omega", scalars.get("mask_omega", model.mask_omega))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    load_state_dict(model, ours, source)
    for name, value in scalars.items():
        setattr(model, name, value)
    return model


def _renamed(state: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return the weights under our names, and the settings of the mask, which are stored as scalars beside them."""
    ours: dict[str, Tensor] = {}
    scalars: dict[str, float] = {}
    for key, value in state.items():
        setting = _SCALARS.get(key.split(".")[-1])
        is_setting = setting is not None and value.numel() == 1
        name = setting if is_setting else reference_key(key) or key
        if name in ours or name in scalars:
            raise ValueError(f"{source} has {name} twice, once as {key}")
        if is_setting:
            scalars[name] = float(value) if value.is_floating_point() else math.nan
        else:
            ours[name] = value
    counters = {key.rsplit(".", 1)[0] for key in ours if key.endswith(".running_mean")}
    for layer in counters:  # PyTorch 0.4 checkpoints and older have no batch counters
        ours.setdefault(f"{layer}.num_batches_tracked", torch.tensor(0))
    return ours, scalars
