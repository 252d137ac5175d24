"""Progress bars."""

from __future__ import annotations

from collections.abc import Iterable

from huggingface_hub.utils import tqdm


def progress_bar(iterable: Iterable | None, text: str, show: bool = True, total: float | None = None, **kwargs) -> tqdm:
    """Return a `tqdm` bar that disappears when it is done; hidden where `show` is False."""
    return tqdm(iterable, desc=text, total=total, disable=not show, leave=False, dynamic_ncols=True, **kwargs)
