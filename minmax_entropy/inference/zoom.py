"""A closer look at images with small regions."""

from __future__ import annotations

import dataclasses

from minmax_entropy._checks import LARGEST_SCALE, check_number


@dataclasses.dataclass(frozen=True)
class Zoom:
    """Which masks are made from a closer look, too (`evaluation_zoom`). What a map of a position for 16 or 32 pixels
    says of an object of a few percent of the image is too wide; a larger image has more positions for it.

    Args:
        scale: size of the closer look, as a share of the image's own: over 1, up to 4.
        below: mean of a mask, over 0 and up to 1, under which there is a closer look. As masks are soft, their sigma
            and omega count: the default goes with a threshold of 0.5 on the map, where an empty mask has 0.018.
        share: of the mask that the closer look makes, over 0 and up to 1; the rest is the mask as it was.

    Raises:
        ValueError: an argument out of its range.
    """

    scale: float = 2.0
    below: float = 0.135
    share: float = 0.4

    def __post_init__(self) -> None:
        for name, (least, most) in dict(scale=(1, LARGEST_SCALE), below=(0, 1), share=(0, 1)).items():
            value = getattr(self, name)
            check_number(name, value)
            if not least < value <= most:
                raise ValueError(f"{name} must be over {least:g} and at most {most:g}, got {value!r}")
