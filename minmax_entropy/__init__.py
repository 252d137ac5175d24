"""Weakly supervised localization: train with image-level labels, get classes and masks (arXiv 1907.12934)."""

from minmax_entropy import zoo  # noqa: F401  registers the curated models
from minmax_entropy.backbones import create_backbone, is_backbone, list_backbones, register_backbone
from minmax_entropy.erasing import RecursiveErasing
from minmax_entropy.factory import (
    create_model,
    is_model,
    list_models,
    model_entrypoint,
    register_model,
    register_pretrained,
)
from minmax_entropy.heads import create_head, list_heads, register_head
from minmax_entropy.inference.prediction import Prediction
from minmax_entropy.inference.predictor import Predictor, explain
from minmax_entropy.inference.views import Views, Zoom
from minmax_entropy.losses import MinMaxEntropyLoss, register_loss
from minmax_entropy.model import WSLOutput
from minmax_entropy.presets import PRESETS
from minmax_entropy.reference import convert_reference_checkpoint, load_reference_checkpoint
from minmax_entropy.version import __version__
from minmax_entropy.wsl import WSLModel

__all__ = [
    "PRESETS",
    "MinMaxEntropyLoss",
    "Prediction",
    "Predictor",
    "RecursiveErasing",
    "Views",
    "WSLModel",
    "WSLOutput",
    "Zoom",
    "__version__",
    "convert_reference_checkpoint",
    "create_backbone",
    "create_head",
    "create_model",
    "explain",
    "is_backbone",
    "is_model",
    "list_backbones",
    "list_heads",
    "list_models",
    "load_reference_checkpoint",
    "model_entrypoint",
    "register_backbone",
    "register_head",
    "register_loss",
    "register_model",
    "register_pretrained",
]
