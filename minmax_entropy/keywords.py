"""Keywords of a model, as trainers expect to find them."""

from __future__ import annotations

import json


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
