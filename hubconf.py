"""torch.hub entry points, any `wsl_<timm name>`: `torch.hub.load("OWNER/REPO", "wsl_resnet50", pretrained=True)`."""

import functools as _functools

import timm as _timm

import minmax_entropy as _mme
from minmax_entropy import create_model

dependencies = ["torch", "timm", "safetensors", "huggingface_hub", "numpy", "PIL"]


def __dir__() -> list[str]:
    """What `torch.hub` may load: a name that is not here does not exist for it."""
    backbones = {*_mme.list_backbones(), *_timm.list_pretrained()}
    return sorted({"dependencies", "create_model", *_mme.list_models(), *(f"wsl_{name}" for name in backbones)})


def __getattr__(name: str):
    """The factory of a model's name, made when it is asked for."""
    if not _mme.is_model(name):
        raise AttributeError(f"no model {name!r}")
    factory = _functools.partial(create_model, name)
    factory.__doc__ = _mme.model_entrypoint(name).__doc__
    return factory
