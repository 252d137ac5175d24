"""Settings of the parts of a model: each is checked whenever it is set, and is saved."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any

from torch import nn


def setting(name: str, check: Callable[[str, Any], Any], label: str | None = None, doc: str | None = None) -> property:
    """Create an attribute of a part that is checked whenever it is set.

    Args:
        name: name of the attribute.
        check: a function of the label and the value that returns the value to keep.
        label: name of the setting in errors; by default the attribute's.
        doc: docstring of the attribute.
    """
    hidden = f"_{name}"

    def get(part: nn.Module) -> Any:
        return getattr(part, hidden)

    def put(part: nn.Module, value: Any) -> None:
        setattr(part, hidden, check(label or name, value))

    get.is_setting = True
    return property(get, put, doc=doc)


def setting_of(part: str, name: str) -> property:
    """Create an attribute of a model that is a setting of one of its parts."""

    def get(model: nn.Module) -> Any:
        return getattr(getattr(model, part), name)

    def put(model: nn.Module, value: Any) -> None:
        setattr(getattr(model, part), name, value)

    return property(get, put)


def options_of(part: nn.Module) -> dict[str, Any]:
    """Return the current settings of a part by name."""
    names = (
        name
        for kind in reversed(type(part).__mro__)
        for name, value in vars(kind).items()
        if isinstance(value, property) and getattr(value.fget, "is_setting", False)
    )
    return {name: getattr(part, name) for name in names}


def from_options(name: str, build: Callable, options: dict) -> Any:
    """Call `build` with a dictionary of options, which is the keyword `name`.

    Raises:
        TypeError: not a dictionary, an unknown option, or an option of a wrong type.
        ValueError: an option out of its range.
    """
    if not isinstance(options, dict):
        raise TypeError(f"{name} must be a dictionary of options or None, got {options!r:.80}")
    try:
        return build(**options)
    except TypeError as error:
        raise TypeError(f"{name}: {error}; its options are {list(inspect.signature(build).parameters)}") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


class Keywords(dict):
    """Dictionary of the keywords that rebuild a model, readable by the callbacks of Hugging Face's `Trainer`.

    The `Trainer` takes any `model.config` for one of its own and notes `use_cache` as an attribute; here that is no
    keyword. Its callbacks log what `to_dict` and `to_json_string` return.
    """

    def to_dict(self) -> dict:
        """Return a plain dictionary, for loggers."""
        return dict(self)

    def to_json_string(self) -> str:
        """Return JSON for loggers, with text in place of modules. To write files, use `save_pretrained`."""
        return json.dumps(self, default=str, indent=2)
