"""Base class of every metric: counts and sums, which can be merged."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import numpy as np

# Means of values in [0, 1] are kept as integer multiples of 2**-40: adding integers does not depend on the order, the
# mean is accurate to 5e-13, and the sum of 8 million images fits an int64.
UNIT = 2**40

State = dict[str, "int | float | np.ndarray"]


def to_units(value: float) -> int:
    """Return a value in [0, 1] as an integer, in units of 2**-40; values that rounding left outside are clipped."""
    return round(min(max(value, 0.0), 1.0) * UNIT)


class MergeableState:
    """Integer sums that are added up image by image, and merged meter by meter.

    Every sum is an integer, so `merge` is associative and commutative to the last bit: however a data set is split, and
    in whichever order the parts are merged, the metrics are the same. The size of the state is fixed. For several
    processes, gather `state_dict()` (plain numbers and NumPy arrays), load each into a new meter, and merge:

        states = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(states, meter.state_dict())
        total = LocalizationMeter()
        for state in states:
            total.merge(LocalizationMeter().load_state_dict(state))

    A subclass names its attributes: `settings`, which must agree; `sums`, `int` or int64 arrays; `parts`, states
    within it, whose entries are named `part.entry`.
    """

    settings: ClassVar[tuple[str, ...]] = ()
    sums: ClassVar[tuple[str, ...]] = ()
    parts: ClassVar[tuple[str, ...]] = ()

    def merge(self, other: MergeableState) -> MergeableState:
        """Add the counts of another meter to this one, and return this one; the other stays unchanged.

        Raises:
            TypeError: the other meter is of another class.
            ValueError: the two have different settings; nothing is added.
        """
        if type(other) is not type(self):
            raise TypeError(f"{type(self).__name__} can't be merged with {type(other).__name__}")
        self._add(other.state_dict())
        return self

    def state_dict(self) -> State:
        """Return settings and sums by name, as plain numbers and copies of the arrays."""
        state: State = {name: copy.copy(getattr(self, name)) for name in (*self.settings, *self.sums)}
        for part in self.parts:
            state |= {f"{part}.{name}": value for name, value in getattr(self, part).state_dict().items()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> MergeableState:
        """Replace all counts so far by a state, and return this meter.

        Args:
            state: from `state_dict()` of a meter with the same settings; arrays may be lists.

        Raises:
            ValueError: an entry is missing or unknown, differs from this meter's setting, is not made of integers of 0
                or more, or has another shape; nothing is loaded.
        """
        loaded = self._checked(state)
        for name in self.sums:
            setattr(self, name, loaded[name])
        for part in self.parts:
            getattr(self, part).load_state_dict(_within(part, loaded))
        return self

    def _add(self, state: dict[str, Any]) -> None:
        state = self._checked(state)
        for name in self.sums:
            setattr(self, name, getattr(self, name) + state[name])
        for part in self.parts:
            getattr(self, part)._add(_within(part, state))

    def _checked(self, state: dict[str, Any]) -> State:
        """Return the state with sums of this meter's types."""
        own = self.state_dict()
        if state.keys() != own.keys():
            differing = ", ".join(sorted(map(str, state.keys() ^ own.keys())))
            raise ValueError(f"this is no state of {type(self).__name__}: missing or unknown are {differing}")
        checked: State = {}
        for name, value in own.items():
            if name.rpartition(".")[2] in self._setting_names():
                if state[name] != value:
                    raise ValueError(f"{name} is {state[name]!r} there and {value!r} here, and must be the same")
                checked[name] = value
                continue
            array = np.asarray(state[name])
            if array.dtype.kind not in "iu" or array.shape != np.shape(value) or (array < 0).any():
                found = f"{state[name]!r:.80}" if array.size < 5 else f"{array.dtype} of shape {array.shape}"
                raise ValueError(f"{name} must be integers of 0 or more of shape {np.shape(value)}, got {found}")
            checked[name] = array.astype(np.int64) if isinstance(value, np.ndarray) else int(array)
        return checked

    def _setting_names(self) -> set[str]:
        return set(self.settings).union(*(getattr(self, part)._setting_names() for part in self.parts))


def _within(part: str, state: State) -> State:
    return {name[len(part) + 1 :]: value for name, value in state.items() if name.startswith(f"{part}.")}
