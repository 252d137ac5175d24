"""Another mode or other settings for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

ONE_LOOK = dict(evaluation_scales=(1.0,), evaluation_zoom=None)  # at images at their own size


@contextlib.contextmanager
def in_evaluation(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; each part then goes back to its own."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@contextlib.contextmanager
def with_settings(module: nn.Module, **settings: object) -> Iterator[None]:
    """Other values of some attributes for a while."""
    before = {name: getattr(module, name) for name in settings}
    try:
        for name, value in settings.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)
