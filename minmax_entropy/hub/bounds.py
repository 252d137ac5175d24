"""Bounds for configurations of unknown origin, far beyond any real model."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterator

import timm
import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from minmax_entropy.heads import BUILT_IN

# Anything larger was made to fill the memory of whoever loads it.
MAX_MODULES = 15_000  # modules and parameters; the largest timm model has 4,000
MAX_STATE_BYTES = 2**36  # the largest timm model has 25 GiB
MAX_HIDDEN_BYTES = 2**30  # of buffers that are not saved (indices, masks), beyond twice the weights
MAX_PARTS, MAX_TEXT, MAX_SIZE = 64, 256, 2**14  # of lists, texts and numbers in backbone_kwargs
LIMITS = {"window": 64, "depth|layers|levels|blocks|block_config": 512}  # of numbers, by words in their names


class _OutOfBounds(ValueError):
    pass


def build_without_memory(kind: type[nn.Module], options: dict) -> nn.Module:
    """Build a model on the meta device: its shapes are known before any memory is taken.

    Args:
        kind: class of the model.
        options: keywords of the class.

    Raises:
        ValueError: the model is out of bounds. Any other error comes from building it.
    """
    try:
        with torch.device("meta"), _bounded():
            model = kind(**options)
    except _OutOfBounds:
        raise
    except Exception:
        if not _has_own_parts(options):
            raise
        model = kind(**options)  # not all of a user's own parts can be built there
    saved = model.state_dict()
    size = sum(tensor.nbytes for tensor in saved.values())
    if size > MAX_STATE_BYTES:
        raise ValueError(f"a model of {size / 2**30:.0f} GiB is beyond all bounds")
    if size > _memory():
        raise ValueError(
            f"a model of {size / 2**30:.0f} GiB is more than this machine's memory, {_memory() / 2**30:.0f} GiB"
        )
    hidden = sum(buffer.nbytes for name, buffer in model.named_buffers() if name not in saved)
    if hidden > MAX_HIDDEN_BYTES + 2 * size:
        raise ValueError(f"a model whose tables take {hidden / 2**30:.0f} GiB is beyond all bounds")
    return model


def _has_own_parts(options: dict) -> bool:
    """Return whether the backbone or a head is one that a user registered."""
    heads = [options.get(key) for key in ("localizer", "classifier")]
    names = [head.get("name", "wildcat") if isinstance(head, dict) else head for head in heads]
    own = [name for name in names if isinstance(name, str) and name not in BUILT_IN]
    return bool(own) or not timm.is_model(options["backbone"])


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Stop building a model that has more parts than any real one."""
    count = 0

    def limit(*_) -> None:
        nonlocal count
        count += 1
        if count > MAX_MODULES:
            raise _OutOfBounds(f"a model of more than {MAX_MODULES} modules and parameters is beyond all bounds")

    hooks = register_module_module_registration_hook(limit), register_module_parameter_registration_hook(limit)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _memory() -> float:
    """Return the bytes of memory of this machine, infinity if it is unknown."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return math.inf


def check_size(name: str, value: object) -> None:
    """Refuse values that no backbone has: timm's factories make lists of some of these numbers, however large."""
    parts = list(value.items()) if isinstance(value, dict) else [(name, part) for part in _parts(value)]
    if len(parts) > MAX_PARTS or (isinstance(value, str) and len(value) > MAX_TEXT):
        raise ValueError(f"{name} has {len(parts) or len(value)} parts, which no backbone has")
    for key, part in parts:
        check_size(str(key), part)
    if isinstance(value, (int, float)):
        limit = next((most for words, most in LIMITS.items() if re.search(words, name)), MAX_SIZE)
        if abs(value) > limit:
            raise ValueError(f"{name} is {value:.4g}, a backbone has at most {limit}")


def _parts(value: object) -> list:
    return value if isinstance(value, list) else []
