"""Gated attention head: attention-based deep multiple-instance learning over the positions of a feature map."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minmax_entropy._checks import check_count


class AttentionHead(nn.Module):
    """Gated attention (Ilse et al., "Attention-based Deep Multiple Instance Learning", ICML 2018, eq. 9).

    Positions are the instances, the image is the bag: `a = softmax(w^T (tanh(V f) * sigmoid(U f)))` over the
    positions, `z = sum_p a_p f_p`, and the scores are a linear function of `z`. The map is the attention, the same for
    every class, times the number of positions (so that its mean is 1).

    Args:
        in_features: channels D of the features.
        num_classes: K.
        hidden: size of the attention's hidden layer.
    """

    def __init__(self, in_features: int, num_classes: int, hidden: int = 128) -> None:
        super().__init__()
        hidden = check_count("hidden", hidden)
        self.num_classes = num_classes
        self.value = nn.Conv2d(in_features, hidden, kernel_size=1)
        self.gate = nn.Conv2d(in_features, hidden, kernel_size=1)
        self.attention = nn.Conv2d(hidden, 1, kernel_size=1)
        self.to_scores = nn.Linear(in_features, num_classes)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map `[B, D, h, w]` to scores `[B, K]` and maps `[B, K, h, w]` (a view that repeats one map)."""
        gated = torch.tanh(self.value(features)) * torch.sigmoid(self.gate(features))  # [B, hidden, h, w]
        attention = self.attention(gated).flatten(1).softmax(dim=1)  # [B, h*w]
        pooled = torch.einsum("bp,bdp->bd", attention.to(features.dtype), features.flatten(2))  # [B, D]
        maps = attention.unflatten(1, features.shape[2:]).unsqueeze(1) * attention.shape[1]  # [B, 1, h, w]
        return self.to_scores(pooled), maps.expand(-1, self.num_classes, -1, -1)
