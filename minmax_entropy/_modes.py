"""Temporary evaluation mode."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator

from torch import nn

_lock = threading.Lock()
# Module -> number of its users in evaluation mode, and the previous modes of its parts.
_evaluated: weakref.WeakKeyDictionary[nn.Module, tuple[int, dict[nn.Module, bool]]] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def in_evaluation(module: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode in this block; each part returns to its own mode when the last user is done."""
    with _lock:
        count, modes = _evaluated.get(module, (0, None))
        if modes is None:
            modes = {part: part.training for part in module.modules()}
            module.eval()
        _evaluated[module] = count + 1, modes
    try:
        yield
    finally:
        with _lock:
            count, modes = _evaluated.pop(module)
            if count > 1:
                _evaluated[module] = count - 1, modes
            else:
                for part, mode in modes.items():
                    part.training = mode
