"""torch.hub entry points, any `wsl_<timm name>`: `torch.hub.load("OWNER/REPO", "wsl_resnet50", pretrained=True)`."""

import functools as _functools

import timm as _timm

import minmax_entropy as _mme
from minmax_entropy import create_model

dependencies = ["torch", "timm", "safetensors", "huggingface_hub", "numpy", "PIL"]

_KEYWORDS = """
    Args:
        pretrained (bool): load weights of the whole model where there are any for this name, else those of the
            backbone, from the Hugging Face Hub.
        num_classes (int): K, 1000 by default.
        in_chans (int): channels of the images, 3 by default.
        preset (str): "refined" (the best-scoring settings, the default), "paper" (the paper's text), "area" (the same
            with an area penalty), "reference" (the authors' implementation), "cam" (class activation maps).
        kwargs: every other keyword of `create_model`: `task`, `localizer`, `classifier`, `neck`, `erasing_steps`, ...

    Returns:
        A model: `model(images)` with images [B, C, H, W] gives `logits` [B, K] and `mask` [B, 1, H, W] in [0, 1];
        `model(images, target)` gives the `loss` of the whole objective as well.

    Example:
        model = torch.hub.load("OWNER/REPO", "wsl_resnet50", pretrained=True, num_classes=8, preset="refined")
"""


def __dir__() -> list[str]:
    """What `torch.hub` may load: a name that is not here does not exist for it."""
    backbones = {*_mme.list_backbones(), *_timm.list_pretrained()}
    return sorted({"dependencies", "create_model", *_mme.list_models(), *(f"wsl_{name}" for name in backbones)})


def __getattr__(name: str):
    """The factory of a model's name, made when it is asked for."""
    if not _mme.is_model(name):
        raise AttributeError(f"no model {name!r}")
    factory = _functools.partial(create_model, name)
    factory.__doc__ = f"{_mme.model_entrypoint(name).__doc__}\n{_KEYWORDS}"
    return factory
