"""Optional packages, which parts of the library need but its core does not."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import a module of an extra.

    Raises:
        ImportError: it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{purpose} needs {module.partition('.')[0]}, which is not installed or can't be imported ({error}): "
            f'pip install "minmax-entropy[{extra}]"'
        ) from error
