"""Checkpoints of the authors' implementation: their key layout, mapped onto timm's deep-stem ResNets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from minmax_entropy.model import WSLModel
from minmax_entropy.weights import load_state_dict, read_state_dict

# The authors' stem is three convolutions, flat in the network; timm keeps the first two BatchNorms inside `conv1`.
_STEM = {"conv1": "conv1.0", "bn1": "conv1.1", "conv2": "conv1.3", "bn2": "conv1.4", "conv3": "conv1.6", "bn3": "bn1"}
_HEADS = {"headseg.to_modalities": "localizer.to_modalities", "cl32.to_modalities": "classifier.to_modalities"}
# Settings of the mask, which the authors' implementation keeps as scalar buffers.
_SCALARS = {"sigma": "mask_sigma", "w": "mask_omega"}


def reference_key(key: str) -> str | None:
    """Our name of a parameter or buffer of the authors' implementation, or None for one that is not in its layout."""
    stem, _, rest = key.rpartition(".")
    if stem in _STEM:
        return f"backbone.net.{_STEM[stem]}.{rest}"
    if stem in _HEADS:
        return f"{_HEADS[stem]}.{rest}"
    if re.match(r"layer[1-4]\.\d+\.", key):
        return f"backbone.net.{key}"
    return None


def load_reference_checkpoint(model: WSLModel, path_or_state_dict: str | Path | Mapping[str, Tensor]) -> WSLModel:
    """Load a checkpoint of the authors' implementation (arXiv 1907.12934) into a model.

    The model has WILDCAT heads and a deep-stem ResNet: `wsl_resnet50s`, `wsl_resnet101s`, or `wsl_resnet18` with
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
    if not isinstance(path_or_state_dict, (str, Path, Mapping)):
        raise TypeError(f"expected a path or a state dict, got {type(path_or_state_dict).__name__}")
    if isinstance(path_or_state_dict, Mapping):
        state, source = dict(path_or_state_dict), "the state dict"
    else:
        state, source = read_state_dict(path_or_state_dict), str(path_or_state_dict)
    state = {key.removeprefix("module."): value for key, value in state.items()}  # DataParallel's prefix
    scalars = {key: state.pop(key) for key in list(state) if key.split(".")[-1] in _SCALARS and state[key].numel() == 1}
    own = model.state_dict()
    ours = {reference_key(key) or key: value for key, value in state.items()}
    for key in own:  # PyTorch 0.4 checkpoints and older have no batch counters
        if key.endswith("num_batches_tracked") and key not in ours:
            ours[key] = torch.zeros_like(own[key])
    if not any(key.startswith("backbone.net.conv1.0.") for key in own):
        raise ValueError(
            "the authors' checkpoints need a deep-stem ResNet: wsl_resnet50s, wsl_resnet101s, "
            'or wsl_resnet18 with stem_width=64, stem_type="deep"'
        )
    load_state_dict(model, ours, source)
    for key, value in scalars.items():
        name = _SCALARS[key.split(".")[-1]]
        setattr(model, name, float(value))
        model.config[name] = float(value)
    return model
