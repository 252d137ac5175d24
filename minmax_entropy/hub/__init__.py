"""Saving, sharing and loading of models of any class that has `config_keywords()` and `settings()`."""

from minmax_entropy.hub.loading import load_checkpoint, load_model
from minmax_entropy.hub.names import HUB, LOCAL, SOURCES
from minmax_entropy.hub.saving import check_target, push_to_hub, save_pretrained, save_settings

__all__ = [
    "HUB",
    "LOCAL",
    "SOURCES",
    "check_target",
    "load_checkpoint",
    "load_model",
    "push_to_hub",
    "save_pretrained",
    "save_settings",
]
