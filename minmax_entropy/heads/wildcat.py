"""WILDCAT head: class maps with several modalities, pooled at their highest and lowest positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from minmax_entropy._checks import check_number
from minmax_entropy._symbolic import is_symbolic, rounded_share
from minmax_entropy.heads.pooling import ClassMapHead


def pooled_positions(fraction: int | float, positions: int) -> int:
    """Return the number of positions that are pooled.

    Args:
        fraction: a share of the positions (below 1, or the float 1.0), or a count (an int, or a float above 1).
        positions: number of positions on the map.

    Returns:
        `round(fraction * positions)` (half to even) for a share, or the count itself; at least 1, at most all.
    """
    if fraction < 1:
        count = rounded_share(fraction, positions)
    elif isinstance(fraction, float) and fraction == 1.0:
        count = positions
    else:
        count = int(fraction)
    return torch.sym_min(torch.sym_max(count, 1), positions)


def wildcat_pool(
    maps: Tensor,
    kmax: int | float = 0.09,
    kmin: int | float = 0.09,
    alpha: float = 0.0,
    dropout: float = 0.0,
    training: bool = False,
) -> Tensor:
    """Average the highest positions and add `alpha` times the mean of the lowest (Durand et al., CVPR 2017).

    Dropout acts on the pooled values, scaled by `1 / (1 - dropout)`: a random set of values is dropped from the mean.

    Args:
        maps: `[B, K, h, w]`.
        kmax, kmin: share or count of the highest and lowest positions, see `pooled_positions`.
        alpha: weight of the lowest positions; 0 leaves them out.
        dropout: probability in [0, 1), used when `training`.

    Returns:
        Scores `[B, K]`.
    """
    values = maps.flatten(2)
    positions = values.shape[-1]

    def extreme(fraction: int | float, largest: bool) -> Tensor:
        count = pooled_positions(fraction, positions)
        if is_symbolic(count):
            return _mean_of_first(values.sort(dim=-1, descending=largest).values, count)
        pooled = values if count == positions else values.topk(count, dim=-1, largest=largest, sorted=False).values
        return F.dropout(pooled, dropout, training).mean(dim=-1)

    scores = extreme(kmax, largest=True)
    if alpha and kmin > 0:
        scores = scores + alpha * extreme(kmin, largest=False)
    return scores


def _mean_of_first(values: Tensor, count: int) -> Tensor:
    """Average the first `count` of `[..., P]` without a tensor of size `count`, a symbol that may be 1."""
    is_first = torch.arange(values.shape[-1], device=values.device) < count
    return torch.where(is_first, values, 0.0).sum(dim=-1) / count


class WildcatHead(ClassMapHead):
    """WILDCAT head (Durand et al., "WILDCAT: Weakly Supervised Learning of Deep ConvNets", CVPR 2017).

    Args:
        in_features: channels D of the features.
        num_classes: K.
        modalities: M, maps per class.
        kmax, kmin: share (or count) of the highest and lowest positions that are pooled; kmin may be 0.
        alpha: weight of the lowest positions.
        dropout: probability for the pooled activations, in [0, 1) (paper: 0.75 for GlaS, 0.85 otherwise).
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        modalities: int = 5,
        kmax: int | float = 0.09,
        kmin: int | float = 0.09,
        alpha: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(in_features, num_classes, modalities)
        for name, value in (("kmax", kmax), ("kmin", kmin), ("alpha", alpha), ("dropout", dropout)):
            check_number(name, value)
        if kmax <= 0:
            raise ValueError(f"kmax must be over 0 (a share such as 0.09, or a count), got {kmax!r}")
        if kmin < 0:
            raise ValueError(f"kmin must be 0 or more (a share such as 0.09, or a count), got {kmin!r}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout!r}")
        self.kmax, self.kmin, self.alpha, self.dropout = kmax, kmin, float(alpha), float(dropout)

    def pool(self, maps: Tensor) -> Tensor:
        return wildcat_pool(maps, self.kmax, self.kmin, self.alpha, self.dropout, self.training)

    def extra_repr(self) -> str:
        return f"kmax={self.kmax}, kmin={self.kmin}, alpha={self.alpha}, dropout={self.dropout}"
