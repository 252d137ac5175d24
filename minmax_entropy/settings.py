"""Settings of the method's parts: each is checked whenever it is set, and is saved."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any

from torch import nn


def setting(name: str, check: Callable[[str, Any], Any], label: str | None = None, doc: str | None = None) -> property:
    """An attribute of a part that is checked whenever it is set.

    Args:
        name: of the attribute.
        check: takes the label and the value, and gives what is kept.
        label: what errors call it; by default the name.
        doc: of the attribute.
    """
    hidden = f"_{name}"

    def get(part: nn.Module) -> Any:
        return getattr(part, hidden)

    def put(part: nn.Module, value: Any) -> None:
        setattr(part, hidden, check(label or name, value))

    get.is_setting = True
    return property(get, put, doc=doc)


def setting_of(part: str, name: str) -> property:
    """A setting of a part of a model, as an attribute of the model."""

    def get(model: nn.Module) -> Any:
        return getattr(getattr(model, part), name)

    def put(model: nn.Module, value: Any) -> None:
        setattr(getattr(model, part), name, value)

    return property(get, put)


def options_of(part: nn.Module) -> dict[str, Any]:
    """The settings of a part as they are, by name."""
    names = (
        name
        for kind in reversed(type(part).__mro__)
        for name, value in vars(kind).items()
        if isinstance(value, property) and getattr(value.fget, "is_setting", False)
    )
    return {name: getattr(part, name) for name in names}


def from_options(name: str, build: Callable, options: dict) -> Any:
    """What `build` makes of a dictionary that is the keyword `name`.

    Raises:
        TypeError: no dictionary, or an option that it does not have or that has a wrong type.
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
    """Keywords that rebuild a model: a dictionary, which the callbacks of Hugging Face's `Trainer` can read as well.

    The `Trainer` takes any `model.config` for one of its own and notes `use_cache` as an attribute; here that is no
    keyword. Its callbacks log what `to_dict` and `to_json_string` give.
    """

    def to_dict(self) -> dict:
        """A plain dictionary, for loggers."""
        return dict(self)

    def to_json_string(self) -> str:
        """JSON, for loggers; what has no JSON form (a module) stands there as text. `save_pretrained` is for files."""
        return json.dumps(self, default=str, indent=2)
