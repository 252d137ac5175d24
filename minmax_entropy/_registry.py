"""Registry of factories by name, used for models, heads and backbones."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable, Sequence


class Registry:
    """Registry of factories by name. `kind` is the word used in error messages ("model", "head", "backbone")."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._factories: dict[str, Callable] = {}

    def register(self, factory: Callable | None = None, *, name: str | None = None) -> Callable:
        """Add `factory` under `name` (its own name by default). Works as `@register` and `@register(name=...)`.

        Raises:
            ValueError: the name is taken by another factory.
        """
        if factory is None:
            return lambda function: self.register(function, name=name)
        key = name or factory.__name__
        known = self._factories.get(key)
        if known is not None and (known.__module__, known.__qualname__) != (factory.__module__, factory.__qualname__):
            raise ValueError(f"{self.kind} {key!r} is already registered by {known.__module__}.{known.__qualname__}")
        self._factories[key] = factory
        return factory

    def __contains__(self, name: object) -> bool:
        return name in self._factories

    def __getitem__(self, name: str) -> Callable:
        if not isinstance(name, str) or name not in self._factories:
            raise unknown_name(self.kind, name, self._factories)
        return self._factories[name]

    def names(self, filter: str | Sequence[str] = "", exclude_filters: str | Sequence[str] = "") -> list[str]:
        """Return sorted names that match any of the shell-style patterns in `filter` and none in `exclude_filters`."""
        return matching(self._factories, filter, exclude_filters)


def matching(
    names: Iterable[str], filter: str | Sequence[str] = "", exclude_filters: str | Sequence[str] = ""
) -> list[str]:
    """Return sorted names that match any of the shell-style patterns in `filter` and none in `exclude_filters`."""
    include, exclude = _patterns(filter), _patterns(exclude_filters)
    included = [name for name in names if not include or _matches(name, include)]
    return sorted(name for name in included if not _matches(name, exclude))


def unknown_name(kind: str, name: object, known: Iterable[str], hint: str = "") -> ValueError:
    """Return a ValueError that names the closest known names."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=5, cutoff=0.5)
    if close:
        suggestion = f"; did you mean {', '.join(close)}?"
    else:
        suggestion = f"; known: {', '.join(known[:20])}{', ...' if len(known) > 20 else ''}"
    return ValueError(f"unknown {kind} {name!r}{suggestion}{hint}")


def _patterns(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) and value else list(value)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
