"""Networks that read token numbers (they need torch at import, so they have a file of their own).

Samples are (n, length) whole numbers, held as float32 like all samples: exact below 2^24. Token 0 is
padding, and what a network gives does not depend on how much of it follows a text.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional


class MeanOfTokens(nn.Module):
    """The mean of the tokens' embeddings and a linear layer (fastText: Joulin et al., EACL 2017)."""

    def __init__(self, vocabulary: int, embedding: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.head = nn.Linear(embedding, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.long()
        real = (tokens != 0).float()
        share = real / real.sum(1, keepdim=True).clamp(min=1)  # a text without tokens is all zeros
        return self.head((share.unsqueeze(1) @ self.embedding(tokens)).squeeze(1))


class Convolutions(nn.Module):
    """Convolutions over neighbouring tokens, the largest answer of each filter (Kim, EMNLP 2014; no dropout).

    A window begins at each token of the text; past its end there are zeros.
    """

    def __init__(
        self, vocabulary: int, embedding: int, filters: int, widths: Sequence[int], classes: int
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.names = [f"conv{width}" for width in widths]
        for name, width in zip(self.names, widths):
            self.add_module(name, nn.Conv1d(embedding, filters, width))
        self.widest = max(widths)
        self.head = nn.Linear(filters * len(widths), classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens, length = x.long(), x.shape[1]
        real = (tokens != 0).float().unsqueeze(1)
        embedded = self.embedding(tokens).transpose(1, 2) * real
        padded = functional.pad(embedded, (0, self.widest - 1))
        answers = [self.get_submodule(name)(padded)[:, :, :length] for name in self.names]
        # After ReLU nothing is below 0, so a window that does not count may answer 0.
        return self.head(torch.cat([(torch.relu(answer) * real).amax(2) for answer in answers], 1))
